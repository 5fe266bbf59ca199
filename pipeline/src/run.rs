//! The threads: one feeder that walks the order, workers that fill batches, and
//! the stream that hands them over in order. No other file spawns threads that
//! fill batches; `shard/remote` has some that fetch, `shard/pool` some that pack, index,
//! verify and save.
//!
//! ```text
//! feeder --(tasks, bounded)--> workers --(finished batches)--> BatchStream
//!    ^                                                             |
//!    +------------------(free buffers, a fixed number)-------------+
//! ```
//!
//! The free buffers are what bounds the flow: a batch is begun only when there is
//! one. Dropping the stream raises `stop` and wakes the feeder if it waits for a
//! buffer. The feeder leaves, which closes the tasks' channel and wakes workers
//! that wait for a task; workers leave at their next sample. A feeder blocked on
//! the task channel then gets a disconnect error; one blocked in
//! `Lent::wait_for` wakes because no `User` is left. Errors travel in the place
//! of their batch, so the batches before them are still delivered.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::batch::{Batch, Task};
use crate::feeder::{Feeder, Outlets};
use crate::loader::{Loader, Position};
use crate::memory::Buffer;
use crate::shard::remote::Ahead;
use crate::stats::{Queue, Recorder, Stage, Stats};
use crate::sync::{AtomicBool, Builder, JoinHandle, Receiver, Sender, bounded, unbounded};
use crate::worker::{Filled, Worker};
use crate::{Error, Result};

/// A batch or an error, with its number in the stream.
type Numbered = (u64, Result<Batch>);

/// Why a wait for finished batches ended without one.
enum Ended {
    /// Nothing more can come.
    Disconnected,
    #[cfg_attr(shuttle, allow(dead_code))]
    GivenUp,
}

/// Time between two looks at whether a wait was given up.
#[cfg(not(shuttle))]
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// A running loader: an iterator over batches in order. Dropping it ends its
/// threads.
///
/// `next` waits for the next batch. What it gives is the batch, or the error that stands in its
/// place; the first error ends the stream, and after it, as after the last batch of the last epoch,
/// it gives `None`.
///
/// Batches are made in a few buffers ([`Loader::buffers`]) that come back when a batch is
/// dropped: whoever keeps as many waits for another for ever.
pub struct BatchStream {
    done: Receiver<Numbered>,
    /// Finished ahead of their turn.
    early: BTreeMap<u64, Result<Batch>>,
    next: u64,
    total: u64,
    stats: Arc<Stats>,
    /// The share of bad samples that ends the stream: judged in the batches' order, so that any
    /// number of threads end it at the same one.
    max_bad: f64,
    /// Bad samples of the batches handed over so far.
    bad: u64,
    /// Samples read for these batches, the bad ones included.
    read: u64,
    stop: Arc<AtomicBool>,
    /// Wakes a feeder that waits for a buffer.
    wake: Sender<Buffer>,
    /// What is fetched ahead, where the set is behind URLs.
    ahead: Option<Arc<Ahead>>,
    threads: Vec<JoinHandle<()>>,
}

