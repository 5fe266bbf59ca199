//! The loader as its user sees it: a shard set and a configuration in, a stream
//! of batches out. `run` holds the threads behind it.

use std::sync::Arc;

use crate::augment::{DType, Layout, ViewConfig, ViewParams};
use crate::batch::BatchSpec;
use crate::decode::DecodeOptions;
use crate::memory::BatchMemory;
use crate::order::Shuffle;
use crate::rng::Rng;
use crate::run::BatchStream;
use crate::shard::ShardSet;
use crate::shard::remote::Ahead;
use crate::trace::Trace;
use crate::{Error, Result};

/// What to do with a sample that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    /// Take a sample drawn from (seed, epoch, position) instead, and keep a record. That sample
    /// comes in its own place of the epoch as well, with the same views: they depend on (seed,
    /// epoch, sample, view) alone.
    #[default]
    Skip,
    /// End the stream with the sample's error.
    Stop,
}

/// Who changes colours, blurs and solarizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// The loader: views are done.
    #[default]
    Loader,
    /// Whoever takes the batches, by [`Batch::unfinished`](crate::Batch::unfinished): views
    /// leave the loader cropped, resized and flipped, in 8 bits, and not normalised.
    Consumer,
}

/// What a [`Loader`] makes of a shard set.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// Keys every draw, with epoch, sample and view.
    pub seed: u64,
    /// Images of a step, over all ranks together.
    pub batch_size: usize,
    /// This process's number among `world`.
    pub rank: usize,
    /// Processes that share each step; every one gets `batch_size / world` images.
    pub world: usize,
    /// Worker threads; 0 takes one for each core.
    pub threads: usize,
    /// How an epoch is mixed.
    pub shuffle: Shuffle,
    /// The transforms of each view; all give views of one size.
    pub views: Vec<ViewConfig>,
    /// Order of the dimensions.
    pub layout: Layout,
    /// Element type.
    pub dtype: DType,
    /// Who changes colours, blurs and solarizes.
    pub finish: Finish,
    /// Most bytes that batches and samples in flight may take.
    pub budget_bytes: u64,
    /// Leave out the samples that do not fill a last batch. Without it the last
    /// batch is shorter (for one rank only).
    pub drop_last: bool,
    /// What to do with a sample that cannot be used.
    pub on_bad: OnBad,
    /// What to do with a shard that cannot be opened or read: each of its samples
    /// counts as a bad one, or the stream ends.
    pub on_bad_shard: OnBad,
    /// The share of bad samples, of those read for the batches so far, above which the stream ends;
    /// looked at from the hundredth on. It ends at the same batch for any number of threads.
    pub max_bad: f64,
    /// Limits and options of decoding.
    pub decode: DecodeOptions,
}

impl LoaderConfig {
    /// Training: a global shuffle, full batches, normalised `f32` NHWC.
    pub fn training(views: Vec<ViewConfig>, batch_size: usize, seed: u64) -> Self {
        LoaderConfig {
            seed,
            batch_size,
            rank: 0,
            world: 1,
            threads: 0,
            shuffle: Shuffle::Global,
            views,
            layout: Layout::Nhwc,
            dtype: DType::F32,
            finish: Finish::default(),
            budget_bytes: 2 << 30,
            drop_last: true,
            on_bad: OnBad::default(),
            on_bad_shard: OnBad::Stop,
            max_bad: 0.1,
            decode: DecodeOptions::default(),
        }
    }

    /// Evaluation: one view of every sample, once, in the order of the shards.
    pub fn evaluation(view: ViewConfig, batch_size: usize) -> Self {
        LoaderConfig {
            shuffle: Shuffle::None,
            drop_last: false,
            on_bad: OnBad::Stop,
            ..LoaderConfig::training(vec![view], batch_size, 0)
        }
    }

    /// The same in 8 bits, finished by the consumer ([`Finish::Consumer`]).
    pub fn unfinished(self) -> Self {
        LoaderConfig { dtype: DType::U8, finish: Finish::Consumer, ..self }
    }

    /// Whether the sample at `position` of an epoch's order is this rank's: the ranks take turns, and a
    /// batch is a multiple of them.
    pub(crate) fn is_own(&self, position: u64) -> bool {
        position % self.world as u64 == self.rank as u64
    }

