//! The order once more, ahead of the feeder: which samples this rank will read, so that what lies
//! behind a network can be fetched before. The feeder's walk and this one are the same function.

use crate::loader::{LoaderConfig, Position};
use crate::order::{EpochOrder, Event, Shuffle};

/// A walk through all epochs of a run: the samples of this rank, in the order in which they are
/// read.
pub(crate) struct Scout {
    counts: Vec<u64>,
    shuffle: Shuffle,
    seed: u64,
    batch_size: u64,
    rank: u64,
    world: u64,
    per_epoch: u64,
    epochs: u64,
    epoch: u64,
    /// Position within the epoch.
    position: u64,
    order: EpochOrder,
}

impl Scout {
    /// A walk from `from` to the end of epoch `epochs - 1`.
    pub fn new(
        config: &LoaderConfig,
        counts: Vec<u64>,
        per_epoch: u64,
        from: Position,
        epochs: u64,
    ) -> Self {
        let mut order = EpochOrder::new(&counts, config.shuffle, config.seed, from.epoch);
        let position = from.batch.saturating_mul(config.batch_size as u64);
        order.pass_over(position);
        Scout {
            counts,
            shuffle: config.shuffle,
            seed: config.seed,
            batch_size: config.batch_size as u64,
            rank: config.rank as u64,
            world: config.world as u64,
            per_epoch,
            epochs,
            epoch: from.epoch,
            position,
            order,
        }
    }
}

impl Iterator for Scout {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.epoch < self.epochs {
            let within = self.position < self.per_epoch.saturating_mul(self.batch_size);
            match self.order.next().filter(|_| within) {
                Some(Event::Pull { .. }) => {}
                Some(Event::Emit { sample }) => {
                    let slot = self.position % self.batch_size;
                    self.position += 1;
                    if slot % self.world == self.rank {
                        return Some(sample);
                    }
                }
                None => {
                    (self.epoch, self.position) = (self.epoch + 1, 0);
                    self.order = EpochOrder::new(&self.counts, self.shuffle, self.seed, self.epoch);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Preset;

    #[test]
    fn the_walk_is_that_of_the_batches() {
        let counts = vec![7, 0, 5, 11];
        for shuffle in [Shuffle::None, Shuffle::Global, Shuffle::Window { shards: 2, samples: 4 }] {
            let mut config = LoaderConfig::training(Preset::BarlowCifar.views(), 4, 3);
            (config.shuffle, config.world, config.rank) = (shuffle, 2, 1);
            // 23 samples: five whole batches, of which this rank has the odd slots.
            let from = Position { epoch: 1, batch: 2 };
            let walked: Vec<u64> = Scout::new(&config, counts.clone(), 5, from, 3).collect();
            let mut expected = Vec::new();
            for epoch in [1, 2] {
                let emitted = EpochOrder::new(&counts, shuffle, 3, epoch).filter_map(|e| match e {
                    Event::Emit { sample } => Some(sample),
                    Event::Pull { .. } => None,
                });
                let first = if epoch == 1 { 8 } else { 0 };
                let mine = emitted.enumerate().take(20).skip(first).filter(|(at, _)| at % 2 == 1);
                expected.extend(mine.map(|(_, sample)| sample));
            }
            assert_eq!(walked, expected, "{shuffle:?}");
        }
    }
}
