//! (seed, epoch) -> the order of the samples: one global order, of which each
//! rank takes its share. Nothing here depends on threads or on timing.
//!
//! Position `p` of the global order belongs to rank `p % world`, so that a step
//! of all ranks together sees the same samples whatever the number of ranks.

use crate::rng::{Rng, mix};

/// How the samples of an epoch are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shuffle {
    /// The order in which the shards hold the samples.
    None,
    /// A permutation of all samples. Needs random access; holds nothing in memory.
    #[default]
    Global,
    /// For data that can only be streamed: shards in a random order, `shards` of
    /// them read in turns, and each next sample drawn from the `samples` that
    /// were read and not yet used.
    Window {
        /// Shards that are open at a time.
        shards: usize,
        /// Samples that are held for mixing.
        samples: usize,
    },
}

/// What a walk through an epoch does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Read the next sample of shard `shard`, which is `sample`, and keep it.
    Pull {
        /// Index of the shard.
        shard: usize,
        /// Index of the sample in the whole set.
        sample: u64,
    },
    /// `sample` stands at the next position of the global order.
    Emit {
        /// Index of the sample in the whole set.
        sample: u64,
    },
}

/// Key of the draws that belong to an epoch and to no sample.
const ORDER_KEY: u64 = u64::MAX;

/// The walk through one epoch of a set: every sample is emitted once.
#[derive(Debug)]
pub enum EpochOrder {
    /// The order needs no reading ahead of what is emitted.
    Direct {
        /// Position -> sample.
        permutation: Permutation,
        /// The next position.
        next: u64,
    },
    /// The order is made while shards are read.
    Window(Box<WindowOrder>),
}

impl EpochOrder {
    /// The order of `epoch` for a set whose shards hold `counts` samples.
    pub fn new(counts: &[u64], shuffle: Shuffle, seed: u64, epoch: u64) -> Self {
        let total = counts.iter().sum();
        let direct = |permutation| EpochOrder::Direct { permutation, next: 0 };
        match shuffle {
            Shuffle::None => direct(Permutation::identity(total)),
            Shuffle::Global => direct(Permutation::new(total, seed, epoch)),
            Shuffle::Window { shards, samples } => EpochOrder::Window(Box::new(WindowOrder::new(
                counts,
                shards.max(1),
                samples.max(1),
                Rng::keyed(seed, epoch, ORDER_KEY, 1),
            ))),
        }
    }

    /// Passes over the next `positions` samples. Free of cost for all orders
    /// but `Window`, whose walk is repeated (about 10 ns a sample).
    pub fn pass_over(&mut self, positions: u64) {
        match self {
            EpochOrder::Direct { next, .. } => *next += positions,
            EpochOrder::Window(_) => {
                let mut left = positions;
                while left > 0 {
                    match self.next() {
                        Some(Event::Emit { .. }) => left -= 1,
                        Some(Event::Pull { .. }) => {}
                        None => return,
                    }
                }
            }
        }
    }
}

impl Iterator for EpochOrder {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        match self {
            EpochOrder::Direct { permutation, next } => {
                let sample = permutation.get(*next)?;
                *next += 1;
                Some(Event::Emit { sample })
            }
            EpochOrder::Window(window) => window.next(),
        }
    }
}

/// A permutation of `0..len` that is computed, not stored: a Feistel network on
/// the next even number of bits, walked until the value lies below `len`
/// (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
#[derive(Clone, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    /// One key a round; none for the identity.
    keys: Vec<u64>,
}

impl Permutation {
    /// Six rounds: four pass for a shuffle, two more cost 5 ns.
    const ROUNDS: usize = 6;

