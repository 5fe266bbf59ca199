//! What each stage counts: samples, busy time, waiting time. The slow stage
//! shows itself in [`Snapshot::limit`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sync::unpoisoned;
use crate::trace::{Lane, Trace};

/// A stage of the flow that is timed. `Network`, `FeedWait`, `WorkWait` and
/// `BatchWait` are waits: for a server, for room to go on, for a task, for a
/// finished batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Shard to encoded bytes.
    Read,
    /// A read waits for a server; not part of `Read`.
    Network,
    /// Encoded bytes to an image.
    Decode,
    /// An image to its finished views.
    Augment,
    /// The feeder waits for a free buffer, or for workers to be done with streamed samples: who comes
    /// after it is slower.
    FeedWait,
    /// A worker waits for a task: the feeder or the consumer is slower.
    WorkWait,
    /// The consumer waits for a batch: the loader is slower.
    BatchWait,
}

const STAGES: usize = 7;

impl Stage {
    /// As a trace names it.
    fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Network => "wait for the network",
            Stage::Decode => "decode",
            Stage::Augment => "augment",
            Stage::FeedWait => "wait for room",
            Stage::WorkWait => "wait for work",
            Stage::BatchWait => "wait for data",
        }
    }
}

/// A place where something waits, or is under way, between two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Tasks that wait for a worker.
    Tasks,
    /// Batches with unfinished tasks.
    Filling,
    /// Batches that wait for the consumer.
    Ready,
}

const QUEUES: usize = 3;

/// Counters of one stream, written by all its threads.
#[derive(Debug, Default)]
pub struct Stats {
    nanos: [AtomicU64; STAGES],
    samples: AtomicU64,
    batches: AtomicU64,
    bad: AtomicU64,
    depths: [AtomicI64; QUEUES],
    ledger: Mutex<Ledger>,
}

/// What one thread notes of its work: in the counters, and in its lane of a trace.
pub(crate) struct Recorder {
    pub stats: Arc<Stats>,
    lane: Option<Lane>,
}

impl Recorder {
    /// Of the thread called `name`.
    pub fn new(stats: &Arc<Stats>, trace: Option<&Arc<Trace>>, name: &str) -> Self {
        Recorder { stats: Arc::clone(stats), lane: trace.map(|trace| trace.lane(name)) }
    }

    /// Adds the time since `start` to `stage` and returns the present.
    pub fn lap(&mut self, stage: Stage, start: Instant) -> Instant {
        let now = self.stats.lap(stage, start);
        if let Some(lane) = &mut self.lane {
            lane.span(stage.name(), start, now);
        }
        now
    }

    /// As `lap` of [`Stage::Read`], with the time that was waited for the network since the last
    /// call kept apart.
    pub fn lap_read(&mut self, start: Instant) {
        let waited = crate::shard::remote::take_waited();
        let mut start = start;
        if !waited.is_zero() {
            let until = (start + waited).min(Instant::now());
            self.stats.add(Stage::Network, until - start);
            if let Some(lane) = &mut self.lane {
                lane.span(Stage::Network.name(), start, until);
            }
            start = until;
        }
        self.lap(Stage::Read, start);
    }
}

/// One sample that was left out, and why.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BadSample {
    /// Its shard.
    #[serde(serialize_with = "crate::error::path_as_text")]
    pub shard: PathBuf,
    /// Its key in the shard.
    pub key: String,
    /// Where its image begins in the shard, in bytes.
    pub offset: u64,
    /// What was wrong.
    pub cause: String,
}

#[derive(Debug, Default)]
struct Ledger {
    seen: HashSet<u64>,
    fresh: Vec<BadSample>,
    /// How often each cause was met; at most [`MOST_CAUSES`] of them.
    causes: HashMap<String, u64>,
}

/// Causes that are told apart; damage repeats itself.
const MOST_CAUSES: usize = 1000;
/// Samples before the share of bad ones says anything.
const ENOUGH_SAMPLES: u64 = 100;

impl Stats {
    /// Adds the time since `start` to `stage` and returns the present.
    pub(crate) fn lap(&self, stage: Stage, start: Instant) -> Instant {
        let now = Instant::now();
        self.add(stage, now - start);
        now
    }

