//! What is packed is what is read, for any options and any number of threads.

use std::path::Path;

use bt_pipeline::Error;
use bt_pipeline::shard::{
    FolderSource, MANIFEST_SUFFIX, Manifest, OnBadImage, OpenOptions, PackOptions, Recode,
    Selection, ShardSet, ShardSource, Source, Tree, index_path, index_shards, open_source, salvage,
    unpack, verify,
};
use proptest::prelude::*;

use super::memory::{Memory, contents, files, image, open, packed};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn samples_survive_packing(
        samples in proptest::collection::vec(("[a-zü/_ -]{0,120}[a-z]", proptest::option::of(0u32..9), 1u32..60, 1u32..60), 1..60),
        zstd in proptest::option::of(1i32..5),
        samples_per_shard in proptest::option::of(1u64..20),
        bytes_per_shard in proptest::option::of(1u64..60_000),
        threads in 1usize..4,
    ) {
        let name = |i: usize, key: &str| format!("{i}{key}");
        let source = Memory {
            samples: samples.iter().enumerate().map(|(i, (k, l, w, h))| (name(i, k), *l, image(*w, *h, i as u8))).collect(),
            ..Memory::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let options = PackOptions { zstd, samples_per_shard, bytes_per_shard, threads, ..PackOptions::default() };
        let done = packed(&source, folder.path(), &options).unwrap();
        let set = open(folder.path());
        prop_assert_eq!(contents(&set), source.samples.clone());
        prop_assert!(set.seekable());
        prop_assert!(set.shards().iter().all(|s| s.samples as u64 <= samples_per_shard.unwrap_or(u64::MAX)));
        let most = bytes_per_shard.unwrap_or(u64::MAX);
        prop_assert!(done.manifest.shards.iter().all(|s| s.samples == 1 || s.bytes <= most));
        for (i, (_, _, width, height)) in samples.iter().enumerate() {
            let meta = set.meta(i).unwrap();
            prop_assert_eq!((meta.width, meta.height), (*width, *height));
        }
        let report = verify(&done.manifest_path.to_string_lossy(), &OpenOptions::default(), true, 1, &mut |_| {}).unwrap();
        prop_assert_eq!((report.damage.len(), report.samples), (0, source.len() as u64));
        // Indexes made from the shards alone are those the packer wrote.
        let before = files(folder.path());
        index_shards(&folder.path().to_string_lossy(), None, &[], &Default::default(), 1, &mut |_| {}).unwrap();
        prop_assert!(before == files(folder.path()));
    }
}

#[test]
fn the_files_are_the_same_for_any_number_of_threads() {
    let source = Memory::some(1500);
    for (zstd, samples_per_shard) in [(None, None), (Some(3), Some(400)), (Some(3), None)] {
        let pack_with = |threads| {
            let folder = tempfile::tempdir().unwrap();
            let selection =
                Selection { shuffle: Some(5), fraction: Some(0.9), ..Selection::default() };
            let bytes_per_shard = if samples_per_shard.is_none() { Some(300_000) } else { None };
            let options = PackOptions {
                zstd,
                samples_per_shard,
                bytes_per_shard,
                threads,
                selection,
                ..PackOptions::default()
            };
            packed(&source, folder.path(), &options).unwrap();
            files(folder.path())
        };
        let one = pack_with(1);
        assert!(one.len() >= 5, "several shards, or the test tests nothing: {}", one.len());
        assert!(one == pack_with(2) && one == pack_with(5));
    }
}

#[test]
fn no_shard_of_several_samples_is_larger_than_asked() {
    let source = Memory::some(1500);
    for (zstd, most) in [(None, 20_000), (Some(1), 2000), (Some(1), 20_000), (Some(1), 150_000)] {
        let folder = tempfile::tempdir().unwrap();
        let options = PackOptions { zstd, bytes_per_shard: Some(most), ..PackOptions::default() };
        let shards = packed(&source, folder.path(), &options).unwrap().manifest.shards;
        let over = shards.iter().find(|shard| shard.samples > 1 && shard.bytes > most);
        assert!(shards.len() > 1 && over.is_none(), "{zstd:?} {most}: {over:?}");
    }
}

#[test]
fn a_shard_is_as_large_as_asked_to_the_byte() {
    let source = Memory::some(1500);
    let sizes = |zstd, bytes_per_shard| {
        let folder = tempfile::tempdir().unwrap();
        let options = PackOptions { zstd, bytes_per_shard, ..PackOptions::default() };
        let shards = packed(&source, folder.path(), &options).unwrap().manifest.shards;
        shards.iter().map(|shard| shard.bytes).collect::<Vec<_>>()
    };
    for zstd in [None, Some(1)] {
        let whole = sizes(zstd, None);
        assert_eq!(sizes(zstd, Some(whole[0])), whole, "{zstd:?}");
        let less = sizes(zstd, Some(whole[0] - 1));
        assert!(less.len() == 2 && less[0] < whole[0], "{zstd:?}: {less:?}, not {whole:?}");
    }
}

