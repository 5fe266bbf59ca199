//! A CPU run and a CUDA run from the same seed, step by step. Without a CUDA device (or a build without
//! the feature `cuda`) the test says so and passes; `BT_DEVICE` names another than the first.

use bt_stream::config::TrainConfig;
use bt_stream::learner::Learner;
use bt_stream::loss;
use bt_stream::model::{ModelConfig, ProjectorWidths, Stem};
use bt_stream::optim::{OptimConfig, OptimizerKind};
use bt_stream::train::images_to;
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

#[test]
fn a_cuda_run_follows_a_cpu_run() {
    let device = std::env::var("BT_DEVICE").unwrap_or_else(|_| "cuda:0".into());
    let config = TrainConfig { device, ..Default::default() };
    let cuda = match bt_stream::train::device(&config) {
        Ok(cuda) => cuda,
        Err(error) => return println!("skipped: {error:#}"),
    };
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
