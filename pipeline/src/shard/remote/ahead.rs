//! Reading ahead: what the loader's order comes to next is fetched before a worker asks for it.
//!
//! ```text
//! feeder --queue(samples)--> pump: blocks of neighbours --requests--> ready --take--> worker
//! ```
//!
//! Blocks that were asked for count against the budget from then until their last sample is taken,
//! so that the memory is bounded whatever the servers do. A sample that was not fetched ahead,
//! such as one that stands in for a bad one, is read by a request of its own.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use futures_util::FutureExt;

use super::Block;
use super::download::Hurry;
use super::expected::{Expected, Whereabouts};
use super::net::{Cancel, given_up, handle, heed, waited_since};
use crate::Result;
use crate::shard::ShardSet;
use crate::sync::unpoisoned;

/// Samples that may wait in the queue.
const QUEUE: usize = 8192;
/// Blocks that may be there or under way.
const BLOCKS: usize = 4096;
/// Neighbours are read together up to so many bytes, with gaps up to `GAP` between them.
const TOGETHER: u64 = 2 << 20;
const GAP: u64 = 64 << 10;

/// What one running loader reads ahead. Dropping it ends its requests.
pub(crate) struct Ahead {
    shared: Arc<Shared>,
    /// Held by the thread that turns queued samples into requests: shards whose index could not be
    /// had. Who reads their samples asks again; planning does not.
    pump: Mutex<HashSet<usize>>,
    budget: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Expected>,
    /// A block has arrived or failed, or samples were planned.
    news: Condvar,
    cancel: Cancel,
}

/// Neighbouring samples, and the bytes of a shard that hold them.
struct Plan {
    shard: usize,
    range: Range<u64>,
    samples: Vec<u64>,
}

/// What comes of the front of the queue.
enum Planned {
    /// There is nothing in it.
    End,
    /// Its first sample needs no request.
    Nothing,
    Request(Plan),
}

impl Ahead {
    /// Fetches at most `budget` bytes ahead (or one block, where that is more).
    pub fn new(budget: u64) -> Self {
        Ahead { shared: Arc::default(), pump: Mutex::default(), budget }
    }

    /// From now on this thread ends its waits when the loader ends.
    pub fn heed(&self) {
        heed(&self.shared.cancel);
    }

    /// Whether the loader has ended.
    pub fn is_given_up(&self) -> bool {
        self.shared.cancel.is_cancelled()
    }

    /// Ends all waiting, for good.
    pub fn give_up(&self) {
        self.shared.cancel.cancel();
        // Whoever looked before it was cancelled holds the lock until it waits.
        drop(self.shared.lock());
        self.shared.news.notify_all();
    }

    /// Whether more samples may be queued.
    pub fn has_room(&self) -> bool {
        self.shared.lock().waiting() < QUEUE
    }

    /// Says that `sample` will be taken after all that were queued before.
    pub fn queue(&self, sample: u64) {
        self.shared.lock().push(sample);
    }

    /// Asks for what the queue begins with, as far as the budget reaches.
    pub fn pump(&self, set: &ShardSet) {
        // One thread plans at a time; the others have better things to do.
        let Ok(mut without_index) = self.pump.try_lock() else { return };
        while !self.shared.cancel.is_cancelled() && self.has_budget() {
            match self.plan(set, &mut without_index) {
                Planned::End => return,
                Planned::Nothing => {}
                Planned::Request(plan) => self.ask(set, plan),
            }
            self.shared.lock().end_planning();
            self.shared.news.notify_all();
        }
    }

    fn has_budget(&self) -> bool {
        let state = self.shared.lock();
        state.held < self.budget && state.blocks.len() < BLOCKS
    }

    /// The next samples of the queue that lie together.
    fn plan(&self, set: &ShardSet, without_index: &mut HashSet<usize>) -> Planned {
        let next = self.shared.lock().pop();
        let Some(first) = next else { return Planned::End };
        let shard = set.shard_of(first as usize);
        if without_index.contains(&shard) && !set.has_index(shard) {
            return Planned::Nothing;
        }
        let range = match set.remote_range(first as usize) {
            Ok(Some(range)) => range,
            Ok(None) => return Planned::Nothing,
            Err(_) => {
                without_index.insert(shard);
                return Planned::Nothing;
            }
        };
        let mut plan = Plan { shard, range, samples: vec![first] };
        loop {
            let next = self.shared.lock().peek();
            let Some(sample) = next else { break };
            // Another shard's index may have to be waited for: not with `plan` in hand.
            if set.shard_of(sample as usize) != shard {
                break;
            }
            let Ok(Some(range)) = set.remote_range(sample as usize) else { break };
            let end = plan.range.end;
            let near = range.start >= plan.range.start && range.start <= end.saturating_add(GAP);
            if !near || range.end.max(end) - plan.range.start > TOGETHER {
                break;
            }
            if !self.shared.lock().pop_this(sample) {
                continue;
            }
            plan.range.end = range.end.max(end);
            plan.samples.push(sample);
        }
        Planned::Request(plan)
    }