#[test]
fn a_set_is_replaced_only_when_asked_and_then_altogether() {
    let folder = tempfile::tempdir().unwrap();
    let many = PackOptions { samples_per_shard: Some(10), ..PackOptions::default() };
    packed(&Memory::some(50), folder.path(), &many).unwrap();
    std::fs::write(
        folder.path().join(".shard-000001.tar.abc.part"),
        b"left by a run that was killed",
    )
    .unwrap();
    std::fs::write(folder.path().join("shard-notes.txt"), b"mine").unwrap();
    let before = files(folder.path()).len();
    assert!(packed(&Memory::some(5), folder.path(), &many).is_err());
    assert!(files(folder.path()).len() >= before - 1);
    packed(&Memory::some(5), folder.path(), &PackOptions { overwrite: true, ..many.clone() })
        .unwrap();
    let names: Vec<_> = files(folder.path()).into_keys().collect();
    assert_eq!(
        names,
        ["shard-000000.tar", "shard-000000.tar.idx", "shard-notes.txt", "shard.manifest.json"]
    );
    // Another prefix is another set.
    packed(&Memory::some(5), folder.path(), &PackOptions { prefix: "shard-b".into(), ..many })
        .unwrap();
    assert_eq!(open(folder.path()).len(), 10);
}

#[test]
fn a_set_is_packed_and_repaired_into_relative_folders() {
    let here = std::env::current_dir().unwrap();
    let own = tempfile::tempdir_in(&here).unwrap();
    let folder = own.path().strip_prefix(&here).unwrap();
    assert!(folder.is_relative());
    let options = PackOptions { overwrite: true, ..PackOptions::default() };
    let (set, repaired) = (folder.join("set"), folder.join("repaired"));
    std::fs::create_dir(&set).unwrap();
    for count in [9, 5] {
        packed(&Memory::some(count), &set, &options).unwrap();
        assert_eq!(open(&set).len(), count as usize);
    }
    let pattern = set.to_string_lossy().into_owned();
    salvage(&pattern, &repaired, &OpenOptions::default(), 2, &mut |_| ()).unwrap();
    assert_eq!(contents(&open(&repaired)), contents(&open(&set)));
    // Labels keep their names.
    let named =
        Memory { classes: ["ant", "bee", "cat"].map(str::to_owned).into(), ..Memory::some(6) };
    packed(&named, &set, &options).unwrap();
    let again = folder.join("again");
    salvage(&pattern, &again, &OpenOptions::default(), 2, &mut |_| ()).unwrap();
    assert_eq!(open(&again).classes(), ["ant", "bee", "cat"]);
}

#[test]
fn a_pack_that_fails_leaves_the_set_that_it_was_to_replace() {
    let folder = tempfile::tempdir().unwrap();
    let options = PackOptions { samples_per_shard: Some(10), ..PackOptions::default() };
    packed(&Memory::some(50), folder.path(), &options).unwrap();
    let before = files(folder.path());
    let again = PackOptions { overwrite: true, threads: 1, ..options };
    // Four shards are written when the bad image comes.
    let mut bad = Memory::some(60);
    bad.samples[45].2 = b"no image".to_vec();
    assert!(packed(&bad, folder.path(), &again).is_err());
    assert!(files(folder.path()) == before, "another source");
    // The same from the set itself, of which an image is damaged.
    let shard = folder.path().join("shard-000004.tar");
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.windows(2).rposition(|two| two == b"P6").unwrap();
    bytes[at] = b'?';
    std::fs::write(&shard, &bytes).unwrap();
    std::fs::remove_file(index_path(&shard)).unwrap();
    let before = files(folder.path());
    let source = || {
        let name = folder.path().to_string_lossy().into_owned();
        ShardSource::open(&name, folder.path(), &OpenOptions::default()).unwrap()
    };
    assert!(packed(&source(), folder.path(), &again).is_err());
    assert!(files(folder.path()) == before, "the set itself");
    // And one that does not fail, in other shards, two at a time.
    let other = PackOptions {
        samples_per_shard: Some(30),
        zstd: Some(1),
        on_bad: OnBadImage::Skip,
        threads: 2,
        ..again
    };
    let done = packed(&source(), folder.path(), &other).unwrap();
    assert_eq!((done.manifest.samples, done.skipped.len()), (49, 1));
    let set = open(folder.path());
    let expected = Memory::some(50).samples;
    assert_eq!(contents(&set), expected[..49]);
    let names: Vec<_> = files(folder.path()).into_keys().collect();
    let shards = ["shard-000000.tar.zst", "shard-000000.tar.zst.idx"];
    let more = ["shard-000001.tar.zst", "shard-000001.tar.zst.idx", "shard.manifest.json"];
    assert_eq!(names, [&shards[..], &more].concat());
}

