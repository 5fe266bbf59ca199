//! `bt-stream`: parse the command line, run the command, report.

use std::io::IsTerminal;
use std::process::ExitCode;

use bt_stream::cli::{Cli, exit_code};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text: Vec<String> = format!("{error:#}").lines().map(str::to_owned).collect();
            eprintln!("bt-stream: {}", text.join(" "));
            ExitCode::from(exit_code(&error))
        }
    }
}
