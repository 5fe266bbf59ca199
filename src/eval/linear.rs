//! The authors' evaluation protocols: a linear classifier on the backbone's frozen features of
//! augmented views (crop and flip), or backbone and classifier together with a rate each, on all
//! labels or a share of each class. SGD with momentum, the rate falling along half a cosine, epoch
//! by epoch (github.com/facebookresearch/barlowtwins, evaluate.py).
//!
//! [`super::probe`] is the fast one, on features that are stored once.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bt_pipeline::rng::Rng;
use bt_pipeline::shard::{OpenOptions, PackOptions, Selection, ShardSource, pack};
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet, Shuffle};
use candle_core::{DType, Device, Tensor};

use super::encode::{features, same_classes};
use super::progress::Progress;
use super::{Accuracy, Features, classify};
use crate::config::{Misconfigured, RunConfig};
use crate::model::TwinNet;
use crate::nn::{Linear, Mode, Workspace, storage};
use crate::optim::{Optimizer, Sgd, SgdConfig};
use crate::train::images_of;

/// Momentum of SGD.
const MOMENTUM: f64 = 0.9;

/// Options of the protocols; the defaults are the authors' linear one.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearConfig {
    /// Passes over the training images.
    pub epochs: u64,
    /// Images of a step.
    pub batch_size: usize,
    /// Learning rate of the classifier at the start.
    pub lr: f64,
    /// Learning rate of the backbone at the start; `None` leaves it frozen.
    pub lr_backbone: Option<f64>,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decides order, views and the classifier's first weights.
    pub seed: u64,
}

impl Default for LinearConfig {
    fn default() -> Self {
        LinearConfig {
            epochs: 100,
            batch_size: 256,
            lr: 0.3,
            lr_backbone: None,
            weight_decay: 1e-6,
            seed: 0,
        }
    }
}

impl LinearConfig {
    /// The authors' fine-tuning on few labels: 20 epochs without decay, the backbone at a
    /// hundredth of the classifier's rate.
    pub fn fine_tuning() -> Self {
        LinearConfig {
            epochs: 20,
            lr: 0.5,
            lr_backbone: Some(0.005),
            weight_decay: 0.0,
            ..LinearConfig::default()
        }
    }

    /// # Errors
    /// What is out of range.
    pub fn check(&self) -> Result<()> {
        let rates = [self.lr, self.lr_backbone.unwrap_or(1.0)];
        ensure!(
            rates.iter().all(|lr| lr.is_finite() && *lr > 0.0),
            "learning rates must be greater than 0: {rates:?}"
        );
        let decay = self.weight_decay;
        ensure!(
            decay.is_finite() && decay >= 0.0,
            "the weight decay must not be negative: {decay}"
        );
        ensure!(self.batch_size > 0 && self.epochs > 0, "batch size and epochs must be at least 1");
        if self.lr_backbone.is_some() && self.batch_size < 2 {
            let text = "fine-tuning wants batches of at least 2: a single one has no variance for BatchNorm";
            bail!(Misconfigured(text.to_owned()));
        }
        Ok(())
    }
}

/// A classifier that was trained, and how often it is right about the test set.
#[derive(Debug)]
pub struct Classifier {
    /// On the test set.
    pub accuracy: Accuracy,
    /// Its weight, `[classes, features]`, and then its bias, `[classes]`.
    pub fc: Vec<Tensor>,
}