    fn add(&self, stage: Stage, time: Duration) {
        self.nanos[stage as usize].fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Adds `change` to what waits in `queue`: negative for what left it.
    pub(crate) fn queue(&self, queue: Queue, change: i64) {
        self.depths[queue as usize].fetch_add(change, Relaxed);
    }

    pub(crate) fn count_sample(&self) {
        self.samples.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_batch(&self) {
        self.batches.fetch_add(1, Relaxed);
    }

    /// Counts a sample that was left out; it enters the ledger once.
    pub(crate) fn count_bad(&self, sample: u64, entry: impl FnOnce() -> BadSample) {
        self.bad.fetch_add(1, Relaxed);
        let mut ledger = unpoisoned(self.ledger.lock());
        if ledger.seen.insert(sample) {
            let entry = entry();
            if ledger.causes.len() < MOST_CAUSES || ledger.causes.contains_key(&entry.cause) {
                *ledger.causes.entry(entry.cause.clone()).or_default() += 1;
            }
            ledger.fresh.push(entry);
        }
    }

    /// What to tell when more than `share` of `read` samples are bad.
    pub(crate) fn too_many_bad(&self, share: f64, bad: u64, read: u64) -> Option<String> {
        if read < ENOUGH_SAMPLES || bad as f64 <= share * read as f64 {
            return None;
        }
        let ledger = unpoisoned(self.ledger.lock());
        let mut causes: Vec<_> = ledger.causes.iter().collect();
        causes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let commonest: Vec<_> =
            causes.iter().take(3).map(|(cause, times)| format!("{times} x {cause}")).collect();
        Some(format!(
            "{bad} of {read} samples could not be used, more than the share of {share} that \
             `max_bad` allows; {}",
            commonest.join("; ")
        ))
    }

    /// The bad samples that were met since the last call, each once in all.
    pub fn take_bad(&self) -> Vec<BadSample> {
        let mut ledger = unpoisoned(self.ledger.lock());
        std::mem::take(&mut ledger.fresh)
    }

    /// The counters as they stand.
    pub fn snapshot(&self) -> Snapshot {
        let time = |stage: Stage| Duration::from_nanos(self.nanos[stage as usize].load(Relaxed));
        // A thread may be seen to take what another is not yet seen to give.
        let depth = |queue: Queue| self.depths[queue as usize].load(Relaxed).max(0) as u64;
        Snapshot {
            samples: self.samples.load(Relaxed),
            batches: self.batches.load(Relaxed),
            bad: self.bad.load(Relaxed),
            read: time(Stage::Read),
            network: time(Stage::Network),
            decode: time(Stage::Decode),
            augment: time(Stage::Augment),
            feed_wait: time(Stage::FeedWait),
            work_wait: time(Stage::WorkWait),
            batch_wait: time(Stage::BatchWait),
            queued_tasks: depth(Queue::Tasks),
            filling_batches: depth(Queue::Filling),
            ready_batches: depth(Queue::Ready),
        }
    }
}

/// [`Stats`] at one moment. Times are summed over the threads of a stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// Samples whose views are finished.
    pub samples: u64,
    /// Batches handed over.
    pub batches: u64,
    /// Times that a sample was left out and another taken.
    pub bad: u64,
    /// Busy time of reading.
    pub read: Duration,
    /// Reads waited for a server; not part of `read`.
    pub network: Duration,
    /// Busy time of decoding.
    pub decode: Duration,
    /// Busy time of augmenting.
    pub augment: Duration,
    /// The feeder waited for a free buffer, or for workers that have streamed samples.
    pub feed_wait: Duration,
    /// Workers waited for a task.
    pub work_wait: Duration,
    /// The consumer waited for a batch.
    pub batch_wait: Duration,
    /// Tasks that wait for a worker at this moment.
    pub queued_tasks: u64,
    /// Batches with unfinished tasks at this moment.
    pub filling_batches: u64,
    /// Batches that wait for the consumer at this moment.
    pub ready_batches: u64,
}

impl Snapshot {
    /// What was counted after `earlier`, nothing where that is the later one; the queues are those
    /// of now.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        Snapshot {
            samples: self.samples.saturating_sub(earlier.samples),
            batches: self.batches.saturating_sub(earlier.batches),
            bad: self.bad.saturating_sub(earlier.bad),
            read: self.read.saturating_sub(earlier.read),
            network: self.network.saturating_sub(earlier.network),
            decode: self.decode.saturating_sub(earlier.decode),
            augment: self.augment.saturating_sub(earlier.augment),
            feed_wait: self.feed_wait.saturating_sub(earlier.feed_wait),
            work_wait: self.work_wait.saturating_sub(earlier.work_wait),
            batch_wait: self.batch_wait.saturating_sub(earlier.batch_wait),
            ..*self
        }
    }

    /// What limits when the stream ran for `wall`: the consumer unless it waited for more than a
    /// twentieth of the time, else that on which the loader's threads spent most.
    pub fn limit(&self, wall: Duration) -> Limit {
        if self.batch_wait.as_secs_f64() < 0.05 * wall.as_secs_f64() {
            return Limit::Step;
        }
        let stages = [
            (Limit::Read, self.read),
            (Limit::Network, self.network),
            (Limit::Decode, self.decode),
            (Limit::Augment, self.augment),
        ];
        stages.into_iter().max_by_key(|(_, busy)| *busy).map_or(Limit::Step, |(limit, _)| limit)
    }
}

