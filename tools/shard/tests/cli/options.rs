//! What each option changes.

use std::path::Path;

use super::{names, ok, shard, tree};

fn json(args: &[&str]) -> serde_json::Value {
    let printed = ok(&[args, &["--json"]].concat());
    serde_json::from_str(printed.trim()).unwrap_or_else(|e| panic!("{e}: {printed}"))
}

#[test]
fn either_side_may_be_what_images_are_reduced_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tree = tree(folder.path(), 2);
    for (option, side, size) in [("--short-side", "15", [20, 15]), ("--max-side", "8", [8, 6])] {
        let shards = path(option);
        ok(&["pack", tree.to_str().unwrap(), &shards, option, side]);
        let first = json(&["ls", &shards, "--limit", "1"]);
        assert_eq!([&first["width"], &first["height"]], size, "{option}");
    }
}

#[test]
fn the_quality_of_reduced_images_is_the_one_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tree = tree(folder.path(), 2);
    let bytes = |quality: &[&str], name: &str| {
        let args = ["pack", tree.to_str().unwrap(), &path(name), "--max-side", "39"];
        ok(&[&args, quality].concat());
        json(&["ls", &path(name), "--summary"])["image_bytes"].as_u64().unwrap()
    };
    let (low, usual) = (bytes(&["--quality", "20"], "low"), bytes(&[], "usual"));
    assert!(low < usual, "{low} {usual}");
    assert_eq!(bytes(&["--quality", "90"], "90"), usual);
    for without in [&[][..], &["--max-side", "39", "--raw"]] {
        let line = [&["pack", "a", "b", "--quality", "20"], without].concat();
        let refused = shard(&line);
        assert_eq!(refused.status.code(), Some(2), "{line:?}");
    }
}

#[test]
fn shells_have_completions_and_commands_manual_pages() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(ok(&["completions", shell]).contains("per-class"), "{shell}");
    }
    ok(&["man", folder.path().to_str().unwrap()]);
    for page in ["shard.1", "shard-pack.1", "shard-verify.1"] {
        assert!(folder.path().join(page).exists(), "{page}");
    }
}

#[test]
fn jpegs_are_recoded_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tree = tree(folder.path(), 2);
    let (jpegs, plain, recoded) = (path("jpegs"), path("plain"), path("recoded"));
    ok(&["pack", tree.to_str().unwrap(), &jpegs, "--max-side", "32"]);
    ok(&["pack", &jpegs, &plain]);
    ok(&["pack", &jpegs, &recoded, "--recode"]);
    for (shards, format) in [(&plain, "jpeg"), (&recoded, "dct")] {
        let formats = &json(&["ls", shards, "--summary"])["formats"];
        assert_eq!(*formats, serde_json::json!({ format: 2 }));
    }
}

#[test]
fn shards_are_divided_by_bytes_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tree = tree(folder.path(), 6);
    let args = ["pack", tree.to_str().unwrap(), &path("out"), "--raw", "--bytes-per-shard", "16K"];
    let packed = json(&args);
    // Each sample takes 512 + 4,096 bytes for its image and 1,024 for its class.
    assert_eq!((&packed["shards"], &packed["samples"]), (&3.into(), &6.into()), "{packed}");
    assert_eq!((&packed["classes"], &packed["left_out"]), (&2.into(), &serde_json::json!([])));
    assert_eq!(packed["manifest"], path("out/shard.manifest.json"));
    for entry in std::fs::read_dir(path("out")).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().len() <= 16 << 10, "{:?}", entry.file_name());
    }
}

#[test]
fn members_keep_their_names_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, shards) = (tree(folder.path(), 4), path("shards"));
    ok(&["pack", tree.to_str().unwrap(), &shards]);
    let told = json(&["unpack", &shards, &path("folders")]);
    assert_eq!((&told["samples"], &told["files"]), (&4.into(), &4.into()), "{told}");
    assert_eq!(names(Path::new(&path("folders/dog"))), ["001.png", "003.png"]);
    assert!(ok(&["unpack", &shards, &path("members"), "--members"]).contains("KEY.EXTENSION"));
    let dogs = ["001.cls", "001.png", "003.cls", "003.png"];
    assert_eq!(names(Path::new(&path("members/dog"))), dogs);
    assert_eq!(std::fs::read_to_string(path("members/dog/001.cls")).unwrap().trim(), "1");
}

#[test]
fn only_a_verification_that_decodes_finds_what_no_checksum_tells_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, shards, saved) = (tree(folder.path(), 4), path("shards"), path("saved"));
    ok(&["pack", tree.to_str().unwrap(), &shards]);
    for name in ["shard.manifest.json", "shard-000000.tar.idx"] {
        std::fs::remove_file(Path::new(&shards).join(name)).unwrap();
    }
    let tar = Path::new(&shards).join("shard-000000.tar");
    let mut bytes = std::fs::read(&tar).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == b"IDAT").unwrap();
    bytes[at + 8..at + 24].fill(0xFF);
    std::fs::write(&tar, bytes).unwrap();
    assert_eq!(shard(&["verify", &shards]).status.code(), Some(1));
    let report = json(&["verify", &shards, "--no-decode"]);
    assert_eq!((&report["samples"], &report["damage"]), (&4.into(), &serde_json::json!([])));
    let told = json(&["verify", &shards, "--repair", &saved]);
    assert_eq!(told["lost"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(told["manifest"], path("saved/shard.manifest.json"));
    assert_eq!(json(&["ls", &saved, "--summary"])["samples"], 3);
}

#[test]
fn the_names_of_classes_are_those_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, shards) = (tree(folder.path(), 2), path("shards"));
    ok(&["pack", tree.to_str().unwrap(), &shards]);
    std::fs::write(path("names"), "gnu\n\n  emu \n").unwrap();
    let (manifest, names) = (path("shards/shard.manifest.json"), path("names"));
    ok(&["index", &shards, "--manifest", &manifest, "--classes", &names]);
    let classes = &json(&["ls", &shards, "--summary"])["classes"];
    assert_eq!([&classes[0]["name"], &classes[1]["name"]], ["gnu", "emu"], "{classes}");
}

#[test]
fn the_embedded_data_set_is_the_one_that_is_described() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let first = |name: &str, more: &[&str]| {
        let args = ["synth", &path(name), "--images", "30", "--side", "20", "--prefix", "set"];
        ok(&[&args, more].concat());
        let summed = json(&["ls", &path(name), "--summary"]);
        assert_eq!((&summed["samples"], &summed["width"]), (&30.into(), &[20, 20].into()));
        let image = json(&["ls", &path(name), "--limit", "1"]);
        (summed["classes"].as_array().unwrap().len(), image["checksum"].to_string())
    };
    let usual = first("usual", &[]);
    assert_eq!(usual.0, 12);
    assert_eq!(first("again", &["--seed", "0", "--split", "train", "--classes", "12"]), usual);
    assert_eq!(first("three", &["--classes", "3"]).0, 3);
    for (name, other) in [("seed", ["--seed", "1"]), ("split", ["--split", "test"])] {
        assert_ne!(first(name, &other).1, usual.1, "{name}");
    }
}
