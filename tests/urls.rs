//! Commands on shards behind URLs (feature `remote`), from a server that fails now and then.

mod common;
#[path = "../pipeline/tests/remote/server.rs"]
mod server;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{bt_stream, newest_weights, tiny_run, tiny_shards};
use server::{Fault, Server};

fn success(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server of `folder` whose every third answer is cut, late or an error.
fn faulty(folder: &Path) -> Server {
    let server = Server::of_folder(folder);
    server.misbehave(|request, before| match (request.range, before) {
        (Some((first, _)), 0) => match first / 512 % 3 {
            0 => Fault::Status(503),
            1 => Fault::Cut(700),
            _ => Fault::None,
        },
        _ => Fault::None,
    });
    server
}

#[test]
fn a_run_on_urls_learns_what_a_run_on_files_does() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let (plain, cache) = (dir.path().join("plain"), dir.path().join("cache"));
    success(tiny_run(&shards, &plain).args(["--epochs", "2"]));
    let server = faulty(&shards);
    let url = server.url("part-{0..0}.tar");
    for (name, cached) in [("ranges", false), ("cold", true), ("warm", true)] {
        let folder = dir.path().join(name);
        let mut command = tiny_run(Path::new(&url), &folder);
        if cached {
            command.arg("--cache").arg(&cache).args(["--cache-size", "1GB"]);
        }
        success(command.args(["--epochs", "2"]));
        assert!(newest_weights(&folder) == newest_weights(&plain), "{name}");
    }
    let seen = server.take_seen();
    assert!(seen.iter().any(|request| request.range.is_some_and(|(first, _)| first > 0)));
}

#[test]
fn a_killed_run_on_urls_goes_on_and_its_features_are_judged_on_urls() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let (plain, folder) = (dir.path().join("plain"), dir.path().join("run"));
    success(tiny_run(&shards, &plain).args(["--epochs", "2"]));
    let server = faulty(&shards);
    let url = server.url("part-0.tar");
    let run = || {
        let mut command = tiny_run(Path::new(&url), &folder);
        command.args(["--epochs", "2", "--set", &format!("data.val='{url}'")]);
        command
    };
    let mut child = run().stderr(Stdio::null()).spawn().unwrap();
    let checkpoints = folder.join("checkpoints");
    while bt_stream::checkpoint::list(&checkpoints).is_empty() {
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    success(run().arg("--resume"));
    assert!(newest_weights(&folder) == newest_weights(&plain));
    let judged = success(bt_stream().arg("knn").arg(&folder));
    assert!(judged.contains("96 training and 96 test images"), "{judged}");
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
