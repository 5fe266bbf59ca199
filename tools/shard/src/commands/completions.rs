//! `shard completions`: the script of a shell.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{Cli, Completions};
use crate::output::line;

pub fn run(args: &Completions) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "shard", &mut script);
    line(String::from_utf8(script)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
