//! Whole steps on the emulated device against the CPU engine: layers, network, loss, optimizer,
//! teacher and what a recorded step may do, with nothing of the GPU's but its libraries left out.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use toml::toml;

use crate::intake::images_to;
use crate::learner::{Learner, StepHooks, StepOutcome};
use crate::loss;
use crate::model::{Arch, ModelConfig, ProjectorWidths, Stem, TwinNet};
use crate::nn::cuda::Profiler;
use crate::nn::cuda::emulate::Emulator;
use crate::nn::engine::emulated;
use crate::nn::{Precision, storage};
use crate::optim::{OptimConfig, OptimizerKind};

#[path = "../../tests/golden_resnet.rs"]
mod golden;

const BATCH: usize = 8;

fn model(arch: Arch, stem: Stem) -> ModelConfig {
    ModelConfig {
        arch,
        width: 8,
        stem,
        zero_init: false,
        projector: ProjectorWidths(vec![24, 16]),
        ..Default::default()
    }
}

/// Both views of [`BATCH`] samples, with what their labels have in common.
fn images(seed: u64, side: usize) -> Tensor {
    let mut rng = bt_pipeline::rng::Rng::keyed(seed, 0, 0, 0);
    let len = side * side * 3;
    let mut values: Vec<f32> = (0..BATCH * len).map(|_| rng.uniform(-1.5, 1.5) as f32).collect();
    let second: Vec<f32> =
        values.iter().map(|v| 0.8 * v + 0.4 * rng.uniform(-1.0, 1.0) as f32).collect();
    values.extend(second);
    Tensor::from_vec(values, (2 * BATCH, side, side, 3), &Device::Cpu).unwrap()
}

/// What `steps` steps leave behind.
struct Outcome {
    losses: Vec<f64>,
    /// Every tensor of the network and of what the method keeps.
    state: Vec<(String, Vec<f32>)>,
    gradients: Vec<(String, Vec<f32>)>,
}

fn run(
    model: &ModelConfig,
    method: (&str, toml::Table),
    optimizer: OptimizerKind,
    steps: u64,
) -> Outcome {
    run_in(1, model, method, optimizer, steps)
}

/// [`run`], each batch in `parts`.
fn run_in(
    parts: usize,
    model: &ModelConfig,
    (method, options): (&str, toml::Table),
    optimizer: OptimizerKind,
    steps: u64,
) -> Outcome {
    let objective = loss::build(method, options).unwrap();
    let learner = Learner::build(model, objective, 1, &Device::Cpu).unwrap();
    let mut learner = learner.in_micro_batches(parts);
    // AdamW with its usual eps makes a whole step of a gradient that is nothing but rounding
    // errors; its kernel has tests of its own.
    let config = OptimConfig { optimizer, weight_decay: 1e-2, eps: 1.0, ..Default::default() };
    let mut optimizer = config.build().unwrap();
    let mut losses = Vec::new();
    let side = if model.stem == Stem::Imagenet { 33 } else { 10 };
    for step in 0..steps {
        let engine = learner.net().engine().clone();
        let images = images_to(&images(step, side), &engine).unwrap();
        learner.remember().unwrap();
        let StepOutcome { out, trouble } =
            learner.gradients(&images, StepHooks::default()).unwrap();
        assert_eq!(trouble, None);
        losses.push(out.loss);
        // Small, so that no activation crosses zero in one of two runs that are compared.
        optimizer.step(&mut learner.params(), 1e-3, 1e-3).unwrap();
        learner.follow(step, steps).unwrap();
    }
    let floats = |tensors: Vec<(String, Tensor)>| {
        let tensors = tensors.into_iter().filter(|(_, t)| t.dtype().is_float());
        tensors.map(|(name, t)| (name, storage::read(&t).unwrap().to_vec())).collect()
    };
    let mut state = learner.net().state_dict().unwrap();
    state.extend(learner.state().unwrap());
    let gradients = learner.net().gradients().unwrap();
    Outcome { losses, state: floats(state), gradients: floats(gradients) }
}

/// Norm of the difference over the norm of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let off: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = want.iter().map(|b| square(f64::from(*b))).sum();
    // A bias in front of a normalisation has no gradient but rounding errors.
    (off / norm.max(1e-8)).sqrt()
}

