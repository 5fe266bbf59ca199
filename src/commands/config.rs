//! `bt-stream config`

use anyhow::Result;
use clap::Args;

use super::ConfigSource;

/// Arguments of `bt-stream config`.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    #[command(flatten)]
    source: ConfigSource,
}

/// Prints the effective configuration as TOML.
///
/// # Errors
/// What is wrong with the configuration.
pub fn run(args: ConfigArgs) -> Result<()> {
    print!("{}", args.source.load(&[])?.to_toml()?);
    Ok(())
}
