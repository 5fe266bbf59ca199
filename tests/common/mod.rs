//! A tiny run for the tests of the whole program: shards, command, weights.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use bt_pipeline::synth::{self, Spec};
use bt_stream::config::RunConfig;
use bt_stream::signals::Stop;
use bt_stream::train::{ResumeFrom, RunOutputs, Summary};

pub mod skip;

/// A tar of 96 images of 16 x 16 in four classes.
pub fn tiny_shards(folder: &Path) -> PathBuf {
    write_tar(&folder.join("shards"), 96, |sample, label| {
        let spec = Spec { images: 96, side: 16, classes: 4, ..Spec::default() };
        let (image, _) = synth::draw(&spec, sample);
        (synth::encode_png(&image).unwrap(), label.to_string())
    })
}

/// A folder with one tar of `count` samples whose image and class file `sample` makes.
pub fn write_tar(
    folder: &Path,
    count: u64,
    sample: impl Fn(u64, u64) -> (Vec<u8>, String),
) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let mut tar = tar::Builder::new(std::fs::File::create(folder.join("part-0.tar")).unwrap());
    for number in 0..count {
        let (image, class) = sample(number, number % 4);
        for (extension, data) in [("png", &image[..]), ("cls", class.as_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, format!("{number:06}.{extension}"), data).unwrap();
        }
    }
    tar.into_inner().unwrap();
    folder.to_path_buf()
}

/// The program; `BT_STREAM` names it where it was not built on this machine
/// (`tools/cuda/check.sh`).
pub fn bt_stream() -> Command {
    let here = || env!("CARGO_BIN_EXE_bt-stream").into();
    let mut command = Command::new(std::env::var_os("BT_STREAM").unwrap_or_else(here));
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    command
}

/// Views and network of the smallest run, the beginning of a configuration; more of `[model]` may
/// follow.
pub const TINY_NETWORK: &str = r#"
    [views]
    preset = "barlow-cifar"
    both.random_resized_crop.size = 16
    [model]
    arch = "resnet18"
    width = 4
    stem = "cifar"
    projector = "16-16"
"#;

/// A training run of a few dozen small steps, with checkpoints inside epochs.
pub fn tiny_run(shards: &Path, dir: &Path) -> Command {
    let mut command = bt_stream();
    command.arg("train").arg("--data").arg(shards).arg("--dir").arg(dir);
    let settings = [
        "views.preset=barlow-cifar",
        "views.both.random_resized_crop.size=16",
        "model.arch=resnet18",
        "model.width=8",
        "model.stem=cifar",
        "model.projector=32-32",
        "optim.optimizer=adamw",
        "optim.lr_weights=1e-3",
        "optim.lr_biases=1e-3",
        "optim.warmup_epochs=1",
        "optim.scale_lr=false",
        "train.epochs=6",
        "train.batch_size=16",
        "train.log_every=1",
        "train.threads=1",
        "data.threads=2",
        "checkpoint.every_steps=4",
    ];
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    command
}

/// Trains in this process, with no outputs beside the run's folder.
pub fn train(config: &RunConfig, from: &ResumeFrom, stop: &Stop) -> anyhow::Result<Summary> {
    bt_stream::train::train(config, from, stop, &RunOutputs::default())
}

/// The bytes of the newest checkpoint's weights and optimizer state.
pub fn newest_weights(dir: &Path) -> [Vec<u8>; 2] {
    let folder = dir.join("checkpoints");
    let newest = bt_stream::checkpoint::list(&folder).unwrap().pop().expect("a checkpoint");
    ["weights.safetensors", "optimizer.safetensors"]
        .map(|name| std::fs::read(newest.join(name)).unwrap())
}

/// The beginning of a study of a tiny network with two seeds; `rest` follows in its `[base]`.
pub fn tiny_study(shards: &Path, rest: &str) -> String {
    format!(
        r#"
title = "tiny"
seeds = [0, 1]
[base]
data.train = {shards:?}
data.val = {shards:?}
views.preset = "barlow-cifar"
views.both.random_resized_crop.size = 16
model = {{ arch = "resnet18", width = 4, stem = "cifar", projector = "16-16" }}
{rest}"#
    )
}
