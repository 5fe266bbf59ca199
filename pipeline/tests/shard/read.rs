//! Shards from elsewhere are read as their makers meant them.

use std::path::{Path, PathBuf};

use super::index::fitting;
use bt_pipeline::Error;
use bt_pipeline::shard::{
    Depth, Limits, Links, OpenOptions, OwnedSample, ReadScratch, ShardSet, index_path,
    index_shards, scan, verify,
};

/// Key, label and bytes of a sample.
type Content = (String, Option<u32>, Vec<u8>);

fn open(pattern: impl AsRef<Path>) -> bt_pipeline::Result<ShardSet> {
    ShardSet::open(&pattern.as_ref().to_string_lossy(), &OpenOptions::default())
}

/// Everything in a set by random access, checked against the stream.
fn contents(set: &ShardSet) -> Vec<Content> {
    let mut streamed = Vec::new();
    let mut sample = OwnedSample::default();
    for shard in 0..set.shards().len() {
        let mut stream = set.stream(shard).unwrap();
        while stream.next_into(&mut sample).unwrap() {
            assert_eq!(sample.sample, streamed.len());
            let meta = set.meta(sample.sample).unwrap();
            assert_eq!(
                (&meta.key, meta.label, meta.offset),
                (&sample.key, sample.label, sample.offset)
            );
            streamed.push((sample.key.clone(), sample.label, sample.image.clone()));
        }
    }
    assert_eq!(streamed.len(), set.len());
    if set.seekable() {
        let mut scratch = ReadScratch::new();
        for number in (0..set.len()).rev() {
            set.advise(number);
            let read = set.read(number, &mut scratch).unwrap();
            assert_eq!((read.key.to_owned(), read.label, read.image.to_vec()), streamed[number]);
        }
    }
    streamed
}

/// A tar in GNU format (long names as `L` members), with members as given.
fn gnu_tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn expect(key: &str, label: Option<u32>, image: &[u8]) -> Content {
    (key.to_owned(), label, image.to_vec())
}

#[test]
fn gnu_long_names_and_members_without_a_sample_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let long = "folder/".repeat(40) + "name";
    let long_image = format!("{long}.JPG");
    let path = write(
        folder.path(),
        "a.tar",
        &gnu_tar(&[
            ("__meta__", b"ignored"),
            ("README", b"ignored too"),
            (&long_image, b"one"),
            (&format!("{long}.cls"), b"7\n"),
            ("b.json", b"{}"),
            ("b.png", b"two"),
            ("c.txt", b"a sample without an image"),
            ("d.seg.png", b"mask"),
            ("d.png", b"three"),
            ("d.cls", b"-1"),
        ]),
    );
    let set = open(&path).unwrap();
    let expected =
        [expect(&long, Some(7), b"one"), expect("b", None, b"two"), expect("d", None, b"three")];
    assert_eq!(contents(&set), expected);
    assert_eq!(set.num_classes().unwrap(), 8);
    assert!(set.classes().is_empty());
}

#[test]
fn links_in_place_of_members_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, target: Option<&str>, kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        match target {
            Some(target) => builder.append_link(&mut header, name, target).unwrap(),
            None => {
                header.set_size(1);
                builder.append_data(&mut header, name, &b"3"[..]).unwrap();
            }
        }
    };
    use tar::EntryType::{Link, Regular, Symlink};
    let long = format!("{}/c.jpg", "folder".repeat(30));
    add("a.jpg", None, Regular);
    add("a.cls", None, Regular);
    add("b.jpg", None, Regular);
    // As `ln a.cls b.cls` before `tar`; the other two are no members of samples.
    add("b.cls", Some("a.cls"), Link);
    add("README", Some("a.cls"), Link);
    add(".hidden", Some("a.cls"), Symlink);
    add(&long, Some("a.jpg"), Symlink);
    let path = write(folder.path(), "a.tar", &builder.into_inner().unwrap());
    let (pattern, limits) = (path.to_string_lossy(), Limits::default());
    let links = Links { count: 2, first: Some("b.cls".to_owned()) };
    for depth in [Depth::Headers, Depth::Full] {
        assert_eq!(scan(&path, depth, &limits).unwrap().links, links);
    }
    let indexed = index_shards(&pattern, None, &[], &limits, 1, &mut |_| {}).unwrap();
    assert_eq!(indexed[0].links, links);
    let report = verify(&pattern, &OpenOptions::default(), false, 1, &mut |_| {}).unwrap();
    assert_eq!(report.links, links);
    let text = "2 links in place of files (\"b.cls\"), not followed";
    assert_eq!(report.links.to_string(), text);
}

