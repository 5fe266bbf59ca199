//! What is packed is what the person meant: sources that could be read as less than they hold are
//! refused or told of.

use std::path::Path;

use bt_pipeline::shard::{
    Limits, OnBadImage, OpenOptions, PackOptions, ReadScratch, ShardSet, Source, open_source,
};
use bt_pipeline::{Error, Result};

use super::memory::{Memory, contents, image, open, packed};

fn opened(source: &Path) -> Result<Box<dyn Source>> {
    open_source(&source.to_string_lossy(), &std::env::temp_dir(), &Limits::default())
}

fn refusal(source: &Path) -> String {
    match opened(source).err() {
        Some(Error::Usage(text)) => text,
        other => panic!("{}: {other:?}", source.display()),
    }
}

/// A file with its folders.
fn put(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_source_may_go_to_another_thread() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder.path().join("ant/1.ppm"), &image(3, 3, 1));
    let source = opened(folder.path()).unwrap();
    assert_eq!(std::thread::spawn(move || source.len()).join().unwrap(), 1);
}

#[test]
fn a_folder_of_shards_and_images_is_refused_and_a_glob_tells_which_are_meant() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("set");
    packed(&Memory::some(5), &root, &PackOptions::default()).unwrap();
    // Neither files of other kinds nor hidden ones are images.
    put(&root.join("notes/README"), b"x");
    put(&root.join(".cache/1.ppm"), &image(3, 3, 1));
    assert_eq!(opened(&root).unwrap().len(), 5);
    for name in ["ant/deep/1.ppm", "ant/1.ppm", "1.ppm"] {
        put(&root.join(name), &image(3, 3, 1));
        for source in [root.clone(), folder.path().join("{set,set}")] {
            let text = refusal(&source);
            for part in ["shard-000000.tar", name, "by a glob", "*.tar*'"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
    assert_eq!(opened(&root.join("*.tar*")).unwrap().len(), 5);
    assert_eq!(opened(&root.join("shard-000000.tar")).unwrap().len(), 5);
    std::fs::remove_file(root.join("shard-000000.tar")).unwrap();
    assert_eq!(opened(&root).unwrap().len(), 2);
}

/// Label of each image, names of the classes and what is passed over.
fn listed(root: &Path, text: &str) -> (Vec<Option<u32>>, Vec<String>, Vec<String>) {
    let list = root.join("list.csv");
    std::fs::write(&list, text).unwrap();
    let source = opened(&list).unwrap();
    let labels = (0..source.len()).map(|i| source.label(i).unwrap()).collect();
    (labels, source.classes().to_vec(), source.passed_over())
}

#[test]
fn labels_of_a_list_are_found_whatever_their_column_is_called() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["0.ppm", "1.ppm", "2"] {
        put(&folder.path().join(name), &image(3, 3, 1));
    }
    let names = ["akita", "pug"].map(str::to_owned).to_vec();
    for (heading, notes) in [
        ("filename,labels", 0),
        ("filename,class_id", 0),
        ("filename,variety", 0),
        ("image_id,species", 0),
        // Neither is known, but no image is called like that.
        ("image_id,variety", 1),
    ] {
        let text = format!("{heading}\n0.ppm,pug\n1.ppm,akita\n2,pug\n");
        let (labels, classes, passed_over) = listed(folder.path(), &text);
        assert_eq!(labels, [Some(1), Some(0), Some(1)], "{heading}");
        assert_eq!(classes, names, "{heading}");
        assert_eq!(passed_over.len(), notes, "{heading}: {passed_over:?}");
    }
    let (labels, _, passed_over) = listed(folder.path(), "file,width,height\n0.ppm,4,4\n");
    assert_eq!(labels, [None]);
    assert!(passed_over[0].contains("columns \"width\", \"height\""), "{passed_over:?}");
    let (labels, classes, _) = listed(folder.path(), "0.ppm,10.0\n1.ppm,\n2,2.0\n");
    assert_eq!((labels, classes), (vec![Some(10), None, Some(2)], vec![]));
}

#[cfg(unix)]
#[test]
fn images_of_a_list_are_packed_with_the_labels_of_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (list, out) = (folder.path().join("list.csv"), folder.path().join("out"));
    for (name, seed) in [("a.ppm", 1), ("b.ppm", 2), ("c.ppm", 3)] {
        put(&folder.path().join(name), &image(3, 3, seed));
    }
    put(&list, b"c.ppm,7\na.ppm,\nb.ppm,2\n");
    packed(&*opened(&list).unwrap(), &out, &PackOptions::default()).unwrap();
    let expected = [("c", Some(7), 3), ("a", None, 1), ("b", Some(2), 2)]
        .map(|(key, label, seed)| (key.to_owned(), label, image(3, 3, seed)));
    assert_eq!(contents(&open(&out)), expected);
    for (label, sound) in [(7, true), (6, false)] {
        let limits = Limits { label, ..Limits::default() };
        let source = open_source(&list.to_string_lossy(), folder.path(), &limits);
        let refused = source.err().map(|error| error.to_string());
        assert_eq!(refused.is_none(), sound, "{refused:?}");
        assert!(refused.is_none_or(|text| text.contains("label 7, expected 0 to 6")));
    }
    put(&list, b"path,label\n");
    assert!(refusal(&list).contains("no images found"));
}

