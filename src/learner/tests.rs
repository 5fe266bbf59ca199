//! Methods with state: teachers, predictors, gradients through all of it, what is saved.

use candle_core::{Device, Tensor};
use toml::toml;

use super::*;
use crate::loss::build;
use crate::model::{Arch, ProjectorWidths, Stem};
use crate::optim::{OptimConfig, OptimizerKind};

const BATCH: usize = 6;

fn model(batch_norm: bool) -> ModelConfig {
    ModelConfig {
        arch: Arch::ResNet18,
        width: 4,
        stem: Stem::Cifar,
        zero_init: false,
        projector: ProjectorWidths(vec![12, 10]),
        projector_batch_norm: batch_norm,
        projector_output_norm: batch_norm,
    }
}

fn learner(method: &str, options: toml::Table) -> Learner {
    Learner::build(&model(true), build(method, options).unwrap(), 1, &Device::Cpu).unwrap()
}

fn images(seed: u64) -> Tensor {
    let mut rng = bt_pipeline::rng::Rng::keyed(seed, 0, 0, 0);
    let values = (0..2 * BATCH * 8 * 8 * 3).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
    Tensor::from_vec::<_, f32>(values, (2 * BATCH, 8, 8, 3), &Device::Cpu).unwrap()
}

fn values(params: Vec<&mut Param>, of: impl Fn(&Param) -> &Tensor) -> Vec<f32> {
    params.into_iter().flat_map(|p| storage::read(of(p)).unwrap().to_vec()).collect()
}

fn gradients(learner: &mut Learner, seed: u64) -> (f64, Vec<f32>) {
    learner.forward(&images(seed)).unwrap();
    let mut out = learner.loss().unwrap();
    learner.backward(&mut out).unwrap();
    (out.loss, values(learner.params(), |p| &p.grad))
}

fn step(learner: &mut Learner, optimizer: &mut dyn crate::optim::Optimizer, step: u64) {
    gradients(learner, step);
    optimizer.step(&mut learner.params(), 1e-2, 1e-2).unwrap();
    learner.follow(step, 20).unwrap();
}

fn adam() -> Box<dyn crate::optim::Optimizer> {
    OptimConfig { optimizer: OptimizerKind::AdamW, ..Default::default() }.build().unwrap()
}

#[test]
fn after_ten_steps_the_teacher_is_the_exact_exponential_average() {
    for (method, options, last) in [
        ("byol", toml! { momentum = 0.9 predictor_hidden = 8 }, 1.0),
        ("moco", toml! { momentum = 0.7 queue = 20 }, 0.7),
    ] {
        let mut learner = learner(method, options.clone());
        let mut optimizer = adam();
        let base = options["momentum"].as_float().unwrap();
        let network = |l: &mut Learner| values(l.net().params(), |p| &p.value);
        let mut average: Vec<f64> = network(&mut learner).into_iter().map(f64::from).collect();
        for k in 0..10u64 {
            step(&mut learner, &mut *optimizer, k);
            // BYOL's schedule: 1 - (1 - base) (cos(pi k / K) + 1) / 2.
            let cosine = (std::f64::consts::PI * k as f64 / 20.0).cos();
            let m = last - (last - base) * (cosine + 1.0) / 2.0;
            for (a, x) in average.iter_mut().zip(network(&mut learner)) {
                *a = m * *a + (1.0 - m) * f64::from(x);
            }
        }
        let teacher = values(learner.teacher.as_mut().unwrap().net().params(), |p| &p.value);
        let off = average.iter().zip(&teacher).map(|(a, t)| (a - f64::from(*t)).abs());
        let off = off.fold(0.0, f64::max);
        // Ten roundings of values around 1.
        assert!(off < 2e-6, "{method}: {off}");
        let moved = network(&mut learner).iter().zip(&teacher).any(|(x, t)| (x - t).abs() > 1e-3);
        assert!(moved, "{method}: the teacher is not the network");
    }
}

/// The change of the loss along the gradient of the parameters from `from` on, over its length: 1
/// for a true gradient. Long steps meet the kinks of ReLU, short ones the rounding of f32; of a few
/// lengths the one that fits best counts, as a wrong gradient fits at none.
fn slope(learner: &mut Learner, from: usize) -> f64 {
    let steps = [8e-3, 4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4];
    let slopes = steps.map(|length| slope_over(learner, from, length));
    slopes.into_iter().min_by(|a, b| (a - 1.0).abs().total_cmp(&(b - 1.0).abs())).unwrap()
}

