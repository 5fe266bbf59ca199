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
use bt_pipeline::augment::ViewConfig;
use bt_pipeline::shard::{OpenOptions, PackOptions, Selection, ShardSource, pack};
use bt_pipeline::{Batch, Loader, LoaderConfig, Position, ShardSet, Shuffle};
use candle_core::{Device, Tensor};

use super::encode::{features, same_classes};
use super::head::{Head, MOMENTUM};
use super::progress::Progress;
use super::{Accuracy, Features};
use crate::checks::{at_least, not_negative, positive};
use crate::config::{Misconfigured, RunConfig, room_for};
use crate::intake::images_of;
use crate::model::{BACKBONE, TwinNet};
use crate::nn::storage;
use crate::optim::{Optimizer, Sgd, SgdConfig};
use crate::print::one_line;

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

/// As `linear --state` tells one evaluation from another.
impl std::fmt::Display for LinearConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let LinearConfig { epochs, batch_size, lr, lr_backbone, weight_decay, seed } = self;
        write!(f, "{epochs} epochs, batch {batch_size}, rate {lr}, ")?;
        if let Some(lr) = lr_backbone {
            write!(f, "backbone's rate {lr}, ")?;
        }
        write!(f, "weight decay {weight_decay}, seed {seed}")
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
        positive("the learning rate", self.lr)?;
        positive("the backbone's learning rate", self.lr_backbone.unwrap_or(1.0))?;
        not_negative("the weight decay", self.weight_decay)?;
        at_least("the batch size", self.batch_size, 1)?;
        at_least("the number of epochs", self.epochs, 1)?;
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
    /// Test samples, without those that could not be read.
    pub tested: usize,
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
    let mut training = Training::new(net, classes, options, device)?;
    let begun = match progress.map(Progress::read).transpose()?.flatten() {
        Some((epochs, state)) => {
            training.take_up(&state)?;
            epochs
        }
        None => 0,
    };
    for epoch in begun..options.epochs {
        told(epoch + 1, training.epoch(&loader, epoch)?);
        // A full disk ends no training of hours: the file before it stays.
        if let Some(progress) = progress
            && let Err(error) = progress.write(epoch + 1, training.state()?)
        {
            tracing::warn!("{}", one_line(&error));
        }
    }
    let Training { net, mut head, .. } = training;
    let rows = if options.lr_backbone.is_some() { tested(net)? } else { before };
    let accuracy = head.accuracy(&rows, &Device::Cpu)?;
    Ok(Classifier { accuracy, tested: rows.len(), fc: head.values() })
}

/// What learns, and by what.
struct Training<'a> {
    net: &'a mut TwinNet,
    /// Small: it stays on the CPU wherever the backbone is.
    head: Head,
    /// Of the backbone, where it is fine-tuned.
    optimizer: Sgd,
    options: &'a LinearConfig,
    device: &'a Device,
}

impl<'a> Training<'a> {
    fn new(
        net: &'a mut TwinNet,
        classes: usize,
        options: &'a LinearConfig,
        device: &'a Device,
    ) -> Result<Self> {
        let mut head = Head::new(net.feature_dim(), classes, &Device::Cpu)?;
        head.draw(options.seed)?;
        let optimizer = Sgd::new(SgdConfig {
            weight_decay: options.weight_decay,
            decay_biases: true,
            momentum: MOMENTUM,
            nesterov: false,
        });
        Ok(Training { net, head, optimizer, options, device })
    }

    /// Learns from every sample once; returns the share of right answers on the way.
    fn epoch(&mut self, loader: &Loader, epoch: u64) -> Result<f64> {
        let share = rate_share(epoch, self.options.epochs);
        let (mut right, mut samples) = (0.0, 0);
        for batch in loader.start(Position { epoch, batch: 0 }, epoch + 1)? {
            let batch = batch?;
            ensure!(
                !batch.labels.contains(&Features::NO_LABEL),
                "a sample of the training set has no label"
            );
            if self.options.lr_backbone.is_some() && batch.size() < 2 {
                // The last one: a single sample has no variance for BatchNorm.
                continue;
            }
            right += self.step(&batch, share)? * batch.size() as f64;
            samples += batch.size();
        }
        Ok(right / samples.max(1) as f64)
    }

    /// A step at this share of the rates; returns the share of right answers before it.
    fn step(&mut self, batch: &Batch, share: f64) -> Result<f64> {
        let images = images_of(batch, self.device)?;
        let right = match self.options.lr_backbone {
            None => self.head.learn(&self.net.features(&images)?, &batch.labels, None)?,
            Some(lr) => {
                let features = self.net.features_train(&images)?;
                let d = storage::zeros(features.shape(), &Device::Cpu)?;
                let right = self.head.learn(&features, &batch.labels, Some(&d))?;
                self.net.backward_features(&d)?;
                let lr = lr * share;
                self.optimizer.step(&mut self.net.backbone_params(), lr, lr)?;
                right
            }
        };
        self.head.step(self.options.lr * share, self.options.weight_decay)?;
        Ok(right)
    }