impl BatchStream {
    pub(crate) fn start(loader: &Loader, from: Position, epochs: u64) -> Result<Self> {
        let per_epoch = loader.batches_per_epoch();
        let begun = from.epoch.saturating_mul(per_epoch).saturating_add(from.batch);
        let total = epochs.saturating_mul(per_epoch).saturating_sub(begun);
        let threads = loader.threads();
        let (finished, done) = unbounded();
        // Room for every buffer and for the one that wakes.
        let (pool, free) = bounded(loader.buffers + 1);
        for _ in 0..loader.buffers {
            let _ = pool.send(Buffer::new(loader.spec.bytes(), loader.memory.as_ref())?);
        }
        let mut stream = BatchStream {
            done,
            early: BTreeMap::new(),
            next: 0,
            total,
            stats: Arc::new(Stats::default()),
            max_bad: loader.config.max_bad,
            bad: 0,
            read: 0,
            stop: Arc::new(AtomicBool::new(false)),
            wake: pool.clone(),
            ahead: loader.ahead(),
            threads: Vec::with_capacity(threads + 1),
        };
        // After the stream, so that on the way out of a failed start the last
        // receiver is gone before the stream waits for the feeder.
        let (tasks, inbox) = bounded(threads * 2);
        let (stats, stop) = (Arc::clone(&stream.stats), Arc::clone(&stream.stop));
        let ahead = stream.ahead.clone();
        let recorder = |name: &str| Recorder::new(&stats, loader.trace.as_ref(), name);
        let feeding = recorder("feeder");
        let mut feeder =
            Feeder::new(loader, feeding, Outlets { pool, free, tasks, stop }, ahead.clone());
        // Registered before the feeder starts, so that `Lent::wait_for` counts them.
        let users: Vec<_> = (0..threads).map(|_| feeder.user()).collect();
        let errors = finished.clone();
        stream.spawn("bt-feed", finished.clone(), move || {
            if let Err((number, error)) = feeder.run(from, epochs) {
                let _ = errors.send((number, Err(error)));
            }
        })?;
        for (nth, user) in users.into_iter().enumerate() {
            let (set, config) = (Arc::clone(&loader.set), Arc::clone(&loader.config));
            let (stats, stop) = (Arc::clone(&stream.stats), Arc::clone(&stream.stop));
            let recorder = recorder(&format!("worker {nth}"));
            let worker = Worker::new(set, config, recorder, ahead.clone(), Arc::clone(&stop));
            let (inbox, outlet) = (inbox.clone(), finished.clone());
            let ahead = ahead.clone();
            stream.spawn(&format!("bt-work-{nth}"), finished.clone(), move || {
                ahead.inspect(|ahead| ahead.heed());
                work(worker, &inbox, &outlet, &stats, &stop);
                drop(user);
            })?;
        }
        Ok(stream)
    }

    /// Spawns a named thread whose panic reaches the consumer as an error.
    fn spawn(
        &mut self,
        name: &str,
        errors: Sender<Numbered>,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let guarded = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                let _ = errors.send((0, Err(Error::panicked(&*panic))));
            }
        };
        let spawned = Builder::new().name(name.into()).spawn(guarded);
        self.threads.push(spawned.map_err(|error| Error::system(format!("thread {name}"), error))?);
        Ok(())
    }

    /// The counters of this stream's stages.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Batches still to come.
    pub fn remaining(&self) -> u64 {
        self.total - self.next
    }

    /// The next batch, as from the iterator; `None`, too, when `given_up` is raised while it is
    /// waited for. The batch is then still to come.
    #[cfg(not(shuttle))]
    pub fn next_unless(&mut self, given_up: &AtomicBool) -> Option<Result<Batch>> {
        use crossbeam_channel::RecvTimeoutError::{Disconnected, Timeout};
        self.next_by(|done| {
            loop {
                match done.recv_timeout(LOOK) {
                    Ok(item) => return Ok(item),
                    Err(Disconnected) => return Err(Ended::Disconnected),
                    Err(Timeout) if given_up.load(Ordering::Relaxed) => return Err(Ended::GivenUp),
                    Err(Timeout) => {}
                }
            }
        })
    }

    /// The next batch; `receive` waits for what is finished next.
    fn next_by(
        &mut self,
        receive: impl Fn(&Receiver<Numbered>) -> Result<Numbered, Ended>,
    ) -> Option<Result<Batch>> {
        if self.next >= self.total {
            return None;
        }
        let start = Instant::now();
        let item = loop {
            if let Some(item) = self.early.remove(&self.next) {
                break item;
            }
            match receive(&self.done) {
                // A thread that panicked cannot say whose turn it was.
                Ok((_, Err(panic @ Error::Panic(_)))) => break Err(panic),
                Ok((number, item)) => drop(self.early.insert(number, item)),
                Err(Ended::Disconnected) => {
                    break Err(Error::Panic("all workers have ended".into()));
                }
                Err(Ended::GivenUp) => {
                    self.stats.lap(Stage::BatchWait, start);
                    return None;
                }
            }
        };
        self.stats.lap(Stage::BatchWait, start);
        let item = item.and_then(|batch| self.judge(batch));
        match &item {
            Ok(_) => {
                self.next += 1;
                self.stats.count_batch();
            }
            Err(_) => self.next = self.total,
        }
        Some(item)
    }

    /// Gives a batch on, unless too many samples have been bad up to it.
    fn judge(&mut self, batch: Batch) -> Result<Batch> {
        self.stats.queue(Queue::Ready, -1);
        self.bad += u64::from(batch.bad);
        self.read += u64::from(batch.bad) + batch.size() as u64;
        match self.stats.too_many_bad(self.max_bad, self.bad, self.read) {
            Some(text) => Err(Error::TooManyBad(text)),
            None => Ok(batch),
        }
    }
}

