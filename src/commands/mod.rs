//! One file a subcommand: its arguments, and what it does with them.

pub mod bench;
pub mod config;
pub mod embed;
pub mod export;
pub mod import;
pub mod inspect;
pub mod knn;
pub mod linear;
pub mod probe;
pub mod quickstart;
pub mod study;
pub mod train;

use std::path::PathBuf;

use clap::Args;

use crate::config::RunConfig;

/// How a configuration is named on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigSource {
    /// The configuration, a TOML file; every key has a default
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key over the file, as in `--set optim.lr_weights=0.3`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigSource {
    /// The effective configuration; `more` comes on top of everything.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load(&self, more: &[Option<String>]) -> anyhow::Result<RunConfig> {
        let mut pairs = self.set.clone();
        pairs.extend(more.iter().flatten().cloned());
        RunConfig::load(self.config.as_deref(), &pairs)
    }
}

/// `key=value` for [`ConfigSource::load`] when the flag was given.
pub fn flag(key: &str, value: &Option<impl std::fmt::Display>) -> Option<String> {
    value.as_ref().map(|value| format!("{key}={value}"))
}