/// Losses are alike to 1e-3, as a CUDA run's are to be; single tensors of these small, random
/// networks hang on which activations are positive.
fn compare(what: &str, got: &Outcome, want: &Outcome, tolerance: f64) {
    for (step, (a, b)) in got.losses.iter().zip(&want.losses).enumerate() {
        assert!((a / b - 1.0).abs() < 1e-3, "{what}: loss {a} for {b} in step {step}");
    }
    for (of, got, want) in
        [("state", &got.state, &want.state), ("gradient", &got.gradients, &want.gradients)]
    {
        assert_eq!(got.len(), want.len());
        for ((name, a), (same, b)) in got.iter().zip(want) {
            assert_eq!(name, same);
            let off = distance(a, b);
            assert!(off < tolerance, "{what}: {of} {name} off by {off:.1e}");
        }
    }
}

#[test]
fn a_step_on_a_device_is_the_cpus() {
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    let cases = [
        (Arch::ResNet18, Stem::Cifar, OptimizerKind::AdamW, 3),
        (Arch::ResNet18, Stem::Imagenet, OptimizerKind::Lars, 2),
        (Arch::ResNet50, Stem::Cifar, OptimizerKind::Sgd, 1),
    ];
    for (arch, stem, optimizer, steps) in cases {
        let (model, barlow) = (model(arch, stem), ("barlow", toml::Table::new()));
        let here = |steps| run(&model, barlow.clone(), optimizer, steps);
        let there = |steps| emulated(device.clone(), Precision::F32, || here(steps));
        let what = format!("{arch:?} {stem:?}");
        // As far as PyTorch's own f32 gradients are from f64 in 50 layers (tests/golden_resnet.rs).
        let tolerance = if arch.bottleneck() { 5e-2 } else { 1e-2 };
        compare(&what, &there(1), &here(1), tolerance);
        compare(&what, &there(steps), &here(steps), tolerance);
    }
}

#[test]
fn pytorchs_reference_vectors_pass_on_a_device() {
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    for precision in [Precision::F32, Precision::Bf16] {
        let half = precision == Precision::Bf16;
        emulated(device.clone(), precision, || golden::agree(&Device::Cpu, half).unwrap());
    }
}

#[test]
fn on_a_device_gradients_lie_where_activations_were() {
    let Some(device) = Emulator::open() else { return };
    let step = |net: &mut TwinNet| {
        let z = net.forward_train(&images(1, 64), 2).unwrap();
        let grad = storage::zeros(z.dims(), &Device::Cpu).unwrap();
        net.backward(&grad).unwrap();
        grad
    };
    let model = model(Arch::ResNet50, Stem::Imagenet);
    let mut net = TwinNet::new(&model, 1, &Device::Cpu).unwrap();
    step(&mut net);
    let on_cpu = net.kept();
    emulated(Arc::new(device), Precision::F32, || {
        let mut net = TwinNet::new(&model, 1, &Device::Cpu).unwrap();
        let mut kept = 0;
        for _ in 0..3 {
            let grad = step(&mut net);
            assert!(kept == 0 || kept == net.kept(), "the second step wants what the first left");
            kept = net.kept();
            let error = net.backward(&grad).unwrap_err().to_string();
            assert!(error.contains("without a forward pass"), "{error}");
        }
        // The features' gradient and the projector's.
        let small = 2 * BATCH * (256 + 2 * 24 + 16);
        assert!(kept <= small, "{kept} for {small}");
        assert!(on_cpu > 50 * kept, "{on_cpu} on the CPU");
    });
}

