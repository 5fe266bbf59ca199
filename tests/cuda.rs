//! A CPU run and a CUDA run from the same seed, step by step; views finished on the device. Without a
//! CUDA device (or a build without the feature `cuda`) the tests say so and pass; `BT_DEVICE` names
//! another than the first.

use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::shard::{OpenOptions, PackOptions, SynthSource, pack};
use bt_pipeline::synth::Spec;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};
use bt_stream::config::AugmentDevice;
use bt_stream::config::TrainConfig;
use bt_stream::learner::Learner;
use bt_stream::loss;
use bt_stream::model::{ModelConfig, ProjectorWidths, Stem};
use bt_stream::nn::storage;
use bt_stream::optim::{OptimConfig, OptimizerKind};
use bt_stream::train::{Intake, images_to};
use candle_core::{Device, Tensor};

/// Steps that are compared.
const STEPS: u64 = 20;

/// Losses of the steps on `device`; every step has its own images.
fn losses(device: &Device, method: &str, optimizer: OptimizerKind) -> Vec<f64> {
    let model = ModelConfig {
        arch: "resnet18".parse().unwrap(),
        width: 16,
        stem: Stem::Cifar,
        zero_init: false,
        projector: ProjectorWidths(vec![128, 128, 128]),
        ..Default::default()
    };
    let objective = loss::build(method, toml::Table::new()).unwrap();
    let mut learner = Learner::build(&model, objective, 3, device).unwrap();
    let config = OptimConfig { optimizer, ..Default::default() };
    let mut optimizer = config.build().unwrap();
    let mut rng = bt_pipeline::rng::Rng::keyed(5, 0, 0, 0);
    let step = |step: u64| {
        let values: Vec<f32> =
            (0..32 * 32 * 32 * 3).map(|_| rng.uniform(-2.0, 2.0) as f32).collect();
        let images = Tensor::from_vec(values, (32, 32, 32, 3), &Device::Cpu).unwrap();
        let engine = learner.net().engine().clone();
        let images = images_to(&images, &engine).unwrap();
        learner.remember().unwrap();
        let (out, trouble) = learner.gradients(&images, &mut |_| ()).unwrap();
        assert_eq!(trouble, None);
        optimizer.step(&mut learner.params(), 1e-3, 1e-3).unwrap();
        learner.follow(step, STEPS).unwrap();
        out.loss
    };
    (0..STEPS).map(step).collect()
}

/// The CUDA device, where there is one.
fn cuda() -> Option<Device> {
    let device = std::env::var("BT_DEVICE").unwrap_or_else(|_| "cuda:0".into());
    let config = TrainConfig { device, ..Default::default() };
    bt_stream::train::device(&config).inspect_err(|error| println!("skipped: {error:#}")).ok()
}

/// The first epoch's images as `device` gets them, each batch sent before the one in front of it is used.
fn images(set: &Arc<ShardSet>, device: &Device, finisher: AugmentDevice) -> Vec<Vec<f32>> {
    let views = Preset::BarlowImagenet.views();
    let mut intake = Intake::new(device, &views, finisher).unwrap();
    let config = intake.adapt(LoaderConfig::training(views, 4, 1));
    let loader = intake.with_memory(Loader::new(Arc::clone(set), config).unwrap());
    let mut batches = loader.start(Position::default(), 1).unwrap().map(|batch| batch.unwrap());
    let mut out = Vec::new();
    let mut ahead = batches.next().map(|batch| (intake.begin(&batch).unwrap(), batch));
    while let Some((arriving, batch)) = ahead {
        ahead = batches.next().map(|batch| (intake.begin(&batch).unwrap(), batch));
        let images = storage::host(&intake.images(&batch, &arriving).unwrap()).unwrap();
        out.push(storage::read(&images).unwrap().to_vec());
    }
    out
}

#[test]
fn a_cuda_device_gets_the_cpus_views_and_finishes_them_the_same() {
    let Some(cuda) = cuda() else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = SynthSource::new(Spec { images: 24, side: 260, ..Spec::default() }).unwrap();
    pack(&source, dir.path(), "test", &PackOptions::default(), &mut |_| ()).unwrap();
    let pattern = dir.path().to_string_lossy();
    let set = Arc::new(ShardSet::open(&pattern, &OpenOptions::default()).unwrap());
    let here = images(&set, &Device::Cpu, AugmentDevice::Cpu);
    let there = images(&set, &cuda, AugmentDevice::Cpu);
    assert_eq!((here.len(), there.len()), (6, 6));
    for (a, b) in here.iter().flatten().zip(there.iter().flatten()) {
        assert!((a - b).abs() < 1e-6, "{a} here, {b} there");
    }
    assert!(images(&set, &cuda, AugmentDevice::Cuda) == there, "finished on the device");
}

#[test]
fn a_cuda_run_follows_a_cpu_run() {
    let Some(cuda) = cuda() else { return };
    let optimizers = [("barlow", OptimizerKind::AdamW), ("barlow", OptimizerKind::Lars)];
    let others = ["byol", "moco", "infonce"].map(|method| (method, OptimizerKind::Sgd));
    for (method, optimizer) in optimizers.into_iter().chain(others) {
        let here = losses(&Device::Cpu, method, optimizer);
        let there = losses(&cuda, method, optimizer);
        for (step, (a, b)) in here.iter().zip(&there).enumerate() {
            assert!((a / b - 1.0).abs() < 1e-3, "{method}, step {step}: {a} here, {b} there");
        }
        println!(
            "{method}: {:.6} and {:.6} after {STEPS} steps",
            here.last().unwrap(),
            there.last().unwrap()
        );
    }
}
