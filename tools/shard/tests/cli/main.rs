//! The binary as a person meets it: what it prints, what it answers to bad
//! input, and what is left behind when the disk is full.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

mod options;
#[path = "../../../../tests/common/skip.rs"]
mod skip;
mod told;

use skip::skip;

fn shard(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shard")).args(args).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must succeed; what it printed.
fn ok(args: &[&str]) -> String {
    let output = shard(args);
    assert!(output.status.success(), "{args:?}: {}", err(&output));
    out(&output)
}

/// A tree of `images` PNG files in two classes.
fn tree(root: &Path, images: u32) -> PathBuf {
    let tree = root.join("tree");
    for i in 0..images {
        let folder = tree.join(["cat", "dog"][i as usize % 2]);
        std::fs::create_dir_all(&folder).unwrap();
        let pixel = |x: u32, y: u32| image::Rgb([(x * y) as u8, i as u8, x as u8]);
        image::RgbImage::from_fn(40, 30, pixel).save(folder.join(format!("{i:03}.png"))).unwrap();
    }
    tree
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_tree_is_packed_listed_verified_and_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 20), folder.path().join("shards"));
    let (tree, shards) = (tree.to_str().unwrap(), shards.to_str().unwrap());
    let flags = ["--prefix", "train", "--zstd", "--samples-per-shard", "8"];
    let printed = ok(&[&["pack", tree, shards], &flags[..]].concat());
    assert!(printed.starts_with("20 samples of 2 classes in 3 shards"), "{printed}");
    assert_eq!(ok(&["ls", shards]).lines().count(), 20);
    let first = ok(&["ls", shards, "--json", "--limit", "1"]);
    let first: serde_json::Value = serde_json::from_str(first.trim()).unwrap();
    assert_eq!((first["key"].as_str(), first["class"].as_str()), (Some("cat/000"), Some("cat")));
    assert_eq!((first["width"].as_u64(), first["height"].as_u64()), (Some(40), Some(30)));
    assert!(ok(&["ls", shards, "--summary"]).contains("20 samples in 3 shards"));
    let verified = ok(&["verify", shards]);
    assert!(verified.starts_with("no damage in 20 samples of 3 shards (3 indexed)"), "{verified}");
    let back = folder.path().join("back");
    assert!(ok(&["unpack", shards, back.to_str().unwrap()]).contains("CLASS/NAME"));
    for name in ["cat/000.png", "dog/019.png"] {
        let original = std::fs::read(Path::new(tree).join(name)).unwrap();
        assert!(std::fs::read(back.join(name)).unwrap() == original, "{name}");
    }

    // A byte changes: verification lists the shard and fails.
    let damaged = Path::new(shards).join("train-000001.tar.zst");
    let whole = std::fs::read(&damaged).unwrap();
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let output = shard(&["verify", shards, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_str(out(&output).trim()).unwrap();
    let named = report["damage"][0]["shard"].as_str().unwrap();
    assert!(named.ends_with("train-000001.tar.zst"), "{report}");
    assert!(out(&shard(&["verify", shards])).contains("fault"));

    // The verdict is the same for a reader that has left; a listing was long enough for it.
    for (args, code) in [
        (&["verify", shards][..], 1),
        (&["verify", shards, "--json"], 1),
        (&["verify", shards, "--no-decode"], 1),
        (&["ls", shards], 0),
    ] {
        assert_eq!(unread(args), (Some(code), String::new()), "{args:?}");
    }
    std::fs::write(damaged, whole).unwrap();
    assert_eq!(unread(&["verify", shards]), (Some(0), String::new()));
}

/// The exit code of a command whose output nobody reads, and what it printed to standard error.
fn unread(args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_shard"));
    let output = command.args(args).stdout(writer).output().unwrap();
    (output.status.code(), err(&output))
}

#[test]
fn an_index_of_shards_from_elsewhere_is_told_of_in_lines_of_one_kind() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 6), folder.path().join("shards"));
    let manifest = shards.join("shard.manifest.json");
    let (shards, manifest) = (shards.to_str().unwrap(), manifest.to_str().unwrap());
    ok(&["pack", tree.to_str().unwrap(), shards, "--samples-per-shard", "3"]);
    let args = ["index", shards, "--manifest", manifest];
    let printed = ok(&args);
    assert_eq!(printed.lines().last(), Some(manifest), "{printed}");
    let printed = ok(&[&args[..], &["--json"]].concat());
    let lines = printed.lines().map(serde_json::from_str::<serde_json::Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>().unwrap_or_else(|e| panic!("{e}: {printed}"));
    assert!(lines.len() == 2 && lines.iter().all(|line| line["samples"] == 3), "{printed}");
}

