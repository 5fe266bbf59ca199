//! `bt-stream man`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};

use crate::cli::Cli;

/// Arguments of `bt-stream man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The folder for the pages, as in /usr/local/share/man/man1; made if need be
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes a page for the program and one for each command.
///
/// # Errors
/// A folder that cannot be written.
pub fn run(args: ManArgs) -> Result<()> {
    let context = || args.dir.display().to_string();
    std::fs::create_dir_all(&args.dir).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).with_context(context)?;
    println!("wrote manual pages to {}", args.dir.display());
    Ok(())
}
