//! What scripts and shells see: exit codes, completions, manual pages, JSON, no colours in a pipe.

use serde_json::Value;

use crate::common::{bt_stream, tiny_run, tiny_shards};

/// Exit code, standard output, standard error.
fn run(command: &mut std::process::Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, folder) = (tiny_shards(dir.path()), dir.path().join("run"));
    assert_eq!(run(bt_stream().args(["knn", "no-such-run"])).0, 1);
    assert_eq!(run(bt_stream().args(["train", "--no-such-flag"])).0, 2);
    let (code, _, said) = run(bt_stream().args(["config", "--set", "train.bathc_size=2"]));
    assert!(code == 2 && said.contains("batch_size"), "{code}: {said}");
    let mut wild = tiny_run(&shards, &folder);
    let (code, _, said) =
        run(wild.args(["--set", "optim.lr_weights=1e30", "--set", "optim.warmup_epochs=0"]));
    assert!(code == 3 && said.contains("on_nan"), "{code}: {said}");
    let (code, help, _) = run(bt_stream().arg("--help"));
    assert!(code == 0 && help.contains("Exit codes: 0 done"), "{help}");
}

#[test]
fn every_shell_has_completions_and_every_command_a_manual_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, said) = run(bt_stream().args(["completions", shell]));
        assert!(code == 0 && script.contains("quickstart"), "{shell}: {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    assert_eq!(run(bt_stream().arg("man").arg(&man)).0, 0);
    for (page, text) in [("bt-stream.1", "Exit codes"), ("bt-stream-train.1", "train.batch_size")] {
        let page = std::fs::read_to_string(man.join(page)).unwrap();
        assert!(page.replace('\\', "").contains(text), "{text} is not in {page}");
    }
}

#[test]
fn keys_are_explained_and_a_mistaken_one_is_guessed() {
    let explain =
        |arguments: &[&str]| run(bt_stream().args(["config", "--explain"]).args(arguments));
    let (code, text, _) = explain(&["data.shuffle"]);
    assert!(
        code == 0 && text.starts_with("data.shuffle  (") && text.contains("default \"global\""),
        "{text}"
    );
    let (_, text, _) = explain(&["checkpoint", "--set", "checkpoint.keep=7"]);
    assert!(text.contains("checkpoint.every_steps") && text.contains("default 3, now 7"), "{text}");
    let (_, all, _) = explain(&["--json"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    assert!(all.as_array().unwrap().len() > 60);
    let (code, _, said) = explain(&["data.shufle"]);
    assert!(code == 2 && said.contains("`data.shuffle`"), "{said}");
    let (_, json, _) = run(bt_stream().args(["config", "--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["train"]["batch_size"], 256);
}

#[test]
fn what_goes_into_a_pipe_has_no_colours_and_no_progress() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, folder) = (tiny_shards(dir.path()), dir.path().join("run"));
    let mut train = tiny_run(&shards, &folder);
    train.env("RUST_LOG", "debug").args(["--epochs", "1", "--json"]);
    let (code, summary, log) = run(&mut train);
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains('\x1b') && !log.contains('\r'), "{log:?}");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(!summary["advice"].as_str().unwrap().is_empty());
    // A finished run that is continued keeps what it told of itself.
    let mut again = tiny_run(&shards, &folder);
    let (code, same, log) = run(again.args(["--epochs", "1", "--json", "--resume"]));
    assert!(code == 0 && log.contains("has all its steps already"), "{log}");
    assert_eq!(serde_json::from_str::<Value>(&same).unwrap(), summary);
    // Where a person forces colours, NO_COLOR is stronger.
    let colours = |no_color: Option<&str>| {
        let mut help = bt_stream();
        help.arg("--help").env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
        help.envs(no_color.map(|value| ("NO_COLOR", value)));
        run(&mut help).1.contains('\x1b')
    };
    assert!(!colours(Some("1")));
    let (_, json, _) =
        run(bt_stream().arg("knn").arg(&folder).arg("--json").arg("--test").arg(&shards));
    let scores: Value = serde_json::from_str(&json).unwrap();
    assert!(scores[0]["knn"].is_f64(), "{scores}");
}

#[test]
fn benchmarks_of_the_step_and_of_both_say_how_fast_and_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let settings = [
        "views.preset=barlow-cifar",
        "views.both.random_resized_crop.size=16",
        "model.arch=resnet18",
        "model.width=8",
        "model.stem=cifar",
        "model.projector=32-32",
        "train.batch_size=16",
        "data.threads=1",
    ];
    let json = |arguments: &[&str]| -> Value {
        let mut command = bt_stream();
        command.arg("bench").args(arguments).args(["--steps", "2", "--json"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let (code, text, said) = run(&mut command);
        assert_eq!(code, 0, "{said}");
        serde_json::from_str(text.trim()).unwrap()
    };
    let step = json(&["step", "--method", "byol"]);
    for figure in ["images_per_s", "tflop_per_s", "peak_mb", "wall_ms"] {
        assert!(step[figure].as_f64().unwrap() > 0.0, "{figure}: {step}");
    }
    let parts = step["medians"].as_object().unwrap();
    let sum: f64 = parts.values().map(|part| part["wall_ms"].as_f64().unwrap()).sum();
    assert!((sum / step["wall_ms"].as_f64().unwrap() - 1.0).abs() < 0.5, "{step}");
    let both = json(&["train", &shards.to_string_lossy(), "--warmup", "1"]);
    for figure in ["loader_images_per_s", "step_images_per_s", "train_images_per_s"] {
        assert!(both[figure].as_f64().unwrap() > 0.0, "{figure}: {both}");
    }
    assert!((0.0..=1.0).contains(&both["waiting_for_data"].as_f64().unwrap()), "{both}");
}
