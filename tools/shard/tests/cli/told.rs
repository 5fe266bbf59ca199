//! What a person is told of: names, links and folders that may not be what was meant.

use std::path::Path;
use std::process::Command;

use super::{err, ok, out, shard, skip, tree};

#[test]
fn sets_that_name_their_classes_differently_are_merged_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (a, b) = (path("a"), path("b"));
    let tree = tree(folder.path(), 4);
    ok(&["pack", tree.to_str().unwrap(), &a]);
    std::fs::rename(tree.join("dog"), tree.join("eel")).unwrap();
    ok(&["pack", tree.to_str().unwrap(), &b]);
    for (other, named) in [(&a, true), (&b, false)] {
        let merged = shard(&["ls", "--summary", &a, other]);
        let warned = err(&merged);
        assert!(merged.status.success() && out(&merged).contains("dog") == named, "{warned}");
        assert_eq!(warned.lines().count(), usize::from(!named), "{warned}");
        for part in ["class 1 is \"dog\"", "\"eel\"", "a/shard", "b/shard", "by number"] {
            assert_eq!(warned.contains(part), !named, "{warned}");
        }
    }
}

#[cfg(unix)]
#[test]
fn hard_links_in_an_archive_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::rename(tree(root, 2).join("cat/000.png"), root.join("a.png")).unwrap();
    std::fs::copy(root.join("a.png"), root.join("b.png")).unwrap();
    std::fs::write(root.join("a.cls"), "1").unwrap();
    std::fs::hard_link(root.join("a.cls"), root.join("b.cls")).unwrap();
    let members = ["-cf", "l.tar", "a.png", "a.cls", "b.png", "b.cls"];
    let made = Command::new("tar").current_dir(root).args(members).status();
    if !made.is_ok_and(|status| status.success()) {
        skip("tar", "no tar");
        return;
    }
    let shards = root.join("l.tar");
    let shards = shards.to_str().unwrap();
    let told = "1 link in place of files (\"b.cls\"), not followed";
    assert!(err(&shard(&["ls", shards])).contains(told));
    assert!(ok(&["verify", shards]).contains(told));
    assert!(ok(&["index", shards]).contains(told));
}

#[test]
fn class_names_that_nobody_can_use_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, a, b) = (tree(folder.path(), 4), path("a"), path("b"));
    let tree = tree.to_str().unwrap();
    ok(&["pack", tree, &a]);
    ok(&["pack", tree, &b]);
    std::fs::remove_file(path("b/shard.manifest.json")).unwrap();
    let merged = shard(&["ls", "--summary", &a, &b]);
    let warned = err(&merged);
    assert!(merged.status.success() && warned.lines().count() == 1, "{warned}");
    assert!(warned.contains("a/shard.manifest.json and none in"), "{warned}");
    std::fs::write(path("names"), "\n").unwrap();
    let (names, manifest) = (path("names"), path("b/x.manifest.json"));
    let refused = shard(&["index", &b, "--manifest", &manifest, "--classes", &names]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("no names of classes"), "{}", err(&refused));
}

#[test]
fn what_a_source_holds_beside_what_is_read_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, to) = (tree(folder.path(), 4), path("out"));
    std::fs::write(tree.join("cat.tar"), "").unwrap();
    let refused = shard(&["pack", tree.to_str().unwrap(), &to]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("cat.tar) and images ("), "{}", err(&refused));
    let rows = "tree/cat/000.png,cat\ntree/dog/001.png,dog\nabsent.png,eel\n";
    std::fs::write(path("list.csv"), format!("photo,variety\n{rows}")).unwrap();
    let packed = shard(&["pack", &path("list.csv"), &to, "--skip-bad"]);
    assert!(err(&packed).contains("line 1 as a heading"), "{}", err(&packed));
    let expected = "2 samples of 3 classes (1 of them without a sample) in 1 shard";
    assert!(out(&packed).starts_with(expected), "{}", out(&packed));
}

#[test]
fn names_from_archives_never_reach_a_terminal_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, shards) = (tree(folder.path(), 2), path("shards"));
    std::fs::rename(tree.join("dog/001.png"), tree.join("dog/\u{1b}[31m1.png")).unwrap();
    ok(&["pack", tree.to_str().unwrap(), &shards]);
    // The last label becomes no number.
    let tar = Path::new(&shards).join("shard-000000.tar");
    let mut bytes = std::fs::read(&tar).unwrap();
    let at = bytes.windows(5).rposition(|name| name == b".cls\0").unwrap();
    bytes[at.next_multiple_of(512)] = b'\x1b';
    std::fs::write(&tar, bytes).unwrap();
    for name in ["shard.manifest.json", "shard-000000.tar.idx"] {
        std::fs::remove_file(Path::new(&shards).join(name)).unwrap();
    }
    let (to, other) = (path("to"), path("other"));
    for args in [
        &["verify", &shards][..],
        &["index", &shards],
        &["unpack", &shards, &to],
        &["pack", &shards, &other],
        &["pack", &shards, &other, "--skip-bad"],
    ] {
        let output = shard(args);
        let text = out(&output) + &err(&output);
        assert!(
            text.contains(r"dog/\u{1b}[31m1") && !text.contains('\u{1b}'),
            "{args:?}: {text:?}"
        );
    }
}
