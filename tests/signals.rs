//! SIGINT, SIGTERM and SIGHUP end long commands (training, evaluations, `embed`, studies) within two
//! seconds; of training, whose small checkpoints here take no time, no step that was done is lost.
#![cfg(unix)]

mod common;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bt_pipeline::synth::{self, Spec};
use bt_stream::checkpoint;
use common::{bt_stream, newest_weights, tiny_run, tiny_shards, write_tar};

/// Longest that a command may go on after a signal, but for writing a checkpoint that is not small;
/// the README promises it.
const TIME: Duration = Duration::from_secs(2);

/// Starts it as a terminal does: where this test runs under `nohup` or in the background of a
/// script, signals that it ignores would stay ignored.
fn start(command: &mut Command) -> Child {
    // SAFETY: signal() is one of the functions that may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(signal: &str, child: &Child) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits until `ready` holds of the running command.
fn wait_for(child: &mut Child, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(child.try_wait().unwrap().is_none(), "the command ended by itself");
        assert!(begun.elapsed() < Duration::from_secs(60), "the command does not come to work");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process has threads that read and decode images; `None` where the system does not
/// tell.
fn loads_images(process: u32) -> Option<bool> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let names = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("comm")));
    Some(names.flatten().any(|name| name.starts_with("bt-work-")))
}

/// Sends the signals, 400 ms apart, and returns how the command ended and how long after the last.
fn ended_by(signals: &[&str], child: Child) -> (ExitStatus, Duration) {
    ended_by_each(signals, Duration::from_millis(400), child)
}

fn ended_by_each(signals: &[&str], apart: Duration, mut child: Child) -> (ExitStatus, Duration) {
    let mut begun = Instant::now();
    for (number, signal) in signals.iter().enumerate() {
        if number > 0 {
            std::thread::sleep(apart);
        }
        begun = Instant::now();
        send(signal, &child);
    }
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > 10 * TIME {
            // Not left to compute beside the tests that follow.
            child.kill().unwrap();
            panic!("the command goes on after {signals:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (child.wait().unwrap(), begun.elapsed())
}

/// What a shell would see.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

/// A run, as `tiny_run`, that is at the first of its steps, which take several seconds.
fn in_a_slow_step(shards: &Path, dir: &Path) -> Child {
    let mut command = tiny_run(shards, dir);
    let settings = [
        "model.arch=resnet50",
        "model.width=32",
        "views.both.random_resized_crop.size=192",
        // Of the length of all its parts, and given up as soon as one of them.
        "train.batch_size=8",
        "train.micro_batches=4",
    ];
    for setting in settings {
        command.args(["--set", setting]);
    }
    let mut child = start(&mut command);
    wait_for(&mut child, || dir.join("config.toml").exists());
    // It was written last of what comes before the steps; the first batch is made meanwhile.
    std::thread::sleep(Duration::from_millis(400));
    child
}

fn checkpoints(dir: &Path) -> Vec<PathBuf> {
    checkpoint::list(&dir.join(checkpoint::FOLDER)).unwrap()
}

#[test]
fn a_step_of_seconds_is_given_up_and_what_was_before_it_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut child = in_a_slow_step(&shards, &dir);
    let stderr = child.stderr.take().unwrap();
    let (status, time) = ended_by(&["-TERM"], child);
    assert_eq!(exit_code(status), 143);
    assert!(time < TIME, "{time:?}");
    let said = std::io::read_to_string(stderr).unwrap();
    assert!(said.contains("saving a checkpoint; a second signal gives it up"), "{said}");
    // The checkpoint has the statistics of BatchNorm from before the pass that was given up.
    let found = checkpoint::find(&dir).unwrap();
    assert_eq!(found.state.step, 0, "the step was over before it could be given up");
    let counted = &found.weights().unwrap()["backbone.bn1.num_batches_tracked"];
    assert_eq!(counted.to_vec0::<i64>().unwrap(), 0);
}

#[test]
fn a_second_signal_ends_training_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let (status, time) = ended_by(&["-INT", "-INT"], in_a_slow_step(&shards, &dir));
    assert_eq!(exit_code(status), 130);
    assert!(time < TIME / 2, "{time:?}");
    assert!(checkpoints(&dir).is_empty(), "there was no time to save");
}

