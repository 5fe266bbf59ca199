//! Reading ahead: what the loader's order comes to next is fetched before a worker asks for it.
//!
//! ```text
//! feeder --queue(samples)--> pump: blocks of neighbours --requests--> ready --take--> worker
//! ```
//!
//! Blocks that were asked for count against the budget from then until their last sample is taken,
//! so that the memory is bounded whatever the servers do. A sample that was not fetched ahead,
//! such as one that stands in for a bad one, is read by a request of its own.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use super::Block;
use super::download::Hurry;
use super::fetch::copy;
use super::net::{Cancel, given_up, handle, heed, waited_since};
use crate::Result;
use crate::shard::ShardSet;

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
    /// Held by the thread that turns queued samples into requests.
    pump: Mutex<()>,
    budget: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A block has arrived or failed, or samples were planned.
    news: Condvar,
    cancel: Cancel,
}

#[derive(Default)]
struct State {
    queue: VecDeque<u64>,
    /// How often a sample stands in the queue, and how often it was read before its turn.
    queued: HashMap<u64, u32>,
    overtaken: HashMap<u64, u32>,
    /// Taken from the queue, and not yet in a block.
    planned: Vec<u64>,
    /// Blocks of a sample, in the order of the queue.
    of_sample: HashMap<u64, VecDeque<u64>>,
    blocks: HashMap<u64, Fetched>,
    by_place: HashMap<(usize, u64, u64), u64>,
    next: u64,
    held: u64,
}

/// A block that was asked for.
struct Fetched {
    shard: usize,
    range: Range<u64>,
    /// Samples that will be taken from it.
    users: u32,
    arrived: Option<Result<Block>>,
    task: Option<tokio::task::AbortHandle>,
}