#[test]
fn a_set_that_is_half_in_place_is_refused_until_the_next_pack_finishes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 8), folder.path().join("shards"));
    let (tree, to) = (tree.to_str().unwrap(), shards.to_str().unwrap());
    let args = ["pack", tree, to, "--samples-per-shard", "4"];
    ok(&args);
    let whole = names(&shards);
    // As a kill leaves it: the first shard is in place, the rest waits.
    let staged = shards.join(".shard.abcdef.part");
    std::fs::create_dir(&staged).unwrap();
    let rest = ["shard-000001.tar", "shard-000001.tar.idx", "shard.manifest.json"];
    for name in rest {
        std::fs::rename(shards.join(name), staged.join(format!("{name}.part"))).unwrap();
    }
    for name in ["lock", "entering", "shard-000000.tar.old", "shard.manifest.json.old"] {
        std::fs::write(staged.join(name), "").unwrap();
    }
    let path = |name: &str| format!("{to}/{name}");
    let (file, gone) = (path("shard-000000.tar"), path("shard-{000000..000001}.tar"));
    let (glob, none, manifest) = (path("*.tar"), path("*1.tar"), path("shard.manifest.json"));
    for pattern in [to, &file, &gone, &glob, &none, &manifest] {
        for command in ["ls", "verify"] {
            let output = shard(&[command, pattern]);
            let text = err(&output);
            assert_eq!((output.status.code(), out(&output)), (Some(1), String::new()), "{text}");
            assert!(text.contains(".shard.abcdef.part: the set `shard` is being put"), "{text}");
        }
    }
    // From the folder itself, whose name is then empty.
    for pattern in ["shard-000000.tar", "*.tar", "."] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shard"));
        let text = err(&command.args(["ls", pattern]).current_dir(&shards).output().unwrap());
        assert!(text.contains(".shard.abcdef.part: the set `shard` is being put"), "{text}");
    }
    // Another set in the folder is as good as before.
    ok(&["pack", tree, to, "--prefix", "other"]);
    assert_eq!(ok(&["ls", &path("other.manifest.json")]).lines().count(), 8);
    let refused = shard(&args);
    assert!(err(&refused).contains("now it is there"), "{}", err(&refused));
    assert!(err(&refused).contains("exists: choose another folder"), "{}", err(&refused));
    assert_eq!(
        names(&shards)[..3],
        ["other-000000.tar", "other-000000.tar.idx", "other.manifest.json"]
    );
    assert_eq!(names(&shards)[3..], whole);
    assert_eq!(ok(&["ls", &manifest]).lines().count(), 8);
}

#[test]
fn a_pack_of_a_set_into_its_own_place_that_was_killed_is_finished_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 8), folder.path().join("shards"));
    let to = shards.to_str().unwrap();
    ok(&["pack", tree.to_str().unwrap(), to, "--samples-per-shard", "4"]);
    let whole = names(&shards);
    let half = |waiting: &[String]| {
        let staged = shards.join(".shard.abcdef.part");
        std::fs::create_dir(&staged).unwrap();
        for name in waiting {
            std::fs::rename(shards.join(name), staged.join(format!("{name}.part"))).unwrap();
        }
        ["lock", "entering"].iter().for_each(|name| std::fs::write(staged.join(name), "").unwrap());
    };
    // Killed before the first file got its name, and before the last.
    for waiting in [&whole[..], &whole[4..]] {
        half(waiting);
        let again = shard(&["pack", to, to, "--overwrite", "--fraction", "0.5"]);
        assert_eq!(again.status.code(), Some(1), "{}", err(&again));
        assert!(err(&again).contains("Now it is there"), "{}", err(&again));
        assert_eq!(names(&shards), whole);
        // Not half of it.
        assert_eq!(ok(&["ls", to]).lines().count(), 8);
    }
    // A repair finishes it, too, before it says that it will not write there.
    half(&whole);
    let other = folder.path().join("other");
    ok(&["pack", tree.to_str().unwrap(), other.to_str().unwrap()]);
    let refused = shard(&["verify", other.to_str().unwrap(), "--repair", to]);
    assert!(err(&refused).contains("exists: choose another folder"), "{}", err(&refused));
    assert_eq!(names(&shards), whole);
}

