//! A CPU run and a CUDA run from the same seed, step by step; views finished on the device. Without
//! a CUDA device (or a build without the feature `cuda`) the tests say so and pass; `BT_DEVICE`
//! names another than the first, which then has to be there.

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use bt_pipeline::augment::Preset;
use bt_pipeline::shard::{OpenOptions, PackOptions, SynthSource, pack};
use bt_pipeline::synth::Spec;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};
use bt_stream::config::{AugmentDevice, RunConfig, TrainConfig};
use bt_stream::intake::Intake;
use bt_stream::metrics::{Line, METRICS_FILE};
use bt_stream::nn::storage;
use bt_stream::signals::Stop;
use bt_stream::train::ResumeFrom;
use candle_core::{Device, DeviceLocation};

use common::{bt_stream, newest_weights, tiny_run, tiny_shards, tiny_study, train};

/// Writes shards of `images` images and returns what names them.
fn shards(dir: &Path, images: u64, side: usize) -> String {
    let source = SynthSource::new(Spec { images, side, ..Spec::default() }).unwrap();
    pack(&source, dir, "test", &PackOptions::default(), &mut |_| ()).unwrap();
    dir.to_string_lossy().into_owned()
}

/// Held by the test that uses the device: a process has one stream for its steps, and what another
/// test launches there would become part of a step that is being recorded.
static STREAM: Mutex<()> = Mutex::new(());

/// The CUDA device, where there is one: with `BT_DEVICE` there has to be.
fn cuda() -> Option<(String, Device, MutexGuard<'static, ()>)> {
    let alone = STREAM.lock().unwrap_or_else(PoisonError::into_inner);
    let named = std::env::var("BT_DEVICE");
    let name = named.clone().unwrap_or_else(|_| "cuda:0".into());
    let config = TrainConfig { device: name.clone(), ..Default::default() };
    match bt_stream::device::device(&config) {
        Ok(device) => Some((name, device, alone)),
        Err(error) => {
            assert!(named.is_err(), "{error:#}");
            println!("skipped: {error:#}");
            None
        }
    }
}

/// The first epoch's images as `device` gets them, each batch sent before the one in front of it is
/// used.
fn images(set: &Arc<ShardSet>, device: &Device, finisher: AugmentDevice) -> Vec<Vec<f32>> {
    let views = Preset::BarlowImagenet.views();
    let mut intake = Intake::new(device, &views, finisher).unwrap();
    let config = intake.adapt(LoaderConfig::training(views, 4, 1));
    let loader = intake.with_memory(Loader::new(Arc::clone(set), config).unwrap());
    let mut batches = loader.start(Position::default(), 1).unwrap().map(|batch| batch.unwrap());
    let mut out = Vec::new();
    let mut ahead = batches.next().map(|batch| intake.begin(batch).unwrap());
    while let Some(arriving) = ahead {
        ahead = batches.next().map(|batch| intake.begin(batch).unwrap());
        let images = storage::host(&intake.images(&arriving).unwrap()).unwrap();
        out.push(storage::read(&images).unwrap().to_vec());
    }
    out
}

#[test]
fn a_cuda_device_gets_the_cpus_views_and_finishes_them_the_same() {
    let Some((_, cuda, _alone)) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let shards = shards(dir.path(), 24, 260);
    let set = Arc::new(ShardSet::open(&shards, &OpenOptions::default()).unwrap());
    let here = images(&set, &Device::Cpu, AugmentDevice::Cpu);
    let there = images(&set, &cuda, AugmentDevice::Cpu);
    assert_eq!((here.len(), there.len()), (6, 6));
    for (a, b) in here.iter().flatten().zip(there.iter().flatten()) {
        assert!((a - b).abs() < 1e-6, "{a} here, {b} there");
    }
    assert!(images(&set, &cuda, AugmentDevice::Cuda) == there, "finished on the device");
}

/// Losses of the steps of a run of 24, in three epochs of which the last is resumed.
fn losses(shards: &str, device: &str, settings: &[&str]) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir()?;
    let own = [
        "views.preset='barlow-cifar'",
        "views.both.random_resized_crop.size=24",
        "model.arch='resnet18'",
        "model.width=8",
        "model.stem='cifar'",
        "model.projector='64-64'",
        // As in the first steps of a long run: without it rounding errors of 1e-7 are 1e-2 of the
        // loss before the tenth step, on the CPU alone.
        "optim.warmup_epochs=10",
        "train.batch_size=16",
        "train.log_every=1",
        "eval.knn_every=0",
    ];
    let run = |epochs: u64, from: ResumeFrom| -> Result<()> {
        let mut all: Vec<String> = own.iter().chain(settings).map(|&text| text.into()).collect();
        all.push(format!("data.train='{shards}'"));
        all.push(format!("data.val='{shards}'"));
        all.push(format!("train.dir='{}'", dir.path().join("run").display()));
        all.push(format!("train.device='{device}'"));
        all.push(format!("train.epochs={epochs}"));
        let config = RunConfig::parse("", "", &all)?;
        train(&config, &from, &Stop::default()).map(drop)?;
        Ok(())
    };
    run(2, ResumeFrom::Scratch)?;
    run(3, ResumeFrom::Latest)?;
    let lines = std::fs::read_to_string(dir.path().join("run").join(METRICS_FILE))?;
    let lines = lines.lines().map(serde_json::from_str::<Line>);
    Ok(lines.collect::<Result<Vec<_>, _>>()?.iter().filter_map(|line| line.loss).collect())
}

