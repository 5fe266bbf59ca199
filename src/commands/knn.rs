//! `bt-stream knn`

use anyhow::Result;
use clap::Args;

use super::evaluated::Compared;
use super::{count, positive};
use crate::eval::KnnConfig;

/// Arguments of `bt-stream knn`.
#[derive(Args, Debug)]
pub struct KnnArgs {
    #[command(flatten)]
    what: Compared,
    /// Neighbours that vote [default: the run's eval.k]
    #[arg(long, value_parser = count)]
    k: Option<usize>,
    /// Temperature t of the votes' weights exp(similarity / t) [default: the run's
    /// eval.temperature]
    #[arg(long, value_parser = positive)]
    temperature: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read, or has no labels.
pub fn run(args: KnnArgs) -> Result<()> {
    // What is kept for report and card is the run's own evaluation.
    let own = args.k.is_none() && args.temperature.is_none();
    args.what.measure(own, |pair, eval| {
        let k = args.k.unwrap_or(eval.k);
        let temperature = args.temperature.unwrap_or(eval.temperature);
        pair.score(Some(KnnConfig { k, temperature }), None)
    })
}