#[test]
fn the_echo_of_a_signal_is_no_second_one() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let child = in_a_slow_step(&shards, &dir);
    let (status, time) = ended_by_each(&["-TERM", "-TERM"], Duration::from_millis(2), child);
    assert_eq!(exit_code(status), 143);
    assert!(time < TIME, "{time:?}");
    assert_eq!(checkpoints(&dir).len(), 1);
}

#[test]
fn a_closed_terminal_ends_training_with_a_checkpoint_unless_it_was_told_not_to() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    for (name, ignores, code) in [("ends", false, 129), ("goes-on", true, 143)] {
        let dir = folder.path().join(name);
        let mut command = tiny_run(&shards, &dir);
        command.args(["--set", "train.epochs=100000"]);
        if ignores {
            // As `nohup` has it.
            let mut shell = Command::new("sh");
            shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program());
            shell.args(command.get_args());
            command = shell;
        }
        let mut child = start(&mut command);
        wait_for(&mut child, || !checkpoints(&dir).is_empty());
        let signals = if ignores { &["-HUP", "-TERM"][..] } else { &["-HUP"] };
        let (status, time) = ended_by(signals, child);
        assert_eq!(exit_code(status), code, "{name}");
        assert!(time < 2 * TIME, "{time:?}");
        let metrics = bt_stream::metrics::read(&dir).unwrap();
        let steps = checkpoint::find(&dir).unwrap().state.step;
        assert!(metrics.last().is_some_and(|line| line.step <= steps), "a step was lost");
    }
}

#[test]
fn nobody_has_to_read_the_summary_of_a_run_that_a_signal_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut command = tiny_run(&shards, &dir);
    command.args(["--epochs", "100000", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    wait_for(&mut child, || !checkpoints(&dir).is_empty());
    let (status, _) = ended_by(&["-TERM"], child);
    assert_eq!(exit_code(status), 143);
}

#[test]
fn sigterm_lets_the_step_end_writes_a_checkpoint_and_the_run_goes_on_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let (calm, stopped) = (folder.path().join("calm"), folder.path().join("stopped"));
    assert!(start(&mut tiny_run(&shards, &calm)).wait().unwrap().success());
    let mut child = start(&mut tiny_run(&shards, &stopped));
    let metrics = stopped.join("metrics.jsonl");
    wait_for(&mut child, || std::fs::metadata(&metrics).is_ok_and(|m| m.len() > 0));
    let (status, time) = ended_by(&["-TERM"], child);
    assert_eq!(exit_code(status), 143);
    assert!(time < TIME, "{time:?}");
    let resumed = start(tiny_run(&shards, &stopped).arg("--resume")).wait().unwrap();
    assert!(resumed.success());
    assert_eq!(newest_weights(&calm), newest_weights(&stopped));
    let losses = |dir: &Path| -> Vec<_> {
        let lines = bt_stream::metrics::read(dir).unwrap();
        lines.iter().filter_map(|line| Some((line.step, line.loss?.to_bits()))).collect()
    };
    assert_eq!(losses(&calm), losses(&stopped));
}