/// Losses that differ by less than this in relation, or by it where they are small, are the same.
const TOLERANCE: f64 = 1e-3;

fn largest_difference(a: &[f64], b: &[f64]) -> Result<f64> {
    ensure!((a.len(), b.len()) == (24, 24), "{} and {} losses", a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
    Ok(off.fold(0.0, f64::max))
}

/// Checks every method, so that one failure hides none of those after it.
fn of_each_method(check: impl Fn(&[&str]) -> Result<()>) {
    let failed = |method: &&[&str]| check(method).err().map(|e| format!("{method:?}: {e:#}"));
    let failed: Vec<String> = METHODS.iter().filter_map(failed).collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), METHODS.len(), failed.join("\n"));
}

const METHODS: [&[&str]; 7] = [
    // Evaluated between its steps, which are recorded.
    &["optim.optimizer='lars'", "eval.knn_every=1"],
    &["optim.optimizer='adamw'", "optim.lr_weights=0.02", "optim.lr_biases=0.02"],
    &["optim.optimizer='lars'", "loss.predictor=32"],
    // Each batch in parts, recorded as one step; statistics of 8 images grow rounding errors faster.
    &["optim.optimizer='lars'", "train.micro_batches=4", "optim.warmup_epochs=20"],
    &["method='byol'", "optim.optimizer='sgd'"],
    &["method='moco'", "optim.optimizer='sgd'", "loss.queue=64"],
    // At its default temperature images darker by 1e-6 move the loss by 1e-2, on the CPU alone.
    &["method='infonce'", "optim.optimizer='sgd'", "loss.temperature=0.5"],
];

#[test]
fn a_cuda_run_follows_a_cpu_run() {
    let Some((device, _, _alone)) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let shards = shards(dir.path(), 128, 40);
    of_each_method(|method| {
        let here = losses(&shards, "cpu", method).context("here")?;
        let on_device = [method, &["augment.device='cuda'"]].concat();
        let there = losses(&shards, &device, &on_device).context("there")?;
        let off = largest_difference(&there, &here)?;
        println!("{method:?}: {off:.1e} at most, after 24 steps {} and {}", here[23], there[23]);
        ensure!(off < TOLERANCE, "{here:?} here, {there:?} there");
        Ok(())
    });
}

