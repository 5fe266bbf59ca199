//! `[data]`: shards and how they are read.

use std::time::Duration;

use anyhow::{Result, bail};
use bt_pipeline::OnBad;
use bt_pipeline::shard::{Limits, RemoteOptions, parse_bytes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checks::{at_least, at_most, share};

/// Most of `data.budget_mb`: a terabyte.
const MOST_MB: u64 = 1 << 20;

/// `[data]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training shards: a folder, a glob, a brace list, a manifest, URLs of them, or several of
    /// these joined by `::`.
    pub train: String,
    /// Labelled shards for `knn`, `probe` and `linear`, and for kNN during training where
    /// `eval.knn_every` asks for it; empty for none.
    pub val: String,
    /// `global`, `window` or `none`.
    pub shuffle: ShuffleKind,
    /// Shards that `window` reads in turns; at least 1.
    pub window_shards: usize,
    /// Samples that `window` mixes; at least 1.
    pub window_samples: usize,
    /// Threads that decode and augment; 0 takes one for each core.
    pub threads: usize,
    /// Bound on batches and samples in flight, in MiB.
    pub budget_mb: u64,
    /// `skip` takes another sample for a bad one, `stop` ends the run.
    pub on_bad: OnBad,
    /// `skip` takes other samples for those of a shard that cannot be read, `stop` ends the run.
    pub on_bad_shard: OnBad,
    /// The share of bad samples, among those drawn so far, above which the run ends, once 100 were
    /// drawn. Where samples come in the shards' order (evaluations, `data.shuffle = "none"`), bad
    /// ones that stand together count for more.
    pub max_bad: f64,
    /// Turn images as their EXIF orientation says. That of a TIFF is applied always, as by Pillow.
    pub exif: bool,
    /// Largest image that is decoded, in millions of pixels; at least 1.
    pub max_megapixels: u64,
    /// A folder where shards behind URLs are kept; several processes may share it. Empty for none.
    pub cache: String,
    /// What the files in it may take together, as in `100GB` or `64GiB`; a GB is 10^9 bytes, a GiB
    /// 2^30.
    pub cache_size: String,
    /// Retries of a failed request. The wait doubles each time, up to 20 seconds: with the default
    /// about 6 seconds in all, or 40 where the server says that it is busy (429, 503).
    pub network_retries: u32,
    /// Seconds that a server may take for the next 64 KiB before the request counts as failed.
    pub network_timeout_s: u64,
    /// Requests to servers at a time; 0 means four for each loader thread, and at least 32. With
    /// `data.shuffle = "global"` nearly every sample is a request.
    pub network_requests: usize,
    /// What shards, indexes and manifests may claim.
    pub limits: Limits,
}

/// Most requests at a time.
const MOST_REQUESTS: usize = 100_000;

/// The number of `threads`, of which 0 are one for each core.
fn threads_or_cores(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        some => some,
    }
}

impl DataConfig {
    /// How shards behind URLs are read.
    pub fn remote(&self) -> RemoteOptions {
        let usual = RemoteOptions::default();
        RemoteOptions {
            cache: (!self.cache.is_empty()).then(|| self.cache.clone().into()),
            cache_bytes: parse_bytes(&self.cache_size).unwrap_or(usual.cache_bytes),
            retries: self.network_retries,
            timeout: Duration::from_secs(self.network_timeout_s),
            parallel: match self.network_requests {
                0 => (4 * threads_or_cores(self.threads)).max(usual.parallel),
                some => some,
            },
            ..usual
        }
    }

    /// Checks each value by itself: of the loader, of `remote`, and the limit that zstd has its own
    /// bounds for.
    pub(super) fn check(&self) -> Result<()> {
        at_most("`data.threads`", self.threads, super::MOST_THREADS)?;
        at_least("`data.budget_mb`", self.budget_mb, 1)?;
        at_most("`data.budget_mb`", self.budget_mb, MOST_MB)?;
        at_least("`data.max_megapixels`", self.max_megapixels, 1)?;
        share("`data.max_bad`", self.max_bad)?;
        if self.shuffle == ShuffleKind::Window {
            at_least("`data.window_shards`", self.window_shards, 1)?;
            at_least("`data.window_samples`", self.window_samples, 1)?;
        }
        at_least("`data.network_timeout_s`", self.network_timeout_s, 1)?;
        at_most("`data.network_requests`", self.network_requests, MOST_REQUESTS)?;
        let log = self.limits.zstd_window_log;
        if !(10..=31).contains(&log) {
            bail!("`data.limits.zstd_window_log` must lie between 10 and 31, got {log}");
        }
        if parse_bytes(&self.cache_size).is_none() {
            let size = &self.cache_size;
            bail!("`data.cache_size` is {size:?}, expected bytes as in \"100GB\"");
        }
        Ok(())
    }
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
            cache: String::new(),
            cache_size: "100GB".into(),
            network_retries: 5,
            network_timeout_s: 30,
            network_requests: 0,
            limits: Limits::default(),
        }
    }
}
