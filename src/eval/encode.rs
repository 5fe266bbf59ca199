//! Shard set -> loader -> features: one eval view of each sample, in the order
//! of the shards.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use bt_pipeline::augment::DType;
use bt_pipeline::{Batch, Image, Loader, LoaderConfig, Position, ShardSet};
use candle_core::Device;

use super::Features;
use super::baseline::{HISTOGRAM_DIM, colour_histogram, raw_pixels};
use crate::config::RunConfig;
use crate::device::device;
use crate::intake::images_of;
use crate::model::TwinNet;
use crate::picture::fit;

/// Longer side of the pictures that raw pixels are taken from: features of a whole
/// 224 x 224 view would fill the memory and be no better.
pub const RAW_SIDE: usize = 32;

/// Whether a label means the same in both sets, as far as their manifests name classes.
///
/// # Errors
/// The first class with two names.
pub fn same_classes(train: &ShardSet, test: &ShardSet) -> Result<()> {
    let pairs = train.classes().iter().zip(test.classes());
    match pairs.enumerate().find(|(_, (a, b))| a != b) {
        Some((label, (a, b))) => bail!(
            "label {label} is `{a}` in the training set and `{b}` in the other: pack both from the same classes, or \
             name them alike with `shard index --classes`"
        ),
        None => Ok(()),
    }
}

/// The backbone's features, in evaluation mode, of every sample. `done` is told
/// how many there are after each batch.
///
/// # Errors
/// A sample that cannot be read, or a device that fails.
pub fn features(
    net: &mut TwinNet,
    set: &Arc<ShardSet>,
    config: LoaderConfig,
    device: &Device,
    done: impl FnMut(usize),
) -> Result<Features> {
    features_unless(net, set, config, device, &AtomicBool::new(false), done)
}

/// As [`features`]; an error soon after `given_up` is raised, too.
fn features_unless(
    net: &mut TwinNet,
    set: &Arc<ShardSet>,
    config: LoaderConfig,
    device: &Device,
    given_up: &AtomicBool,
    mut done: impl FnMut(usize),
) -> Result<Features> {
    let mut out = Features::empty(net.feature_dim());
    out.reserve(set.len());
    each_batch(set, config, given_up, |batch, own| {
        let values = net.features(&images_of(batch, device)?)?.flatten_all()?.to_vec1::<f32>()?;
        for i in own {
            let (row, i) = (&values[i * out.dim()..][..out.dim()], i..i + 1);
            out.append(row, &batch.labels[i.clone()], &batch.samples[i])?;
        }
        done(out.len());
        Ok(())
    })?;
    Ok(out)
}

/// What the pixels say without a network: the view's pixels, at most
/// [`RAW_SIDE`] on a side, and its colour histogram.
///
/// # Errors
/// A sample that cannot be read.
pub fn pixel_features(set: &Arc<ShardSet>, config: LoaderConfig) -> Result<(Features, Features)> {
    let (height, width) = config.views.first().context("evaluation needs one view")?.out_size();
    let side = height.max(width).min(RAW_SIDE);
    let mut raw: Option<Features> = None;
    let mut histograms = Features::empty(HISTOGRAM_DIM);
    histograms.reserve(set.len());
    let config = LoaderConfig { dtype: DType::U8, ..config };
    each_batch(set, config, &AtomicBool::new(false), |batch, own| {
        let len = batch.spec().view_len();
        for i in own {
            let pixels = &batch.as_bytes()[i * len..][..len];
            let (label, sample) = (&batch.labels[i..=i], &batch.samples[i..=i]);
            let view = Image { width, height, pixels_hwc: pixels.to_vec() };
            let values = raw_pixels(&fit(&view, side).pixels_hwc);
            let raw = raw.get_or_insert_with(|| {
                let mut raw = Features::empty(values.len());
                raw.reserve(set.len());
                raw
            });
            raw.append(&values, label, sample)?;
            histograms.append(&colour_histogram(pixels), label, sample)?;
        }
        Ok(())
    })?;
    Ok((raw.context("the set holds no samples")?, histograms))
}

/// Every batch of the set in order, with the places in it whose samples are their own: where the
/// loader put another sample in place of a bad one (`data.on_bad`), that is left out here, and
/// said.
fn each_batch(
    set: &Arc<ShardSet>,
    config: LoaderConfig,
    given_up: &AtomicBool,
    mut f: impl FnMut(&Batch, Vec<usize>) -> Result<()>,
) -> Result<()> {
    let loader = Loader::new(Arc::clone(set), config)?;
    let mut stream = loader.start(Position::default(), 1)?;
    let stats = Arc::clone(stream.stats());
    let (mut next, mut left_out) = (0, 0);
    while let Some(batch) = stream.next_unless(given_up) {
        let batch = batch?;
        let own = (0..batch.size()).filter(|&i| batch.samples[i] == next + i as u64);
        let own: Vec<usize> = own.collect();
        left_out += batch.size() - own.len();
        next += batch.size() as u64;
        f(&batch, own)?;
    }
    if stream.remaining() > 0 {
        bail!("the evaluation was given up");
    }
    if let Some(bad) = stats.take_bad().first() {
        let (shard, key, cause) = (bad.shard.display(), &bad.key, &bad.cause);
        eprintln!(
            "warning: {left_out} of {} samples are left out, the first in {shard}, `{key}`: {cause}",
            set.len()
        );
    }
    Ok(())
}

/// kNN accuracy (0 to 1) of a network in training: references are all of
/// `data.train`, open as `train`, queries `data.val`, options those of `[eval]`. Ends with an error soon after
/// `given_up` is raised, if `net` looks at it, too.
///
/// # Errors
/// Shards that cannot be read or have no labels.
pub fn knn_during_training(
    net: &mut TwinNet,
    config: &RunConfig,
    train: &Arc<ShardSet>,
    given_up: &Arc<AtomicBool>,
) -> Result<f64> {
    let device = device(&config.train)?;
    let mut of = |set| features_unless(net, set, config.eval_loader()?, &device, given_up, |_| ());
    let references = of(train)?;
    let val = ShardSet::open_unless(&config.data.val, &config.open_options(), given_up);
    let queries = of(&val.map(Arc::new).context("data.val")?)?;
    let options = config.eval.knn();
    super::knn::knn_accuracy_unless(references, queries, options, given_up)
}