/// Neighbouring samples, and the bytes of a shard that hold them.
struct Plan {
    shard: usize,
    range: Range<u64>,
    samples: Vec<u64>,
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
        self.shared.lock().queue.len() < QUEUE
    }

    /// Says that `sample` will be taken after all that were queued before.
    pub fn queue(&self, sample: u64) {
        let mut state = self.shared.lock();
        state.queue.push_back(sample);
        *state.queued.entry(sample).or_default() += 1;
    }

    /// Asks for what the queue begins with, as far as the budget reaches.
    pub fn pump(&self, set: &ShardSet) {
        // One thread plans at a time; the others have better things to do.
        let Ok(_pumping) = self.pump.try_lock() else { return };
        while !self.shared.cancel.is_cancelled() && self.has_budget() {
            let Some(plan) = self.plan(set) else { return };
            if let Some(plan) = plan {
                self.ask(set, plan);
            }
            self.shared.lock().planned.clear();
            self.shared.news.notify_all();
        }
    }

    fn has_budget(&self) -> bool {
        let state = self.shared.lock();
        state.held < self.budget && state.blocks.len() < BLOCKS
    }

    /// The next samples of the queue that lie together; `None` at its end, and inside where the
    /// first one needs no request.
    fn plan(&self, set: &ShardSet) -> Option<Option<Plan>> {
        let first = self.shared.lock().pop()?;
        let Some((shard, range)) = set.remote_range(first as usize) else { return Some(None) };
        let mut plan = Plan { shard, range, samples: vec![first] };
        loop {
            let next = self.shared.lock().peek();
            let Some(sample) = next else { break };
            // Another shard's index may have to be waited for: not with `plan` in hand.
            if set.shard_of(sample as usize) != shard {
                break;
            }
            let Some((_, range)) = set.remote_range(sample as usize) else { break };
            let end = plan.range.end;
            let near = range.start >= plan.range.start && range.start <= end.saturating_add(GAP);
            if !near || range.end.max(end) - plan.range.start > TOGETHER {
                break;
            }
            plan.range.end = range.end.max(end);
            plan.samples.push(sample);
            self.shared.lock().pop();
        }
        Some(Some(plan))
    }

    /// Makes a block of a plan, or adds its samples to one that is there, and sends the request.
    fn ask(&self, set: &ShardSet, plan: Plan) {
        let Some(remote) = set.remote(plan.shard) else { return };
        // Before the lock is taken: it may have to ask the server for the shard's state, and the
        // network's thread takes the lock when a block arrives.
        let request = remote.request(plan.range.clone());
        let mut state = self.shared.lock();
        let place = (plan.shard, plan.range.start, plan.range.end);
        let id = match state.by_place.get(&place) {
            Some(&id) => id,
            None => {
                let id = state.next;
                state.next += 1;
                state.held += plan.range.end - plan.range.start;
                state.by_place.insert(place, id);
                let range = plan.range.clone();
                let fetched =
                    Fetched { shard: plan.shard, range, users: 0, arrived: None, task: None };
                state.blocks.insert(id, fetched);
                id
            }
        };
        for &sample in &plan.samples {
            state.of_sample.entry(sample).or_default().push_back(id);
        }
        let Some(block) = state.blocks.get_mut(&id) else { return };
        block.users += plan.samples.len() as u32;
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
            let arrived = request.await;
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
            if !state.planned.contains(&sample) {
                match state.first_block(sample) {
                    None => {
                        state.overtake(sample);
                        break Ok(None);
                    }
                    Some(id) if state.blocks[&id].arrived.is_some() => {
                        break state.release(sample, id).transpose();
                    }
                    Some(_) => {}
                }
            }
            waiting.get_or_insert_with(|| (Instant::now(), Hurry::begin()));
            state = self.shared.news.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        };
        if let Some((start, _)) = waiting {
            waited_since(start);
        }
        outcome
    }

    /// Says that `sample` was read in another way.
    pub fn forget(&self, sample: usize) {
        let mut state = self.shared.lock();
        let sample = sample as u64;
        match state.first_block(sample) {
            Some(id) => drop(state.release(sample, id)),
            None => state.overtake(sample),
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// The sample at the head of the queue; those that were read before their turn are dropped.
    fn peek(&mut self) -> Option<u64> {
        loop {
            let sample = *self.queue.front()?;
            let Some(times) = self.overtaken.get_mut(&sample) else { return Some(sample) };
            *times -= 1;
            if *times == 0 {
                self.overtaken.remove(&sample);
            }
            self.queue.pop_front();
            self.leave(sample);
        }
    }

    /// Takes it from there.
    fn pop(&mut self) -> Option<u64> {
        let sample = self.peek()?;
        self.queue.pop_front();
        self.leave(sample);
        self.planned.push(sample);
        Some(sample)
    }

    fn leave(&mut self, sample: u64) {
        if let Some(times) = self.queued.get_mut(&sample) {
            *times -= 1;
            if *times == 0 {
                self.queued.remove(&sample);
            }
        }
    }

    fn first_block(&self, sample: u64) -> Option<u64> {
        self.of_sample.get(&sample)?.front().copied()
    }

    /// Notes that a sample in the queue is not to be fetched any more.
    fn overtake(&mut self, sample: u64) {
        let queued = self.queued.get(&sample).copied().unwrap_or(0);
        let overtaken = self.overtaken.entry(sample).or_default();
        *overtaken = (*overtaken + 1).min(queued);
        if *overtaken == 0 {
            self.overtaken.remove(&sample);
        }
    }

    /// Takes `sample` out of block `id`, which goes with its last sample.
    fn release(&mut self, sample: u64, id: u64) -> Option<Result<(Block, u64)>> {
        if let Some(blocks) = self.of_sample.get_mut(&sample) {
            blocks.pop_front();
            if blocks.is_empty() {
                self.of_sample.remove(&sample);
            }
        }
        let block = self.blocks.get_mut(&id)?;
        let start = block.range.start;
        let taken = match &block.arrived {
            Some(Ok(bytes)) => Some(Ok((bytes.clone(), start))),
            Some(Err(error)) => Some(Err(copy(error))),
            None => None,
        };
        block.users -= 1;
        if block.users == 0 {
            let place = (block.shard, start, block.range.end);
            if let Some(task) = &block.task {
                task.abort();
            }
            self.held -= place.2 - place.1;
            self.by_place.remove(&place);
            self.blocks.remove(&id);
        }
        taken
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
    use super::*;

    fn arrived(state: &mut State, sample: u64, length: u64) {
        let id = state.next;
        state.next += 1;
        state.held += length;
        state.by_place.insert((0, 0, length), id);
        let bytes = Block::from(vec![0; length as usize]);
        let fetched =
            Fetched { shard: 0, range: 0..length, users: 1, arrived: Some(Ok(bytes)), task: None };
        state.blocks.insert(id, fetched);
        state.of_sample.entry(sample).or_default().push_back(id);
    }

    #[test]
    fn a_block_counts_until_its_last_sample_is_taken() {
        let mut state = State::default();
        arrived(&mut state, 7, 100);
        let id = state.first_block(7).unwrap();
        state.of_sample.entry(8).or_default().push_back(id);
        state.blocks.get_mut(&id).unwrap().users += 1;
        assert_eq!(state.release(8, id).unwrap().unwrap().0.len(), 100);
        assert_eq!(state.held, 100);
        assert!(state.release(7, id).is_some());
        assert!(state.held == 0 && state.blocks.is_empty() && state.of_sample.is_empty());
    }

    #[test]
    fn a_sample_read_before_its_turn_is_not_fetched() {
        let ahead = Ahead::new(1000);
        for sample in [3, 4, 3] {
            ahead.queue(sample);
        }
        ahead.forget(3);
        ahead.forget(99);
        let mut state = ahead.shared.lock();
        assert_eq!([state.pop(), state.pop(), state.pop()], [Some(4), Some(3), None]);
        assert!(state.queued.is_empty() && state.overtaken.is_empty());
    }
}
