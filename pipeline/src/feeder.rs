//! Walks the order of each epoch and cuts it into tasks for the workers. Runs on
//! one thread; where a set can only be streamed, it is also the one that reads.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::batch::{BatchSpec, Filling, Item, Place, Task};
use crate::lent::{Lent, LentSample, User};
use crate::loader::{Loader, LoaderConfig, Position};
use crate::memory::Buffer;
use crate::order::{EpochOrder, Event};
use crate::scout::Scout;
use crate::shard::remote::Ahead;
use crate::shard::{OwnedSample, ShardSet};
use crate::stats::{Queue, Recorder, Stage};
use crate::streaming::Streaming;
use crate::sync::{AtomicBool, Receiver, Sender};
use crate::{Error, Result};

/// Most slots of a task: small enough to keep all threads busy at the end of a
/// batch, large enough that tiny images do not drown in messages.
const MOST_SLOTS: usize = 16;

/// Samples of a batch after which it is looked ahead within it: a batch may be longer than the
/// queue of what is fetched ahead, and a sample that is read before it is in there would be fetched
/// for nobody.
const FETCH_AGAIN: usize = 2048;

/// The ends of the channels that the feeder holds.
pub(crate) struct Outlets {
    /// Where a batch returns its buffer.
    pub pool: Sender<Buffer>,
    /// Where free buffers come from; one without memory says that `stop` was raised.
    pub free: Receiver<Buffer>,
    /// To the workers; closed when the last of them has ended.
    pub tasks: Sender<Task>,
    /// Raised when the stream is dropped.
    pub stop: Arc<AtomicBool>,
}

/// The feeding thread's state.
pub(crate) struct Feeder {
    set: Arc<ShardSet>,
    config: Arc<LoaderConfig>,
    spec: BatchSpec,
    per_epoch: u64,
    counts: Vec<u64>,
    /// Slots of a task.
    grain: usize,
    /// Streamed samples that left the window: counted until a worker is done with them.
    lent: Arc<Lent>,
    /// Bytes of those in the batch that is being put together.
    gathered: u64,
    recorder: Recorder,
    outlets: Outlets,
    streaming: Streaming,
    /// What is fetched ahead, and the walk that says what comes.
    ahead: Option<(Arc<Ahead>, Option<Scout>)>,
}

impl Feeder {
    pub(crate) fn new(
        loader: &Loader,
        recorder: Recorder,
        outlets: Outlets,
        ahead: Option<Arc<Ahead>>,
    ) -> Self {
        let (set, config) = (&loader.set, &loader.config);
        let streaming = Streaming::new(set, config, loader.left_of_budget(), &outlets.stop);
        Feeder {
            set: Arc::clone(set),
            config: Arc::clone(config),
            spec: loader.spec,
            per_epoch: loader.batches_per_epoch(),
            counts: set.shards().iter().map(|shard| shard.samples as u64).collect(),
            grain: (loader.spec.size / (loader.threads() * 4)).clamp(1, MOST_SLOTS),
            lent: Arc::default(),
            gathered: 0,
            recorder,
            outlets,
            streaming,
            ahead: ahead.map(|ahead| (ahead, None)),
        }
    }

    /// One more who takes the tasks.
    pub(crate) fn user(&self) -> User {
        self.lent.user()
    }

    /// Feeds all batches from `from` to the end of epoch `epochs - 1`; returns
    /// early, without an error, when the stream is dropped.
    ///
    /// # Errors
    /// The number of the batch that could not be fed, and why.
    pub(crate) fn run(&mut self, from: Position, epochs: u64) -> Result<(), (u64, Error)> {
        let mut number = 0;
        self.look_ahead(from, epochs);
        for epoch in from.epoch..epochs {
            let first = if epoch == from.epoch { from.batch } else { 0 };
            // Nothing is left of it, and passing over a stream means to read it.
            if first >= self.per_epoch {
                continue;
            }
            let (shuffle, seed) = (self.config.shuffle, self.config.seed);
            let mut order = EpochOrder::new(&self.counts, shuffle, seed, epoch);
            self.skip(&mut order, first).map_err(|error| (number, error))?;
            for index in first..self.per_epoch {
                let items = self.items(&mut order, index).map_err(|error| (number, error))?;
                if !self.send(Place { epoch, index, number }, items) {
                    return Ok(());
                }
                number += 1;
            }
            self.streaming.end_epoch();
        }
        Ok(())
    }

