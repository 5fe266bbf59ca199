//! Numbers that are not finite: the step is taken back, its batch noted.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use bt_pipeline::Batch;
use bt_pipeline::stats::Stats;

use super::run::Run;
use crate::checkpoint;
use crate::config::{OnNan, RunConfig};
use crate::metrics::BAD_BATCHES_FILE;
use crate::print::one_line;

/// Batches in a row that `train.on_nan = "rewind"` passes over.
const MOST_REWINDS: u32 = 10;

/// Numbers that are not finite ended the run: what a configuration leads to, not what went wrong.
#[derive(Clone, Debug)]
pub struct Diverged {
    /// What was not finite.
    pub cause: String,
    /// The step, from 1.
    pub step: u64,
    /// Batches in a row before it that were passed over.
    pub passed: u32,
    /// Whether its batch was noted.
    pub noted: bool,
    /// Where the state before it was saved; no run goes on from there by itself.
    pub before: Option<PathBuf>,
    /// Whether there is a checkpoint to go on from.
    pub resumable: bool,
}

impl std::error::Error for Diverged {}

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diverged { cause, step, passed, noted, before, resumable } = self;
        write!(f, "{cause} at step {step}")?;
        match passed {
            0 => {}
            1 => f.write_str(", after a batch that was skipped")?,
            more => write!(f, ", after {more} batches that were skipped")?,
        }
        if *noted {
            write!(f, "; the batch is listed in {BAD_BATCHES_FILE}")?;
        }
        if let Some(path) = before {
            let path = path.display();
            write!(f, "; the state before it is in {path} (it may be ruined already)")?;
        }
        f.write_str(". Lower the learning rate and ")?;
        f.write_str(match resumable {
            true => {
                "continue from the newest checkpoint (--resume) or an earlier one (--resume-from)"
            }
            false => "begin anew in another folder: there is no checkpoint yet",
        })?;
        if *noted && *passed == 0 {
            f.write_str(", or skip such batches with train.on_nan = \"rewind\"")?;
        }
        Ok(())
    }
}

impl Run {
    /// Takes back a step whose numbers are not finite and notes its batch. With
    /// `train.on_nan = "rewind"` the run goes on with the next batch.
    ///
    /// # Errors
    /// [`Diverged`], with the state before the step set aside. It is finite and seldom good:
    /// weights grow for a while before they overflow. So it takes no checkpoint's place, and
    /// `--resume` does not find it.
    pub(super) fn refuse(
        &mut self,
        config: &RunConfig,
        batch: &Batch,
        cause: String,
        stats: &Stats,
    ) -> Result<()> {
        self.learner.take_back()?;
        let step = self.progress.step + 1;
        let set = self.loader.set();
        let samples = batch.samples.iter().map(|&sample| {
            let shard = &set.shards()[set.shard_of(sample as usize)].path;
            let key = set.meta(sample as usize).map(|meta| meta.key).unwrap_or_default();
            serde_json::json!({ "sample": sample, "shard": shard.to_string_lossy(), "key": key })
        });
        let line = serde_json::json!({
            "step": step, "epoch": batch.epoch, "batch": batch.index, "cause": cause,
            "samples": samples.collect::<Vec<_>>(),
        });
        self.metrics.record_batch(&line);
        if config.train.on_nan == OnNan::Stop || self.progress.rewinds == MOST_REWINDS {
            self.settle(config);
            let before = self.save_aside(config).unwrap_or_else(|error| {
                // What ended the run is told, not that the disk is full beside it.
                self.metrics.say(&format!("warning: {}", one_line(&error)));
                None
            });
            bail!(self.diverged(config, cause, step, true, before));
        }
        self.progress.rewinds += 1;
        self.metrics.say(&format!("warning: {cause} at step {step}; its batch is skipped"));
        let rates = self.schedule.rates(self.progress.step);
        self.advance(batch);
        self.metrics.step(self.progress.step, batch.bad, rates, stats)
    }

    pub(super) fn diverged(
        &self,
        config: &RunConfig,
        cause: String,
        step: u64,
        noted: bool,
        before: Option<PathBuf>,
    ) -> Diverged {
        let folder = config.train.dir.join(checkpoint::FOLDER);
        let resumable = checkpoint::list(&folder).is_ok_and(|all| !all.is_empty());
        Diverged { cause, step, passed: self.progress.rewinds, noted, before, resumable }
    }
}