/// Trains a classifier as `options` say on `train`, and counts how often it is right about `test`.
/// `net` is changed when it is fine-tuned. `told` hears of each epoch and its training accuracy.
/// With `progress` the state after each is kept there, and gone on from.
///
/// # Errors
/// Missing labels, options out of range, a loss that is no number, unreadable samples.
pub fn evaluate(
    net: &mut TwinNet,
    [train, test]: [&Arc<ShardSet>; 2],
    config: &RunConfig,
    options: &LinearConfig,
    device: &Device,
    progress: Option<&Progress>,
    mut told: impl FnMut(u64, f64),
) -> Result<Classifier> {
    options.check()?;
    same_classes(train, test)?;
    let classes = train.num_classes().context("the training set")?.max(2);
    let loader = loader(train, config, options)?;
    // What is wrong with the test set shows before the training. A frozen backbone's features stay.
    let tested = |net: &mut TwinNet| -> Result<Features> {
        let rows = features(net, test, config.eval_loader()?, device, |_| ())?;
        rows.check_labelled("the test set")?;
        Ok(rows)
    };
    let before = tested(net)?;
    // The classifier is small: it stays on the CPU wherever the backbone is.
    let mut head = Head::new(net.feature_dim(), classes, &Device::Cpu)?;
    head.draw(options.seed)?;
    let decay = options.weight_decay;
    let mut optimizer = Sgd::new(SgdConfig {
        weight_decay: decay,
        decay_biases: true,
        momentum: MOMENTUM,
        nesterov: false,
    });
    let begun = match progress.map(Progress::read).transpose()?.flatten() {
        Some((epochs, state)) => {
            head.load_state(&state)?;
            if options.lr_backbone.is_some() {
                let of = |prefix| starting_with(prefix, &state);
                net.load_backbone(&of("backbone."))?;
                optimizer.load_state(&of("optimizer."))?;
            }
            epochs
        }
        None => 0,
    };
    for epoch in begun..options.epochs {
        let done = epoch as f64 / options.epochs as f64;
        let share = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        let (mut right, mut samples) = (0.0, 0);
        for batch in loader.start(Position { epoch, batch: 0 }, epoch + 1)? {
            let batch = batch?;
            ensure!(
                !batch.labels.contains(&Features::NO_LABEL),
                "a sample of the training set has no label"
            );
            if options.lr_backbone.is_some() && batch.size < 2 {
                // A single sample has no variance for BatchNorm.
                continue;
            }
            let images = images_of(&batch, device)?;
            let share_right = match options.lr_backbone {
                None => head.learn(&net.features(&images)?, &batch.labels, None)?,
                Some(lr) => {
                    let features = net.features_train(&images)?;
                    let d = storage::zeros(features.shape(), &Device::Cpu)?;
                    let right = head.learn(&features, &batch.labels, Some(&d))?;
                    net.backward_features(&d)?;
                    optimizer.step(&mut net.backbone_params(), lr * share, lr * share)?;
                    right
                }
            };
            head.step(options.lr * share, decay)?;
            right += share_right * batch.size as f64;
            samples += batch.size;
        }
        told(epoch + 1, right / samples.max(1) as f64);
        if let Some(progress) = progress {
            let mut state = head.state();
            if options.lr_backbone.is_some() {
                let named = |(name, tensor)| (format!("backbone.{name}"), tensor);
                state.extend(net.backbone_state_dict()?.into_iter().map(named));
                state.extend(optimizer.state());
            }
            progress.write(epoch + 1, state)?;
        }
    }
    let rows = if options.lr_backbone.is_some() { tested(net)? } else { before };
    let accuracy = head.accuracy(&rows, &Device::Cpu)?;
    let fc = head.linear.params().map(|param| param.value.clone()).collect();
    Ok(Classifier { accuracy, fc })
}

