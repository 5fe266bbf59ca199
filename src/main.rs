//! `bt-stream`: parse the command line, run the command, report.

use std::io::IsTerminal;
use std::process::ExitCode;

use bt_stream::cli::{Cli, exit_code};
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Warnings (a checkpoint that was passed over, a shard without its end) unless RUST_LOG asks for
    // something else.
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bt-stream: {}", one_line(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The error and its causes; those that the text before ends with already are not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
        if said.is_empty() {
            said = text;
        } else if !said.ends_with(&text) {
            said = format!("{said}: {text}");
        }
    }
    said
}
