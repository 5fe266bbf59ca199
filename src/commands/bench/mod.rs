//! `bt-stream bench`: the loader alone, the step alone, both together.

mod loader;
mod step;
mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `bt-stream bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// The loader alone: shards to batches of two views
    Loader(loader::LoaderArgs),
    /// The training step alone, on random images: any method, any network
    Step(step::StepArgs),
    /// Both together, beside each alone: who waits for whom
    Train(train::TrainArgs),
}

/// Runs the command.
///
/// # Errors
/// Shards that cannot be read, or a configuration that does not fit them.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Loader(args) => loader::loader(args),
        What::Step(args) => step::step(args),
        What::Train(args) => train::train(args),
    }
}
