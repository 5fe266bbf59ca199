//! Manifests of shards from elsewhere: made where they are found again, and none against another.

use std::path::{Path, PathBuf};

use bt_pipeline::shard::{
    Limits, Manifest, OpenOptions, PackOptions, ShardSet, index_path, index_shards,
};
use bt_pipeline::{Error, Result};

use super::memory::{Memory, files, packed};

/// Two shards of three classes without names, and no manifest.
fn shards(folder: &Path) {
    let options = PackOptions { samples_per_shard: Some(5), ..PackOptions::default() };
    let done = packed(&Memory::some(10), folder, &options).unwrap();
    std::fs::remove_file(done.manifest_path).unwrap();
}

fn index(pattern: &Path, manifest: &Path, classes: &[&str]) -> Result<()> {
    let classes: Vec<String> = classes.iter().map(|&name| name.to_owned()).collect();
    let pattern = pattern.to_string_lossy();
    index_shards(&pattern, Some(manifest), &classes, &Default::default(), 1, &mut |_| {}).map(drop)
}

fn opened(pattern: &str) -> Result<ShardSet> {
    ShardSet::open(pattern, &OpenOptions::default())
}

fn usage(result: Result<impl std::fmt::Debug>) -> String {
    match result {
        Err(Error::Usage(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_manifest_lies_with_its_shards_however_the_folder_is_written() {
    let here = std::env::current_dir().unwrap();
    let own = tempfile::tempdir_in(&here).unwrap();
    let relative = own.path().strip_prefix(&here).unwrap();
    shards(own.path());
    std::fs::create_dir(own.path().join("other")).unwrap();
    let names = ["ant", "bee", "cat"];
    let folders: [PathBuf; 3] =
        [own.path().into(), Path::new(".").join(relative), relative.join("other/..")];
    for folder in &folders {
        let manifest = folder.join("x.manifest.json");
        index(relative, &manifest, &names).unwrap();
        assert_eq!(opened(&relative.to_string_lossy()).unwrap().classes(), names);
        std::fs::remove_file(manifest).unwrap();
    }
    // Of all shards, and of one alone.
    for shards in [relative.to_owned(), relative.join("shard-000000.tar")] {
        let text = usage(index(&shards, &own.path().join("other/manifest.json"), &names));
        assert!(text.contains("same folder"), "{text}");
    }
}

#[test]
fn a_manifest_that_no_folder_is_found_to_have_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path());
    let before = files(folder.path());
    for name in ["xmanifest.json", ".x.manifest.json", "x.json"] {
        let text = usage(index(folder.path(), &folder.path().join(name), &[]));
        assert!(text.contains("PREFIX.manifest.json"), "{text}");
    }
    let text = usage(index(folder.path(), &folder.path().join("manifest.json"), &["ant", "bee"]));
    assert!(text.contains("2 names of classes, but labels up to 2"), "{text}");
    assert!(before == files(folder.path()));
    index(folder.path(), &folder.path().join("manifest.json"), &["ant", "bee", "cat", "dog"])
        .unwrap();
    assert_eq!(opened(&folder.path().to_string_lossy()).unwrap().classes().len(), 4);
}

#[cfg(target_os = "linux")]
#[test]
fn a_shard_whose_name_a_manifest_cannot_hold_is_refused_before_the_work() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path());
    let name = folder.path().join(std::ffi::OsStr::from_bytes(b"a\xFF.tar"));
    std::fs::rename(folder.path().join("shard-000000.tar"), &name).unwrap();
    let text = usage(index(folder.path(), &folder.path().join("manifest.json"), &[]));
    assert!(text.contains("UTF-8") && text.contains("rename it"), "{text}");
    let indexed = index_path(&name);
    assert!(!folder.path().join("manifest.json").exists() && !indexed.exists());
    let pattern = folder.path().to_string_lossy();
    index_shards(&pattern, None, &[], &Default::default(), 1, &mut |_| {}).unwrap();
    assert!(indexed.exists());
}

#[test]
fn a_manifest_that_is_made_anew_keeps_the_names_and_how_the_shards_were_packed() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path());
    let path = folder.path().join("shard.manifest.json");
    let read = || Manifest::read(&path, &Limits::default()).unwrap().unwrap();
    let names = |manifest: &Manifest| manifest.class_names();
    index(folder.path(), &path, &["ant", "bee", "cat"]).unwrap();
    let first = read();
    for _ in 0..2 {
        index(folder.path(), &path, &[]).unwrap();
        let again = read();
        assert_eq!(names(&again), ["ant", "bee", "cat"]);
        assert_eq!(again.made["packed"], first.made);
    }
    index(folder.path(), &path, &["x", "y", "z"]).unwrap();
    assert_eq!(names(&read()), ["x", "y", "z"]);
    // One that cannot be read is what is to be mended, one of another kind is somebody's.
    std::fs::write(&path, "{\"format\": \"bt-st").unwrap();
    index(folder.path(), &path, &[]).unwrap();
    assert_eq!(names(&read()), [""; 0]);
    std::fs::write(&path, "{\"scripts\": []}").unwrap();
    let text = usage(index(folder.path(), &path, &[]));
    assert!(text.contains("no manifest of shards"), "{text}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"scripts\": []}");
}

