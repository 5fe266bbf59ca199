//! Numbers that are not finite: the step is taken back, its batch noted.

use anyhow::{Result, bail};
use bt_pipeline::Batch;

use super::run::Run;
use crate::config::{OnNan, RunConfig};

/// File in the run's folder with the batches whose numbers were not finite.
pub const BAD_BATCHES_FILE: &str = "bad-batches.jsonl";

/// Batches in a row that `train.on_nan = "rewind"` passes over.
const MOST_REWINDS: u32 = 10;

/// Numbers that are not finite ended the run: what a configuration leads to, not what went wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{cause} at step {step}; the newest checkpoint is of a good state, {BAD_BATCHES_FILE} has the batch: \
     lower the learning rate, or go on without such batches with train.on_nan = \"rewind\""
)]
pub struct Diverged {
    /// What was not finite.
    pub cause: String,
    /// The step, from 1.
    pub step: u64,
}

impl Run {
    /// Takes back a step whose numbers are not finite and notes its batch. With
    /// `train.on_nan = "rewind"` the run goes on with the next batch.
    ///
    /// # Errors
    /// [`Diverged`], with a checkpoint of the state before the step.
    pub(super) fn refuse(
        &mut self,
        config: &RunConfig,
        batch: &Batch,
        cause: String,
    ) -> Result<()> {
        self.learner.take_back()?;
        let step = self.step + 1;
        let set = self.loader.set();
        let samples = batch.samples.iter().map(|&sample| {
            let shard = &set.shards()[set.shard_of(sample as usize)].path;
            let key = set.meta(sample as usize).map(|meta| meta.key).unwrap_or_default();
            serde_json::json!({ "sample": sample, "shard": shard, "key": key })
        });
        let line = serde_json::json!({
            "step": step, "epoch": batch.epoch, "batch": batch.index, "cause": cause,
            "samples": samples.collect::<Vec<_>>(),
        });
        let path = config.train.dir.join(BAD_BATCHES_FILE);
        crate::files::append_line(&path, &line.to_string())?;
        self.rewinds += 1;
        if config.train.on_nan == OnNan::Stop || self.rewinds > MOST_REWINDS {
            // A step so large that it left no number behind: the checkpoints before it are
            // what is good.
            if self.learner.bad_weight()?.is_none() {
                self.save(config)?;
            }
            bail!(Diverged { cause, step });
        }
        self.metrics.say(&format!("warning: {cause} at step {step}; its batch is passed over"));
        self.advance(batch);
        Ok(())
    }
}