    /// Begins to fetch ahead of `from`, where the set is behind URLs and can be read in any order.
    fn look_ahead(&mut self, from: Position, epochs: u64) {
        let Some((ahead, scout)) = &mut self.ahead else { return };
        ahead.heed();
        if self.set.seekable() {
            if self.config.shuffle == crate::order::Shuffle::Global {
                self.set.open_indexes(ahead);
            }
            *scout =
                Some(Scout::new(&self.config, self.counts.clone(), self.per_epoch, from, epochs));
        }
    }

    /// Says what comes, as far as there is room for it.
    fn fetch_ahead(&mut self) {
        let Some((ahead, Some(scout))) = &mut self.ahead else { return };
        while ahead.has_room() {
            let Some(sample) = scout.next() else { break };
            ahead.queue(sample);
        }
        ahead.pump(&self.set);
    }

    /// Passes over the first `batches`. Of a set that can only be streamed the window is read as it
    /// walks; without a window the first sample that is wanted is read up to.
    fn skip(&mut self, order: &mut EpochOrder, batches: u64) -> Result<()> {
        if self.set.seekable() || self.config.shuffle == crate::order::Shuffle::None {
            order.pass_over(batches.saturating_mul(self.config.batch_size as u64));
            return Ok(());
        }
        for index in 0..batches {
            if self.stopped() {
                break;
            }
            self.items(order, index)?;
        }
        Ok(())
    }

    /// Whether the stream was dropped. Reading up to a position may take minutes.
    fn stopped(&self) -> bool {
        self.outlets.stop.load(Ordering::Relaxed)
    }

    /// This rank's items of batch `index`, whose positions come next in `order`; fewer when the
    /// stream is dropped meanwhile.
    fn items(&mut self, order: &mut EpochOrder, index: u64) -> Result<Vec<Item>> {
        let batch = self.config.batch_size as u64;
        let mut items = Vec::with_capacity(self.spec.size);
        let mut slot = 0;
        self.gathered = 0;
        self.fetch_ahead();
        while slot < batch && !self.stopped() {
            match order.next() {
                None => break,
                Some(Event::Pull { shard, sample }) => {
                    if !self.set.seekable() {
                        self.pull(shard, sample)?;
                    }
                }
                Some(Event::Emit { sample }) => {
                    let position = index * batch + slot;
                    let owned = self.take(sample)?;
                    if self.config.is_own(position) {
                        let owned = owned.map(|owned| owned.map(|owned| self.hand_on(owned)));
                        items.push(Item { sample, position, owned });
                        self.set.advise(sample as usize);
                    }
                    slot += 1;
                }
            }
        }
        Ok(items)
    }

    /// The bytes of `sample` where they come from a stream.
    fn take(&mut self, sample: u64) -> Result<Option<Result<OwnedSample>>> {
        if self.set.seekable() {
            return Ok(None);
        }
        if !self.streaming.holds(sample) {
            self.pull(self.set.shard_of(sample as usize), sample)?;
        }
        Ok(self.streaming.take(sample))
    }

    /// Reads `sample` of a stream.
    fn pull(&mut self, shard: usize, sample: u64) -> Result<()> {
        self.streaming.pull(shard, sample, &mut self.recorder)?;
        self.await_workers();
        Ok(())
    }

    /// Counts the bytes of a sample of the batch that is being put together until a worker is done
    /// with it.
    fn hand_on(&mut self, owned: OwnedSample) -> LentSample {
        self.gathered += owned.image.len() as u64;
        self.lent.hand_on(owned)
    }

    /// Waits for the workers where what they have takes more than the window and this batch leave
    /// of the budget. These alone may be above it: no worker can make them fewer.
    fn await_workers(&mut self) {
        let start = Instant::now();
        if self.lent.wait_for(self.streaming.left().max(self.gathered)) {
            self.recorder.lap(Stage::FeedWait, start);
        }
    }