#[test]
fn a_shard_of_two_manifests_does_not_count_twice() {
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path());
    let path = |name: &str| folder.path().join(name);
    let pattern = folder.path().to_string_lossy();
    index(&path("shard-000001.tar"), &path("b.manifest.json"), &[]).unwrap();
    let refused = usage(index(folder.path(), &path("a.manifest.json"), &[]));
    assert!(refused.contains("b.manifest.json lists shard-000001.tar already"), "{refused}");
    assert!(!path("a.manifest.json").exists());
    // Nothing but `index` looks there.
    std::fs::rename(path("b.manifest.json"), path("b.json")).unwrap();
    index(folder.path(), &path("a.manifest.json"), &[]).unwrap();
    std::fs::rename(path("b.json"), path("b.manifest.json")).unwrap();
    let text = usage(opened(&pattern));
    assert!(text.contains("shard-000001.tar twice"), "{text}");
    // Either by itself is a set, and so are two that share nothing.
    assert_eq!(opened(&path("a.manifest.json").to_string_lossy()).unwrap().len(), 10);
    assert_eq!(opened(&path("*.tar").to_string_lossy()).unwrap().len(), 10);
    index(&path("shard-000000.tar"), &path("a.manifest.json"), &[]).unwrap();
    assert_eq!(opened(&pattern).unwrap().len(), 10);
}

#[cfg(unix)]
#[test]
fn what_is_called_a_shard_or_a_manifest_and_cannot_be_read_is_an_error_of_its_folder() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    shards(folder.path());
    let path = |name: &str| folder.path().join(name);
    let (whole, glob) = (folder.path().to_string_lossy(), path("*.tar"));
    let fifo = |to: &Path| {
        let made = std::process::Command::new("mkfifo").arg(to).status();
        assert!(made.is_ok_and(|made| made.success()), "no mkfifo");
    };
    let nowhere = |to: &Path| symlink("nowhere", to).unwrap();
    let itself = |to: &Path| symlink(to, to).unwrap();
    let kinds: [&dyn Fn(&Path); 3] = [&nowhere, &itself, &fifo];
    for (number, make) in kinds.into_iter().enumerate() {
        for name in ["z.tar", "z.manifest.json"] {
            make(&path(name));
            for pattern in [&*whole, &*glob.to_string_lossy()] {
                let error = opened(pattern).unwrap_err();
                assert!(
                    matches!(&error, Error::Io { path, .. } if path.ends_with(name)),
                    "{error}"
                );
            }
            std::fs::remove_file(path(name)).unwrap();
        }
        assert_eq!(opened(&whole).unwrap().len(), 10, "{number}");
    }
    // A folder is no shard, whatever it is called.
    std::fs::create_dir(path("z.tar")).unwrap();
    symlink("z.tar", path("y.tar")).unwrap();
    assert_eq!(opened(&whole).unwrap().len() + opened(&glob.to_string_lossy()).unwrap().len(), 20);
}

#[test]
fn names_of_classes_are_kept_beside_samples_without_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let names = ["ant", "bee", "cat"].map(str::to_owned);
    let named = Memory { classes: names.to_vec(), ..Memory::some(6) };
    packed(&named, &path("a"), &PackOptions::default()).unwrap();
    let mut unlabelled = Memory::some(4);
    unlabelled.samples.iter_mut().for_each(|sample| sample.1 = None);
    let done = packed(&unlabelled, &path("b"), &PackOptions::default()).unwrap();
    assert_eq!(done.manifest.classes, []);
    let both = format!("{}::{}", path("a").display(), path("b").display());
    assert_eq!(opened(&both).unwrap().classes(), names);
    // Without the manifest nobody knows which labels they have.
    std::fs::remove_file(done.manifest_path).unwrap();
    assert_eq!(opened(&both).unwrap().classes().len(), 0);
}

#[test]
fn shards_that_are_named_one_by_one_are_those_of_the_manifest_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["ant", "bee", "cat"];
    shards(folder.path());
    index(folder.path(), &folder.path().join("manifest.json"), &names).unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let patterns = [at("*.tar"), at("shard-000001.tar"), at("shard-{000001..000001}.tar")];
    for pattern in &patterns {
        assert_eq!(opened(pattern).unwrap().classes(), names, "{pattern}");
    }
    let second = folder.path().join("shard-000001.tar");
    std::fs::remove_file(index_path(&second)).unwrap();
    let bytes = std::fs::read(&second).unwrap();
    std::fs::write(&second, [&bytes[..], &[0; 512]].concat()).unwrap();
    for pattern in &patterns {
        let read = opened(pattern).and_then(|set| set.meta(set.len() - 1));
        assert!(read.is_err(), "{pattern}");
    }
}

#[test]
fn a_folder_of_images_is_told_apart_from_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let pattern = folder.path().to_string_lossy();
    let text = usage(opened(&pattern));
    assert!(text.ends_with("in this folder"), "{text}");
    std::fs::create_dir(folder.path().join("ant")).unwrap();
    std::fs::write(folder.path().join("ant/1.jpg"), "x").unwrap();
    let text = usage(opened(&pattern));
    assert!(text.contains("pack them first with `shard pack`"), "{text}");
}

#[test]
fn a_manifest_over_the_limit_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    packed(&Memory::some(10), folder.path(), &PackOptions::default()).unwrap();
    let manifest = folder.path().join("shard.manifest.json");
    let bytes = std::fs::metadata(&manifest).unwrap().len();
    for pattern in [folder.path(), &manifest] {
        let opened = |index_bytes| {
            let limits = Limits { index_bytes, ..Limits::default() };
            let options = OpenOptions { limits, ..OpenOptions::default() };
            ShardSet::open(&pattern.to_string_lossy(), &options).map(|set| set.len())
        };
        assert_eq!(opened(bytes).unwrap(), 10);
        let error = opened(bytes - 1).unwrap_err().to_string();
        assert!(error.contains("manifest") && error.contains("over the limit"), "{error}");
    }
}