/// With as few files open as each limit lets it have, a repair fails or saves what it saves else.
#[cfg(unix)]
#[test]
fn a_shard_that_cannot_be_opened_for_want_of_descriptors_is_not_taken_for_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 8), folder.path().join("shards"));
    let shards = shards.to_str().unwrap();
    ok(&["pack", tree.to_str().unwrap(), shards, "--samples-per-shard", "2"]);
    let mut outcomes = std::collections::BTreeSet::new();
    for limit in 4..16 {
        let to = folder.path().join(format!("to-{limit}"));
        let to = to.to_str().unwrap();
        let script = format!("ulimit -n {limit} || exit 9; exec \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_shard")]);
        command.args(["verify", shards, "--repair", to, "--threads", "1"]);
        let Ok(output) = command.output() else {
            skip("bash", "no bash");
            return;
        };
        let text = out(&output) + &err(&output);
        if output.status.success() {
            assert!(text.starts_with("8 samples saved, 0 known to be lost\n"), "{limit}: {text}");
        } else {
            assert!(!text.contains("no sample can be saved"), "{limit}: {text}");
        }
        outcomes.insert(output.status.success());
    }
    assert_eq!(outcomes.len(), 2, "limits from too few to enough");
}

#[test]
fn images_are_reduced_decoded_and_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path(), 20);
    let tree = tree.to_str().unwrap();
    let list = |name: &str, args: &[&str]| -> Vec<String> {
        let shards = folder.path().join(name);
        ok(&[&["pack", tree, shards.to_str().unwrap()], args].concat());
        ok(&["ls", shards.to_str().unwrap()]).lines().map(str::to_owned).collect()
    };
    let small = list("small", &["--max-side", "20", "--quality", "80"]);
    assert!(small[0].contains("jpeg") && small[0].contains("20x15"), "{}", small[0]);
    assert!(list("same", &["--short-side", "30"])[0].contains("png"));
    let raw = list("raw", &["--raw"]);
    assert!(raw[0].contains("raw") && raw[0].contains(" 3632 "), "{}", raw[0]);
    assert_eq!(list("few", &["--per-class", "3"]).len(), 6);
    assert_eq!(list("share", &["--fraction", "0.5", "--limit", "7"]).len(), 7);
    assert_ne!(list("one", &["--shuffle", "1"]), list("two", &["--shuffle", "2"]));
    let csv = folder.path().join("list.csv");
    std::fs::write(&csv, "path,label\ntree/dog/001.png,hot\ntree/cat/000.png,cold\n").unwrap();
    let shards = folder.path().join("listed");
    ok(&["pack", csv.to_str().unwrap(), shards.to_str().unwrap()]);
    assert!(ok(&["ls", shards.to_str().unwrap(), "--json"]).contains("\"class\":\"hot\""));
}

#[test]
fn the_embedded_data_set_is_packed() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().to_str().unwrap();
    ok(&["synth", shards, "--images", "24", "--side", "16", "--split", "test"]);
    let verified = ok(&["verify", &format!("{shards}/test-000000.tar")]);
    assert!(verified.starts_with("no damage in 24 samples"), "{verified}");
}

