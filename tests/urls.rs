//! Commands on shards behind URLs (feature `remote`), from a server that fails now and then.

mod common;
#[path = "../pipeline/tests/remote/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{bt_stream, newest_weights, tiny_run, tiny_shards};
use server::{Fault, Server};

fn success(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server of `folder` that fails when bytes are asked for the first time: with an error, or in
/// the middle.
fn faulty(folder: &Path) -> Server {
    let server = Server::of_folder(folder);
    server.misbehave(|request, before| match (request.range, before) {
        (Some((first, _)), 0) if first / 512 % 2 == 0 => Fault::Status(503),
        (Some(_), 0) => Fault::Cut(700),
        _ => Fault::None,
    });
    server
}

/// Shards, and what a run on them as files ends with.
struct Files {
    dir: tempfile::TempDir,
    shards: PathBuf,
    weights: [Vec<u8>; 2],
}

impl Files {
    fn new(epochs: &str) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let (shards, run) = (tiny_shards(dir.path()), dir.path().join("plain"));
        success(tiny_run(&shards, &run).args(["--epochs", epochs]));
        Files { dir, shards, weights: newest_weights(&run) }
    }
}

#[test]
fn a_run_on_urls_learns_what_a_run_on_files_does() {
    let Files { dir, shards, weights } = Files::new("2");
    let cache = dir.path().join("cache");
    let size = std::fs::metadata(shards.join("part-0.tar")).unwrap().len();
    let server = faulty(&shards);
    let url = server.url("part-{0..0}.tar");
    for (name, cached) in [("ranges", false), ("cold", true), ("warm", true)] {
        let folder = dir.path().join(name);
        let mut command = tiny_run(Path::new(&url), &folder);
        if cached {
            command.arg("--cache").arg(&cache).args(["--cache-size", "1GB"]);
        }
        success(command.args(["--epochs", "2"]));
        assert!(newest_weights(&folder) == weights, "{name}");
        let seen = server.take_seen();
        let ranges: Vec<_> = seen.iter().filter_map(|request| request.range).collect();
        let repeated = ranges.iter().enumerate().any(|(n, range)| ranges[..n].contains(range));
        assert!(repeated, "{name}: no answer failed: {ranges:?}");
        // With a warm cache no more is asked for than the object's state.
        let asked: u64 = ranges.iter().map(|(first, last)| last.min(&size) - first).sum();
        assert_eq!(asked < size / 2, name == "warm", "{name}: {ranges:?}");
    }
}

#[test]
fn a_killed_run_on_urls_goes_on_and_its_features_are_judged_on_urls() {
    let Files { dir, shards, weights } = Files::new("6");
    let folder = dir.path().join("run");
    let server = faulty(&shards);
    let url = server.url("part-0.tar");
    let run = || {
        let mut command = tiny_run(Path::new(&url), &folder);
        command.args(["--set", &format!("data.val='{url}'")]);
        command
    };
    let mut child = run().stderr(Stdio::null()).spawn().unwrap();
    let checkpoints = folder.join("checkpoints");
    while bt_stream::checkpoint::list(&checkpoints).unwrap().is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "the run ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the run had ended before it was killed");
    success(run().arg("--resume"));
    assert!(newest_weights(&folder) == weights);
    let judged = success(bt_stream().arg("knn").arg(&folder));
    assert!(judged.contains("96 training and 96 test images"), "{judged}");
}

#[test]
#[cfg(unix)]
fn a_signal_ends_an_evaluation_that_waits_for_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, folder) = (tiny_shards(dir.path()), dir.path().join("run"));
    let server = Server::of_folder(&shards);
    let stalls = Arc::new(AtomicBool::new(false));
    let stalled = Arc::clone(&stalls);
    server.misbehave(move |_, _| match stalled.load(Ordering::SeqCst) {
        true => Fault::Hang(Duration::from_secs(120)),
        false => Fault::None,
    });
    let mut command = tiny_run(&shards, &folder);
    command.args(["--val", &server.url("part-0.tar"), "--epochs", "100000"]);
    command.args(["--set", "eval.knn_every=1", "--set", "eval.k=4"]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let mut wait_for = |ready: &dyn Fn() -> bool| {
        while !ready() {
            assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
            assert!(begun.elapsed() < Duration::from_secs(60), "no evaluation began");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    wait_for(&|| std::fs::metadata(folder.join("metrics.jsonl")).is_ok_and(|m| m.len() > 0));
    stalls.store(true, Ordering::SeqCst);
    server.take_seen();
    wait_for(&|| !server.take_seen().is_empty());
    std::thread::sleep(Duration::from_millis(100));
    let signalled = Instant::now();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
    let steps = bt_stream::checkpoint::find(&folder).unwrap().state.step;
    let told = bt_stream::metrics::read(&folder).unwrap().last().unwrap().step;
    assert!(steps >= told, "{steps} of {told} steps were saved");
}

#[test]
fn shards_behind_urls_are_inspected_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let server = faulty(&tiny_shards(dir.path()));
    let url = server.url("part-0.tar");
    let seen = success(bt_stream().args(["inspect", &url]));
    assert!(seen.contains("samples       96"), "{seen}");
    let views =
        ["--set", "views.preset=barlow-cifar", "--images", "90", "--threads", "2", "--json"];
    let views = [&views[..], &["--set", "train.batch_size=16"]].concat();
    let figures = success(bt_stream().args(["bench", "loader", &url]).args(views));
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    assert!(figures.to_string().contains("images_per_s"), "{figures}");
}