fn slope_over(learner: &mut Learner, from: usize, length: f64) -> f64 {
    let (_, mut direction) = gradients(learner, 3);
    direction[..from].fill(0.0);
    let norm = direction.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let mut at = |sign: f64| {
        let mut rest = &direction[..];
        let move_by = |learner: &mut Learner, by: f64, rest: &mut &[f32]| {
            for p in learner.params() {
                let (own, after) = rest.split_at(p.len());
                *rest = after;
                storage::with_mut(&p.value, |v| {
                    v.iter_mut().zip(own).for_each(|(v, d)| *v += (by * f64::from(*d)) as f32);
                })
                .unwrap();
            }
        };
        let by = sign * length / norm;
        move_by(learner, by, &mut rest);
        learner.forward(&images(3)).unwrap();
        let loss = learner.loss().unwrap().loss;
        let mut rest = &direction[..];
        move_by(learner, -by, &mut rest);
        loss
    };
    (at(1.0) - at(-1.0)) / (2.0 * length) / norm
}

#[test]
fn gradients_of_network_and_predictor_equal_finite_differences() {
    for (method, options) in [
        ("barlow", toml! { predictor = 8 }),
        ("simsiam", toml! { stop_gradient = false predictor_hidden = 8 }),
        ("simsiam", toml! { stop_gradient = false predictor = false }),
        ("byol", toml! { predictor_hidden = 8 }),
        ("byol", toml! { predictor = false }),
        ("moco", toml! { queue = 20 }),
        ("moco", toml! { queue = 20 symmetric = false }),
    ] {
        let what = format!("{method} {options}");
        let mut learner = learner(method, options);
        if learner.teacher.is_some() {
            // Teacher and queue of a later step, so that they differ from the network.
            step(&mut learner, &mut *adam(), 0);
        }
        let whole = slope(&mut learner, 0);
        assert!((whole - 1.0).abs() < 0.05, "{what}: {whole}");
        if learner.predictor.is_some() {
            let network = learner.net().params().iter().map(|p| p.len()).sum();
            let predictor = slope(&mut learner, network);
            assert!((predictor - 1.0).abs() < 0.05, "{what}, predictor alone: {predictor}");
        }
    }
}

#[test]
fn simsiams_gradient_is_byols_with_a_teacher_equal_to_the_network() {
    let (loss, grad) = gradients(&mut learner("simsiam", toml! { predictor_hidden = 8 }), 1);
    let (same, other) = gradients(&mut learner("byol", toml! { predictor_hidden = 8 }), 1);
    assert_eq!((loss, grad), (same, other));
}

#[test]
fn a_stop_gradient_leaves_view_b_alone() {
    let grad_of = |options| {
        let mut learner = learner("barlow", options);
        learner.forward(&images(1)).unwrap();
        let out = learner.loss().unwrap();
        let rows = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (rows(&out.grad_a), rows(&out.grad_b))
    };
    let (both, stopped) = (grad_of(toml::Table::new()), grad_of(toml! { stop_gradient = true }));
    assert_eq!(both.0, stopped.0);
    assert!(stopped.1.iter().all(|g| *g == 0.0) && both.1.iter().any(|g| *g != 0.0));
}

#[test]
fn what_is_saved_goes_on_bit_for_bit_and_foreign_state_is_refused() {
    let cases = [
        ("simsiam", toml! { predictor_hidden = 8 }),
        ("byol", toml! { predictor_hidden = 8 }),
        ("moco", toml! { queue = 20 }),
    ];
    for (method, options) in cases {
        let (mut one, mut optimizer) = (learner(method, options.clone()), adam());
        (0..2).for_each(|k| step(&mut one, &mut *optimizer, k));
        let mut other = learner(method, options);
        let copied = |state: Vec<(String, Tensor)>| -> HashMap<String, Tensor> {
            state.into_iter().map(|(n, t)| (n, t.force_contiguous().unwrap())).collect()
        };
        other.net().load_state_dict(&copied(one.net().state_dict().unwrap())).unwrap();
        other.load_state(copied(one.state().unwrap())).unwrap();
        assert!(gradients(&mut one, 7) == gradients(&mut other, 7), "{method}");
        let saved = copied(one.state().unwrap());
        let error = learner("barlow", toml::Table::new()).load_state(saved).unwrap_err();
        assert!(error.to_string().contains("another objective"), "{error}");
    }
}

#[test]
fn a_projector_without_batch_norm_has_biases_and_exact_gradients() {
    let objective = build("barlow", toml! { normalize = "none" }).unwrap();
    let mut learner = Learner::build(&model(false), objective, 1, &Device::Cpu).unwrap();
    let names: Vec<String> = learner.params().iter().map(|p| p.name.clone()).collect();
    let projector: Vec<&str> =
        names.iter().filter(|n| n.starts_with("projector")).map(String::as_str).collect();
    assert_eq!(projector, ["projector.0.weight", "projector.0.bias", "projector.2.weight"]);
    let whole = slope(&mut learner, 0);
    assert!((whole - 1.0).abs() < 0.02, "{whole}");
}

