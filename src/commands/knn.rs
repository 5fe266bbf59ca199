//! `bt-stream knn`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{count, positive};
use crate::checkpoint;
use crate::config::EvalConfig;
use crate::eval::KnnConfig;
use crate::eval::compare::{EvaluatedRun, FeaturePair, table};
use crate::eval::{Score, scores};

/// Arguments of `bt-stream knn`.
#[derive(Args, Debug)]
pub struct KnnArgs {
    #[command(flatten)]
    what: Evaluated,
    /// Neighbours that vote [default: the run's eval.k]
    #[arg(long, value_parser = count)]
    k: Option<usize>,
    /// Temperature t of the votes' weights exp(similarity / t) [default: the run's
    /// eval.temperature]
    #[arg(long, value_parser = positive)]
    temperature: Option<f64>,
}

/// A checkpoint and the sets it is evaluated on.
#[derive(Args, Debug)]
pub struct Evaluated {
    /// A run's folder (its newest checkpoint is taken) or a checkpoint's
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Shards that are learnt from [default: those the run was trained on]
    #[arg(long, value_name = "SHARDS")]
    train: Option<String>,
    /// Shards that are classified [default: the run's data.val]
    #[arg(long, value_name = "SHARDS")]
    test: Option<String>,
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

impl Evaluated {
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
        let run =
            EvaluatedRun::open(&self.checkpoint, self.train.as_deref(), self.test.as_deref())?;
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
        let own = self.train.is_none() && self.test.is_none();
        // Kept before anything is printed, which may end the process, and printed whether or not it
        // could be kept: a full disk takes no result away.
        let recorded = match record && own && self.checkpoint.join(checkpoint::FOLDER).is_dir() {
            true => scores::record(&self.checkpoint, run.checkpoint.state.step, &scores),
            false => Ok(()),
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&scores)?);
        } else {
            let path = run.checkpoint.path.display();
            println!("{path}: {train} training and {test} test images");
            println!("{}", table(&scores));
        }
        recorded
    }
}

/// Runs the command.
///
/// # Errors
/// As [`Evaluated::measure`].
pub fn run(args: KnnArgs) -> Result<()> {
    // What is kept for report and card is the run's own evaluation.
    let own = args.k.is_none() && args.temperature.is_none();
    args.what.measure(own, |pair, eval| {
        let k = args.k.unwrap_or(eval.k);
        let temperature = args.temperature.unwrap_or(eval.temperature);
        pair.score(Some(KnnConfig { k, temperature }), None)
    })
}
