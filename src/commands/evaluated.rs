//! What `knn`, `probe` and `linear` evaluate, and where what they find is kept.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::checkpoint;
use crate::config::EvalConfig;
use crate::eval::compare::{EvaluatedRun, FeaturePair, table};
use crate::eval::{Score, scores};
use crate::print::one_line;

/// A checkpoint and the sets it is evaluated on.
#[derive(Args, Debug)]
pub struct Evaluated {
    /// A run's folder (its newest checkpoint is taken) or a checkpoint's
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Shards that are learnt from [default: those the run was trained on]
    #[arg(long, value_name = "SHARDS")]
    pub(super) train: Option<String>,
    /// Shards that are classified [default: the run's data.val]
    #[arg(long, value_name = "SHARDS")]
    test: Option<String>,
}

impl Evaluated {
    /// Opens them.
    ///
    /// # Errors
    /// What cannot be found or read.
    pub fn open(&self) -> Result<EvaluatedRun> {
        EvaluatedRun::open(&self.checkpoint, self.train.as_deref(), self.test.as_deref())
    }

    /// Keeps what was measured of the checkpoint after `step` in a run's folder, for its report and
    /// its card, where it was measured on the run's own shards. That it cannot be kept is warned
    /// of: what was asked for is the measurement.
    pub fn record(&self, step: u64, scores: &[Score]) {
        let own = self.train.is_none() && self.test.is_none();
        if !own || !self.checkpoint.join(checkpoint::FOLDER).is_dir() {
            return;
        }
        if let Err(error) = scores::record(&self.checkpoint, step, scores) {
            tracing::warn!("{}; reports and cards will not show this evaluation", one_line(&error));
        }
    }
}

/// A checkpoint, its sets, and what its features stand beside.
#[derive(Args, Debug)]
pub struct Compared {
    #[command(flatten)]
    what: Evaluated,
    /// Measure raw pixels and colour histograms too
    #[arg(long)]
    pixels: bool,
    /// Do not measure an untrained network of the same shape beside it
    #[arg(long)]
    no_untrained: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Compared {
    /// Measures each kind of features with `score`, and prints the table. With `record` a run's own
    /// evaluation is kept in its folder, for its report and its card.
    ///
    /// # Errors
    /// What cannot be read, or has no labels.
    pub fn measure(
        &self,
        record: bool,
        score: impl Fn(FeaturePair, &EvalConfig) -> Result<Score>,
    ) -> Result<()> {
        let run = self.what.open()?;
        let score = |pair: FeaturePair| score(pair, &run.config().eval);
        let trained = run.trained()?;
        // Of the samples that could be used.
        let (train, test) = (trained.train.len(), trained.test.len());
        let mut scores = vec![score(trained)?];
        if !self.no_untrained {
            scores.push(score(run.untrained()?)?);
        }
        if self.pixels {
            for pair in run.pixels()? {
                scores.push(score(pair)?);
            }
        }
        // Kept before anything is printed, which may end the process, and printed whether or not it
        // could be kept: a full disk takes no result away.
        if record {
            self.what.record(run.checkpoint.state.step, &scores);
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&scores)?);
        } else {
            let path = run.checkpoint.path.display();
            println!("{path}: {train} training and {test} test images");
            println!("{}", table(&scores));
        }
        Ok(())
    }
}