    /// The permutation of one epoch.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let mut rng = Rng::keyed(seed, epoch, ORDER_KEY, 0);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Permutation {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys: (0..Self::ROUNDS).map(|_| rng.bits()).collect(),
        }
    }

    /// Position `p` holds sample `p`.
    pub fn identity(len: u64) -> Self {
        Permutation { len, half_bits: 0, keys: Vec::new() }
    }

    /// The sample at `position`; `None` past the end.
    pub fn get(&self, position: u64) -> Option<u64> {
        if position >= self.len {
            return None;
        }
        if self.keys.is_empty() {
            return Some(position);
        }
        let mut value = position;
        loop {
            value = self.rounds(value);
            if value < self.len {
                return Some(value);
            }
        }
    }

    fn rounds(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in &self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The walk of [`Shuffle::Window`].
#[derive(Debug)]
pub struct WindowOrder {
    rng: Rng,
    /// Shards not yet opened, the next one last.
    waiting: Vec<usize>,
    /// Open shards: (shard, next sample, end).
    open: Vec<(usize, u64, u64)>,
    /// First sample and end of each shard.
    ranges: Vec<(u64, u64)>,
    open_limit: usize,
    window: Vec<u64>,
    window_limit: usize,
}

impl WindowOrder {
    fn new(counts: &[u64], open_limit: usize, window_limit: usize, mut rng: Rng) -> Self {
        let mut start = 0;
        let ranges = counts
            .iter()
            .map(|count| {
                let range = (start, start + count);
                start += count;
                range
            })
            .collect();
        let mut waiting: Vec<usize> = (0..counts.len()).collect();
        rng.shuffle(&mut waiting);
        let open = Vec::with_capacity(open_limit.min(counts.len()));
        WindowOrder { rng, waiting, open, ranges, open_limit, window: Vec::new(), window_limit }
    }

    /// The next sample to read; `None` when all shards are read.
    fn pull(&mut self) -> Option<(usize, u64)> {
        while self.open.len() < self.open_limit {
            let Some(shard) = self.waiting.pop() else { break };
            let (start, end) = self.ranges[shard];
            if start < end {
                self.open.push((shard, start, end));
            }
        }
        if self.open.is_empty() {
            return None;
        }
        let pick = self.rng.below(self.open.len() as u64) as usize;
        let (shard, next, end) = &mut self.open[pick];
        let pulled = (*shard, *next);
        *next += 1;
        if next == end {
            self.open.swap_remove(pick);
        }
        Some(pulled)
    }
}

impl Iterator for WindowOrder {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.window.len() < self.window_limit
            && let Some((shard, sample)) = self.pull()
        {
            self.window.push(sample);
            return Some(Event::Pull { shard, sample });
        }
        if self.window.is_empty() {
            return None;
        }
        let pick = self.rng.below(self.window.len() as u64) as usize;
        Some(Event::Emit { sample: self.window.swap_remove(pick) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn emitted(order: EpochOrder) -> Vec<u64> {
        order
            .filter_map(|event| match event {
                Event::Emit { sample } => Some(sample),
                Event::Pull { .. } => None,
            })
            .collect()
    }

    const WINDOW: Shuffle = Shuffle::Window { shards: 3, samples: 20 };

    #[test]
    fn the_order_of_a_seed_is_frozen() {
        let order = |shuffle| emitted(EpochOrder::new(&[5, 4, 3], shuffle, 1, 2));
        assert_eq!(order(Shuffle::None), (0..12).collect::<Vec<_>>());
        assert_eq!(order(Shuffle::Global), GLOBAL);
        assert_eq!(order(Shuffle::Window { shards: 2, samples: 4 }), WINDOWED);
    }
    const GLOBAL: [u64; 12] = [4, 1, 2, 9, 0, 6, 11, 8, 3, 10, 7, 5];
    const WINDOWED: [u64; 12] = [9, 1, 5, 11, 6, 3, 4, 7, 10, 2, 0, 8];

    #[test]
    fn a_global_shuffle_leaves_no_neighbours_together() {
        let order = emitted(EpochOrder::new(&[10_000], Shuffle::Global, 3, 0));
        let together = order.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
        assert!(together < 10, "{together} of 9,999 pairs are still neighbours");
    }

    #[test]
    fn epochs_differ() {
        let order = |epoch| emitted(EpochOrder::new(&[40, 60], WINDOW, 3, epoch));
        assert_ne!(order(0), order(1));
        assert_eq!(order(1), order(1));
    }

    proptest! {
        #[test]
        fn every_order_holds_each_sample_once(
            counts in prop::collection::vec(0u64..70, 1..9), seed: u64, epoch in 0u64..5,
        ) {
            let total: u64 = counts.iter().sum();
            for shuffle in [Shuffle::None, Shuffle::Global, WINDOW] {
                let mut order = emitted(EpochOrder::new(&counts, shuffle, seed, epoch));
                order.sort_unstable();
                prop_assert_eq!(&order, &(0..total).collect::<Vec<_>>());
            }
        }

        #[test]
        fn skipping_equals_walking(skip in 0u64..130, seed: u64) {
            for shuffle in [Shuffle::None, Shuffle::Global, WINDOW] {
                let walked = emitted(EpochOrder::new(&[50, 1, 79], shuffle, seed, 0));
                let mut order = EpochOrder::new(&[50, 1, 79], shuffle, seed, 0);
                order.pass_over(skip);
                prop_assert_eq!(&walked[skip as usize..], &emitted(order)[..]);
            }
        }

        #[test]
        fn a_window_pulls_each_shard_in_order_before_it_emits(seed: u64) {
            let mut pulled = std::collections::HashSet::new();
            let mut next = [0u64, 30, 75];
            for event in EpochOrder::new(&[30, 45, 10], WINDOW, seed, 0) {
                match event {
                    Event::Pull { shard, sample } => {
                        prop_assert_eq!(sample, next[shard]);
                        next[shard] += 1;
                        pulled.insert(sample);
                        prop_assert!(pulled.len() <= 20);
                    }
                    Event::Emit { sample } => prop_assert!(pulled.remove(&sample)),
                }
            }
        }
    }
}
