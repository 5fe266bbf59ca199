//! What limited a run, in a sentence, and which setting would help.

use std::time::Duration;

use bt_pipeline::stats::{Limit, Snapshot};

use crate::config::{AugmentDevice, RunConfig, ShuffleKind};
use crate::learner::StepPart;
use crate::units::percent;

/// What is known at the end of a run.
pub struct Observed<'a> {
    /// The loader's counters.
    pub loader: &'a Snapshot,
    /// The training thread's time by part.
    pub laps: &'a [(StepPart, Duration)],
    /// Wall time.
    pub wall: Duration,
    /// The loader's worker threads.
    pub threads: usize,
    /// The machine's cores.
    pub cores: usize,
    /// Whether the shards give random access.
    pub seekable: bool,
}

/// Busy share of the workers above which they are what limits.
const BUSY: f64 = 0.6;

impl Observed<'_> {
    /// The sentence.
    pub fn sentence(&self, config: &RunConfig) -> String {
        let wall = self.wall.as_secs_f64().max(1e-9);
        let waited = percent((self.loader.batch_wait.as_secs_f64() / wall).min(1.0));
        let limit = self.loader.limit(self.wall);
        if limit == Limit::Step {
            return self.of_step(wall);
        }
        let busy = self.loader.read + self.loader.decode + self.loader.augment;
        let share = busy.as_secs_f64() / (wall * self.threads.max(1) as f64);
        let front = format!("the step waited for data {waited} of the time");
        if !self.seekable && share < BUSY && limit != Limit::Network {
            return format!(
                "{front}: the shards can only be read in order, by one thread; pack them anew with \
                 `shard pack` for random access"
            );
        }
        let more_threads = (self.threads < self.cores).then(|| {
            format!(
                "raise data.threads (now {}; the machine has {} cores)",
                self.threads, self.cores
            )
        });
        // Only a device's steps have this part.
        let on_device = self.laps.iter().any(|(part, _)| *part == StepPart::Device);
        let remedy = match limit {
            Limit::Read if config.data.shuffle == ShuffleKind::Global => {
                "put the shards on a faster disk, or read them in order with data.shuffle = \"window\"".into()
            }
            Limit::Network if config.data.cache.is_empty() => {
                "keep the shards on disk with --cache DIR, or raise data.budget_mb, so that more is \
                 fetched ahead"
                    .into()
            }
            Limit::Network => {
                "the cache is not full yet, or too small for the shards (--cache-size); a network \
                 closer to them would help, too"
                    .into()
            }
            Limit::Read => "put the shards on a faster disk".into(),
            Limit::Decode => more_threads.unwrap_or_else(|| {
                "pack the shards anew with `shard pack --recode` (JPEGs) or `--raw` (small images), \
                 or make the images smaller with `--max-side`"
                    .into()
            }),
            _ if on_device && config.augment.device == AugmentDevice::Cpu => {
                "have the device change colours, blur and solarize (augment.device = \"cuda\")".into()
            }
            _ => more_threads.unwrap_or_else(|| {
                "choose cheaper views (views.both.gaussian_blur.p, a smaller \
                 views.both.random_resized_crop.size)"
                    .into()
            }),
        };
        format!("{front}, most of it for {limit}: {remedy}")
    }

    fn of_step(&self, wall: f64) -> String {
        // The first batch of all is waited for, whoever is fast.
        let of_step = self.laps.iter().filter(|(part, _)| *part != StepPart::WaitForData);
        let longest = of_step.max_by_key(|(_, time)| *time);
        let Some((part, time)) = longest else { return "no step was done".into() };
        let share = percent(time.as_secs_f64() / wall);
        let remedy = match part {
            StepPart::Evaluation => "evaluate less often (eval.knn_every)",
            StepPart::Checkpoint => {
                "save less often (checkpoint.every_steps, checkpoint.every_epochs)"
            }
            StepPart::Measure => "diagnose less often (train.diagnose_every)",
            StepPart::Optimizer => {
                "make the network smaller (model.projector) or the batch larger (train.batch_size)"
            }
            StepPart::Loss => "make the projector's last layer narrower (model.projector)",
            StepPart::Device => {
                "the device is busy, nothing waits for it; bf16 (train.precision), a smaller network (model.width, \
                 model.projector) or smaller views (views.both.random_resized_crop.size) would help, \
                 more loader threads or cores would not"
            }
            StepPart::WaitForData
            | StepPart::CopyIn
            | StepPart::Launch
            | StepPart::Forward
            | StepPart::Backward
            | StepPart::Follow => {
                "more cores, a smaller network (model.width, model.projector) or smaller views \
                 (views.both.random_resized_crop.size) would help, more loader threads would not"
            }
        };
        format!(
            "data was always there; the step's {} took most, {share} of the time: {remedy}",
            part.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn observed<'a>(loader: &'a Snapshot, laps: &'a [(StepPart, Duration)]) -> Observed<'a> {
        Observed { loader, laps, wall: ms(1000), threads: 2, cores: 4, seekable: true }
    }

    #[test]
    fn the_setting_that_is_named_is_that_of_what_limits() {
        let config = RunConfig::default();
        let calm = Snapshot::default();
        let laps = [(StepPart::Forward, ms(300)), (StepPart::Evaluation, ms(600))];
        let said = observed(&calm, &laps).sentence(&config);
        assert!(
            said.contains("evaluation took most, 60.0%") && said.contains("eval.knn_every"),
            "{said}"
        );

        let laps = [(StepPart::WaitForData, ms(900)), (StepPart::Forward, ms(100))];
        let said = observed(&calm, &laps).sentence(&config);
        assert!(said.contains("data was always there; the step's forward took most"), "{said}");

        let decode = Snapshot { batch_wait: ms(500), decode: ms(1500), read: ms(100), ..calm };
        let said = observed(&decode, &[]).sentence(&config);
        assert!(
            said.starts_with("the step waited for data 50.0% of the time, most of it for decode"),
            "{said}"
        );
        assert!(said.contains("raise data.threads (now 2; the machine has 4 cores)"), "{said}");
        let said = Observed { threads: 4, ..observed(&decode, &[]) }.sentence(&config);
        assert!(said.contains("--recode"), "{said}");

        let augment = Snapshot { batch_wait: ms(500), augment: ms(1900), ..calm };
        let threads = observed(&augment, &laps).sentence(&config);
        assert!(threads.contains("raise data.threads"), "{threads}");
        let laps = [(StepPart::Launch, ms(100)), (StepPart::Device, ms(300))];
        let said = observed(&augment, &laps).sentence(&config);
        assert!(said.contains("augment.device = \"cuda\""), "{said}");
        let said = observed(&calm, &laps).sentence(&config);
        assert!(said.contains("device took most") && said.contains("train.precision"), "{said}");

        let read = Snapshot { batch_wait: ms(500), read: ms(1900), ..calm };
        let said = observed(&read, &[]).sentence(&config);
        assert!(said.contains("data.shuffle"), "{said}");
        let far = Snapshot { batch_wait: ms(500), network: ms(1900), ..calm };
        let said = observed(&far, &[]).sentence(&config);
        assert!(said.contains("most of it for network") && said.contains("--cache"), "{said}");
        let streamed = Snapshot { batch_wait: ms(500), read: ms(600), ..calm };
        let said = Observed { seekable: false, ..observed(&streamed, &[]) }.sentence(&config);
        assert!(said.contains("`shard pack` for random access"), "{said}");
    }
}
