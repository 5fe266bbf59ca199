//! Shards that can only be read in order: their samples between reading and use.
//! Everything here happens on the feeder's thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::error::is_shortage;
use crate::loader::{LoaderConfig, OnBad};
use crate::shard::{OwnedSample, ShardInfo, ShardSet, ShardStream};
use crate::stats::Recorder;
use crate::sync::AtomicBool;
use crate::{Error, Result};

/// The streams of an epoch, and what was read ahead of its turn.
pub(crate) struct Streaming {
    set: Arc<ShardSet>,
    /// Whether a shard that cannot be read on makes bad samples.
    skip: bool,
    /// Bytes that may be held.
    budget: u64,
    /// Raised when the stream of batches is dropped.
    stop: Arc<AtomicBool>,
    /// Shard -> (its stream, the sample that it gives next).
    streams: HashMap<usize, (ShardStream, u64)>,
    held: HashMap<u64, Result<OwnedSample>>,
    held_bytes: u64,
    /// Shards that could not be read on: where, and why.
    broken: HashMap<usize, (u64, String)>,
}

impl Streaming {
    pub fn new(
        set: &Arc<ShardSet>,
        config: &LoaderConfig,
        budget: u64,
        stop: &Arc<AtomicBool>,
    ) -> Self {
        Streaming {
            set: Arc::clone(set),
            skip: config.on_bad_shard == OnBad::Skip,
            budget,
            stop: Arc::clone(stop),
            streams: HashMap::new(),
            held: HashMap::new(),
            held_bytes: 0,
            broken: HashMap::new(),
        }
    }

    /// Lets go of the epoch's streams, and of what was not used of them.
    pub fn end_epoch(&mut self) {
        self.streams.clear();
        self.held.clear();
        self.held_bytes = 0;
        self.broken.clear();
    }

    /// What of the budget the held samples leave.
    pub fn left(&self) -> u64 {
        self.budget.saturating_sub(self.held_bytes)
    }

    /// Whether `sample` was read already.
    pub fn holds(&self, sample: u64) -> bool {
        self.held.contains_key(&sample)
    }

    /// Hands over a sample that was read; None when it was not, since the stream of batches is
    /// dropped.
    pub fn take(&mut self, sample: u64) -> Option<Result<OwnedSample>> {
        let owned = self.held.remove(&sample);
        if let Some(Ok(owned)) = &owned {
            self.held_bytes -= owned.image.len() as u64;
        }
        owned
    }

    /// Reads shard `shard` up to and including `sample`, and keeps that one. Of a shard that cannot
    /// be read on, `sample` and what comes after it are bad samples, if the configuration says so.
    ///
    /// # Errors
    /// A shard that cannot be read on; a window that takes more than the budget.
    pub fn pull(&mut self, shard: usize, sample: u64, recorder: &mut Recorder) -> Result<()> {
        if !self.broken.contains_key(&shard) {
            let (offset, cause) = match self.read_on(shard, sample, recorder) {
                Err(Error::Shard { offset, cause, .. }) if self.skip => (offset, cause),
                Err(Error::Io { source, .. }) if self.skip && !is_shortage(&source) => {
                    (0, source.to_string())
                }
                other => return other,
            };
            self.streams.remove(&shard);
            self.broken.insert(shard, (offset, cause));
        }
        let (offset, cause) = self.broken[&shard].clone();
        let path = self.set.shards()[shard].path.clone();
        let error = Error::Shard { path, offset, cause };
        self.held.insert(sample, Err(error));
        Ok(())
    }

    fn read_on(&mut self, shard: usize, sample: u64, recorder: &mut Recorder) -> Result<()> {
        let start = Instant::now();
        let Some(read) = self.read_up_to(shard, sample)? else { return Ok(()) };
        self.held_bytes += read.as_ref().map_or(0, |owned| owned.image.len() as u64);
        self.held.insert(sample, read);
        recorder.lap_read(start);
        if self.held_bytes > self.budget {
            return Err(Error::Usage(format!(
                "the {} samples of the shuffle window take more than the {} MB that the byte \
                 budget leaves: make the window smaller or raise the budget",
                self.held.len(),
                self.budget >> 20
            )));
        }
        Ok(())
    }

    /// `sample`, or what is wrong with it; None when the stream of batches is dropped meanwhile.
    fn read_up_to(&mut self, shard: usize, sample: u64) -> Result<Option<Result<OwnedSample>>> {
        let info = &self.set.shards()[shard];
        let (stream, next) = match self.streams.entry(shard) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(slot) => slot.insert((self.set.stream(shard)?, info.first_sample as u64)),
        };
        let mut owned = OwnedSample::default();
        let mut outcome = Ok(true);
        while *next <= sample {
            // The way to a position may be most of a shard.
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            outcome = stream.next_into(&mut owned);
            *next += 1;
            match &outcome {
                Ok(true) | Err(Error::Sample { .. }) => {}
                Ok(false) => return Err(short_shard(info)),
                Err(_) => break,
            }
        }
        let read = match outcome {
            Ok(_) => Ok(owned),
            Err(error @ Error::Sample { .. }) => Err(error),
            Err(error) => return Err(error),
        };
        if *next == (info.first_sample + info.samples) as u64 {
            self.streams.remove(&shard);
        }
        Ok(Some(read))
    }
}

/// A shard gave fewer samples than its index lists.
pub(crate) fn short_shard(info: &ShardInfo) -> Error {
    Error::Shard {
        path: info.path.clone(),
        offset: info.bytes,
        cause: format!("the index lists {} samples, the shard has fewer", info.samples),
    }
}
