//! The commands that look at a finished run: knn, probe, embed, inspect.

mod common;

use std::path::Path;
use std::process::Command;

use bt_stream::report::Score;
use common::{bt_stream, tiny_run, tiny_shards};

/// What the command prints; it must succeed.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn scores(command: &str, run: &Path, shards: &Path) -> Vec<Score> {
    let mut program = bt_stream();
    program.arg(command).arg(run).arg("--test").arg(shards).args(["--pixels", "--json"]);
    serde_json::from_str(&printed(&mut program)).unwrap()
}

#[test]
fn a_run_is_evaluated_beside_the_floor_and_its_features_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));

    // The queries are the references: each one's nearest neighbour is itself.
    let knn = scores("knn", &run, &shards);
    let names: Vec<&str> = knn.iter().map(|score| score.name.as_str()).collect();
    assert_eq!(names, ["trained network", "untrained network", "raw pixels", "colour histogram"]);
    assert!(knn.iter().all(|score| score.knn.is_some_and(|share| share > 0.25)), "{knn:?}");
    let probe = scores("probe", &run, &shards);
    assert!(probe.iter().all(|score| score.linear.is_some_and(|a| a.top1 <= a.top5)), "{probe:?}");

    let out = dir.path().join("features.safetensors");
    printed(bt_stream().arg("embed").arg(&run).arg(&shards).arg(&out));
    let tensors = candle_core::safetensors::load(&out, &candle_core::Device::Cpu).unwrap();
    assert_eq!(tensors["features"].dims(), [96, 64]);
    assert_eq!(tensors["labels"].to_vec1::<i64>().unwrap()[..5], [0, 1, 2, 3, 0]);
    let keys = std::fs::read_to_string(dir.path().join("features.keys.txt")).unwrap();
    assert_eq!(keys.lines().nth(95), Some("000095"));
}

#[test]
fn inspect_counts_and_draws_a_sheet() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, sheet) = (tiny_shards(dir.path()), dir.path().join("sheet.png"));
    let mut command = bt_stream();
    command.arg("inspect").arg(&shards).arg("--sheet").arg(&sheet);
    command.args(["--samples", "5", "--side", "32", "--set", "views.preset=barlow-cifar"]);
    let text = printed(&mut command);
    assert!(text.contains("samples       96"), "{text}");
    assert!(text.contains("4, of 24 to 24 samples"), "{text}");
    assert!(text.contains("png 100.0%"), "{text}");
    // Five rows of image, view A, view B: 32 pixels each, 6 between.
    let picture = image::open(&sheet).unwrap();
    assert_eq!((picture.width(), picture.height()), (3 * 38 + 6, 5 * 38 + 6));
}

#[test]
fn a_run_without_test_shards_is_told_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));
    let output = bt_stream().arg("knn").arg(&run).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--test"), "{said}");
}

#[test]
fn linear_protocol_few_labels_and_fine_tuning_run_on_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));
    let score = |more: &[&str]| -> Vec<Score> {
        let mut program = bt_stream();
        program.arg("linear").arg(&run).arg("--test").arg(&shards).args([
            "--json",
            "--batch-size",
            "16",
        ]);
        serde_json::from_str(&printed(program.args(more))).unwrap()
    };
    // Trained on the images that it is tested on: better than chance, which is 25%.
    let all = score(&["--epochs", "20"]);
    assert_eq!(all.len(), 2);
    assert!(all[0].linear.is_some_and(|a| a.top1 > 0.35 && a.top5 == 1.0), "{all:?}");
    let tuned = score(&["--epochs", "8", "--finetune", "--lr-backbone", "0.05", "--no-untrained"]);
    assert!(tuned[0].linear.is_some_and(|a| a.top1 > 0.35), "{tuned:?}");
    let few = score(&["--epochs", "2", "--labels", "0.1", "--no-untrained"]);
    assert_eq!(few.len(), 1);

    let mut probe = bt_stream();
    probe.arg("probe").arg(&run).arg("--test").arg(&shards);
    let text = printed(probe.args(["--labels", "0.2", "--no-untrained", "--json"]));
    let few: Vec<Score> = serde_json::from_str(&text).unwrap();
    assert!(few[0].linear.is_some());
}
