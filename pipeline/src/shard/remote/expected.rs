//! What a running loader will ask for: samples in the order of their turns, then blocks of bytes
//! that hold several. A sample stands in the queue, is being planned, or waits in a block; whoever
//! reads it in another way takes it out of where it stands, so that no block waits for a sample
//! that never comes.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::Block;
use super::fetch::copy;
use crate::Result;

/// Everything under the lock of an [`super::Ahead`].
#[derive(Default)]
pub(super) struct Expected {
    queue: VecDeque<u64>,
    /// How often a sample stands in the queue, and how often it was read before its turn.
    queued: HashMap<u64, u32>,
    overtaken: HashMap<u64, u32>,
    /// Taken from the queue, and not yet in a block.
    planned: VecDeque<u64>,
    /// Blocks of a sample, in the order of the queue.
    of_sample: HashMap<u64, VecDeque<u64>>,
    pub blocks: HashMap<u64, Fetched>,
    by_place: HashMap<(usize, u64, u64), u64>,
    next: u64,
    /// Bytes of all blocks.
    pub held: u64,
}

/// A block that was asked for.
pub(super) struct Fetched {
    shard: usize,
    range: Range<u64>,
    /// Samples that will be taken from it.
    users: u32,
    pub arrived: Option<Result<Block>>,
    pub task: Option<tokio::task::AbortHandle>,
}

/// Where a sample is.
pub(super) enum Whereabouts {
    /// It is about to be in a block.
    Planned,
    /// In this block.
    Block(u64),
    /// Nobody fetches it.
    Nowhere,
}

impl Expected {
    /// Samples in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Puts a sample behind all others.
    pub fn push(&mut self, sample: u64) {
        self.queue.push_back(sample);
        *self.queued.entry(sample).or_default() += 1;
    }