    /// What is drawn in `epoch` for each view of the sample at place `sample` of the set, whose
    /// image has this size in pixels.
    ///
    /// # Panics
    /// When a side is 0, or for a view that [`ViewConfig::validate`] rejects; as the views are
    /// drawn, not here.
    pub fn draw(
        &self,
        epoch: u64,
        sample: u64,
        width: usize,
        height: usize,
    ) -> impl Iterator<Item = ViewParams> {
        self.views.iter().enumerate().map(move |(view, transforms)| {
            let mut rng = Rng::keyed(self.seed, epoch, sample, view as u64);
            transforms.draw(&mut rng, width, height)
        })
    }
}

/// A place in a run: the next batch to deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch within the epoch, from 0; as many as the epoch has, once it is over.
    pub batch: u64,
}

/// Turns a shard set into streams of batches.
///
/// ```no_run
/// use bt_pipeline::augment::Preset;
/// use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};
///
/// # fn main() -> bt_pipeline::Result<()> {
/// let set = ShardSet::open("shards/train-{000000..000009}.tar", &Default::default())?;
/// let config = LoaderConfig::training(Preset::BarlowImagenet.views(), 256, 0);
/// let loader = Loader::new(set.into(), config)?;
/// for batch in loader.start(Position::default(), 100)? {
///     let batch = batch?;
///     let views = batch.as_f32(); // [2, 256, 224, 224, 3]
/// #   let _ = views;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Loader {
    pub(crate) set: Arc<ShardSet>,
    pub(crate) config: Arc<LoaderConfig>,
    pub(crate) spec: BatchSpec,
    /// Batch buffers in circulation.
    pub(crate) buffers: usize,
    /// Where its threads note what they do.
    pub(crate) trace: Option<Arc<Trace>>,
    pub(crate) memory: Option<Arc<dyn BatchMemory>>,
}

/// Buffers beyond which more prefetching no longer helps: one with the consumer,
/// one ready, two being filled.
const MOST_BUFFERS: usize = 4;

/// More threads than this are a slip of the pen; their stacks alone would take gigabytes.
pub const MOST_THREADS: usize = 4096;

/// Bytes beyond which fetching further ahead no longer helps: a second of a fast network.
const MOST_AHEAD: u64 = 512 << 20;

impl LoaderConfig {
    /// What can be told before anything is allocated.
    ///
    /// # Errors
    /// [`Error::Usage`] with what cannot be met of `set`, and what to change.
    fn check(&self, set: &ShardSet) -> Result<()> {
        let usage = |message: String| Err(Error::Usage(message));
        let &LoaderConfig { batch_size, rank, world, .. } = self;
        if world == 0 || rank >= world {
            return usage(format!("rank {rank} of {world} does not exist"));
        }
        if batch_size == 0 || batch_size % world != 0 {
            return usage(format!("a batch of {batch_size} does not divide into {world} ranks"));
        }
        if self.drop_last && batch_size > set.len() {
            let samples = set.len();
            return usage(format!(
                "the batch size {batch_size} is larger than the data set ({samples} samples)"
            ));
        }
        if !self.drop_last && world > 1 {
            return usage("several ranks need full batches (drop_last)".into());
        }
        if self.shuffle == Shuffle::Global && !set.seekable() {
            let shard = set.shards().iter().find(|shard| !shard.seekable);
            let name = shard.map(|s| s.path.display().to_string()).unwrap_or_default();
            return usage(format!(
                "{name} can only be read in order: use shuffle = \"window\", \
                 or pack it anew with `shard pack` for random access"
            ));
        }
        if let Shuffle::Window { shards, samples } = self.shuffle
            && (shards == 0 || samples == 0)
        {
            return usage(format!(
                "a window of {samples} samples from {shards} shards holds nothing: both must be at least 1"
            ));
        }
        if self.threads > MOST_THREADS {
            return usage(format!(
                "{} threads are more than {MOST_THREADS}, the most that a loader takes",
                self.threads
            ));
        }
        if !(0.0..=1.0).contains(&self.max_bad) {
            return usage(format!("max_bad is a share, 0 to 1; found {}", self.max_bad));
        }
        self.views.iter().try_for_each(ViewConfig::validate)?;
        if self.finish == Finish::Consumer && (self.dtype, self.layout) != (DType::U8, Layout::Nhwc)
        {
            return usage("views to be finished elsewhere are 8-bit NHWC".into());
        }
        Ok(())
    }
}