impl Iterator for BatchStream {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.next_by(|done| done.recv().map_err(|_| Ended::Disconnected))
    }
}

impl std::fmt::Debug for BatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchStream")
            .field("next", &self.next)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Drop for BatchStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(ahead) = &self.ahead {
            ahead.give_up();
        }
        let _ = self.wake.try_send(Buffer::wake());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A worker's life: fill the slots of one task after the other.
fn work(
    mut worker: Worker,
    inbox: &Receiver<Task>,
    outlet: &Sender<Numbered>,
    stats: &Stats,
    stop: &AtomicBool,
) {
    loop {
        let start = Instant::now();
        let Ok(mut task) = inbox.recv() else { return };
        worker.took_task(start);
        let number = task.number();
        for (nth, item) in task.take_items().into_iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match worker.fill(&mut task, nth, item) {
                Ok(Filled::Done) => {}
                Ok(Filled::Stopped) => return,
                Err(error) => {
                    let _ = outlet.send((number, Err(error)));
                    return;
                }
            }
        }
        if let Some(batch) = task.finish() {
            stats.queue(Queue::Filling, -1);
            stats.queue(Queue::Ready, 1);
            let _ = outlet.send((number, Ok(batch)));
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::augment::Preset;
    use crate::{LoaderConfig, ShardSet};

    /// A running stream over `samples` images of one pixel.
    fn stream(samples: usize) -> (tempfile::TempDir, BatchStream) {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for sample in 0..samples {
            let image = b"P6 1 1 255\n\x10\x20\x30";
            let mut header = tar::Header::new_ustar();
            header.set_size(image.len() as u64);
            tar.append_data(&mut header, format!("{sample}.ppm"), &image[..]).unwrap();
        }
        std::fs::write(folder.path().join("a.tar"), tar.into_inner().unwrap()).unwrap();
        let set = ShardSet::open(folder.path().to_str().unwrap(), &Default::default()).unwrap();
        let mut config = LoaderConfig::training(Preset::BarlowCifar.views(), 2, 0);
        config.threads = 2;
        let loader = Loader::new(set.into(), config).unwrap();
        (folder, loader.start(Position::default(), 1000).unwrap())
    }

    #[test]
    fn a_panic_in_a_thread_is_the_streams_error_with_its_text() {
        let (_folder, mut stream) = stream(4);
        let (errors, done) = unbounded();
        stream.done = done;
        stream.spawn("bt-test", errors, || panic!("out of luck")).unwrap();
        let Some(Err(Error::Panic(text))) = stream.next() else { panic!("no error came") };
        assert_eq!(text, "out of luck");
        assert!(stream.next().is_none());
    }

    #[test]
    fn a_wait_that_is_given_up_loses_no_batch() {
        let (_folder, mut stream) = stream(6);
        let given_up = AtomicBool::new(true);
        let mut held = Vec::new();
        let total = stream.remaining();
        // Once all buffers are held, none can come.
        while let Some(batch) = stream.next_unless(&given_up) {
            held.push(batch.unwrap());
        }
        // A wait for nothing is one, too.
        assert!(stream.stats().snapshot().batch_wait >= LOOK);
        let taken = held.len() as u64;
        assert_eq!(stream.remaining(), total - taken);
        held.clear();
        let next = stream.next().unwrap().unwrap();
        assert_eq!(next.epoch * 3 + next.index, taken);
    }

    #[test]
    fn dropping_a_stream_at_any_batch_ends_its_threads() {
        for batches in 0..12 {
            let (_folder, mut stream) = stream(6);
            let mut held = None;
            for _ in 0..batches {
                held = Some(stream.next().unwrap().unwrap());
            }
            assert!(held.is_some() == (batches > 0) && stream.threads.len() == 3);
            // Returns when all threads are joined; a batch is still held.
            drop(stream);
        }
    }
}