#[test]
fn bad_input_is_answered_by_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let tree = tree(root, 2).to_str().unwrap().to_owned();
    std::fs::create_dir(root.join("void")).unwrap();
    std::fs::write(root.join("zero.tar"), [0; 1024]).unwrap();
    std::fs::write(root.join("text.tar"), "this is no tar\n".repeat(99)).unwrap();
    std::fs::write(root.join("list.csv"), "absent.jpg,1\n").unwrap();
    std::fs::write(root.join("mixed.csv"), "a.jpg,1\nb.jpg,cat\n").unwrap();
    std::fs::write(root.join("file"), "in the way").unwrap();
    let (shards, to) = (path("shards"), path("out"));
    ok(&["pack", &tree, &shards]);
    let levels = "-131072 (fastest) to 22 (smallest)";
    // 1 for what is wrong with data or disk, 2 for what is wrong with the command line.
    let cases: [(&[&str], i32, &str); 23] = [
        (&["pack", &path("absent"), &to], 1, "No such file"),
        (&["pack", &path("void"), &to], 2, "no images"),
        (&["pack", &path("zero.tar"), &to], 2, "no samples"),
        (&["pack", &path("text.tar"), &to], 1, "not a tar"),
        (&["pack", &path("list.csv"), &to], 1, "absent.jpg"),
        (&["pack", &path("list.csv"), &to, "--skip-bad"], 1, "no image can be used"),
        (&["pack", &path("mixed.csv"), &to], 2, "not both"),
        (&["pack", &tree, &path("file")], 1, "file: "),
        (&["pack", &tree, &shards], 2, "--overwrite"),
        (&["pack", &tree, &to, "--limit", "0"], 2, "no samples"),
        (&["pack", &tree, &to, "--fraction", "1.5"], 2, "fraction"),
        (&["pack", &tree, &to, "--samples-per-shard", "0"], 2, "0 samples"),
        (&["pack", &tree, &to, "--prefix", ""], 2, "prefix"),
        (&["pack", &tree, &to, "--zstd", "99"], 2, levels),
        (&["pack", &tree, &shards, &to], 2, "several sources"),
        (&["pack", &tree], 2, "OUT is missing"),
        (&["ls", &path("void")], 2, "no shards"),
        (&["ls", &path("x-{0..3}.tar")], 1, "x-0.tar"),
        (&["verify", &path("none-*.tar")], 2, "no shards"),
        (&["verify", &shards, "--repair", &shards], 2, "exists: choose another folder"),
        (&["index", &path("text.tar")], 1, "not a tar"),
        (&["index", &path("zero.tar"), "--manifest", &path("m.json")], 2, "manifest.json"),
        (&["unpack", &shards, &tree], 2, "not empty"),
    ];
    for (args, code, expected) in cases {
        let output = shard(args);
        let printed = err(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {printed}");
        assert!(printed.contains(expected), "{args:?}: {printed}");
        assert_eq!(printed.lines().count(), 1, "{args:?}: {printed}");
    }
    let refused = shard(&["verify", &shards, "--repair", &shards]);
    assert!(!err(&refused).contains("--overwrite"), "it has no such option");
    let help = ok(&["pack", "-h"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains(levels), "{help}");
    assert!(ok(&["--help"]).contains("Exit codes: 0 done; 1 "));
}

#[test]
fn samples_that_cannot_be_used_are_marked_counted_and_left_out_by_a_repair() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, shards, repaired) = (tree(folder.path(), 6), path("shards"), path("repaired"));
    std::fs::rename(tree.join("dog/005.png"), tree.join("dog/\u{1b}[1m5.png")).unwrap();
    ok(&["pack", tree.to_str().unwrap(), &shards]);
    for name in ["shard.manifest.json", "shard-000000.tar.idx"] {
        std::fs::remove_file(Path::new(&shards).join(name)).unwrap();
    }
    // The first four labels become no numbers.
    let tar = Path::new(&shards).join("shard-000000.tar");
    let mut bytes = std::fs::read(&tar).unwrap();
    let labels = bytes.windows(5).enumerate().filter(|(_, name)| name == b".cls\0");
    let labels: Vec<usize> = labels.map(|(at, _)| at.next_multiple_of(512)).take(4).collect();
    labels.iter().for_each(|&at| bytes[at] = b'x');
    std::fs::write(&tar, bytes).unwrap();
    let listed = shard(&["ls", &shards]);
    let rows = out(&listed);
    assert_eq!(rows.lines().filter(|row| row.contains("  bad  ")).count(), 4, "{rows}");
    assert!(rows.contains(r"dog/\u{1b}[1m5") && !rows.contains('\u{1b}'), "{rows}");
    assert!(err(&listed).ends_with("4 samples cannot be used; `shard verify` tells why\n"));
    assert_eq!(ok(&["ls", &shards, "--json"]).matches("\"usable\":false").count(), 4);
    let verified = out(&shard(&["verify", &shards]));
    assert!(verified.contains("\n4 faults in 6 samples of 1 shard"), "{verified}");
    let saved = ok(&["verify", &shards, "--repair", &repaired]);
    assert!(saved.contains("\n2 samples saved, 4 known to be lost\n"), "{saved}");
}

