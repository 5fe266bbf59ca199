//! The command line: subcommands with their flags and help.

use clap::{Parser, Subcommand};

use crate::commands;

/// Streams image shards into two augmented views and trains Barlow Twins on them.
#[derive(Parser)]
#[command(name = "bt-stream", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands; each one's arguments and code are a file of [`commands`].
#[derive(Subcommand)]
pub enum Command {
    /// Train a network on shards
    Train(commands::train::TrainArgs),
    /// Check a configuration and print what is in effect
    Config(commands::config::ConfigArgs),
    /// Measure the loader or the training step
    Bench(commands::bench::BenchArgs),
}

impl Command {
    /// Runs it.
    ///
    /// # Errors
    /// What the command's own `run` says.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Train(args) => commands::train::run(args),
            Command::Config(args) => commands::config::run(args),
            Command::Bench(args) => commands::bench::run(args),
        }
    }
}