/// Features and embeddings of a batch, its loss, then every gradient and running statistic.
type Found = (Vec<f32>, Vec<f32>, f64, Vec<f32>, Vec<(String, Vec<f32>)>);

/// What a step on [`images`] leaves where the batch is cut in `count`, or goes through the network
/// whole with as many groups.
fn cut_or_in_groups(cut: bool, count: usize) -> Found {
    let mut learner = learner("barlow", toml! { lambda = 0.1 });
    if cut {
        learner = learner.in_micro_batches(count);
        learner.forward(&images(3)).unwrap();
    } else {
        let z = learner.net.forward_train(&images(3), count).unwrap();
        let [a, b] = [0, BATCH].map(|at| z.narrow(0, at, BATCH).unwrap());
        learner.seen = Some(Embeddings::of(&a, &b));
    }
    let seen = learner.seen.as_ref().unwrap();
    let floats = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let z = [floats(&seen.a), floats(&seen.b)].concat();
    let mut out = learner.loss().unwrap();
    if cut {
        learner.backward(&mut out).unwrap();
    } else {
        learner.net.backward(&out.grad).unwrap();
    }
    let features = floats(&learner.last_features().unwrap());
    (features, z, out.loss, values(learner.params(), |p| &p.grad), all(&mut learner))
}