#[test]
fn pax_headers_give_path_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let name = format!("{}x.jpg", "ä/".repeat(90));
    // The header itself claims another name and no size at all.
    builder.append_pax_extensions([("path", name.as_bytes()), ("size", b"5")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("other.jpg").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(header.as_bytes());
    bytes.extend(b"image");
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    let set = open(write(folder.path(), "a.tar", &bytes)).unwrap();
    assert_eq!(contents(&set), [expect(name.strip_suffix(".jpg").unwrap(), None, b"image")]);
}

#[test]
fn what_precedes_a_sample_and_is_no_file_is_no_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    // No data follow the header of a folder, whatever size it is said to have.
    builder.append_pax_extensions([("size", &b"700"[..])]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    builder.append_data(&mut header, "a.jpg/", &b""[..]).unwrap();
    header.set_entry_type(tar::EntryType::Fifo);
    builder.append_data(&mut header, "b.jpg", &b""[..]).unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(5);
    builder.append_data(&mut header, "c.jpg", &b"image"[..]).unwrap();
    let path = write(folder.path(), "a.tar", &builder.into_inner().unwrap());
    let scanned = scan(&path, Depth::Headers, &Limits::default()).unwrap();
    assert_eq!((scanned.index.len(), scanned.links.count), (1, 0));
    let entry = scanned.index.entry(0);
    assert_eq!((entry.start, entry.offset, entry.span), (2048, 2560, 1024));
    assert_eq!(contents(&open(&path).unwrap()), [expect("c", None, b"image")]);
}

#[test]
fn zstd_files_without_a_table_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let image = vec![b'i'; 5000];
    let bytes = gnu_tar(&[("a.jpg", &image), ("a.cls", b"3"), ("b.jpg", b"second")]);
    let whole = zstd::encode_all(&bytes[..], 3).unwrap();
    // Several frames, cut anywhere, and a skippable frame between them.
    let (left, right) = bytes.split_at(2777);
    let mut several = zstd::encode_all(left, 1).unwrap();
    several.extend(b"\x50\x2A\x4D\x18\x03\0\0\0abc");
    several.extend(zstd::encode_all(right, 9).unwrap());
    for (name, bytes) in [("whole.tar.zst", whole), ("several.tar.zst", several)] {
        let set = open(write(folder.path(), name, &bytes)).unwrap();
        assert!(!set.seekable());
        assert_eq!(contents(&set), [expect("a", Some(3), &image), expect("b", None, b"second")]);
        let refused = set.read(0, &mut ReadScratch::new()).unwrap_err();
        assert!(matches!(refused, Error::Usage(_)), "{refused}");
    }
    // One of them in a set keeps all of it from being read in any order.
    write(folder.path(), "plain.tar", &bytes);
    assert!(!open(folder.path()).unwrap().seekable());
}

#[test]
fn headers_of_gnu_tar_and_of_old_ones_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let member = |name: &str, kind: u8, size: u64, change: fn(&mut tar::Header)| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_cksum();
        change(&mut header);
        header.as_bytes().to_vec()
    };
    let data = |text: &[u8]| [text, &vec![0; 512 - text.len()]].concat();
    let bytes = [
        // Times, where ustar has more of the name.
        member("a.jpg", b'0', 3, |header| {
            header.as_gnu_mut().unwrap().set_atime(1_700_000_000);
            header.set_cksum();
        }),
        data(b"one"),
        // A hard link with the size of what it leads to, and no data.
        member("x.jpg", b'1', 700, |_| ()),
        // The checksum as the sum of signed bytes: `ä` has two above 127.
        member("ä.jpg", b'0', 3, |header| {
            let signed = header.cksum().unwrap() - 2 * 256;
            header.as_old_mut().cksum.copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        }),
        data(b"two"),
        vec![0; 1024],
    ];
    let path = write(folder.path(), "a.tar", &bytes.concat());
    let expected = [expect("a", None, b"one"), expect("ä", None, b"two")];
    assert_eq!(contents(&open(&path).unwrap()), expected);
}

