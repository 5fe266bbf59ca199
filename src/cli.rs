//! The command line: subcommands with their flags and help.

use bt_pipeline::Error;
use clap::{Parser, Subcommand};

use crate::commands;
use crate::config::Misconfigured;
use crate::signals::Interrupted;
use crate::train::Diverged;

/// Streams image shards into two augmented views and trains Barlow Twins on them.
#[derive(Parser)]
#[command(name = "bt-stream", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the process says when it ends. The codes are part of the interface: scripts depend on them.
pub const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 something failed; 2 the command line or the configuration is wrong; 3 the \
numbers of a training run were not finite; 129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM, training \
with a checkpoint.";

/// The exit code that belongs to an error of [`Command::run`].
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        interrupted.exit_code()
    } else if error.is::<Misconfigured>() || matches!(error.downcast_ref(), Some(Error::Usage(_))) {
        2
    } else if error.is::<Diverged>() {
        3
    } else {
        1
    }
}

/// The subcommands; each one's arguments and code are a file of [`commands`].
#[derive(Subcommand)]
pub enum Command {
    /// Make a data set, pack it, train on it and report, in a minute or two on a CPU
    Quickstart(commands::quickstart::QuickstartArgs),
    /// Train a network on shards
    Train(commands::train::TrainArgs),
    /// Classify by the nearest neighbours in the space of a checkpoint's features
    Knn(commands::knn::KnnArgs),
    /// Train a linear classifier on a checkpoint's features
    Probe(commands::probe::ProbeArgs),
    /// Train a linear classifier by the authors' protocol, or fine-tune, on all or few labels
    Linear(commands::linear::LinearArgs),
    /// Train and evaluate a matrix of configurations, and tabulate
    Study(commands::study::StudyArgs),
    /// Write a checkpoint's features to a file
    Embed(commands::embed::EmbedArgs),
    /// Tell what shards hold, and draw samples with their two views
    Inspect(commands::inspect::InspectArgs),
    /// Write a checkpoint's backbone for torchvision, timm or ONNX
    Export(commands::export::ExportArgs),
    /// Make a run's folder of a torchvision or timm backbone, to evaluate it or to train it on
    Import(commands::import::ImportArgs),
    /// Write a run, or several side by side, as one HTML page
    Report(commands::report::ReportArgs),
    /// Watch a run on the terminal, while it goes on or after
    Watch(commands::watch::WatchArgs),
    /// Check a configuration and print the effective one, or explain its keys
    Config(commands::config::ConfigArgs),
    /// Measure the loader or the training step
    Bench(commands::bench::BenchArgs),
    /// Print the completions of a shell
    Completions(commands::completions::CompletionsArgs),
    /// Write manual pages
    Man(commands::man::ManArgs),
}

impl Command {
    /// Runs it.
    ///
    /// # Errors
    /// What the command's own `run` says.
    pub fn run(self) -> anyhow::Result<()> {
        if self.computes() {
            commands::train::set_threads(0)?;
        }
        match self {
            Command::Quickstart(args) => commands::quickstart::run(args),
            Command::Train(args) => commands::train::run(args),
            Command::Knn(args) => commands::knn::run(args),
            Command::Probe(args) => commands::probe::run(args),
            Command::Linear(args) => commands::linear::run(args),
            Command::Study(args) => commands::study::run(args),
            Command::Embed(args) => commands::embed::run(args),
            Command::Inspect(args) => commands::inspect::run(args),
            Command::Export(args) => commands::export::run(args),
            Command::Import(args) => commands::import::run(args),
            Command::Report(args) => commands::report::run(args),
            Command::Watch(args) => commands::watch::run(args),
            Command::Config(args) => commands::config::run(args),
            Command::Bench(args) => commands::bench::run(args),
            Command::Completions(args) => commands::completions::run(args),
            Command::Man(args) => commands::man::run(args),
        }
    }

    /// Whether it computes with as many threads as there are cores; `train` and `bench` have a
    /// number of their own.
    fn computes(&self) -> bool {
        matches!(
            self,
            Command::Quickstart(_)
                | Command::Knn(_)
                | Command::Probe(_)
                | Command::Linear(_)
                | Command::Study(_)
                | Command::Embed(_)
                | Command::Export(_)
                | Command::Import(_)
                | Command::Report(_)
        )
    }
}
