//! `[data]`: shards and how they are read.

use bt_pipeline::OnBad;
use bt_pipeline::shard::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[data]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training shards: a folder, a glob, a brace list or a manifest.
    pub train: String,
    /// Shards whose labels are predicted by kNN during training; empty for none.
    pub val: String,
    /// `global`, `window` or `none`.
    pub shuffle: ShuffleKind,
    /// Shards that `window` reads in turns.
    pub window_shards: usize,
    /// Samples that `window` mixes.
    pub window_samples: usize,
    /// Threads that decode and augment; 0 takes one for each core.
    pub threads: usize,
    /// Bound on batches and samples in flight, in MiB.
    pub budget_mb: u64,
    /// `skip` takes another sample for a bad one, `stop` ends the run.
    pub on_bad: OnBad,
    /// `skip` takes other samples for those of a shard that cannot be read, `stop` ends the run.
    pub on_bad_shard: OnBad,
    /// The share of bad samples above which the run ends.
    pub max_bad: f64,
    /// Turn images as their EXIF orientation says.
    pub exif: bool,
    /// Largest image that is decoded, in millions of pixels.
    pub max_megapixels: u64,
    /// What shards, indexes and manifests may claim.
    pub limits: Limits,
}

/// Names of [`bt_pipeline::Shuffle`]'s variants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShuffleKind {
    /// A permutation of all samples.
    #[default]
    Global,
    /// Mixed while shards are read in turns.
    Window,
    /// The shards' own order.
    None,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            train: String::new(),
            val: String::new(),
            shuffle: ShuffleKind::Global,
            window_shards: 8,
            window_samples: 4096,
            threads: 0,
            budget_mb: 2048,
            on_bad: OnBad::Skip,
            on_bad_shard: OnBad::Stop,
            max_bad: 0.1,
            exif: false,
            max_megapixels: 178,
            limits: Limits::default(),
        }
    }
}
