//! Losses that are not finite: what the run leaves behind, and what it says.

mod common;

use std::path::Path;

use common::{bt_stream, tiny_run, tiny_shards};

/// Runs with a learning rate that ruins the weights in the first step.
fn ruined(shards: &Path, dir: &Path, policies: &[&str]) -> (String, Vec<serde_json::Value>) {
    let mut command = tiny_run(shards, dir);
    for setting in ["optim.lr_weights=1e37", "optim.warmup_epochs=0"].iter().chain(policies) {
        command.args(["--set", setting]);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = std::fs::read_to_string(dir.join("bad-batches.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (String::from_utf8_lossy(&output.stderr).into_owned(), lines)
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_names_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let (said, batches) = ruined(&shards, &dir, &["train.on_nan=stop"]);
    assert!(said.contains("at step 2") && said.contains("learning rate"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let [batch] = &batches[..] else { panic!("{batches:?}") };
    let samples = batch["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 16);
    assert!(samples.iter().all(|sample| sample["key"].as_str().unwrap().len() == 6));
    // The state before the step is there and can be read, where no run goes on from by itself.
    let aside = dir.join("checkpoints/aside-0000000001");
    assert!(said.contains("aside-0000000001"), "{said}");
    assert_eq!(bt_stream::checkpoint::find(&aside).unwrap().state.step, 1);
    assert!(bt_stream::checkpoint::list(&dir.join("checkpoints")).unwrap().is_empty());
    // Its weights are finite and its features are not, which nobody is given.
    let out = folder.path().join("features.npy");
    let output = bt_stream().arg("embed").args([&aside, &shards, &out]).output().unwrap();
    let refused = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && refused.contains("is not finite"), "{refused}");
    assert!(!out.exists());
    // There is nothing to go on from, and what is there is not run over.
    assert!(said.contains("there is no checkpoint yet"), "{said}");
    let again = tiny_run(&shards, &dir).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && said.contains("already holds a run"), "{said}");
}

#[test]
fn a_ruined_state_takes_no_good_checkpoints_place() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let keep = ["--set", "checkpoint.keep=1", "--set", "train.epochs=1"];
    assert!(tiny_run(&shards, &dir).args(keep).output().unwrap().status.success());
    let ruin = ["--resume", "--epochs", "4", "--set", "optim.lr_weights=1e37"];
    let output = tiny_run(&shards, &dir).args(keep).args(ruin).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let left = bt_stream::checkpoint::list(&dir.join("checkpoints")).unwrap();
    let [good] = &left[..] else { panic!("{left:?}") };
    assert!(good.ends_with("step-0000000006"), "{good:?}");
}

#[test]
fn rewinding_skips_ten_batches_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let settings = ["train.on_nan=rewind", "checkpoint.every_steps=1", "checkpoint.keep=20"];
    let (said, batches) = ruined(&shards, &dir, &settings);
    assert_eq!(batches.len(), 11);
    assert!(said.contains("at step 12, after 10 batches that were skipped"), "{said}");
    assert!(!said.contains("or skip such"), "{said}");
    let steps: Vec<u64> = batches.iter().map(|batch| batch["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (2..=12).collect::<Vec<_>>());

    // A process that goes on in between counts on, and notes none twice.
    let mut again = tiny_run(&shards, &dir);
    again.arg("--resume-from").arg(dir.join("checkpoints/step-0000000005"));
    for setting in ["optim.lr_weights=1e37", "optim.warmup_epochs=0"].iter().chain(&settings) {
        again.args(["--set", setting]);
    }
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("at step 12, after 10 batches that were skipped"), "{said}");
    let text = std::fs::read_to_string(dir.join("bad-batches.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 11);
}

#[test]
fn imax_blames_ruined_weights_not_a_singular_covariance() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let (said, batches) = ruined(&shards, &dir, &["method=imax", "train.on_nan=stop"]);
    assert!(said.contains("at step 2") && !said.contains("singular"), "{said}");
    assert_eq!(batches.len(), 1);
}

#[test]
fn weights_that_the_last_step_ruins_are_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut command = tiny_run(&shards, &dir);
    // One step, so large that its sums overflow.
    let settings = ["optim.lr_weights=3e38", "optim.weight_decay=1e3", "optim.warmup_epochs=0"];
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.args(["--batch-size", "96", "--epochs", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("is not finite at step 1."), "{said}");
    assert!(!said.contains("pass over such"), "no batch is to blame: {said}");
    assert!(bt_stream::checkpoint::list(&dir.join("checkpoints")).unwrap().is_empty());
}

#[test]
fn a_second_moment_that_overflows_is_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut command = tiny_run(&shards, &dir);
    // Loss, gradients and weights stay finite: what is divided by infinity moves nothing.
    for setting in ["optim.optimizer=adamw", "loss.scale=1e24"] {
        command.args(["--set", setting]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("is not finite at step 4.") && said.contains("optimizer.exp_avg_sq"),
        "{said}"
    );
    assert!(bt_stream::checkpoint::list(&dir.join("checkpoints")).unwrap().is_empty());
}