#[test]
fn links_that_lead_back_are_followed_once() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    put(&root.join("ant/1.ppm"), &image(3, 3, 1));
    put(&root.join("bee/2.ppm"), &image(3, 3, 2));
    // Each of the two would be followed within each, 64 folders deep.
    symlink(".", root.join("ant/a.ppm")).unwrap();
    symlink("../ant", root.join("ant/b.ppm")).unwrap();
    symlink("..", root.join("bee/up")).unwrap();
    // A class may be another by a second name.
    symlink("bee", root.join("cat")).unwrap();
    let source = opened(root).unwrap();
    let labels: Vec<_> = (0..source.len()).map(|i| source.label(i).unwrap()).collect();
    assert_eq!(labels, [Some(0), Some(1), Some(2)]);
    let notes = source.passed_over();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("behind links: 4") && notes[0].contains("a.ppm"), "{notes:?}");
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (root, fifo) = (folder.path(), folder.path().join("fifo.ppm"));
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    if !made.is_ok_and(|status| status.success()) {
        super::skip::skip("mkfifo", "no mkfifo");
        return;
    }
    put(&root.join("1.ppm"), &image(3, 3, 1));
    std::fs::write(root.join("list.csv"), "1.ppm,0\nfifo.ppm,1\n").unwrap();
    let source = opened(&root.join("list.csv")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = packed(source.as_ref(), out.path(), &PackOptions::default()).unwrap_err();
    assert!(error.to_string().contains("fifo.ppm: a FIFO, not a file; line 2 of"), "{error}");
    let skip = PackOptions { on_bad: OnBadImage::Skip, ..PackOptions::default() };
    let done = packed(source.as_ref(), out.path(), &skip).unwrap();
    assert_eq!((done.manifest.samples, done.skipped.len()), (1, 1));
    assert!(refusal(&fifo).contains("a FIFO, neither a file nor a folder"));
    // A shard that a manifest lists.
    let shard = out.path().join("shard-000000.tar");
    std::fs::remove_file(&shard).unwrap();
    std::fs::rename(&fifo, &shard).unwrap();
    let options = OpenOptions { keep_bad_shards: true, ..OpenOptions::default() };
    let set = ShardSet::open(&out.path().to_string_lossy(), &options).unwrap();
    let error = set.read(0, &mut ReadScratch::new()).unwrap_err();
    assert!(error.to_string().contains("a FIFO, not a file"), "{error}");
    // And an index, where no manifest makes it unneeded.
    let plain = root.join("plain");
    std::fs::remove_file(packed(&Memory::some(3), &plain, &skip).unwrap().manifest_path).unwrap();
    std::fs::rename(&shard, plain.join("shard-000000.tar.idx")).unwrap();
    let error = ShardSet::open(&plain.to_string_lossy(), &options).unwrap_err();
    assert!(error.to_string().contains("idx: a FIFO, not a file"), "{error}");
}