impl Loader {
    /// Checks the configuration against the set.
    ///
    /// # Errors
    /// [`Error::Usage`] with what cannot be met and what to change.
    pub fn new(set: Arc<ShardSet>, config: LoaderConfig) -> Result<Self> {
        config.check(&set)?;
        let spec = batch_spec(&config)?;
        let for_batches = config.budget_bytes - reserve(&set, config.budget_bytes);
        let most = usize::try_from(for_batches / spec.bytes() as u64).unwrap_or(usize::MAX);
        if most < 2 {
            return Err(Error::Usage(format!(
                "two batches of {} MB do not fit the byte budget of {} MB: raise the budget or \
                 lower the batch size",
                spec.bytes().div_ceil(1 << 20),
                config.budget_bytes >> 20,
            )));
        }
        let buffers = most.min(MOST_BUFFERS);
        Ok(Loader { set, config: Arc::new(config), spec, buffers, trace: None, memory: None })
    }

    /// The same loader, whose threads have lanes in `trace`.
    pub fn traced(self, trace: &Arc<Trace>) -> Self {
        Loader { trace: Some(Arc::clone(trace)), ..self }
    }

    /// The same loader, whose batches are written to `memory`.
    pub fn in_memory(self, memory: Arc<dyn BatchMemory>) -> Self {
        Loader { memory: Some(memory), ..self }
    }

    /// The set that is read.
    pub fn set(&self) -> &Arc<ShardSet> {
        &self.set
    }

    /// Shape and element type of this rank's batches.
    pub fn spec(&self) -> &BatchSpec {
        &self.spec
    }

    /// Batches of an epoch, the same for every rank.
    pub fn batches_per_epoch(&self) -> u64 {
        let (samples, batch) = (self.set.len() as u64, self.config.batch_size as u64);
        if self.config.drop_last { samples / batch } else { samples.div_ceil(batch) }
    }

    /// Batch buffers that a stream circulates, at least two. Whoever holds all of them waits for
    /// another batch for ever.
    pub fn buffers(&self) -> usize {
        self.buffers
    }

    /// Worker threads of a stream.
    pub fn threads(&self) -> usize {
        crate::shard::thread_count(self.config.threads)
    }

    /// Bytes of the budget that batches leave.
    pub(crate) fn left_of_budget(&self) -> u64 {
        let in_batches = (self.spec.bytes() * self.buffers) as u64;
        self.config.budget_bytes.saturating_sub(in_batches)
    }

    /// What a stream fetches ahead; `None` for a set on disk.
    pub(crate) fn ahead(&self) -> Option<Arc<Ahead>> {
        let left = self.left_of_budget();
        // What can only be streamed is held by the feeder, within the same bytes.
        let budget = if self.set.seekable() { left.min(MOST_AHEAD) } else { 0 };
        self.set.ahead(budget, self.config.shuffle == Shuffle::Global)
    }

    /// Starts the threads; the first batch is that of `from`, the last one ends
    /// epoch `epochs - 1`. A position behind the last batch of an epoch is the start of the next.
    ///
    /// # Errors
    /// [`Error::Usage`] when the epoch of `from` has fewer batches than that;
    /// [`Error::System`] when the system gives no thread, or no memory for the batches.
    pub fn start(&self, from: Position, epochs: u64) -> Result<BatchStream> {
        let batches = self.batches_per_epoch();
        if from.batch > batches {
            return Err(Error::Usage(format!(
                "there is no batch {} to go on from: an epoch of this set has {batches}",
                from.batch
            )));
        }
        BatchStream::start(self, from, epochs)
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("set", &self.set)
            .field("config", &self.config)
            .field("buffers", &self.buffers)
            .finish_non_exhaustive()
    }
}

/// The part of the budget that is kept for fetching ahead from a server.
fn reserve(set: &ShardSet, budget: u64) -> u64 {
    if set.is_remote() { (budget / 8).min(MOST_AHEAD) } else { 0 }
}

/// The shape of this rank's batches.
fn batch_spec(config: &LoaderConfig) -> Result<BatchSpec> {
    let Some(first) = config.views.first() else {
        return Err(Error::Usage("a batch needs at least one view".into()));
    };
    let (height, width) = first.out_size();
    if let Some(other) = config.views.iter().find(|view| view.out_size() != (height, width)) {
        let (h, w) = other.out_size();
        return Err(Error::Usage(format!(
            "all views must have one size: {height} x {width} and {h} x {w} were asked for"
        )));
    }
    Ok(BatchSpec {
        views: config.views.len(),
        size: config.batch_size / config.world,
        height,
        width,
        layout: config.layout,
        dtype: config.dtype,
    })
}