/// What a momentum teacher does, against the training pass that gives the same.
fn check_forward_only(model: &ModelConfig, what: &str) {
    let bits = |t: &Tensor| -> Vec<u32> {
        let t = storage::host(t).unwrap();
        storage::read(&t).unwrap().iter().map(|v| v.to_bits()).collect()
    };
    let [mut trained, mut followed] = [1, 1].map(|seed| {
        let net = TwinNet::new(model, seed, &Device::Cpu).unwrap();
        (images_to(&images(1, 64), net.engine()).unwrap(), net)
    });
    for _ in 0..2 {
        let want = trained.1.forward_train(&trained.0, 2).unwrap();
        let got = followed.1.forward_only(&followed.0, 2).unwrap();
        assert_eq!(bits(&got), bits(&want), "{what}");
        assert_eq!(followed.1.in_use(), 0, "{what}");
    }
    let state = |net: &mut TwinNet| -> Vec<(String, Vec<f64>)> {
        let state = net.state_dict().unwrap().into_iter();
        let values = |t: Tensor| t.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1();
        state.map(|(name, t)| (name, values(t).unwrap())).collect()
    };
    assert_eq!(state(&mut trained.1), state(&mut followed.1), "{what}: running statistics");
    assert!(followed.1.last_features().is_err(), "{what}: the features are kept");
    // A block has four activations at a time, the largest in a network's first; all of them are 16
    // x that.
    let largest = 2 * BATCH * 32 * 32 * model.width;
    assert!(followed.1.kept() < 8 * largest, "{what}: {} for {largest}", followed.1.kept());
    let grad = storage::zeros((2 * BATCH, followed.1.embedding_dim()), &Device::Cpu).unwrap();
    let error = followed.1.backward(&grad).unwrap_err().to_string();
    assert!(error.contains("without a forward pass"), "{what}: {error}");
}

#[test]
fn a_pass_that_no_backward_pass_follows_gives_the_same_bits_and_keeps_nothing() {
    let without_projector = ModelConfig {
        projector: ProjectorWidths(Vec::new()),
        ..model(Arch::ResNet18, Stem::Imagenet)
    };
    let models = [model(Arch::ResNet50, Stem::Imagenet), without_projector];
    models.iter().for_each(|model| check_forward_only(model, "on the CPU"));
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    for precision in [Precision::F32, Precision::Bf16] {
        emulated(device.clone(), precision, || {
            models.iter().for_each(|model| check_forward_only(model, "on a device"));
        });
    }
}

#[test]
fn other_methods_run_on_a_device_with_their_loss_on_the_cpu() {
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    let model = model(Arch::ResNet18, Stem::Cifar);
    for method in [
        ("byol", toml! { predictor_hidden = 8 }),
        ("moco", toml! { queue = 20 }),
        ("barlow", toml! { normalize = "none" scale = 0.1 }),
        ("barlow", toml! { predictor = 8 }),
    ] {
        let steps = |steps| run(&model, method.clone(), OptimizerKind::Sgd, steps);
        let here = |count| emulated(device.clone(), Precision::F32, || steps(count));
        compare(method.0, &here(1), &steps(1), 1e-3);
        // In a second step an activation may cross zero; teacher, queue and moments have moved.
        compare(method.0, &here(2), &steps(2), 1e-1);
    }
}

#[test]
fn a_batch_in_parts_on_a_device_is_the_cpus() {
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    let model = model(Arch::ResNet18, Stem::Imagenet);
    for (method, parts, precision) in [
        (("barlow", toml::Table::new()), 4, Precision::F32),
        (("barlow", toml::Table::new()), 8, Precision::Bf16),
        (("byol", toml! { predictor_hidden = 8 }), 2, Precision::F32),
        (("moco", toml! { queue = 20 }), 4, Precision::F32),
    ] {
        let steps = |parts| run_in(parts, &model, method.clone(), OptimizerKind::Sgd, 1);
        let there = |parts| emulated(device.clone(), precision, || steps(parts));
        let (got, what) = (there(parts), format!("{} in {parts}", method.0));
        if precision == Precision::F32 {
            compare(&what, &got, &steps(parts), 1e-3);
        } else {
            let off = (got.losses[0] / steps(parts).losses[0] - 1.0).abs();
            assert!(off < 5e-2, "{what}: loss off by {off}");
        }
    }
}

#[test]
fn bfloat16_stays_near_f32_and_keeps_f32_weights() {
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    for stem in [Stem::Cifar, Stem::Imagenet] {
        let (model, barlow) = (model(Arch::ResNet18, stem), ("barlow", toml::Table::new()));
        let want = run(&model, barlow.clone(), OptimizerKind::Sgd, 1);
        let got = emulated(device.clone(), Precision::Bf16, || {
            run(&model, barlow, OptimizerKind::Sgd, 1)
        });
        let off = (got.losses[0] / want.losses[0] - 1.0).abs();
        assert!(off < 5e-2, "{stem:?}: loss off by {off}");
        let fine = got.state.iter().flat_map(|(_, v)| v).any(|v| v.to_bits() & 0xFFFF != 0);
        assert!(fine, "weights are rounded to bfloat16");
    }
}

