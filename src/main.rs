//! `bt-stream`: parse the command line, run the command, report.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use bt_stream::cli::{Cli, exit_code};
use bt_stream::print::one_line;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Warnings (a checkpoint that was passed over, a shard without its end) unless RUST_LOG asks
    // for something else.
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_writer(std::io::stderr)
        // A closed standard error ends no run.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .without_time()
        .init();
    bt_stream::descriptors::ask_for_more();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bt-stream: {}", one_line(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}