/// Runs a command whose files may not be larger than `kib`: writes fail after that, as on a full
/// disk, and the signal that comes with it is ignored. `None` where that cannot be had.
#[cfg(unix)]
fn with_small_files(kib: u32, args: &[&str]) -> Option<Output> {
    let script = format!("trap '' XFSZ; ulimit -f {kib} || exit 9; exec \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_shard")]).args(args);
    let output = command.output().ok().filter(|output| output.status.code() != Some(9));
    if output.is_none() {
        skip("bash", "no bash, or no `ulimit -f`");
    }
    output
}

#[cfg(unix)]
#[test]
fn files_that_are_unpacked_are_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tree, shards, to) = (tree(folder.path(), 4), path("shards"), folder.path().join("to"));
    // Of 3.5 KiB, and a small one before them.
    std::fs::write(tree.join("cat/#.ppm"), b"P6\n1 1\n255\nrgb").unwrap();
    ok(&["pack", tree.to_str().unwrap(), &shards, "--raw"]);
    let args = ["unpack", &shards, to.to_str().unwrap()];
    let Some(output) = with_small_files(2, &args) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("cat/000.ppm: File too large"), "{}", err(&output));
    assert_eq!(names(&to.join("cat")), ["#.ppm"]);
}

#[cfg(unix)]
#[test]
fn a_disk_that_is_full_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 200), folder.path().join("shards"));
    let args = ["pack", tree.to_str().unwrap(), shards.to_str().unwrap()];
    let Some(output) = with_small_files(64, &args) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(
        err(&output).ends_with("shard-000000.tar: File too large (os error 27)\n"),
        "{}",
        err(&output)
    );
    assert_eq!(names(&shards), Vec::<String>::new());
    // /dev/full answers every write as a full disk does; here, for a listing.
    ok(&["pack", tree.to_str().unwrap(), shards.to_str().unwrap()]);
    if let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shard"));
        let output = command.arg("ls").arg(&shards).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(err(&output).contains("No space left"), "{}", err(&output));
    }
}

/// Sends `signal` and returns the one that ended the command, which has two seconds for it.
#[cfg(unix)]
fn ended_by(signal: &str, mut child: Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let begun = Instant::now();
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let ended = child.wait().unwrap().signal();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    ended
}

/// Every file of a folder that is not hidden, with its bytes.
#[cfg(unix)]
fn shown(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let shown = names(folder).into_iter().filter(|name| !name.starts_with('.'));
    shown.map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap())).collect()
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_leaves_the_set_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, shards) = (tree(folder.path(), 900), folder.path().join("shards"));
    let (tree, to) = (tree.to_str().unwrap(), shards.to_str().unwrap());
    // Much to do, so that it is at work when the signal comes.
    let work = ["--max-side", "39", "--zstd", "19", "--samples-per-shard", "20"];
    let args = [&["pack", tree, to, "--overwrite"], &work[..]].concat();
    let hidden = || -> Vec<PathBuf> {
        let all = if shards.is_dir() { names(&shards) } else { Vec::new() };
        all.iter().filter(|name| name.starts_with('.')).map(|name| shards.join(name)).collect()
    };
    // First there is no set, then one of other shards.
    for (round, (signal, number)) in [("-KILL", 9), ("-TERM", 15), ("-KILL", 9)].iter().enumerate()
    {
        let before = if shards.is_dir() { shown(&shards) } else { Vec::new() };
        let left = hidden();
        let mut child = Command::new(env!("CARGO_BIN_EXE_shard")).args(&args).spawn().unwrap();
        // Until two shards with their indexes wait for the others.
        let writes = |staged: &PathBuf| !left.contains(staged) && names(staged).len() > 4;
        while !hidden().iter().any(writes) {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        }
        if round == 2 {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
            let refused = err(&shard(&args));
            assert!(refused.contains("another pack"), "{refused}");
        }
        assert_eq!(ended_by(signal, child), Some(*number));
        assert!(shown(&shards) == before, "{:?}", names(&shards));
        assert_eq!(hidden().len(), 1, "what the run before left is gone");
        if before.is_empty() {
            ok(&["pack", tree, to, "--samples-per-shard", "100"]);
        }
    }
    // The next run clears up.
    ok(&args);
    assert_eq!(hidden(), Vec::<PathBuf>::new());
    assert_eq!(ok(&["ls", to]).lines().count(), 900);

    // The same shards again and again: enough to verify for a while.
    let again = [to; 300].join(" ");
    let mut verify = Command::new(env!("CARGO_BIN_EXE_shard"));
    let child = verify.args(["verify", &again]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ended_by("-TERM", child), Some(15));
}