#[test]
fn a_cuda_device_takes_a_studys_cells_one_at_a_time_and_their_first_steps() {
    let Some((device, _, _alone)) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let rest =
        "[[cells]]\nname = \"barlow\"\n[[cells]]\nname = \"byol\"\nconfig.method = \"byol\"\n";
    let study = dir.path().join("tiny.toml");
    std::fs::write(&study, tiny_study(&tiny_shards(dir.path()), rest)).unwrap();
    let with = |more: &[&str]| {
        let (on, out) = (format!("train.device='{device}'"), dir.path().join("out"));
        let mut command = bt_stream();
        command.arg("study").arg(&study).arg("--dir").arg(out).args(["--set", &on]).args(more);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = with(&["--jobs", "2"]);
    assert!(!done && said.contains("--jobs 1"), "{said}");
    let (done, said) = with(&["--first-step", "8", "--set", "train.precision='bf16'"]);
    assert!(done, "{said}");
}

#[test]
fn a_cuda_device_computes_in_any_way_within_one_process() {
    let Some((device, _, _alone)) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let rest = r#"
train = { epochs = 1, batch_size = 48 }
[[cells]]
name = "f32"
[[cells]]
name = "bf16"
config.train.precision = "bf16"
[[cells]]
name = "repeats"
config.train.deterministic = true
config.train.cuda_graph = false
"#;
    let study = dir.path().join("ways.toml");
    let text = tiny_study(&tiny_shards(dir.path()), rest).replace("seeds = [0, 1]", "seeds = [0]");
    std::fs::write(&study, text).unwrap();
    let said = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let out = dir.path().join("out");
    let on = format!("train.device='{device}'");
    said(bt_stream().arg("study").arg(&study).arg("--dir").arg(&out).args(["--set", &on]));
    let runs = ["f32", "bf16", "repeats"].map(|name| out.join(format!("cells/{name}.seed-0")));
    let [f32, bf16, repeats] = runs.each_ref().map(|run| {
        let lines = bt_stream::metrics::read(run).unwrap();
        lines.iter().filter_map(|line| line.loss).collect::<Vec<_>>()
    });
    // Rounded, and no more than that.
    let off = |other: &[f64]| ((other[0] - f32[0]) / f32[0]).abs();
    assert!(off(&bf16) > 1e-5 && off(&bf16) < 0.2, "{f32:?}, {bf16:?}");
    assert!(off(&repeats) < 1e-4, "{f32:?}, {repeats:?}");
    let page = dir.path().join("report.html");
    let said = said(bt_stream().arg("report").args(&runs).arg("--out").arg(page));
    assert!(!said.contains("without pictures"), "{said}");
}

#[test]
fn a_cuda_devices_deterministic_run_has_the_same_weights_in_another_process() {
    let Some((device, _, _alone)) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    // What is fastest differs between the processes, or wants more memory than is there at first: by
    // a variable where CUDA is stood in for.
    let weights = |name: &str, variable: Option<(&str, &str)>| {
        let run = dir.path().join(name);
        let mut command = tiny_run(&shards, &run);
        command.args(["--set", &format!("train.device='{device}'")]);
        command.args(["--set", "train.deterministic=true", "--set", "train.epochs=1"]);
        command.envs(variable);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        newest_weights(&run)
    };
    let one = weights("one", None);
    assert!(one == weights("other", Some(("STAND_IN_STOPWATCH", "1"))));
    assert!(one == weights("larger", Some(("STAND_IN_WORKSPACE", "300000000"))));
}

#[test]
fn a_cuda_devices_deterministic_run_is_the_same_after_another_in_its_process() {
    let Some((device, _, _alone)) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let [narrow, wide] = ["narrow", "wide"].map(|name| {
        let width = if name == "wide" { "config.model.width = 8\n" } else { "" };
        format!("[[cells]]\nname = \"{name}\"\n{width}")
    });
    // The first run's gradients want more workspace than is there at first; where CUDA is stood in
    // for, that of an algorithm that the second would otherwise not take.
    let wide_after = |cells: &[&str]| {
        let study = dir.path().join(format!("{}.toml", cells.len()));
        let base = "train = { epochs = 1, batch_size = 48, deterministic = true }\n";
        let text = tiny_study(&shards, &[&[base], cells].concat().concat());
        std::fs::write(&study, text.replace("seeds = [0, 1]", "seeds = [0]")).unwrap();
        let out = study.with_extension("");
        let mut command = bt_stream();
        command.arg("study").arg(&study).arg("--dir").arg(&out);
        command.args(["--set", &format!("train.device='{device}'")]);
        command.envs([("STAND_IN_WORKSPACE", "300000000"), ("STAND_IN_FRUGAL", "1")]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = bt_stream::metrics::read(&out.join("cells/wide.seed-0")).unwrap();
        lines.iter().filter_map(|line| line.loss).collect::<Vec<_>>()
    };
    assert_eq!(wide_after(&[&wide]), wide_after(&[&narrow, &wide]));
}

#[test]
fn a_cuda_devices_run_is_evaluated_where_there_are_fewer_of_them() {
    let Some(_) = cuda() else { return };
    let config = TrainConfig { device: "cuda:63".into(), ..Default::default() };
    assert!(bt_stream::device::device(&config).is_err(), "training falls back to nothing");
    let device = bt_stream::device::evaluation_device(&config).unwrap();
    assert_eq!(device.location(), DeviceLocation::Cuda { gpu_id: 0 });
}

/// Without a device: what the comparison above can see. Rounding errors do not grow to its
/// tolerance, and a run that learned nothing would be far beyond it.
#[test]
fn runs_that_are_compared_are_not_chaotic_and_learn() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards(dir.path(), 128, 40);
    // The mean is 0.4914 for others.
    let near = "views.both.normalize={mean=[0.491401,0.4822,0.4465],std=[0.2470,0.2435,0.2616]}";
    of_each_method(|method| {
        let with = |more: &[&str]| losses(&shards, "cpu", &[method, more].concat());
        let here = with(&[])?;
        let off = largest_difference(&with(&[near])?, &here)?;
        println!("{method:?}: darker images: {off:.1e}");
        ensure!(off > 0.0 && off < TOLERANCE / 2.0, "darker images: {off:.1e}");
        let still = with(&["optim.lr_weights=1e-9", "optim.lr_biases=1e-9"])?;
        let off = largest_difference(&still, &here)?;
        ensure!(off > 10.0 * TOLERANCE, "weights that stay: {off:.1e}");
        Ok(())
    });
}