fn starting_with(prefix: &str, tensors: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let chosen = tensors.iter().filter(|(name, _)| name.starts_with(prefix));
    chosen.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

/// One view of each image: the training views' crop and flip, nothing else.
fn loader(train: &Arc<ShardSet>, config: &RunConfig, options: &LinearConfig) -> Result<Loader> {
    let mut views = config.views.views()?;
    views.truncate(1);
    for view in &mut views {
        view.random_horizontal_flip.p = 0.5;
        view.color_jitter.p = 0.0;
        view.random_grayscale.p = 0.0;
        view.gaussian_blur.p = 0.0;
        view.random_solarize.p = 0.0;
    }
    let loader = LoaderConfig {
        views,
        batch_size: options.batch_size.min(train.len()),
        seed: options.seed,
        // The authors' loader: all labels in each epoch, whatever order the run was trained in.
        drop_last: false,
        shuffle: if train.seekable() { Shuffle::Global } else { config.loader()?.shuffle },
        ..config.loader()?
    };
    Ok(Loader::new(Arc::clone(train), loader)?)
}

/// A share of each class of `pattern`'s samples, at least one of each, drawn by `seed` and packed
/// into `folder`.
///
/// # Errors
/// A share outside (0, 1], unreadable shards, a folder that cannot be written.
pub fn few_labels(
    pattern: &str,
    share: f64,
    seed: u64,
    folder: &Path,
    limits: &OpenOptions,
) -> Result<Arc<ShardSet>> {
    let source = ShardSource::open(pattern, folder, limits)?;
    let selection =
        Selection { shuffle: Some(seed), fraction: Some(share), ..Selection::default() };
    let options = PackOptions { selection, overwrite: true, ..PackOptions::default() };
    let origin = format!("{share} of the labels, seed {seed}");
    pack(&source, folder, &origin, &options, &mut |_| ())?;
    super::encode::open(&folder.to_string_lossy(), "the selected samples", limits)
}

/// A linear classifier with the state of its SGD.
pub(super) struct Head {
    linear: Linear,
    velocity: [Tensor; 2],
    ws: Workspace,
}

impl Head {
    /// Zero weights.
    ///
    /// # Errors
    /// More classes than there are anywhere: a label that is a number of something else.
    pub fn new(dim: usize, classes: usize, device: &Device) -> Result<Self> {
        classify::check_classes(classes)?;
        let linear = Linear::new("probe", dim, classes, true, device)?;
        let velocity = [storage::zeros((classes, dim), device)?, storage::zeros(classes, device)?];
        Ok(Self { linear, velocity, ws: Workspace::new(device)? })
    }

    /// The authors' first weights: normal with standard deviation 0.01.
    fn draw(&mut self, seed: u64) -> Result<()> {
        let mut rng = Rng::keyed(seed, u64::MAX, 0, 0x4EAD);
        let weight = self.linear.weight().value.clone();
        Ok(storage::with_mut(&weight, |weight| {
            for w in weight {
                // Irwin and Hall: twelve uniform draws of variance 1/12.
                let normal: f64 = (0..12).map(|_| rng.uniform(-0.5, 0.5)).sum();
                *w = (0.01 * normal) as f32;
            }
        })?)
    }

    /// Cross-entropy's gradients at `features` (mean over the labelled rows); those of the features
    /// go to `d`. Returns the share of right answers.
    pub fn learn(&mut self, features: &Tensor, labels: &[u32], d: Option<&Tensor>) -> Result<f64> {
        let logits = self.linear.forward(features, &mut self.ws)?;
        let classes = logits.dim(1)?;
        let labelled = labels.iter().filter(|label| **label != Features::NO_LABEL).count();
        let scale = 1.0 / labelled.max(1) as f32;
        let (right, finite) = storage::with_mut(&logits, |logits| {
            let mut right = 0;
            let mut finite = true;
            for (row, label) in logits.chunks_exact_mut(classes).zip(labels) {
                match (*label as usize) < classes {
                    true => {
                        right += usize::from(classify::rank(row, *label) == 0);
                        finite &= classify::softmax_minus_target(row, *label as usize).is_finite();
                        row.iter_mut().for_each(|g| *g *= scale);
                    }
                    false => row.fill(0.0),
                }
            }
            (right, finite)
        })?;
        if !finite {
            bail!("the classifier's loss is no number; lower its learning rate");
        }
        self.linear.backward(&logits, d, false)?;
        Ok(right as f64 / labelled.max(1) as f64)
    }

    /// PyTorch's SGD: v = 0.9 v + (g + decay w), w -= lr v.
    pub fn step(&mut self, lr: f64, decay: f64) -> Result<()> {
        let (lr, decay) = (lr as f32, decay as f32);
        for (param, velocity) in self.linear.params().zip(&self.velocity) {
            param.update(|w, g| {
                storage::with_mut(velocity, |v| {
                    for ((w, g), v) in w.iter_mut().zip(g).zip(v) {
                        *v = MOMENTUM as f32 * *v + (g + decay * *w);
                        *w -= lr * *v;
                    }
                })
            })??;
        }
        Ok(())
    }

    /// How often it is right about stored features.
    fn accuracy(&mut self, test: &Features, device: &Device) -> Result<Accuracy> {
        let x = Tensor::from_slice(test.values(), (test.len(), test.dim()), device)?;
        self.ws.mode = Mode::Evaluation;
        let out = self.linear.forward(&x, &mut self.ws)?;
        let logits = storage::host_copy(&out)?;
        self.ws.release(out);
        self.ws.mode = Mode::Training;
        let classes = logits.dim(1)?;
        let logits = storage::read(&logits)?;
        let of = |(row, label): (&[f32], &u32)| classify::rank(row, *label);
        let ranks: Vec<usize> = logits.chunks_exact(classes).zip(test.labels()).map(of).collect();
        Ok(classify::accuracy(&ranks))
    }

    /// Takes what [`Head::state`] gave, and leaves other tensors.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for (name, own) in self.state() {
            let given = state.get(&name).with_context(|| format!("tensor `{name}` is missing"))?;
            let (want, got) = (own.dims(), given.dims());
            ensure!(got == want, "tensor `{name}`: expected {want:?}, got {got:?}");
            let given = given.to_dtype(DType::F32)?.contiguous()?;
            let given = storage::read(&given)?;
            storage::with_mut(&own, |own| own.copy_from_slice(&given))?;
        }
        Ok(())
    }

    /// Weights and velocities by name; shared memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let params = std::iter::once(self.linear.weight()).chain(&self.linear.bias);
        let mut all: Vec<_> = params.map(|p| (p.name.clone(), p.value.clone())).collect();
        for (name, velocity) in ["velocity.weight", "velocity.bias"].iter().zip(&self.velocity) {
            all.push(((*name).to_owned(), velocity.clone()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::storage::read;

    #[test]
    fn the_heads_gradients_are_the_derivatives_of_the_cross_entropy() {
        let mut head = Head::new(3, 4, &Device::Cpu).unwrap();
        head.draw(3).unwrap();
        let values: Vec<f32> = (0..15).map(|i| ((i * 7) % 11) as f32 * 0.2 - 1.0).collect();
        let x = Tensor::from_vec(values, (5, 3), &Device::Cpu).unwrap();
        let labels = [0, 3, Features::NO_LABEL, 1, 2];
        let loss = |head: &mut Head, x: &Tensor| -> f64 {
            let logits = head.linear.forward(x, &mut head.ws).unwrap();
            let logits = logits.to_vec2::<f32>().unwrap();
            let rows = logits.into_iter().zip(labels).filter(|(_, l)| *l != Features::NO_LABEL);
            let each =
                rows.map(|(mut row, l)| classify::softmax_minus_target(&mut row, l as usize));
            each.sum::<f64>() / 4.0
        };
        let d = storage::zeros((5, 3), &Device::Cpu).unwrap();
        head.learn(&x, &labels, Some(&d)).unwrap();
        let grads: Vec<Vec<f32>> =
            head.linear.params().map(|p| read(&p.grad).unwrap().to_vec()).collect();
        let targets: Vec<Tensor> = head.linear.params().map(|p| p.value.clone()).collect();
        let inputs = read(&d).unwrap().to_vec();
        for (target, grad) in targets.iter().zip(&grads).chain([(&x, &inputs)]) {
            for (i, g) in grad.iter().enumerate() {
                let mut at = |by: f32| {
                    storage::with_mut(target, |t| t[i] += by).unwrap();
                    let value = loss(&mut head, &x);
                    storage::with_mut(target, |t| t[i] -= by).unwrap();
                    value
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((slope - f64::from(*g)).abs() < 1e-3, "{i}: {slope} {g}");
            }
        }
    }
}
