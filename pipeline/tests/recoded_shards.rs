//! `shard pack --recode` end to end: the same views from a re-coded set, and the
//! same pictures back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::shard::{
    FolderSource, Format, OpenOptions, PackOptions, ReadScratch, Recode, Tree, index_shards, pack,
    sniff, unpack, verify,
};
use bt_pipeline::{Image, Loader, LoaderConfig, Position, ShardSet, decode::Decoder};

/// A tree of two classes: JPEGs that can be re-coded, and a PNG.
fn tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    for (class, names) in [
        ("a", &["420_75x49.jpg", "444_75x49.jpg", "gray_40x24.jpg"][..]),
        ("b", &["restart_7.jpg", "noise_q100.jpg", "420_17x33.png", "rgb_ids_31x19.jpg"]),
    ] {
        std::fs::create_dir_all(tree.join(class)).unwrap();
        for name in names {
            std::fs::copy(fixtures.join(name), tree.join(class).join(name)).unwrap();
        }
    }
    tree
}

fn packed(tree: &Path, out: &Path, dct: bool, zstd: Option<i32>) -> Arc<ShardSet> {
    let source = FolderSource::open(tree).unwrap();
    let recode = Recode { dct, ..Recode::KEEP };
    let options = PackOptions { recode, zstd, ..PackOptions::default() };
    pack(&source, out, "tests", &options, &mut |_| {}).unwrap();
    Arc::new(ShardSet::open(out.to_str().unwrap(), &OpenOptions::default()).unwrap())
}

fn formats(set: &ShardSet) -> Vec<Format> {
    (0..set.len()).map(|i| set.meta(i).unwrap().format).collect()
}

#[test]
fn views_from_re_coded_shards_are_those_from_the_jpegs() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let jpegs = packed(&tree, &folder.path().join("jpeg"), false, None);
    for zstd in [None, Some(3)] {
        let out = folder.path().join(format!("dct{zstd:?}"));
        let set = packed(&tree, &out, true, zstd);
        let count = |format| formats(&set).iter().filter(|&&f| f == format).count();
        assert_eq!((count(Format::Dct), count(Format::Png), set.len()), (6, 1, 7));
        for i in 0..set.len() {
            let (a, b) = (set.meta(i).unwrap(), jpegs.meta(i).unwrap());
            assert_eq!((a.key, a.label, a.width, a.height), (b.key, b.label, b.width, b.height));
        }
        let config = |threads| LoaderConfig {
            threads,
            ..LoaderConfig::training(Preset::BarlowImagenet.views(), 3, 9)
        };
        let batches = |set: &Arc<ShardSet>, threads| -> Vec<Vec<u8>> {
            let loader = Loader::new(Arc::clone(set), config(threads)).unwrap();
            let stream = loader.start(Position::default(), 2).unwrap();
            stream.map(|batch| batch.unwrap().as_bytes().to_vec()).collect()
        };
        let expected = batches(&jpegs, 1);
        assert!(expected.len() == 4 && batches(&set, 2) == expected, "{zstd:?}");
    }
}

#[test]
fn unpacked_again_they_are_jpegs_of_the_same_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let out = folder.path().join("dct");
    packed(&tree, &out, true, None);
    let pattern = out.to_string_lossy().into_owned();
    let mut decoder = Decoder::default();
    let mut pixels = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let mut image = Image::default();
        decoder.decode_into(sniff(&bytes), &bytes, &mut image).unwrap();
        image
    };
    for (kind, number) in [(Tree::Folders, 0), (Tree::Members, 1)] {
        let back = folder.path().join(format!("back{number}"));
        unpack(&pattern, &back, kind, &OpenOptions::default(), &mut |_| {}).unwrap();
        for name in ["a/420_75x49.jpg", "a/gray_40x24.jpg", "b/noise_q100.jpg", "b/420_17x33.png"] {
            assert!(pixels(&back.join(name)) == pixels(&tree.join(name)), "{name}, {kind:?}");
        }
    }
}

#[test]
fn a_new_index_is_the_old_one_and_damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let out = folder.path().join("dct");
    let set = packed(&tree, &out, true, None);
    let entries =
        |set: &ShardSet| -> Vec<_> { (0..set.len()).map(|i| set.meta(i).unwrap()).collect() };
    let pattern = out.to_string_lossy().into_owned();
    let tar = out.join("shard-000000.tar");
    let before = format!("{:?}", entries(&set));
    index_shards(tar.to_str().unwrap(), None, &[], &Default::default(), 1, &mut |_| {}).unwrap();
    let again = ShardSet::open(&pattern, &OpenOptions::default()).unwrap();
    assert_eq!(format!("{:?}", entries(&again)), before);
    let damage = || verify(&pattern, &OpenOptions::default(), true, 1, &mut |_| {}).unwrap().damage;
    assert_eq!(damage(), []);
    // A bit of a segment: no header says so.
    let meta = again.meta(0).unwrap();
    let mut scratch = ReadScratch::default();
    let (offset, length) = {
        let sample = again.read(0, &mut scratch).unwrap();
        assert_eq!(sample.format, Format::Dct);
        (sample.offset as usize, sample.image.len())
    };
    drop(again);
    let mut bytes = std::fs::read(&tar).unwrap();
    bytes[offset + length - 100] ^= 4;
    std::fs::write(&tar, bytes).unwrap();
    let found = damage();
    assert!(
        found.iter().any(|d| d.key.as_deref() == Some(&meta.key) && d.cause.contains("checksum")),
        "{found:?}"
    );
}