#[test]
fn a_step_neither_waits_nor_allocates_once_it_is_steady() {
    let Some(device) = Emulator::open() else { return };
    let device = Arc::new(device);
    let steady = |parts| {
        let model = model(Arch::ResNet18, Stem::Imagenet);
        let objective = loss::build("barlow", toml::Table::new()).unwrap();
        let learner = Learner::build(&model, objective, 1, &Device::Cpu).unwrap();
        let mut learner = learner.in_micro_batches(parts);
        let engine = learner.net().engine().clone();
        let images = images_to(&images(1, 33), &engine).unwrap();
        let mut generation = None;
        for step in 0..5 {
            if step >= 2 {
                device.without_waiting(|| assert!(learner.begin(&images).unwrap()));
            } else {
                assert!(learner.begin(&images).unwrap());
            }
            learner.finish().unwrap();
            if step >= 2 {
                let before = generation.replace(learner.net().generation());
                assert!(before.is_none_or(|before| before == learner.net().generation()));
            }
        }
        // An evaluation in between makes buffers of other sizes: nothing recorded may outlive it.
        learner.net().features(&images).unwrap();
        assert_ne!(generation, Some(learner.net().generation()));
    };
    for parts in [1, 4] {
        emulated(device.clone(), Precision::Bf16, || steady(parts));
    }
}

#[test]
fn gradients_that_are_not_finite_are_named_and_taken_back() {
    let Some(device) = Emulator::open() else { return };
    emulated(Arc::new(device), Precision::F32, || {
        let model = model(Arch::ResNet18, Stem::Cifar);
        let objective = loss::build("barlow", toml::Table::new()).unwrap();
        let mut learner = Learner::build(&model, objective, 1, &Device::Cpu).unwrap();
        let statistics = |learner: &mut Learner| -> Vec<f32> {
            let state = learner.net().state_dict().unwrap().into_iter();
            let state = state.filter(|(name, _)| name.contains("running"));
            state.flat_map(|(_, t)| storage::read(&t).unwrap().to_vec()).collect()
        };
        learner.remember().unwrap();
        let before = statistics(&mut learner);
        let mut values = storage::read(&images(1, 10)).unwrap().to_vec();
        values[7] = f32::NAN;
        let poisoned = Tensor::from_vec(values, (2 * BATCH, 10, 10, 3), &Device::Cpu).unwrap();
        let found = learner.gradients(&poisoned, StepHooks::default()).unwrap();
        assert!(found.trouble.unwrap().contains("loss"));
        assert_ne!(statistics(&mut learner), before);
        learner.take_back().unwrap();
        assert_eq!(statistics(&mut learner), before);
        let weight = learner.params().remove(0);
        let len = weight.len();
        weight.set(&vec![f32::INFINITY; len]).unwrap();
        let found = learner.gradients(&images(1, 10), StepHooks::default()).unwrap();
        assert!(found.trouble.is_some());
    });
}

#[test]
fn remembering_a_step_is_one_copy() {
    let Some(device) = Emulator::open() else { return };
    let profiler = Arc::new(Profiler::new(Arc::new(device)));
    emulated(profiler.clone(), Precision::F32, || {
        // With predictor and teacher: their statistics are among them.
        let objective = loss::build("byol", toml! { predictor_hidden = 8 }).unwrap();
        let model = model(Arch::ResNet18, Stem::Cifar);
        let mut learner = Learner::build(&model, objective, 1, &Device::Cpu).unwrap();
        profiler.take();
        learner.take_back().unwrap();
        assert_eq!(profiler.take(), [], "nothing was remembered yet");
        learner.remember().unwrap();
        let asked: Vec<_> = profiler.take().into_iter().map(|l| (l.what, l.calls)).collect();
        assert_eq!(asked, [("copy".to_owned(), 1)]);
        learner.take_back().unwrap();
        let asked: Vec<_> = profiler.take().into_iter().map(|l| (l.what, l.calls)).collect();
        assert_eq!(asked, [("copy".to_owned(), 1)]);
    });
}