    /// Makes a block of a plan, or adds its samples to one that is there, and sends the request.
    fn ask(&self, set: &ShardSet, plan: Plan) {
        let Some(remote) = set.remote(plan.shard) else { return };
        // Before the lock is taken: it may have to ask the server for the shard's state, and the
        // network's thread takes the lock when a block arrives.
        let request = remote.request(plan.range.clone());
        let mut state = self.shared.lock();
        let Some(id) = state.join(plan.shard, plan.range, &plan.samples) else { return };
        let Some(block) = state.blocks.get_mut(&id) else { return };
        if block.task.is_none() && block.arrived.is_none() {
            match request.and_then(|request| self.send(request, id)) {
                Ok(task) => block.task = Some(task),
                Err(error) => block.arrived = Some(Err(error)),
            }
        }
    }

    /// Sends the request of block `id`.
    fn send(
        &self,
        request: impl Future<Output = Result<Block>> + Send + 'static,
        id: u64,
    ) -> Result<tokio::task::AbortHandle> {
        let shared = Arc::clone(&self.shared);
        let task = handle()?.spawn(async move {
            // Whoever waits has to know of a panic, too.
            let arrived = std::panic::AssertUnwindSafe(request).catch_unwind().await;
            let arrived = arrived.unwrap_or_else(|panic| Err(crate::Error::panicked(&*panic)));
            if let Some(block) = shared.lock().blocks.get_mut(&id) {
                block.arrived = Some(arrived);
            }
            shared.news.notify_all();
        });
        Ok(task.abort_handle())
    }

    /// The block of a sample and where it begins in the shard; waits for it where it is under
    /// way. `None` where it was not asked for.
    ///
    /// # Errors
    /// That of the request.
    pub fn take(&self, set: &ShardSet, sample: usize) -> Result<Option<(Block, u64)>> {
        let taken = self.wait_for(set, sample as u64);
        // Before the queue runs low, not at each sample.
        if self.shared.lock().held < self.budget / 2 {
            self.pump(set);
        }
        taken
    }

    fn wait_for(&self, set: &ShardSet, sample: u64) -> Result<Option<(Block, u64)>> {
        let mut state = self.shared.lock();
        let mut waiting: Option<(Instant, Hurry)> = None;
        let outcome = loop {
            if self.shared.cancel.is_cancelled() {
                let shard = set.shard_of(sample as usize);
                break Err(given_up(&set.shards()[shard].path));
            }
            match state.find(sample) {
                Whereabouts::Nowhere => {
                    // At most in the queue, where nobody waits for it.
                    state.overtake(sample);
                    break Ok(None);
                }
                Whereabouts::Block(id) if state.blocks[&id].arrived.is_some() => {
                    break state.release(sample, id).transpose();
                }
                Whereabouts::Block(_) | Whereabouts::Planned => {}
            }
            waiting.get_or_insert_with(|| (Instant::now(), Hurry::begin()));
            state = unpoisoned(self.shared.news.wait(state));
        };
        if let Some((start, _)) = waiting {
            waited_since(start);
        }
        outcome
    }

