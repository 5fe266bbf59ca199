//! What is unpacked is packed again with the classes it had, whatever they and the keys are called.

use std::path::Path;

use bt_pipeline::Error;
use bt_pipeline::shard::{
    FolderSource, OnBadImage, OpenOptions, PackOptions, ShardSource, Tree, Unpacked, unpack,
};

use super::damage::plain;
use super::memory::{Memory, files, image, open, packed};

fn unpacked(set: &Path, to: &Path, tree: Tree) -> Unpacked {
    unpack(&set.to_string_lossy(), to, tree, &OpenOptions::default(), &mut |_| {}).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The labels of a set that is packed, unpacked and packed again, with the folders of its classes.
fn again(source: &Memory) -> (Vec<Option<u32>>, Vec<String>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    packed(source, &path("1"), &PackOptions::default()).unwrap();
    unpacked(&path("1"), &path("2"), Tree::Folders);
    let tree = FolderSource::open(&path("2")).unwrap();
    packed(&tree, &path("3"), &PackOptions::default()).unwrap();
    let set = open(&path("3"));
    let mut labels: Vec<_> = (0..set.len()).map(|i| set.meta(i).unwrap()).collect();
    // Folders are read by class.
    labels.sort_by_key(|meta| meta.key.rsplit('/').next().unwrap().to_owned());
    let labels = labels.into_iter().map(|meta| meta.label).collect();
    (labels, names(&path("2")), set.num_classes().unwrap())
}

#[test]
fn classes_keep_their_numbers_whatever_they_are_called() {
    let long = "z".repeat(300);
    for (classes, folders) in [
        (&["ant", "bee", "cat", "dog"][..], &["ant", "bee", "cat", "dog"][..]),
        // Each breaks the order in another way when it becomes a folder.
        (&["dog", "ant"], &["0_dog", "1_ant"]),
        (&["a/z", "a_z"], &["0_a_z", "1_a_z"]),
        (&["a/z", "aB", "a_b"], &["0_a_z", "1_aB", "2_a_b"]),
        (&["A", "a"], &["0_A", "1_a"]),
        (&[".hid", "ant"], &["0_.hid", "1_ant"]),
        (&["ant", "unlabelled"], &["0_ant", "1_unlabelled"]),
        (&["", "ant"], &["0", "1"]),
        // Only numbers, and only one class has samples.
        (&[], &["0", "1", "2"]),
    ] {
        let mut source = Memory::some(9);
        let of = |i: usize| if classes.is_empty() { 2 } else { i % classes.len() };
        // Of four classes the third is empty.
        let of = |i: usize| if classes.len() == 4 && of(i) == 2 { 3 } else { of(i) };
        source.samples.iter_mut().enumerate().for_each(|(i, s)| s.1 = Some(of(i) as u32));
        source.classes = classes.iter().map(|&name| name.to_owned()).collect();
        let expected: Vec<_> = source.samples.iter().map(|sample| sample.1).collect();
        let (labels, made, count) = again(&source);
        assert_eq!(
            (labels, made),
            (expected, folders.iter().map(|&name| name.to_owned()).collect()),
            "{classes:?}"
        );
        assert_eq!(count, folders.len());
    }
    let mut source = Memory::some(3);
    source.classes = vec![format!("{long}1"), format!("{long}2"), "zz".to_owned()];
    let (labels, folders, _) = again(&source);
    assert_eq!(labels, [Some(0), Some(1), Some(2)]);
    assert!(folders.iter().all(|name| name.len() <= 255), "{folders:?}");
}

#[test]
fn samples_of_one_last_name_are_numbered() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Memory::some(6);
    for (i, sample) in source.samples.iter_mut().enumerate() {
        // The fourth has the name that the third would get.
        let name = if i == 3 { "shard-000000_image-2" } else { "image" };
        (sample.0, sample.1) = (format!("d{i}/{name}"), None);
    }
    let set = folder.path().join("set");
    packed(&source, &set, &PackOptions::default()).unwrap();
    let to = folder.path().join("folders");
    assert_eq!(unpacked(&set, &to, Tree::Folders).renamed, 5);
    let mut stems: Vec<String> =
        names(&to).iter().map(|name| name.split('.').next().unwrap().to_owned()).collect();
    stems.sort();
    let second = "shard-000000_image";
    let expected = ["", "-2", "-3", "-4"].map(|number| format!("{second}{number}"));
    let twice = format!("shard-000000_{second}-2");
    assert_eq!(stems, [&["image".to_owned()], &expected[..], &[twice]].concat());
}

