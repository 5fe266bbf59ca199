//! `shard`: packs, indexes, lists, verifies and unpacks image shards. Thin
//! over `bt_pipeline::shard`, which does the work.

mod cli;
mod commands;
mod output;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, exit_code};
use output::{is_broken_pipe, say};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .without_time()
        .init();
    let outcome = match cli.command {
        Command::Pack(args) => commands::pack::run(&args),
        Command::Index(args) => commands::index::run(&args),
        Command::Ls(args) => commands::ls::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Unpack(args) => commands::unpack::run(&args),
        Command::Synth(args) => commands::synth::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Man(args) => commands::man::run(&args),
    };
    match outcome {
        Ok(code) => code,
        // The reader of a pipe has seen enough: `shard ls ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // The pipeline's errors say in one line what their sources say again.
            match error.downcast_ref::<bt_pipeline::Error>() {
                Some(error) => say(format_args!("error: {error}")),
                None => say(format_args!("error: {error:#}")),
            }
            ExitCode::from(exit_code(&error))
        }
    }
}