    /// All that an epoch changes, by name.
    fn state(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut state = self.head.state();
        if self.options.lr_backbone.is_some() {
            let named = |(name, tensor)| (format!("{BACKBONE}{name}"), tensor);
            state.extend(self.net.backbone_state_dict()?.into_iter().map(named));
            state.extend(self.optimizer.state());
        }
        Ok(state)
    }

    /// Takes what [`Training::state`] gave.
    fn take_up(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.head.load_state(state)?;
        if self.options.lr_backbone.is_some() {
            self.net.load_backbone(&starting_with(BACKBONE, state))?;
            self.optimizer.load_state(&starting_with("optimizer.", state))?;
        }
        Ok(())
    }
}

/// The share of the rates in epoch number `epoch` (from 0) of `epochs`: half a cosine.
fn rate_share(epoch: u64, epochs: u64) -> f64 {
    let done = epoch as f64 / epochs as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

fn starting_with(prefix: &str, tensors: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let chosen = tensors.iter().filter(|(name, _)| name.starts_with(prefix));
    chosen.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

/// One view of each image: the training views' crop and flip, nothing else.
fn views(config: &RunConfig) -> Result<Vec<ViewConfig>> {
    let mut views = config.views.views()?;
    views.truncate(1);
    for view in &mut views {
        view.random_horizontal_flip.p = 0.5;
        view.color_jitter.p = 0.0;
        view.random_grayscale.p = 0.0;
        view.gaussian_blur.p = 0.0;
        view.random_solarize.p = 0.0;
    }
    Ok(views)
}

/// Batches of [`views`].
fn loader(train: &Arc<ShardSet>, config: &RunConfig, options: &LinearConfig) -> Result<Loader> {
    let views = views(config)?;
    let batch_size = options.batch_size.min(train.len());
    let own = config.loader()?;
    let loader = LoaderConfig {
        // The run's budget may be one for smaller batches.
        budget_bytes: own.budget_bytes.max(room_for(&views, batch_size)),
        views,
        batch_size,
        seed: options.seed,
        // The authors' loader: all labels in each epoch, whatever order the run was trained in.
        drop_last: false,
        shuffle: if train.seekable() { Shuffle::Global } else { own.shuffle },
        ..own
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
    options: &OpenOptions,
) -> Result<Arc<ShardSet>> {
    let source = ShardSource::open(pattern, folder, options)?;
    let selection =
        Selection { shuffle: Some(seed), fraction: Some(share), ..Selection::default() };
    let packing = PackOptions { selection, overwrite: true, ..PackOptions::default() };
    let origin = format!("{share} of the labels, seed {seed}");
    pack(&source, folder, &origin, &packing, &mut |_| ())?;
    crate::data::open_set(&folder.to_string_lossy(), "the selected samples", options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_along_half_a_cosine_epoch_by_epoch() {
        let shares = [0, 25, 50, 75, 99].map(|epoch| rate_share(epoch, 100));
        let root = 0.5f64.sqrt();
        for (got, want) in
            shares.iter().zip([1.0, 0.5 * (1.0 + root), 0.5, 0.5 * (1.0 - root), 2.467e-4])
        {
            assert!((got - want).abs() < 1e-7, "{shares:?}");
        }
        assert_eq!(rate_share(0, 1), 1.0);
    }

    #[test]
    fn views_are_cropped_and_flipped_and_nothing_else() {
        let overrides = [
            "views.both.random_horizontal_flip.p=0.9".to_owned(),
            "views.both.random_solarize.p=0.7".into(),
        ];
        let config = RunConfig::load(None, &overrides).unwrap();
        let [view] = views(&config).unwrap().try_into().unwrap();
        assert_eq!(view.random_horizontal_flip.p, 0.5);
        let off = [
            view.color_jitter.p,
            view.random_grayscale.p,
            view.gaussian_blur.p,
            view.random_solarize.p,
        ];
        assert_eq!(off, [0.0; 4]);
        let training = config.views.views().unwrap().swap_remove(0);
        assert_eq!(view.random_resized_crop, training.random_resized_crop);
    }

    #[test]
    fn the_defaults_are_the_authors() {
        let LinearConfig { epochs, batch_size, lr, lr_backbone, weight_decay, .. } =
            LinearConfig::default();
        assert_eq!((epochs, batch_size, lr), (100, 256, 0.3));
        assert_eq!((lr_backbone, weight_decay), (None, 1e-6));
        let LinearConfig { epochs, batch_size, lr, lr_backbone, weight_decay, .. } =
            LinearConfig::fine_tuning();
        assert_eq!((epochs, batch_size, lr), (20, 256, 0.5));
        assert_eq!((lr_backbone, weight_decay), (Some(0.005), 0.0));
    }
}
