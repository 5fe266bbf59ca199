//! `bt-stream probe`

use anyhow::Result;
use clap::Args;

use super::evaluated::Compared;
use super::{count, not_negative, part, share_above_0};
use crate::eval::ProbeConfig;
use crate::eval::compare::FeaturePair;

/// Arguments of `bt-stream probe`.
#[derive(Args, Debug)]
pub struct ProbeArgs {
    #[command(flatten)]
    what: Compared,
    /// Weight decays to choose from, by accuracy on held-out training data
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.01,0.001,0.0001", value_parser = not_negative)]
    decays: Vec<f64>,
    /// Share of the training data that is held out for this choice
    #[arg(long, default_value_t = 0.2, value_parser = part)]
    held_out: f64,
    /// Most L-BFGS iterations of a fit
    #[arg(long, default_value_t = 150, value_parser = count)]
    iterations: usize,
    /// Learn from this share of each class only, at least one sample of each, as in `--labels 0.01`
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share_above_0)]
    labels: f64,
    /// Decides what is held out, and which labels are used
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read, or has no labels.
pub fn run(args: ProbeArgs) -> Result<()> {
    let options = ProbeConfig {
        decays: args.decays,
        held_out: args.held_out,
        max_iterations: args.iterations,
        seed: args.seed,
    };
    let (share, seed) = (args.labels, args.seed);
    // What is kept for report and card is the run's own evaluation; a trial takes no result's
    // place.
    let own = share == 1.0 && options == ProbeConfig::default();
    args.what.measure(own, |pair, _| {
        if share == 1.0 {
            return pair.score(None, Some(&options));
        }
        let train = pair.train.few_labels(share, seed)?;
        FeaturePair { train, ..pair }.score(None, Some(&options))
    })
}
