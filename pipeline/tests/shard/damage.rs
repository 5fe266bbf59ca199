//! Damaged shards, indexes and manifests: an error that names the file, never a panic.

use std::path::Path;

use bt_pipeline::Result;
use bt_pipeline::shard::{
    Depth, Limits, OpenOptions, OwnedSample, ReadScratch, ShardSet, ShardSource, Tree, index_path,
    index_shards, salvage, scan, unpack,
};

use super::verify::{changed_entry, changed_index};

/// A header as the `tar` crate writes it, and its data.
fn member(name: &str, data: &[u8], change: impl Fn(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(data.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub fn plain(name: &str, data: &[u8]) -> Vec<u8> {
    member(name, data, |_| {})
}

/// Two samples and the end marker: 6 blocks of a, 4 of b, 2.
fn good() -> Vec<u8> {
    let parts = [
        plain("a.jpg", &[1; 700]),
        plain("a.cls", b"3"),
        plain("b.jpg", b"two"),
        plain("b.cls", b"4"),
    ];
    [&parts.concat()[..], &[0; 1024]].concat()
}

/// Opens the file and reads everything in it, in order and at random.
pub fn read_all(path: &Path, limits: Limits) -> Result<usize> {
    let set = ShardSet::open(
        &path.to_string_lossy(),
        &OpenOptions { limits, verify: true, ..Default::default() },
    )?;
    let mut sample = OwnedSample::default();
    let mut stream = set.stream(0)?;
    while stream.next_into(&mut sample)? {}
    let mut scratch = ReadScratch::new();
    for i in 0..set.len() {
        set.advise(i);
        if set.seekable() {
            set.read(i, &mut scratch)?;
        }
    }
    Ok(set.len())
}

#[test]
fn damaged_tars_give_an_error_that_names_the_shard() {
    let small = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let usual = Limits::default();
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = good();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    let entry =
        |kind: u8| move |header: &mut tar::Header| header.set_entry_type(tar::EntryType::new(kind));
    let huge = |size: u64| move |header: &mut tar::Header| header.set_size(size);
    let octal =
        |text: &'static [u8; 12]| move |header: &mut tar::Header| header.as_old_mut().size = *text;
    let two = [plain("a.jpg", b"1"), plain("a.JPG", b"2")].concat();
    let pax = |record: &[u8]| {
        [member("p", record, entry(b'x')), plain("a.jpg", b"1"), vec![0; 1024]].concat()
    };
    let cases: Vec<(&str, Vec<u8>, Limits, &str)> = vec![
        ("nothing at all", vec![], usual, "empty"),
        ("only the end", vec![0; 1024], usual, "no samples"),
        ("less than a header", good()[..100].to_vec(), usual, "not a tar"),
        ("text", b"hello ".repeat(300), usual, "not a tar"),
        ("gzip", [&[0x1F, 0x8B, 8, 0][..], &[0; 600]].concat(), usual, "gzip"),
        ("cut in data", good()[..900].to_vec(), usual, "cut short"),
        ("cut in a header", good()[..2600].to_vec(), usual, "inside a header"),
        ("checksum", with(1, b"x"), usual, "checksum"),
        ("garbage between members", with(1536, &[7; 512]), usual, "no tar header"),
        (
            "a label that is no number",
            [plain("a.jpg", b"1"), plain("a.cls", b"cat")].concat(),
            usual,
            "expected a class number",
        ),
        (
            "a label that is empty",
            [plain("a.jpg", b"1"), plain("a.cls", b"")].concat(),
            usual,
            "expected a class number",
        ),
        (
            "a label that is negative",
            [plain("a.jpg", b"1"), plain("a.cls", b"-7")].concat(),
            usual,
            "expected a class number",
        ),
        (
            "a label beyond the limit",
            [plain("a.jpg", b"1"), plain("a.cls", b"4000000000")].concat(),
            usual,
            "expected a class number",
        ),
        ("two members of one name", two, usual, "two members"),
        ("2^60 bytes", member("a.jpg", b"1", huge(1 << 60)), usual, "cut short"),
        ("2^64 - 1 bytes", member("a.jpg", b"1", huge(u64::MAX)), usual, "cannot be"),
        ("a negative size", member("a.jpg", b"1", octal(&[0xFF; 12])), usual, "not a number"),
        ("a size of letters", member("a.jpg", b"1", octal(b"00000z000000")), usual, "not a number"),
        (
            "a size beyond 88 bits",
            member("a.jpg", b"1", octal(b"\x81\0\0\0\0\0\0\0\0\0\0\x01")),
            usual,
            "not a number",
        ),
        // Found by fuzzing: the field is shorter than a number of 64 bits.
        ("a checksum in base 256", with(148, &[0x80]), usual, "header"),
        ("sparse", member("a.jpg", b"1", entry(b'S')), usual, "sparse"),
        (
            "a long name of 1 GB",
            member("x", b"1", |h| {
                h.set_entry_type(tar::EntryType::GNULongName);
                h.set_size(1 << 30)
            }),
            usual,
            "limit",
        ),
        ("a pax record without a length", pax(b"path=x\n"), usual, "pax"),
        ("a pax record longer than the header", pax(b"99 path=x\n"), usual, "pax"),
        ("a pax size of letters", pax(b"10 size=x\n"), usual, "pax"),
        ("a pax size of 2^63", pax(b"28 size=9223372036854775808\n"), usual, "cut short"),
        ("a pax size beyond 64 bits", pax(b"29 size=99999999999999999999\n"), usual, "pax"),
        ("a pax sparse member", pax(b"22 GNU.sparse.major=1\n"), usual, "sparse"),
        ("too many members", good(), small(|l| l.members = 3), "limit"),
        ("too many members of a sample", good(), small(|l| l.members_per_sample = 1), "limit"),
        ("a member over the limit", good(), small(|l| l.member_bytes = 699), "limit"),
        ("a sample over the limit", good(), small(|l| l.sample_bytes = 700), "limit"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, bytes, limits, expected) in cases {
        for compressed in [false, true] {
            let path = folder.path().join(if compressed { "case.tar.zst" } else { "case.tar" });
            let stored =
                if compressed { zstd::encode_all(&bytes[..], 1).unwrap() } else { bytes.clone() };
            std::fs::write(&path, stored).unwrap();
            let Err(error) = read_all(&path, limits) else {
                panic!("{what}: read without an error")
            };
            let text = error.to_string();
            assert!(text.contains("case.tar"), "{what}: {text}");
            assert!(text.lines().count() == 1, "{what}: {text}");
            // What is no tar is told apart only where it is not compressed.
            assert!(text.contains(expected) || compressed, "{what}: {text}");
        }
    }
}

#[test]
fn every_truncation_and_any_flipped_byte_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    std::fs::write(&tar, good()).unwrap();
    let shards = folder.path().join("s");
    let source = ShardSource::open(&tar.to_string_lossy(), folder.path(), &OpenOptions::default());
    let options = bt_pipeline::shard::PackOptions {
        zstd: Some(1),
        on_bad: bt_pipeline::shard::OnBadImage::Skip,
        ..Default::default()
    };
    // The images are no images, so that this packs nothing ...
    assert!(
        bt_pipeline::shard::pack(&source.unwrap(), &shards, "x", &options, &mut |_| {}).is_err()
    );
    // ... and the seekable file is made by hand.
    let frames: Vec<_> = [&good()[..3072], &good()[3072..]]
        .map(|part| zstd::bulk::compress(part, 1).unwrap())
        .into();
    let mut seekable = frames.concat();
    seekable.extend(0x184D_2A5Eu32.to_le_bytes());
    seekable.extend(25u32.to_le_bytes());
    for (frame, size) in frames.iter().zip([3072u32, good().len() as u32 - 3072]) {
        seekable.extend((frame.len() as u32).to_le_bytes());
        seekable.extend(size.to_le_bytes());
    }
    seekable.extend([2, 0, 0, 0, 0]);
    seekable.extend(0x8F92_EAB1u32.to_le_bytes());
    for (name, bytes) in [("x.tar", good()), ("x.tar.zst", seekable)] {
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_all(&path, Limits::default()).unwrap(), 2);
        let index = scan(&path, Depth::Full, &Limits::default()).unwrap().bytes;
        for indexed in [false, true] {
            if indexed {
                std::fs::write(index_path(&path), &index).unwrap();
            }
            for at in (0..bytes.len()).step_by(11) {
                if at % 2 == 0 {
                    std::fs::write(&path, &bytes[..at]).unwrap();
                    let _ = read_all(&path, Limits::default());
                }
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x41;
                std::fs::write(&path, &flipped).unwrap();
                let _ = read_all(&path, Limits::default());
            }
        }
        std::fs::remove_file(index_path(&path)).unwrap();
    }
}

#[test]
fn what_is_expanded_on_disk_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.zst");
    let image = [&bt_pipeline::shard::raw_header(1, 1)[..], b"rgb"].concat();
    let members = ["a", "b"].map(|key| plain(&format!("{key}.ppm"), &image)).concat();
    let tar = [&members[..], &[0; 1024]].concat();
    // 100 MB of zeros that take a few KB, behind two samples.
    let bomb = zstd::encode_all(&[&tar[..], &vec![0; 100 << 20]].concat()[..], 1).unwrap();
    std::fs::write(&path, &bomb).unwrap();
    let pattern = path.to_string_lossy().into_owned();
    let options = |shard_bytes| OpenOptions {
        limits: Limits { shard_bytes, ..Limits::default() },
        ..OpenOptions::default()
    };
    let open = |limit| ShardSource::open(&pattern, folder.path(), &options(limit)).map(drop);
    assert!(open(200 << 20).is_ok());
    let text = open(1 << 20).unwrap_err().to_string();
    assert!(text.contains("a.tar.zst") && text.contains("1048576 bytes"), "{text}");
    // A repair saves what is within the limit, and says so.
    let out = folder.path().join("out");
    let saved = salvage(&pattern, &out, &options(1 << 20), 1, &mut |_| {}).unwrap();
    assert_eq!(saved.packed.manifest.samples, 2);
    assert!(saved.lost.iter().any(|lost| lost.cause.contains("1048576 bytes")), "{saved:?}");
}

#[test]
fn missing_padding_behind_the_last_member_is_forgiven_by_all_that_read() {
    let folder = tempfile::tempdir().unwrap();
    let picture = super::memory::image(5, 5, 1);
    let whole = [plain("a.jpg", &picture), plain("a.cls", b"3"), plain("b.jpg", &picture)].concat();
    let padding = picture.len().next_multiple_of(512) - picture.len();
    let bytes = &whole[..whole.len() - padding];
    let (stream, path) =
        (zstd::encode_all(bytes, 1).unwrap(), |name: &str| folder.path().join(name));
    for (name, bytes) in [("a.tar", bytes), ("b.tar.zst", &stream)] {
        std::fs::write(path(name), bytes).unwrap();
        assert_eq!(read_all(&path(name), Limits::default()).unwrap(), 2, "{name}");
        let pattern = path(name).to_string_lossy().into_owned();
        let source = ShardSource::open(&pattern, folder.path(), &OpenOptions::default()).unwrap();
        let to = path(&format!("{name}-packed"));
        let done = super::memory::packed(&source, &to, &Default::default()).unwrap();
        assert_eq!(done.manifest.samples, 2, "{name}");
    }
}

/// Changes the label of sample 0 in an index, and the number of its classes.
fn relabelled(index: &[u8], label: u32, classes: u32) -> Vec<u8> {
    let index = changed_entry(index, 40, &label.to_le_bytes());
    changed_index(&index, 40, &classes.to_le_bytes())
}

#[test]
fn labels_in_an_index_are_within_the_limit_and_its_classes() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("a.tar");
    std::fs::write(&tar, good()).unwrap();
    let index = scan(&tar, Depth::Full, &Limits::default()).unwrap().bytes;
    let pattern = tar.to_string_lossy().into_owned();
    let options = OpenOptions::default();
    // Label, classes, whether the index opens, whether the sample can be read.
    for (label, classes, opens, reads) in [
        (3, 5, true, true),
        (4, 5, true, true),
        (5, 5, true, false),
        (0x3000_0000, 5, true, false),
        ((1 << 24) - 1, 1 << 24, true, true),
        (1 << 24, (1 << 24) + 1, false, false),
        (0x3000_0000, 0x3000_0001, false, false),
        (3, u32::MAX, false, false),
    ] {
        std::fs::write(index_path(&tar), relabelled(&index, label, classes)).unwrap();
        let set = ShardSet::open(&pattern, &options).unwrap();
        let what = format!("label {label}, {classes} classes");
        assert_eq!(set.num_classes().is_ok(), opens, "{what}");
        let read = set.read(0, &mut ReadScratch::new()).map(|sample| sample.label);
        assert_eq!(read.is_ok(), reads, "{what}");
        assert_eq!(set.label(0).is_ok(), reads, "{what}");
        if let Err(error) = read {
            let text = error.to_string();
            assert!(text.contains("a.tar.idx") && text.contains("label"), "{what}: {text}");
        }
        assert_eq!(set.label(1).is_ok(), opens, "{what}");
        // None of this takes memory for classes that are not there.
        let out = folder.path().join("out");
        let unpacked =
            unpack(&pattern, &out, Tree::Folders, &options, &mut |_| {}).map(|done| done.samples);
        assert_eq!(unpacked.ok(), opens.then_some(2), "{what}");
        let _ = std::fs::remove_dir_all(out);
    }
}