/// Frames of zstd and a table of the sizes that are given for them.
fn seekable(frames: &[Vec<u8>], sizes: &[usize]) -> Vec<u8> {
    let mut bytes = frames.concat();
    let rows = frames.iter().zip(sizes).flat_map(|(frame, &size)| [frame.len(), size]);
    let words = [0x184D_2A5E, 8 * frames.len() + 9].into_iter().chain(rows).chain([frames.len()]);
    bytes.extend(words.flat_map(|word| (word as u32).to_le_bytes()));
    bytes.push(0);
    bytes.extend(0x8F92_EAB1_u32.to_le_bytes());
    bytes
}

#[test]
fn frames_that_are_cut_anywhere_are_read_at_random() {
    let folder = tempfile::tempdir().unwrap();
    let image: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 7) as u8).collect();
    let tar =
        gnu_tar(&[("a.jpg", &image), ("a.cls", b"3"), ("b.jpg", &image[9..]), ("c.jpg", b"c")]);
    // A skippable frame comes first, which has no bytes.
    let mut frames = vec![b"\x50\x2A\x4D\x18\x03\0\0\0abc".to_vec()];
    frames.extend(tar.chunks(700).map(|part| zstd::bulk::compress(part, 1).unwrap()));
    let sizes: Vec<_> = [0].into_iter().chain(tar.chunks(700).map(<[u8]>::len)).collect();
    let set = open(write(folder.path(), "a.tar.zst", &seekable(&frames, &sizes))).unwrap();
    assert!(set.seekable());
    let expected =
        [expect("a", Some(3), &image), expect("b", None, &image[9..]), expect("c", None, b"c")];
    assert_eq!(contents(&set), expected);
    // In every order: what is there from the read before may be a part of it.
    let mut scratch = ReadScratch::new();
    for number in [0, 1, 0, 2, 1, 1, 2, 0] {
        assert_eq!(set.read(number, &mut scratch).unwrap().image, expected[number].2);
    }
}

#[test]
fn a_frame_that_cannot_be_read_is_not_taken_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (vec![b'1'; 700], super::memory::image(15, 15, 2));
    let tar = gnu_tar(&[("a.jpg", &one), ("b.jpg", &two)]);
    let parts = [&tar[..1536], &tar[1536..]];
    let frames = parts.map(|part| zstd::bulk::compress(part, 1).unwrap());
    let path = write(folder.path(), "a.tar.zst", &seekable(&frames, &parts.map(<[u8]>::len)));
    let index = scan(&path, Depth::Full, &Limits::default()).unwrap().bytes;
    std::fs::write(index_path(&path), &index).unwrap();
    // Other contents of the second frame, then fewer bytes than the table says, of the same length.
    let fewer = zstd::bulk::compress(&parts[1][..700], 1).unwrap();
    let skipped = frames[1].len() - fewer.len() - 8;
    let padding = [&b"\x50\x2A\x4D\x18"[..], &(skipped as u32).to_le_bytes()].concat();
    for torn in [vec![0; frames[1].len()], [fewer, padding, vec![0; skipped]].concat()] {
        let bytes = seekable(&[frames[0].clone(), torn], &parts.map(<[u8]>::len));
        write(folder.path(), "a.tar.zst", &bytes);
        std::fs::write(index_path(&path), fitting(&index, &bytes)).unwrap();
        let set = open(&path).unwrap();
        let mut scratch = ReadScratch::new();
        for _ in 0..2 {
            assert_eq!(set.read(0, &mut scratch).unwrap().image, one);
            assert!(set.read(1, &mut scratch).is_err());
        }
    }
}

