//! `[train]`: length, batch, seed, device.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checks::{at_least, at_most};
use crate::nn::Precision;

/// Source images of a step at most, more than any network was trained with: what is made of a batch
/// is allocated at once.
const MOST_BATCH: usize = 1 << 20;

/// `[train]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Where metrics and checkpoints are written.
    pub dir: PathBuf,
    /// Passes over the training shards.
    pub epochs: u64,
    /// Source images of a step.
    pub batch_size: usize,
    /// Parts in which a step's views go through the network, so that only one part's activations are
    /// in memory at a time. The loss sees the whole batch; each part but one goes forward twice. 1, or
    /// an even number: a part has images of one view and BatchNorm statistics of its own, so that 2
    /// parts train as 1 does.
    pub micro_batches: usize,
    /// Decides initial weights, order and views. MoCo's first queue is the same for every seed.
    pub seed: u64,
    /// A backbone to start from: safetensors or a PyTorch state dict in torchvision's names; empty
    /// for random weights.
    pub init: PathBuf,
    /// `cpu`, `cuda:N`, or `auto`: the first CUDA device where there is one, else the CPU. CUDA
    /// wants a build with the feature `cuda` and a device of compute capability 8.0 or newer.
    pub device: String,
    /// Element type of activations and factors: `f32`, or `bf16` on a CUDA device. Weights,
    /// statistics and sums are f32 either way.
    pub precision: Precision,
    /// On a CUDA device, only algorithms that give the same bits each time, in any process: not the
    /// fastest. The CPU always does.
    pub deterministic: bool,
    /// On a CUDA device, record the step once and ask for it as a whole from then on.
    pub cuda_graph: bool,
    /// Threads that compute, in `train` and `bench`; 0 takes one for each core.
    pub threads: usize,
    /// Steps between two lines of metrics.
    pub log_every: u64,
    /// Write event files for TensorBoard into the run's folder.
    pub tensorboard: bool,
    /// When the loss or a gradient is not finite the step is taken back: `stop` ends the run and
    /// sets the state before it aside, `rewind` goes on with the next batch, at most ten times in a
    /// row.
    pub on_nan: OnNan,
    /// Steps between two diagnoses of the embeddings (collapse, information); 0 for none.
    pub diagnose_every: u64,
}

/// Checks the source images of a step; C needs at least two.
pub(crate) fn check_batch(key: &str, images: usize) -> Result<()> {
    at_least(key, images, 2)?;
    at_most(key, images, MOST_BATCH)
}

/// What to do when a loss or a gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// End the run, the state before the step set aside.
    #[default]
    Stop,
    /// Take the step back and go on with the next batch.
    Rewind,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            dir: PathBuf::from("runs/default"),
            epochs: 100,
            batch_size: 256,
            micro_batches: 1,
            seed: 0,
            init: PathBuf::new(),
            device: "auto".into(),
            precision: Precision::F32,
            deterministic: false,
            cuda_graph: true,
            threads: 0,
            log_every: 10,
            tensorboard: true,
            on_nan: OnNan::Stop,
            diagnose_every: 100,
        }
    }
}

/// What `train.device` can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The first CUDA device, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device.
    Cuda(usize),
}

impl TrainConfig {
    /// Checks each value by itself, and the device beside the precision.
    pub(super) fn check(&self) -> Result<()> {
        at_least("`train.epochs`", self.epochs, 1)?;
        check_batch("`train.batch_size`", self.batch_size)?;
        self.check_micro_batches(self.batch_size)?;
        at_least("`train.log_every`", self.log_every, 1)?;
        at_most("`train.threads`", self.threads, super::MOST_THREADS)?;
        if self.dir.as_os_str().is_empty() {
            bail!("`train.dir` names no folder");
        }
        self.named_device().map(|_| ())
    }

    /// Whether batches of `images` can be cut: BatchNorm wants two images at least in each part.
    pub(crate) fn check_micro_batches(&self, images: usize) -> Result<()> {
        let (count, of_a_view) = (self.micro_batches, self.micro_batches / 2);
        let even = count > 0 && count.is_multiple_of(2);
        let fits = count == 1 || even && images.is_multiple_of(of_a_view) && images > of_a_view;
        ensure!(
            fits,
            "`train.micro_batches` = {count}: 1, or an even number whose half divides the batch of {images} images \
             into parts of 2 or more"
        );
        Ok(())
    }

    /// What `train.device` says.
    ///
    /// # Errors
    /// A name that is not known; bfloat16 on the CPU.
    pub fn named_device(&self) -> Result<Named> {
        let named = match self.device.as_str() {
            "cpu" => Named::Cpu,
            "auto" => Named::Auto,
            "cuda" => Named::Cuda(0),
            name => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Named::Cuda(number),
                _ => bail!("train.device: `{name}` is none of `auto`, `cpu`, `cuda`, `cuda:N`"),
            },
        };
        if named == Named::Cpu && self.precision == Precision::Bf16 {
            bail!("train.precision = \"bf16\" wants a CUDA device; the CPU computes in f32");
        }
        Ok(named)
    }
}