fn norm(of: impl Iterator<Item = f32>) -> f64 {
    of.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_batch_in_parts_is_a_batch_with_as_many_groups() {
    for count in [2, 4, 6] {
        let (cut, whole) = (cut_or_in_groups(true, count), cut_or_in_groups(false, count));
        assert_eq!((cut.0, cut.1), (whole.0, whole.1), "{count}: features and embeddings");
        assert_eq!((cut.2, cut.4), (whole.2, whole.4), "{count}: loss and statistics");
        // The sums' order is another.
        let off = norm(cut.3.iter().zip(&whole.3).map(|(a, b)| a - b));
        assert!(off < 1e-6 * norm(whole.3.iter().copied()), "{count}: {off}");
    }
    let grad = |count| cut_or_in_groups(true, count).3;
    let (two, four) = (grad(2), grad(4));
    let apart = norm(two.iter().zip(&four).map(|(a, b)| a - b));
    assert!(apart > 1e-2 * norm(two.iter().copied()), "statistics of fewer images: {apart}");
}

#[test]
fn every_method_trains_in_two_parts_as_in_one() {
    let cases = [
        ("infonce", toml::Table::new()),
        ("barlow", toml! { predictor = 8 }),
        ("simsiam", toml! { predictor_hidden = 8 }),
        ("byol", toml! { predictor_hidden = 8 }),
        ("moco", toml! { queue = 20 }),
        ("imax", toml! { ridge = 0.1 }),
    ];
    for (method, options) in cases {
        let steps = |count| {
            let mut learner = learner(method, options.clone()).in_micro_batches(count);
            let mut optimizer = OptimConfig { optimizer: OptimizerKind::Sgd, ..Default::default() };
            optimizer.weight_decay = 0.0;
            let mut optimizer = optimizer.build().unwrap();
            let mut losses = Vec::new();
            for k in 0..3 {
                losses.push(gradients(&mut learner, k).0);
                optimizer.step(&mut learner.params(), 1e-3, 1e-3).unwrap();
                learner.follow(k, 20).unwrap();
            }
            (losses, all(&mut learner))
        };
        let ((one, state), (two, cut)) = (steps(1), steps(2));
        for (a, b) in one.iter().zip(&two) {
            // BYOL's may be near zero.
            assert!((a - b).abs() < 1e-4 * a.abs().max(0.1), "{method}: {one:?}, {two:?}");
        }
        for ((name, a), (same, b)) in state.iter().zip(&cut) {
            assert_eq!(name, same);
            let off = norm(a.iter().zip(b).map(|(a, b)| a - b));
            assert!(off <= 1e-3 * norm(a.iter().copied()) + 1e-6, "{method}: {name} by {off}");
        }
    }
}

#[test]
fn activations_of_one_part_are_kept_and_a_part_goes_forward_twice_but_counts_once() {
    let mut whole = learner("moco", toml! { queue = 20 });
    let mut cut = learner("moco", toml! { queue = 20 }).in_micro_batches(4);
    for learner in [&mut whole, &mut cut] {
        gradients(learner, 1);
    }
    let rows = |l: &mut Learner| l.net.norms_mut()[0].output().unwrap().dims()[0];
    assert_eq!((rows(&mut whole), rows(&mut cut)), (2 * BATCH, 2 * BATCH / 4));
    assert_eq!(whole.multiply_adds(), cut.multiply_adds());
    let passes =
        |l: &mut Learner| l.norms().iter().map(|n| n.num_batches_tracked).collect::<Vec<_>>();
    assert!(passes(&mut whole).iter().all(|n| *n == 2) && passes(&mut cut).iter().all(|n| *n == 4));
    // The next step wants no more memory, and needs a forward pass of its own.
    let kept = cut.net.kept();
    gradients(&mut cut, 2);
    assert_eq!(cut.net.kept(), kept);
    let mut out = cut.loss().unwrap();
    let error = cut.backward(&mut out).unwrap_err().to_string();
    assert!(error.contains("without a forward pass"), "{error}");
}

#[test]
fn a_batch_that_is_not_so_many_parts_is_refused() {
    for count in [3, 8] {
        let mut learner = learner("barlow", toml::Table::new()).in_micro_batches(count);
        let error = learner.forward(&images(1)).unwrap_err().to_string();
        assert!(error.contains(&format!("12 views are not {count} parts")), "{error}");
    }
    // Two parts of a view's odd number of images.
    let mut learner = learner("barlow", toml::Table::new()).in_micro_batches(4);
    assert!(learner.forward(&images(1)).is_ok());
}

/// Every number of the network and of what the method keeps, counts of batches included.
fn all(learner: &mut Learner) -> Vec<(String, Vec<f32>)> {
    let mut tensors = learner.net().state_dict().unwrap();
    tensors.extend(learner.state().unwrap());
    let floats = |t: Tensor| {
        t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    tensors.into_iter().map(|(name, t)| (name, floats(t))).collect()
}

#[test]
fn a_step_that_was_taken_is_not_taken_back() {
    // As where the next batch does not come: the step before stands, statistics and all.
    let mut learner = learner("byol", toml! { predictor_hidden = 8 });
    learner.remember().unwrap();
    step(&mut learner, &mut *adam(), 0);
    let after = all(&mut learner);
    learner.take_back().unwrap();
    assert_eq!(after, all(&mut learner));
}

#[test]
fn a_step_with_numbers_that_are_not_finite_is_taken_back_bit_for_bit() {
    for (method, parts) in [("barlow", 1), ("byol", 1), ("moco", 1), ("byol", 4)] {
        let mut learner = learner(method, toml::Table::new()).in_micro_batches(parts);
        let mut optimizer = adam();
        step(&mut learner, &mut *optimizer, 0);
        let before = all(&mut learner);
        learner.remember().unwrap();
        let poisoned = images(1).affine(f64::NAN, 0.0).unwrap();
        learner.forward(&poisoned).unwrap();
        assert!(!learner.loss().unwrap().loss.is_finite());
        assert_ne!(before, all(&mut learner), "{method}: the statistics have moved");
        learner.take_back().unwrap();
        assert_eq!(before, all(&mut learner), "{method}");
        assert_eq!(bad_value(&mut learner), None);
        gradients(&mut learner, 2);
        assert_eq!(learner.bad_gradient().unwrap(), None);
        let last = learner.params().pop().unwrap();
        storage::with_mut(&last.grad, |grad| grad[0] = f32::INFINITY).unwrap();
        let name = last.name.clone();
        assert_eq!(learner.bad_gradient().unwrap(), Some(name));
    }
}

/// The first tensor of a checkpoint that is not finite.
fn bad_value(learner: &mut Learner) -> Option<String> {
    let (weights, method) = (learner.net().state_dict().unwrap(), learner.state().unwrap());
    let tensors = crate::checkpoint::Tensors { weights, method, ..Default::default() };
    tensors.first_not_finite().unwrap()
}

#[test]
fn whatever_is_saved_and_not_finite_is_named() {
    let mut learner = learner("moco", toml! { queue = 20 });
    step(&mut learner, &mut *adam(), 0);
    assert_eq!(bad_value(&mut learner), None);
    let names = ["backbone.bn1.running_var", "teacher.backbone.conv1.weight", "queue.keys"];
    let tensors = [
        learner.net().norms_mut()[0].running_var.clone(),
        learner.teacher.as_mut().unwrap().net().params()[0].value.clone(),
        learner.objective.state().pop().unwrap().1,
    ];
    for (name, tensor) in names.iter().zip(&tensors) {
        storage::with_mut(tensor, |values| values[0] += f32::INFINITY).unwrap();
        assert_eq!(bad_value(&mut learner).as_deref(), Some(*name));
        storage::with_mut(tensor, |values| values[0] = 0.5).unwrap();
    }
}