    /// The sample at the head of the queue; those that were read before their turn are dropped.
    pub fn peek(&mut self) -> Option<u64> {
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

    /// Takes it from there, to plan its block.
    pub fn pop(&mut self) -> Option<u64> {
        let sample = self.peek()?;
        self.queue.pop_front();
        self.leave(sample);
        self.planned.push_back(sample);
        Some(sample)
    }

    /// As [`Expected::pop`], where `sample` is still the next one: since it was looked at, it may
    /// have been read in another way.
    pub fn pop_this(&mut self, sample: u64) -> bool {
        self.peek() == Some(sample) && self.pop().is_some()
    }

    fn leave(&mut self, sample: u64) {
        if let Some(times) = self.queued.get_mut(&sample) {
            *times -= 1;
            if *times == 0 {
                self.queued.remove(&sample);
            }
        }
    }

    /// Ends planning: what is in no block now will not be.
    pub fn end_planning(&mut self) {
        self.planned.clear();
    }

    /// Puts planned samples into the block of `shard`'s bytes `range`, but for those that were read
    /// meanwhile; its number, or `None` where nobody is left.
    pub fn join(&mut self, shard: usize, range: Range<u64>, samples: &[u64]) -> Option<u64> {
        let place = (shard, range.start, range.end);
        let id = self.by_place.get(&place).copied().unwrap_or(self.next);
        let mut users = 0;
        for &sample in samples {
            let Some(at) = self.planned.iter().position(|&planned| planned == sample) else {
                continue;
            };
            self.planned.remove(at);
            self.of_sample.entry(sample).or_default().push_back(id);
            users += 1;
        }
        if users == 0 {
            return None;
        }
        if id == self.next {
            self.next += 1;
            self.held += range.end - range.start;
            self.by_place.insert(place, id);
            let fetched = Fetched { shard, range, users: 0, arrived: None, task: None };
            self.blocks.insert(id, fetched);
        }
        self.blocks.get_mut(&id)?.users += users;
        Some(id)
    }

    /// Where `sample` stands whose turn it is.
    pub fn find(&self, sample: u64) -> Whereabouts {
        match self.first_block(sample) {
            Some(id) => Whereabouts::Block(id),
            None if self.planned.contains(&sample) => Whereabouts::Planned,
            None => Whereabouts::Nowhere,
        }
    }

    fn first_block(&self, sample: u64) -> Option<u64> {
        self.of_sample.get(&sample)?.front().copied()
    }

    /// Notes that a sample was read in another way, wherever it stands. True where a block went
    /// with it before it arrived: the next epoch's turn of a sample may overtake this one's, and
    /// whoever waits for that block has to look again.
    pub fn overtake(&mut self, sample: u64) -> bool {
        if let Some(id) = self.first_block(sample) {
            let arrived = self.release(sample, id).is_some();
            return !arrived && !self.blocks.contains_key(&id);
        }
        if let Some(at) = self.planned.iter().position(|&planned| planned == sample) {
            self.planned.remove(at);
            return false;
        }
        let queued = self.queued.get(&sample).copied().unwrap_or(0);
        let overtaken = self.overtaken.entry(sample).or_default();
        *overtaken = (*overtaken + 1).min(queued);
        if *overtaken == 0 {
            self.overtaken.remove(&sample);
        }
        false
    }

    /// Takes `sample` out of block `id`, which goes with its last sample. The bytes and where they
    /// begin in the shard; `None` where they have not arrived.
    pub fn release(&mut self, sample: u64, id: u64) -> Option<Result<(Block, u64)>> {
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

    /// Whether nothing is expected any more.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let Expected { queue, queued, overtaken, planned, of_sample, blocks, .. } = self;
        queue.is_empty()
            && queued.is_empty()
            && overtaken.is_empty()
            && planned.is_empty()
            && of_sample.is_empty()
            && blocks.is_empty()
            && self.by_place.is_empty()
            && self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(samples: &[u64]) -> Expected {
        let mut expected = Expected::default();
        samples.iter().for_each(|&sample| expected.push(sample));
        expected
    }

    /// The samples at the head of the queue, planned.
    fn pop(expected: &mut Expected, count: usize) -> Vec<Option<u64>> {
        (0..count).map(|_| expected.pop()).collect()
    }

    #[test]
    fn a_block_counts_until_its_last_sample_is_taken() {
        let mut expected = queue(&[7, 8]);
        pop(&mut expected, 2);
        let id = expected.join(0, 0..100, &[7, 8]).unwrap();
        expected.blocks.get_mut(&id).unwrap().arrived = Some(Ok(Block::from(vec![0; 100])));
        assert_eq!(expected.release(8, id).unwrap().unwrap().0.len(), 100);
        assert_eq!(expected.held, 100);
        assert!(expected.release(7, id).is_some());
        assert!(expected.is_empty());
    }

    #[test]
    fn a_sample_read_before_its_turn_is_not_fetched() {
        let mut expected = queue(&[3, 4, 3]);
        expected.overtake(3);
        expected.overtake(99);
        assert_eq!(pop(&mut expected, 3), [Some(4), Some(3), None]);
        assert!(expected.queued.is_empty() && expected.overtaken.is_empty());
    }

    #[test]
    fn a_sample_read_while_its_block_is_planned_is_not_waited_for() {
        // Between a look at the head of the queue and taking it from there.
        let mut expected = queue(&[3, 4, 5]);
        assert_eq!(expected.pop(), Some(3));
        assert_eq!(expected.peek(), Some(4));
        expected.overtake(4);
        assert!(!expected.pop_this(4));
        assert!(expected.pop_this(5));
        // Between there and its block.
        expected.overtake(5);
        let id = expected.join(0, 0..10, &[3, 5]).unwrap();
        assert!(matches!(expected.find(5), Whereabouts::Nowhere));
        assert_eq!(expected.blocks[&id].users, 1);
        // In its block, which goes with it.
        assert!(expected.overtake(3), "whoever waits for it has to know");
        assert!(expected.is_empty());
        assert_eq!(expected.join(0, 0..10, &[3]), None, "nobody is left");
        assert!(expected.is_empty());
    }
}