#[test]
fn the_manifest_counts_names_and_explains() {
    let folder = tempfile::tempdir().unwrap();
    let mut source = Memory::some(9);
    source.samples[0].1 = None;
    source.classes = ["ant", "bee", "cat", "dog"].map(str::to_owned).to_vec();
    let done = packed(&source, folder.path(), &PackOptions::default()).unwrap();
    let manifest = Manifest::read(&done.manifest_path, &Default::default()).unwrap().unwrap();
    assert_eq!(manifest, done.manifest);
    let counts: Vec<_> =
        manifest.classes.iter().map(|class| (class.name.as_str(), class.samples)).collect();
    assert_eq!(counts, [("ant", 2), ("bee", 3), ("cat", 3), ("dog", 0)]);
    assert_eq!((manifest.samples, manifest.unlabelled), (9, 1));
    assert_eq!(manifest.made["source"], "a test");
    let set = open(folder.path());
    assert_eq!((set.classes(), set.num_classes().unwrap()), (&source.classes[..], 4));
    let manifest = folder.path().join(MANIFEST_SUFFIX);
    std::fs::rename(&done.manifest_path, &manifest).unwrap();
    assert_eq!(
        ShardSet::open(&manifest.to_string_lossy(), &OpenOptions::default()).unwrap().len(),
        9
    );
}

#[test]
fn a_large_label_makes_no_large_manifest() {
    let mut source = Memory::some(4);
    source.samples[1].1 = Some((1 << 24) - 1);
    source.samples[2].1 = None;
    let folder = tempfile::tempdir().unwrap();
    let done = packed(&source, folder.path(), &PackOptions::default()).unwrap();
    assert_eq!((done.manifest.num_classes(), done.manifest.unlabelled), (1 << 24, 1));
    let pattern = folder.path().to_string_lossy().into_owned();
    index_shards(&pattern, Some(&done.manifest_path), &[], &Default::default(), 1, &mut |_| {})
        .unwrap();
    assert!(std::fs::metadata(&done.manifest_path).unwrap().len() < 2000);
    let manifest = Manifest::read(&done.manifest_path, &Default::default()).unwrap().unwrap();
    let numbered: Vec<_> =
        manifest.numbered().map(|(n, class)| (n, &*class.name, class.samples)).collect();
    assert_eq!(numbered, [(0, "", 2), ((1 << 24) - 1, "", 1)]);
    let report = verify(&pattern, &OpenOptions::default(), true, 1, &mut |_| {}).unwrap();
    assert_eq!(report.damage, []);
    assert_eq!(open(folder.path()).num_classes().unwrap(), 1 << 24);
}

#[test]
fn shards_are_packed_again_with_their_other_members() {
    let folder = tempfile::tempdir().unwrap();
    let (first, plain, second) =
        (folder.path().join("1"), folder.path().join("2"), folder.path().join("3"));
    let mut source = Memory::some(300);
    source.extras =
        vec![("json".to_owned(), b"{\"a\":1}".to_vec()), ("seg.png".to_owned(), vec![])];
    source.classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    packed(&source, &first, &PackOptions { samples_per_shard: Some(70), ..PackOptions::default() })
        .unwrap();
    // A shard without table or index, as `zstd` makes it.
    std::fs::create_dir(&plain).unwrap();
    for (name, bytes) in files(&first).into_iter().filter(|(name, _)| name.ends_with(".tar")) {
        std::fs::write(plain.join(name + ".zst"), zstd::encode_all(&bytes[..], 1).unwrap())
            .unwrap();
    }
    for from in [&first, &plain] {
        let again =
            ShardSource::open(&from.to_string_lossy(), folder.path(), &OpenOptions::default())
                .unwrap();
        let options =
            PackOptions { samples_per_shard: Some(70), overwrite: true, ..PackOptions::default() };
        packed(&again, &second, &options).unwrap();
        let tars = |folder: &Path| {
            files(folder).into_iter().filter(|(name, _)| name.ends_with(".tar")).collect::<Vec<_>>()
        };
        assert!(tars(&first) == tars(&second), "from {}", from.display());
        assert_eq!(open(&second).classes().len(), if *from == first { 3 } else { 0 });
    }
}