#[test]
fn samples_without_a_label_take_no_class_its_number() {
    let mut source = Memory::some(6);
    source.samples[3].1 = None;
    source.classes = ["ant", "bee", "zebra"].map(str::to_owned).to_vec();
    let (labels, folders, _) = again(&source);
    // They are a class of their own then, the last.
    assert_eq!(labels, [0, 1, 2, 3, 1, 2].map(Some));
    assert_eq!(folders, ["0_ant", "1_bee", "2_zebra", "unlabelled"]);
    source.classes[2] = "cat".to_owned();
    assert_eq!(again(&source).1, ["ant", "bee", "cat", "unlabelled"]);
}

#[test]
fn names_that_are_too_long_for_files_are_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let long = "ü".repeat(127) + "x";
    let deep = "d/".repeat(3000);
    let keys = [format!("a/{long}"), format!("a/{long}"), format!("{long}{long}/1"), deep + "2"];
    let mut source =
        Memory { extras: vec![("json".to_owned(), b"{}".to_vec())], ..Memory::some(5) };
    source
        .samples
        .iter_mut()
        .zip(keys)
        .for_each(|(sample, key)| (sample.0, sample.1) = (key, None));
    source.samples[4] = ("e".to_owned(), None, image(2, 2, 1));
    let set = folder.path().join("set");
    packed(&source, &set, &PackOptions::default()).unwrap();
    let to = folder.path().join("folders");
    let done = unpacked(&set, &to, Tree::Folders);
    assert_eq!((done.samples, done.renamed), (5, 2));
    let written = files(&to);
    assert_eq!(written.len(), 5);
    for sample in &source.samples {
        assert!(written.values().any(|bytes| *bytes == sample.2), "{}", sample.0);
    }
    let to = folder.path().join("members");
    let done = unpacked(&set, &to, Tree::Members);
    assert_eq!((done.samples, done.files, done.renamed), (5, 10, 4));
    // The files of one sample go by one name.
    let stems = |folder: &Path| {
        let names = names(folder);
        let mut stems: Vec<_> =
            names.iter().map(|name| name.split('.').next().unwrap().to_owned()).collect();
        stems.dedup();
        (names.len(), stems.len())
    };
    assert_eq!(stems(&to.join("a")), (4, 2));
}

#[test]
fn samples_of_several_shards_are_unpacked_and_those_without_an_image_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    std::fs::create_dir(&set).unwrap();
    let picture = image(2, 2, 1);
    let first = [plain("a.ppm", &picture), plain("b.json", b"{}"), plain("c.ppm", &picture)];
    std::fs::write(set.join("1.tar"), first.concat()).unwrap();
    std::fs::write(set.join("2.tar"), plain("d.ppm", &picture)).unwrap();
    for tree in [Tree::Members, Tree::Folders] {
        let to = folder.path().join(format!("{tree:?}"));
        assert_eq!(unpacked(&set, &to, tree).samples, 3);
        assert_eq!(names(&to), ["a.ppm", "c.ppm", "d.ppm"]);
    }
}

#[test]
fn a_sample_with_two_members_of_one_name_is_not_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("a.tar");
    let members = [plain("a.ppm", &image(2, 2, 1)), plain("a.cls", b"1"), plain("a.cls", b"2")];
    std::fs::write(&set, members.concat()).unwrap();
    for tree in [Tree::Members, Tree::Folders] {
        let to = folder.path().join(format!("{tree:?}"));
        let done = unpack(&set.to_string_lossy(), &to, tree, &OpenOptions::default(), &mut |_| {});
        assert!(done.unwrap_err().to_string().contains("two members `.cls`"));
    }
}

#[test]
fn an_image_that_is_not_what_was_indexed_is_neither_unpacked_nor_packed_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let samples = (0..6).map(|i| (format!("{i}"), Some(0), image(200, 200, i))).collect();
    packed(&Memory { samples, ..Memory::default() }, &path("set"), &PackOptions::default())
        .unwrap();
    let (shard, pattern) = (path("set/shard-000000.tar"), path("set"));
    let meta = open(&pattern).meta(1).unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    // Not where an index looks whether a shard is still its own: at ends, middle and quarters.
    bytes[(meta.offset + meta.length / 4) as usize] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let pattern = pattern.to_string_lossy();
    let options = OpenOptions::default();
    let told = |error: Error| match error {
        Error::Sample { key, cause, .. } => {
            key == meta.key && cause.contains("checksum") && cause.contains("--repair")
        }
        other => panic!("{other}"),
    };
    for tree in [Tree::Members, Tree::Folders] {
        let to = path(&format!("{tree:?}"));
        assert!(told(unpack(&pattern, &to, tree, &options, &mut |_| {}).unwrap_err()));
    }
    let source = ShardSource::open(&pattern, folder.path(), &options).unwrap();
    assert!(told(packed(&source, &path("again"), &PackOptions::default()).unwrap_err()));
    let skip = PackOptions { on_bad: OnBadImage::Skip, ..PackOptions::default() };
    assert_eq!(packed(&source, &path("skipped"), &skip).unwrap().skipped.len(), 1);
}
