//! `shard man`: manual pages.

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::{Cli, Man};
use crate::output::line;

pub fn run(args: &Man) -> anyhow::Result<ExitCode> {
    let context = || args.dir.display().to_string();
    std::fs::create_dir_all(&args.dir).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).with_context(context)?;
    line(format_args!("wrote manual pages to {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