#[test]
fn an_index_answers_for_its_shard_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.tar", &gnu_tar(&[("a.jpg", b"image"), ("a.cls", b"3")]));
    let scanned = scan(&path, Depth::Full, &Limits::default()).unwrap();
    std::fs::write(index_path(&path), &scanned.bytes).unwrap();
    let set = open(&path).unwrap();
    assert_eq!(contents(&set), [expect("a", Some(3), b"image")]);
    assert_ne!(set.meta(0).unwrap().checksum, 0);
    let meta = set.meta(0).unwrap();

    for other in [
        gnu_tar(&[("a.jpg", b"other"), ("a.cls", b"3")]),
        gnu_tar(&[("a.jpg", b"image"), ("a.cls", b"3"), ("b.jpg", b"more")]),
    ] {
        std::fs::write(&path, &other).unwrap();
        let error = open(&path).and_then(|set| set.meta(0)).unwrap_err().to_string();
        assert!(error.contains("made for a shard"), "{error}");
        let without = OpenOptions { use_index: false, ..OpenOptions::default() };
        ShardSet::open(&path.to_string_lossy(), &without).unwrap();
    }
    std::fs::write(&path, gnu_tar(&[("a.jpg", b"image"), ("a.cls", b"3")])).unwrap();
    for at in 0..scanned.bytes.len() {
        let mut bytes = scanned.bytes.clone();
        bytes[at] ^= 0x10;
        std::fs::write(index_path(&path), &bytes).unwrap();
        let Ok((set, read)) = open(&path).and_then(|set| set.meta(0).map(|meta| (set, meta)))
        else {
            continue;
        };
        // Only padding between sections may change unnoticed, and it changes nothing.
        assert!(scanned.bytes[at] == 0, "byte {at}: {read:?}");
        assert_eq!(read, meta, "byte {at}");
        assert_eq!(contents(&set), [expect("a", Some(3), b"image")], "byte {at}");
    }
}

#[test]
fn patterns_name_folders_globs_lists_and_unions() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("two words");
    std::fs::create_dir(&root).unwrap();
    for name in ["t-0.tar", "t-1.tar", "v-0.tar"] {
        write(&root, name, &gnu_tar(&[(&format!("{name}x.jpg"), b"i")]));
    }
    write(&root, "notes.txt", b"no shard");
    let names = |pattern: &str| -> Vec<String> {
        let set = ShardSet::open(pattern, &OpenOptions::default()).unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        set.shards().iter().map(|shard| name(&shard.path)).collect()
    };
    let at = |name: &str| root.join(name).to_string_lossy().into_owned();
    let all = ["t-0.tar", "t-1.tar", "v-0.tar"];
    assert_eq!(names(&at("")), all);
    assert_eq!(names(&at("*")), all);
    assert_eq!(names(&at("t-{0..1}.tar")), all[..2]);
    assert_eq!(names(&at("{v,t}-0.tar")), ["v-0.tar", "t-0.tar"]);
    assert_eq!(names(&format!("{}::{}", at("v-*.tar"), at("t-0.tar"))), ["v-0.tar", "t-0.tar"]);
    let deep = root.join("deep");
    std::fs::create_dir(&deep).unwrap();
    write(&deep, "u-0.tar", &gnu_tar(&[("ux.jpg", b"i")]));
    assert_eq!(names(&at("{deep,}")), ["u-0.tar", all[0], all[1], all[2]]);
    // A name with a space is told apart from two by what it matches.
    let alone = write(folder.path(), "y-0.tar", &gnu_tar(&[("yx.jpg", b"i")]));
    let beside =
        |name: &str| format!("{}::{}", alone.display(), folder.path().join(name).display());
    assert_eq!(names(&beside("y-*.tar")), ["y-0.tar", "y-0.tar"]);
    for nothing in [
        at("x-*.tar"),
        at("t-{0..2}.tar"),
        at("absent"),
        String::new(),
        beside("x-*.tar"),
        beside("absent"),
    ] {
        assert!(ShardSet::open(&nothing, &OpenOptions::default()).is_err(), "{nothing}");
    }
}

#[test]
fn the_real_cifar_shards_read_well() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/cifar10");
    if !data.is_dir() {
        super::skip::skip("data", &format!("{} is missing", data.display()));
        return;
    }
    let set = open(data.join("cifar10-test-{000000..000001}.tar.zst")).unwrap();
    assert_eq!((set.len(), set.num_classes().unwrap(), set.seekable()), (10_000, 10, false));
    let mut stream = set.stream(1).unwrap();
    let mut sample = OwnedSample::default();
    assert!(stream.next_into(&mut sample).unwrap());
    assert_eq!((sample.sample, sample.key.as_str()), (5000, "005000"));
}