    /// Waits for a buffer and hands the batch's tasks to the workers. False when
    /// the stream was dropped.
    fn send(&mut self, place: Place, items: Vec<Item>) -> bool {
        let (pool, tasks) = (self.outlets.pool.clone(), self.outlets.tasks.clone());
        let start = Instant::now();
        let buffer = self.outlets.free.recv();
        self.recorder.lap(Stage::FeedWait, start);
        let Ok(buffer) = buffer else { return false };
        if self.stopped() {
            return false;
        }
        let stats = Arc::clone(&self.recorder.stats);
        let mut sent = 0;
        stats.queue(Queue::Filling, 1);
        for task in Filling::split(self.spec, place, buffer, pool.clone(), items, self.grain) {
            // It waits for room as long as there are workers, and they leave when
            // they are told to stop.
            stats.queue(Queue::Tasks, 1);
            if tasks.send(task).is_err() {
                return false;
            }
            sent += self.grain;
            if sent >= FETCH_AGAIN {
                self.fetch_ahead();
                sent = 0;
            }
        }
        true
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::augment::Preset;
    use crate::order::Shuffle;
    use crate::stats::Stats;
    use crate::sync::{bounded, unbounded};

    /// Images of one pixel with 1,000 bytes of header each, which can only be read in order.
    fn streamed(samples: usize) -> (tempfile::TempDir, Arc<ShardSet>) {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for sample in 0..samples {
            let image = format!("P6 1 1{:>990} \x10\x20\x30", 255);
            let mut header = tar::Header::new_ustar();
            header.set_size(image.len() as u64);
            tar.append_data(&mut header, format!("{sample}.ppm"), image.as_bytes()).unwrap();
        }
        let frame = zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap();
        std::fs::write(folder.path().join("a.tar.zst"), frame).unwrap();
        let set = ShardSet::open(folder.path().to_str().unwrap(), &Default::default()).unwrap();
        (folder, Arc::new(set))
    }

    #[test]
    fn nothing_is_read_of_an_epoch_that_is_over() {
        let (_folder, set) = streamed(12);
        let config = LoaderConfig {
            threads: 1,
            shuffle: Shuffle::Window { shards: 1, samples: 3 },
            ..LoaderConfig::training(Preset::BarlowCifar.views(), 2, 0)
        };
        let loader = Loader::new(set, config).unwrap();
        let stats = Arc::new(Stats::default());
        for (batch, reads) in [(loader.batches_per_epoch(), false), (1, true)] {
            let ((pool, free), (tasks, _inbox)) = (bounded(9), unbounded());
            let buffer = || Buffer::new(loader.spec().bytes(), None).unwrap();
            (0..8).for_each(|_| pool.send(buffer()).unwrap());
            let outlets = Outlets { pool, free, tasks, stop: Arc::default() };
            let recorder = Recorder::new(&stats, None, "feeder");
            let mut feeder = Feeder::new(&loader, recorder, outlets, None);
            let _worker = feeder.user();
            assert!(feeder.run(Position { epoch: 0, batch }, 1).is_ok());
            assert_eq!(!stats.snapshot().read.is_zero(), reads, "{batch}");
        }
    }

    #[test]
    fn what_the_workers_have_counts_until_they_are_done_with_it() {
        let (_folder, set) = streamed(12);
        let views = Preset::BarlowCifar.views();
        let config = LoaderConfig {
            threads: 1,
            shuffle: Shuffle::None,
            ..LoaderConfig::training(views, 2, 0)
        };
        let batch = Loader::new(Arc::clone(&set), config.clone()).unwrap().spec().bytes() as u64;
        // Room for the samples of one batch and one more.
        let config = LoaderConfig { budget_bytes: 4 * batch + 3500, ..config };
        let loader = Loader::new(set, config).unwrap();
        let (pool, free) = bounded(5);
        (0..4).for_each(|_| pool.send(Buffer::new(batch as usize, None).unwrap()).unwrap());
        let (tasks, inbox) = unbounded();
        let outlets = Outlets { pool, free, tasks, stop: Arc::default() };
        let recorder = Recorder::new(&Arc::new(Stats::default()), None, "feeder");
        let mut feeder = Feeder::new(&loader, recorder, outlets, None);
        let _worker = feeder.user();
        let feeding = std::thread::spawn(move || feeder.run(Position::default(), 1));
        let next = |wait: u64| inbox.recv_timeout(Duration::from_millis(wait)).ok();
        let held = [next(20_000), next(20_000)];
        assert!(held.iter().all(Option::is_some) && next(100).is_none());
        drop(held);
        assert!(next(20_000).is_some());
        drop(inbox);
        assert!(feeding.join().unwrap().is_ok());
    }
}