#[test]
fn a_manifest_that_contradicts_itself_or_its_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, manifest) = (folder.path().join("a.tar"), folder.path().join("manifest.json"));
    std::fs::write(&tar, good()).unwrap();
    let pattern = tar.to_string_lossy().into_owned();
    index_shards(&pattern, Some(&manifest), &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let text = std::fs::read_to_string(&manifest).unwrap();
    let open = || {
        ShardSet::open(&manifest.to_string_lossy(), &OpenOptions::default())
            .and_then(|set| set.meta(0))
    };
    open().unwrap();
    for (from, to) in [
        ("\"version\": 1", "\"version\": 2"),
        ("\"format\"", "\"Format\""),
        ("\"samples\": 2", "\"samples\": 3"),
        ("\"samples\": 2", "\"samples\": -1"),
        ("\"name\": \"a.tar\"", "\"name\": \"../a.tar\""),
        ("\"name\": \"a.tar\"", "\"name\": \"b.tar\""),
        ("\"bytes\": 5632", "\"bytes\": 5633"),
        ("{", "["),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(&manifest, text.replace(from, to)).unwrap();
        assert!(open().is_err(), "{to}");
    }
    // All counts changed: only the index can tell.
    let more = text.replace("\"samples\": 2", "\"samples\": 3");
    let more = more.replace("\"unlabelled\": 0", "\"unlabelled\": 1");
    std::fs::write(&manifest, more).unwrap();
    assert!(open().unwrap_err().to_string().contains("expected"));
    // JSON of another program in the folder is passed over.
    std::fs::write(&manifest, "{\"name\": \"web app\"}").unwrap();
    assert_eq!(ShardSet::open(&pattern, &OpenOptions::default()).unwrap().len(), 2);
}