/// What limits a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Who takes the batches.
    Step,
    /// Reading shards.
    Read,
    /// Waiting for a server.
    Network,
    /// Decoding images.
    Decode,
    /// Making views of them.
    Augment,
}

impl Limit {
    /// As summaries, metrics and benchmarks write it.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Step => "step",
            Limit::Read => "read",
            Limit::Network => "network",
            Limit::Decode => "decode",
            Limit::Augment => "augment",
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_stage_limits_only_when_the_consumer_waits() {
        let ms = Duration::from_millis;
        let busy = Snapshot { decode: ms(90), augment: ms(50), ..Snapshot::default() };
        assert_eq!(Snapshot { batch_wait: ms(1), ..busy }.limit(ms(100)), Limit::Step);
        let waits = Snapshot { batch_wait: ms(40), ..busy };
        assert_eq!(waits.limit(ms(100)), Limit::Decode);
        assert_eq!(Snapshot { network: ms(91), ..waits }.limit(ms(100)), Limit::Network);
    }

    #[test]
    fn nothing_was_counted_after_a_later_moment() {
        let ms = Duration::from_millis;
        let earlier = Snapshot { samples: 3, read: ms(5), ..Snapshot::default() };
        let later = Snapshot { samples: 7, read: ms(9), queued_tasks: 2, ..earlier };
        let counted = later.since(&earlier);
        assert_eq!((counted.samples, counted.read, counted.queued_tasks), (4, ms(4), 2));
        let counted = earlier.since(&later);
        assert_eq!((counted.samples, counted.read, counted.queued_tasks), (0, ms(0), 0));
    }

    #[test]
    #[cfg(unix)]
    fn a_bad_sample_of_a_shard_whose_name_is_no_text_is_listed() {
        use std::os::unix::ffi::OsStrExt;
        let shard = std::ffi::OsStr::from_bytes(b"caf\xE9.tar").into();
        let bad = BadSample { shard, key: "k".into(), offset: 0, cause: "empty".into() };
        assert!(serde_json::to_string(&bad).unwrap().contains("caf\u{FFFD}.tar"));
    }

    #[test]
    fn a_bad_sample_enters_the_ledger_once() {
        let stats = Stats::default();
        let entry = || BadSample {
            shard: "a.tar".into(),
            key: "k".into(),
            offset: 512,
            cause: "empty".into(),
        };
        stats.count_bad(3, entry);
        stats.count_bad(3, entry);
        assert_eq!(stats.take_bad().len(), 1);
        assert!(stats.take_bad().is_empty());
        assert_eq!(stats.snapshot().bad, 2);
    }
}