#[test]
fn folders_become_shards_and_folders_again() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards, back) =
        (folder.path().join("t"), folder.path().join("s"), folder.path().join("b"));
    let picture = |value| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_pixel(9, 5, image::Rgb([value; 3]));
        pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let names = [
        "b/2.PNG",
        "a/x.y.png",
        "a/1.png",
        "a/deep/1.png",
        ".hidden/1.png",
        "a/notes.txt",
        "top.png",
    ];
    for (value, name) in names.iter().enumerate() {
        let path = tree.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, picture(value as u8)).unwrap();
    }
    std::fs::create_dir(tree.join("empty")).unwrap();
    let source = FolderSource::open(&tree).unwrap();
    assert_eq!(source.classes(), ["a", "b", "empty"]);
    packed(&source, &shards, &PackOptions::default()).unwrap();
    let expected = [("a/1", 0, 2), ("a/x_y", 0, 1), ("a/deep/1", 0, 3), ("b/2", 1, 0)];
    let expected =
        expected.map(|(key, label, value)| (key.to_owned(), Some(label), picture(value)));
    assert_eq!(contents(&open(&shards)), expected);
    let done = unpack(
        &shards.to_string_lossy(),
        &back,
        Tree::Folders,
        &OpenOptions::default(),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!((done.samples, done.files, done.renamed), (4, 4, 1));
    assert_eq!(
        files(&back.join("a")).into_keys().collect::<Vec<_>>(),
        ["1.png", "shard-000000_1.png", "x_y.png"]
    );
    assert_eq!(std::fs::read(back.join("b/2.png")).unwrap(), picture(0));
    let members = folder.path().join("m");
    unpack(
        &shards.to_string_lossy(),
        &members,
        Tree::Members,
        &OpenOptions::default(),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(std::fs::read(members.join("a/deep/1.cls")).unwrap(), b"0");
    let again = unpack(
        &shards.to_string_lossy(),
        &back,
        Tree::Folders,
        &OpenOptions::default(),
        &mut |_| {},
    );
    assert!(matches!(again, Err(Error::Usage(_))));
}

#[test]
fn of_several_sources_each_has_to_be_shards() {
    let folder = tempfile::tempdir().unwrap();
    let (root, shards) = (folder.path(), folder.path().join("shards"));
    std::fs::create_dir_all(root.join("tree/ant")).unwrap();
    std::fs::write(root.join("tree/ant/1.ppm"), image(3, 3, 1)).unwrap();
    std::fs::write(root.join("list.csv"), "tree/ant/1.ppm,0\n").unwrap();
    std::fs::create_dir(&shards).unwrap();
    packed(&Memory::some(3), &shards, &PackOptions::default()).unwrap();
    let opened = |other: &str| {
        let both = format!("{}::{}", shards.display(), root.join(other).display());
        open_source(&both, root, &Default::default()).map(|source| source.len())
    };
    assert_eq!(opened("shards").unwrap(), 6);
    for other in ["tree", "list.csv"] {
        let error = opened(other).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(
            error.to_string().contains(other) && error.to_string().contains("several"),
            "{error}"
        );
    }
}

#[test]
fn options_that_cannot_be_met_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bad = |change: fn(&mut PackOptions)| {
        let mut options = PackOptions { recode: Recode::KEEP, ..PackOptions::default() };
        change(&mut options);
        let error = packed(&Memory::some(3), folder.path(), &options).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
    };
    bad(|o| o.samples_per_shard = Some(0));
    bad(|o| o.bytes_per_shard = Some(0));
    for prefix in ["a/b", "a\\b", "a\0b", ".a", ""] {
        let options = PackOptions { prefix: prefix.to_owned(), ..PackOptions::default() };
        let error = packed(&Memory::some(3), folder.path(), &options).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{prefix}: {error}");
    }
    bad(|o| o.zstd = Some(99));
    bad(|o| o.selection.fraction = Some(2.0));
    bad(|o| o.selection.limit = Some(0));
    let mut large = Memory::some(3);
    large.samples[1].1 = Some(1 << 24);
    let error = packed(&large, folder.path(), &PackOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)) && error.to_string().contains("d/00001"), "{error}");
}

#[test]
fn a_key_that_grows_beyond_its_header_moves_what_follows_it() {
    for length in 93..98 {
        let mut source = Memory::some(4);
        source.samples[..2].iter_mut().for_each(|sample| sample.0 = "k".repeat(length));
        for zstd in [None, Some(1)] {
            let folder = tempfile::tempdir().unwrap();
            let options = PackOptions { zstd, ..PackOptions::default() };
            packed(&source, folder.path(), &options).unwrap();
            let pattern = folder.path().to_string_lossy();
            let options = OpenOptions::default();
            let report = verify(&pattern, &options, true, 1, &mut |_| {});
            let report = report.unwrap();
            assert_eq!((report.samples, report.damage), (4, vec![]), "{length} {zstd:?}");
        }
    }
}