    /// Says that `sample` was read in another way.
    pub fn forget(&self, sample: usize) {
        if self.shared.lock().overtake(sample as u64) {
            self.shared.news.notify_all();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.give_up();
        for block in self.shared.lock().blocks.values() {
            if let Some(task) = &block.task {
                task.abort();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Expected> {
        unpoisoned(self.state.lock())
    }
}

/// So that an error says what it is of.
impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Ahead").field("held", &state.held).field("of", &self.budget).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rng::Rng;
    use crate::shard::remote::server::{Fault, Server};
    use crate::shard::{OpenOptions, ReadScratch, raw_header, tar_write};

    #[test]
    fn what_is_expected_of_samples_that_cannot_be_used_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = Vec::new();
        let mut image = raw_header(16, 16).to_vec();
        image.resize(image.len() + 16 * 16 * 3, 7);
        for n in 0..200 {
            let bytes = if n % 20 == 3 { &[][..] } else { &image[..] };
            tar_write::append_member(&mut tar, &format!("{n:03}.ppm"), bytes);
            let label: &[u8] = if n % 20 == 11 { b"no number" } else { b"1" };
            tar_write::append_member(&mut tar, &format!("{n:03}.cls"), label);
            if n % 20 == 17 {
                tar_write::append_member(&mut tar, &format!("{n:03}.cls"), b"2");
            }
        }
        tar.extend(tar_write::END);
        std::fs::write(folder.path().join("a.tar"), &tar).unwrap();
        let server = Server::of_folder(folder.path());
        let set = ShardSet::open(&server.url("a.tar"), &OpenOptions::default()).unwrap();
        // Orders that read together what lies together, and each sample alone.
        for stride in [1, 77] {
            let ahead = set.ahead(32 << 10, stride != 1).unwrap();
            let mut scratch = ReadScratch::reading_ahead(Some(Arc::clone(&ahead)));
            let epochs = (0..3 * set.len()).map(|n| n * stride % set.len());
            epochs.clone().for_each(|sample| ahead.queue(sample as u64));
            ahead.pump(&set);
            server.take_seen();
            let bad = epochs.filter(|&sample| set.read(sample, &mut scratch).is_err());
            assert_eq!(bad.count(), 60);
            let asked = server.take_seen().len();
            assert!(stride != 1 || asked < 100, "{asked} requests");
            assert!(ahead.shared.lock().is_empty(), "{ahead:?}");
        }
    }

    fn one_image() -> Vec<u8> {
        let mut tar = Vec::new();
        tar_write::append_member(&mut tar, "0.ppm", &[1; 100]);
        tar.extend(tar_write::END);
        tar
    }

    #[test]
    fn whoever_waits_for_a_block_that_goes_looks_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.tar"), one_image()).unwrap();
        let server = Server::of_folder(folder.path());
        let set = ShardSet::open(&server.url("a.tar"), &OpenOptions::default()).unwrap();
        let ahead = set.ahead(32 << 10, true).unwrap();
        server.misbehave(|_, _| Fault::Hang(Duration::from_secs(60)));
        ahead.queue(0);
        ahead.pump(&set);
        let (sender, taken) = std::sync::mpsc::channel();
        let waiting = Arc::clone(&ahead);
        std::thread::spawn(move || sender.send(waiting.take(&set, 0)));
        // Long enough for it to wait.
        assert!(taken.recv_timeout(Duration::from_millis(300)).is_err(), "nothing has come");
        // Another epoch's turn of the sample, which the cache has by now.
        ahead.forget(0);
        let taken = taken.recv_timeout(Duration::from_secs(20)).expect("it waits for ever");
        assert!(taken.unwrap().is_none(), "a request of its own");
    }

    #[test]
    fn a_request_that_panics_is_an_error_for_whoever_waits() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.tar"), one_image()).unwrap();
        let server = Server::of_folder(folder.path());
        let set = ShardSet::open(&server.url("a.tar"), &OpenOptions::default()).unwrap();
        let ahead = set.ahead(32 << 10, true).unwrap();
        let id = {
            let mut state = ahead.shared.lock();
            state.push(0);
            state.pop();
            state.join(0, 0..100, &[0]).unwrap()
        };
        let panics =
            async { if true { panic!("as a look-up without a thread") } else { Ok(Block::new()) } };
        let task = ahead.send(panics, id).unwrap();
        ahead.shared.lock().blocks.get_mut(&id).unwrap().task = Some(task);
        let (sender, taken) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(ahead.take(&set, 0)));
        let taken = taken.recv_timeout(Duration::from_secs(20)).expect("it waits for ever");
        assert!(taken.unwrap_err().to_string().contains("panicked"));
    }

    #[test]
    fn nobody_waits_for_ever_whatever_is_taken_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = Vec::new();
        for n in 0..12 {
            tar_write::append_member(&mut tar, &format!("{n:02}.ppm"), &[1; 100]);
        }
        tar.extend(tar_write::END);
        std::fs::write(folder.path().join("a.tar"), &tar).unwrap();
        let server = Server::of_folder(folder.path());
        let set = ShardSet::open(&server.url("a.tar"), &OpenOptions::default()).unwrap();
        server.misbehave(|_, before| match before % 3 {
            0 => Fault::None,
            n => Fault::Hang(Duration::from_micros(300 * n as u64)),
        });
        let ahead = set.ahead(1 << 20, true).unwrap();
        let (sender, over) = std::sync::mpsc::channel();
        let set = Arc::new(set);
        for thread in 0..4u64 {
            let (set, ahead, sender) = (Arc::clone(&set), Arc::clone(&ahead), sender.clone());
            std::thread::spawn(move || {
                let mut rng = Rng::keyed(1, 0, thread, 0);
                for _ in 0..400 {
                    let sample = rng.below(12);
                    ahead.queue(sample);
                    if rng.chance(0.5) {
                        ahead.pump(&set);
                    }
                    if rng.chance(0.5) {
                        ahead.take(&set, sample as usize).unwrap();
                    } else {
                        ahead.forget(sample as usize);
                    }
                }
                sender.send(()).unwrap();
            });
        }
        for _ in 0..4 {
            over.recv_timeout(Duration::from_secs(60)).expect("somebody waits for ever");
        }
        // What was forgotten in the queue goes when its turn comes.
        ahead.pump(&set);
        assert!(ahead.shared.lock().is_empty(), "{ahead:?}");
    }
}
