//! A disk that is full or read-only while a run, a study or a pack writes to it: said in one line,
//! and what was written before is whole.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use bt_stream::checkpoint;
use common::skip::skip;
use common::{bt_stream, tiny_run, tiny_shards, tiny_study};

/// Runs `script` with a small file system at `disk`, which ends with the script; what is to be
/// looked at is copied to `$KEEP`. `None` where mounting is not allowed.
fn on_small_disk(folder: &Path, kib: u32, script: &str, command: &Command) -> Option<Output> {
    let (disk, keep) = (folder.join("disk"), folder.join("keep"));
    for path in [&disk, &keep] {
        std::fs::create_dir_all(path).unwrap();
    }
    let mut mounted = Command::new("unshare");
    let mount = format!("mount -t tmpfs -o size={kib}k small \"$DISK\" || exit 99; {script}");
    mounted.args(["--map-root-user", "--mount", "bash", "-c", &mount, "bash"]);
    mounted.arg(command.get_program()).args(command.get_args());
    mounted.env("DISK", &disk).env("KEEP", &keep);
    match mounted.output() {
        Ok(output) if output.status.code() != Some(99) && !said(&output).contains("unshare:") => {
            Some(output)
        }
        _ => {
            skip("mount", "no file system can be mounted here");
            None
        }
    }
}

/// Runs `command` with a limit on the size of files, whose excess is an error of the write: it
/// stands in for a disk that is full before a larger file is written.
fn with_small_files(kib: u32, command: &Command) -> Output {
    let mut limited = Command::new("bash");
    limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "bash"]);
    limited.arg(command.get_program()).args(command.get_args()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program's complaint, its last line.
fn complaint(output: &Output) -> String {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.trim_end().lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("bt-stream: ") && !text.contains("panicked"), "{text}");
    line
}

#[test]
fn a_run_on_a_full_disk_keeps_its_last_checkpoint_and_goes_on_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    for policy in ["warn", "stop"] {
        let mut command = tiny_run(&shards, &folder.path().join("disk/run"));
        for setting in ["checkpoint.every_steps=2", "checkpoint.keep=1", "train.epochs=1"] {
            command.args(["--set", setting]);
        }
        command.args(["--set", &format!("checkpoint.on_error={policy}")]);
        // Room for one checkpoint of 2.1 MB, not for the next one beside it.
        let script =
            "\"$@\"; code=$?; rm -rf \"$KEEP\"/*; cp -r \"$DISK/run\" \"$KEEP\"; exit $code";
        let Some(output) = on_small_disk(folder.path(), 3500, script, &command) else { return };
        let kept = folder.path().join("keep/run");
        let left = checkpoint::list(&kept.join(checkpoint::FOLDER)).unwrap();
        assert_eq!(left.len(), 1, "{left:?} {}", said(&output));
        assert_eq!(checkpoint::find(&kept).unwrap().state.step, 2);
        let inside = std::fs::read_dir(kept.join(checkpoint::FOLDER)).unwrap().count();
        assert_eq!(inside, 1, "something is left under a temporary name");
        if policy == "warn" {
            let text = said(&output);
            let warned = text.matches("warning: cannot write the checkpoint").count();
            assert!(warned >= 2, "{text}");
            // After the last one there is no other to wait for: the weights are lost, and that is
            // no success.
            let line = complaint(&output);
            assert!(line.contains("step-0000000006") && line.contains("No space left"), "{line}");
            assert_eq!(bt_stream::metrics::read(&kept).unwrap().last().unwrap().step, 6);
        } else {
            let line = complaint(&output);
            assert!(line.contains("step-0000000004") && line.contains("No space left"), "{line}");
        }
    }
}

#[test]
fn a_read_only_disk_is_said_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let run = tiny_run(&shards, &folder.path().join("disk/run"));
    let script = "mount -o remount,ro \"$DISK\" || exit 99; exec \"$@\"";
    let Some(output) = on_small_disk(folder.path(), 3500, script, &run) else { return };
    let line = complaint(&output);
    assert!(line.contains("Read-only file system") && line.contains("disk/run"), "{line}");
}

#[test]
fn an_evaluation_that_cannot_be_printed_is_kept_and_one_that_cannot_be_kept_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let output = tiny_run(&shards, &dir).arg("--epochs=1").arg("--val").arg(&shards).output();
    assert!(output.unwrap().status.success());
    let knn = || {
        let mut command = bt_stream();
        command.arg("knn").arg(&dir).args(["--no-untrained", "--json"]);
        command
    };
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let line = complaint(&knn().stdout(full).output().unwrap());
    assert!(line.contains("standard output"), "{line}");
    let kept = dir.join("evaluation.json");
    assert!(std::fs::read_to_string(&kept).unwrap().contains("\"knn\": "));
    // A folder stands in its place.
    std::fs::remove_file(&kept).unwrap();
    std::fs::create_dir_all(kept.join("in-the-way")).unwrap();
    let output = knn().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("evaluation.json"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"knn\": "));
}

#[test]
fn numbers_that_are_not_finite_are_what_ended_the_run_also_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut command = tiny_run(&shards, &dir);
    for setting in ["optim.lr_weights=1e37", "optim.warmup_epochs=0", "train.on_nan=stop"] {
        command.args(["--set", setting]);
    }
    let output = with_small_files(200, &command);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("warning: cannot write the checkpoint"), "{text}");
    assert!(text.lines().last().unwrap().contains("at step 2"), "{text}");
}

#[test]
fn a_report_that_cannot_be_written_leaves_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("cells"));
    let study = folder.path().join("study.toml");
    let cells = "eval.k = 5\n[[cells]]\nname = \"untrained\"\nuntrained = true\n";
    let text = tiny_study(&shards, cells);
    std::fs::write(&study, text).unwrap();
    let command = || {
        let mut command = bt_stream();
        command.arg("study").arg(&study).arg("--dir").arg(&dir);
        command
    };
    let output = command().output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read(dir.join("study.html")).unwrap();
    assert!(page.len() > 4096, "{} bytes", page.len());
    let line = complaint(&with_small_files(4, &command()));
    assert!(line.contains("study.html") && line.contains("File too large"), "{line}");
    assert_eq!(std::fs::read(dir.join("study.html")).unwrap(), page);
    let parts = std::fs::read_dir(&dir).unwrap().flatten();
    assert!(!parts.into_iter().any(|e| e.file_name().to_string_lossy().starts_with(".tmp-")));
}
