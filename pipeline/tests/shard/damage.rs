//! Damaged shards, indexes and manifests: an error that names the file, never a panic.

use std::path::Path;

use bt_pipeline::Result;
use bt_pipeline::shard::{
    Depth, Limits, OpenOptions, OwnedSample, ReadScratch, ShardSet, ShardSource, Tree, index_path,
    index_shards, salvage, scan, unpack, verify,
};

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

fn plain(name: &str, data: &[u8]) -> Vec<u8> {
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
fn read_all(path: &Path, limits: Limits) -> Result<usize> {
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
        on_bad: bt_pipeline::shard::OnBad::Skip,
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

/// What `verify` says of a shard: offsets and causes.
fn verified(path: &Path) -> Vec<(u64, String)> {
    let pattern = path.to_string_lossy();
    let report = verify(&pattern, &OpenOptions::default(), false, 1, &mut |_| {}).unwrap();
    report.damage.into_iter().map(|damage| (damage.offset, damage.cause)).collect()
}

#[test]
fn an_archive_ends_with_two_zero_blocks_or_the_file_and_what_follows_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let samples = |keys: &[&str]| -> Vec<u8> {
        let image = bt_pipeline::shard::raw_header(1, 1);
        let image = [&image[..], b"rgb"].concat();
        keys.iter().flat_map(|key| plain(&format!("{key}.ppm"), &image)).collect()
    };
    let (ab, cd, end) = (samples(&["a", "b"]), samples(&["c", "d"]), vec![0; 1024]);
    let ab_end = ab.len() as u64;
    // Blocks, the samples that are read or none for an error, where bytes are that are not, what
    // verification says.
    type Case<'a> = (&'a [&'a [u8]], Option<usize>, Option<u64>, Option<(u64, &'a str)>);
    let zero = &end[..512];
    let cases: [Case<'_>; 9] = [
        (&[&ab, &end], Some(2), None, None),
        (&[&ab, &end, &end, zero, &end[..100]], Some(2), None, None),
        (&[&ab], Some(2), None, Some((ab_end, "no end-of-archive marker"))),
        (&[&ab, zero], Some(2), None, Some((ab_end + 512, "no end-of-archive marker"))),
        (&[&ab, zero, &zero[..9]], Some(2), None, Some((ab_end + 521, "no end-of-archive"))),
        (&[&ab, zero, &cd, &end], None, None, Some((ab_end, "a lone block of zeros"))),
        (&[&ab, zero, b"x"], None, None, Some((ab_end, "a lone block of zeros"))),
        (&[&ab, &end, &cd, &end], Some(2), Some(ab_end + 1024), Some((ab_end + 1024, "more"))),
        (&[&ab, &end, zero, b"\0x"], Some(2), Some(ab_end + 1537), Some((ab_end + 1537, "more"))),
    ];
    for (number, (blocks, read, trailing, damage)) in cases.into_iter().enumerate() {
        for name in ["a.tar", "a.tar.zst"] {
            let (path, mut bytes) = (folder.path().join(name), blocks.concat());
            if name.ends_with("zst") {
                bytes = zstd::encode_all(&bytes[..], 1).unwrap();
            }
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read_all(&path, Limits::default()).ok(), read, "{number} {name}");
            let found = scan(&path, Depth::Full, &Limits::default()).map(|found| found.trailing);
            assert_eq!(found.ok(), read.map(|_| trailing), "{number} {name}");
            let said = verified(&path);
            assert_eq!(said.len(), usize::from(damage.is_some()), "{number} {name}: {said:?}");
            if let (Some((at, cause)), Some((found, text))) = (damage, said.first()) {
                assert!(*found == at && text.starts_with(cause), "{number} {name}: {said:?}");
            }
            let pattern = path.to_string_lossy();
            let reports = index_shards(&pattern, None, &[], &Limits::default(), 1, &mut |_| {});
            let told = reports.ok().map(|reports| reports[0].trailing);
            assert_eq!(told, read.map(|_| trailing), "{number} {name}");
            let _ = std::fs::remove_file(index_path(&path));
        }
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
fn unpacking_fails_where_a_shard_has_fewer_samples_than_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    // So large that the index still belongs to it: damage between what its fingerprint looks at.
    let image = [&bt_pipeline::shard::raw_header(20, 20)[..], &[7; 1200]].concat();
    let mut tar: Vec<u8> = (0..20).flat_map(|i| plain(&format!("{i:02}.ppm"), &image)).collect();
    tar.extend([0; 1024]);
    std::fs::write(&path, &tar).unwrap();
    let pattern = path.to_string_lossy().into_owned();
    index_shards(&pattern, None, &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let unpacked = |to: &str| {
        let out = folder.path().join(to);
        unpack(&pattern, &out, Tree::Members, &OpenOptions::default(), &mut |_| {})
    };
    assert_eq!(unpacked("whole").unwrap().samples, 20);
    let at = 8 * 2048;
    tar[at..at + 1024].fill(0);
    std::fs::write(&path, &tar).unwrap();
    let error = unpacked("torn").unwrap_err().to_string();
    assert!(error.contains("8 samples, but 20 were expected"), "{error}");
    assert!(error.contains("a.tar") && error.contains("17408"), "{error}");
}

/// Changes the label of sample 0 in an index, and the number of its classes, and mends its checksums.
fn relabelled(index: &[u8], label: u32, classes: u32) -> Vec<u8> {
    let mut index = index.to_vec();
    let entries = u64::from_le_bytes(index[72..80].try_into().unwrap()) as usize;
    let length = u64::from_le_bytes(index[80..88].try_into().unwrap()) as usize;
    index[entries + 40..entries + 44].copy_from_slice(&label.to_le_bytes());
    index[40..44].copy_from_slice(&classes.to_le_bytes());
    let hash = xxhash_rust::xxh3::xxh3_64(&index[entries..entries + length]);
    index[88..96].copy_from_slice(&hash.to_le_bytes());
    let table = 64 + 32 * usize::from(index[12]);
    let hash = xxhash_rust::xxh3::xxh3_64(&[&index[..56], &index[64..table]].concat());
    index[56..64].copy_from_slice(&hash.to_le_bytes());
    index
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
    // Both counts changed: only the index can tell.
    std::fs::write(&manifest, text.replace("\"samples\": 2", "\"samples\": 3")).unwrap();
    assert!(open().unwrap_err().to_string().contains("expected"));
    // JSON of another program in the folder is passed over.
    std::fs::write(&manifest, "{\"name\": \"web app\"}").unwrap();
    assert_eq!(ShardSet::open(&pattern, &OpenOptions::default()).unwrap().len(), 2);
}