#[test]
fn evaluations_and_studies_end_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    assert!(start(tiny_run(&shards, &dir).args(["--epochs", "1"])).wait().unwrap().success());
    // From now on the checkpoint asks for views of 512 x 512, one at a time: half a minute's work.
    let state = checkpoints(&dir).pop().unwrap().join("state.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    json["config"]["views"]["both"]["random_resized_crop"]["size"] = serde_json::json!(512);
    json["config"]["eval"]["batch_size"] = serde_json::json!(1);
    json.as_object_mut().unwrap().remove("checksum");
    std::fs::write(&state, json.to_string()).unwrap();
    checkpoint::find(&dir).unwrap();

    let study = folder.path().join("slow.toml");
    let text = format!(
        "title = \"slow\"\nextends = {:?}\nseeds = [0]\n[[cells]]\nname = \"a\"\nuntrained = true\n",
        dir.join("config.toml")
    );
    std::fs::write(&study, text).unwrap();

    for name in ["knn", "probe", "linear", "embed", "study"] {
        let mut command = bt_stream();
        command.arg(name);
        match name {
            "study" => {
                command.arg(&study).arg("--dir").arg(folder.path().join("cells"));
                let size = "views.both.random_resized_crop.size=512";
                command.args(["--set", size, "--set", "eval.batch_size=1"]);
                command.arg("--set").arg(format!("data.val={shards:?}"));
            }
            "embed" => drop(command.arg(&dir).arg(&shards).arg(folder.path().join("f.npy"))),
            "linear" => {
                command.arg(&dir).arg("--test").arg(&shards).args(["--batch-size", "1"]);
            }
            _ => drop(command.arg(&dir).arg("--test").arg(&shards)),
        }
        let mut child = start(&mut command);
        let (id, begun) = (child.id(), Instant::now());
        wait_for(&mut child, || loads_images(id).unwrap_or(begun.elapsed() > TIME));
        let (status, time) = ended_by(&["-TERM"], child);
        assert_eq!(exit_code(status), 143, "{name}");
        assert!(time < TIME, "{name}: {time:?}");
    }
}

#[test]
fn an_evaluation_that_a_signal_ends_is_done_when_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let drawn = |name: &str, images: u64| {
        write_tar(&folder.path().join(name), images, |sample, label| {
            let spec = Spec { images, side: 16, classes: 4, ..Spec::default() };
            (synth::encode_png(&synth::draw(&spec, sample).0).unwrap(), label.to_string())
        })
    };
    // Two short steps, and queries that take many seconds.
    let (shards, queries) = (drawn("shards", 8), drawn("queries", 960));
    let run = || {
        let mut command = tiny_run(&shards, &dir);
        command.arg("--val").arg(&queries);
        for setting in ["train.epochs=1", "eval.knn_every=1", "train.batch_size=4", "eval.k=4"] {
            command.args(["--set", setting]);
        }
        command
    };
    let wide = ["--set", "views.both.random_resized_crop.size=160", "--set", "eval.batch_size=8"];
    let mut child = start(run().args(wide));
    wait_for(&mut child, || {
        checkpoints(&dir).pop().is_some_and(|newest| newest.ends_with("step-0000000002"))
    });
    std::thread::sleep(Duration::from_millis(200));
    let (status, time) = ended_by(&["-TERM"], child);
    assert_eq!(exit_code(status), 143);
    assert!(time < TIME, "{time:?}");
    let accuracies =
        || bt_stream::metrics::read(&dir).unwrap().iter().filter_map(|line| line.knn).count();
    assert_eq!(accuracies(), 0);
    let summary = || bt_stream::train::Summary::read(&dir).unwrap();
    assert!(summary().interrupted);
    // With small views, not to take as long.
    assert!(start(run().arg("--resume")).wait().unwrap().success());
    assert_eq!((accuracies(), summary().interrupted), (1, false));
    // There is nothing left to do.
    assert!(start(run().arg("--resume")).wait().unwrap().success());
    assert_eq!(accuracies(), 1);
}

#[test]
fn an_interrupted_linear_leaves_no_selected_labels_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    assert!(start(tiny_run(&shards, &dir).args(["--epochs", "1"])).wait().unwrap().success());
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = bt_stream();
    command.arg("linear").arg(&dir).arg("--test").arg(&shards).env("TMPDIR", &temporary);
    command.args(["--labels", "0.5", "--epochs", "100000"]);
    let mut child = start(&mut command);
    let entries = || std::fs::read_dir(&temporary).unwrap().count();
    wait_for(&mut child, || entries() > 0);
    std::thread::sleep(Duration::from_millis(300));
    let (status, time) = ended_by(&["-TERM"], child);
    assert_eq!(exit_code(status), 143);
    assert!(time < TIME, "{time:?}");
    assert_eq!(entries(), 0);
}
