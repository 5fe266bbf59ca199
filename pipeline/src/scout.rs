//! The order once more, ahead of the feeder: which samples this rank will read, so that what lies
//! behind a network can be fetched before. Order and ranks' shares are the functions that the feeder
//! asks.

use std::sync::Arc;

use crate::loader::{LoaderConfig, Position};
use crate::order::{EpochOrder, Event};

/// A walk through all epochs of a run: the samples of this rank, in the order in which they are
/// read.
pub(crate) struct Scout {
    config: Arc<LoaderConfig>,
    counts: Vec<u64>,
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
        config: &Arc<LoaderConfig>,
        counts: Vec<u64>,
        per_epoch: u64,
        from: Position,
        epochs: u64,
    ) -> Self {
        let mut order = EpochOrder::new(&counts, config.shuffle, config.seed, from.epoch);
        let position = from.batch.saturating_mul(config.batch_size as u64);
        order.pass_over(position);
        let (config, epoch) = (Arc::clone(config), from.epoch);
        Scout { config, counts, per_epoch, epochs, epoch, position, order }
    }
}

impl Iterator for Scout {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.epoch < self.epochs {
            let batch_size = self.config.batch_size as u64;
            let within = self.position < self.per_epoch.saturating_mul(batch_size);
            match self.order.next().filter(|_| within) {
                Some(Event::Pull { .. }) => {}
                Some(Event::Emit { sample }) => {
                    self.position += 1;
                    if self.config.is_own(self.position - 1) {
                        return Some(sample);
                    }
                }
                None => {
                    (self.epoch, self.position) = (self.epoch + 1, 0);
                    let LoaderConfig { shuffle, seed, .. } = *self.config;
                    self.order = EpochOrder::new(&self.counts, shuffle, seed, self.epoch);
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
    use crate::order::Shuffle;

    #[test]
    fn the_walk_is_that_of_the_batches() {
        let counts = vec![7, 0, 5, 11];
        for shuffle in [Shuffle::None, Shuffle::Global, Shuffle::Window { shards: 2, samples: 4 }] {
            let mut config = LoaderConfig::training(Preset::BarlowCifar.views(), 4, 3);
            (config.shuffle, config.world, config.rank) = (shuffle, 2, 1);
            // 23 samples: five whole batches, of which this rank has the odd slots.
            let from = Position { epoch: 1, batch: 2 };
            let config = Arc::new(config);
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
