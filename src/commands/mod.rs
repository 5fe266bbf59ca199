//! One file a subcommand: its arguments, and what it does with them.

pub mod bench;
pub mod completions;
pub mod config;
pub mod embed;
mod evaluated;
pub mod export;
pub mod import;
pub mod inspect;
pub mod knn;
pub mod linear;
pub mod man;
pub mod probe;
pub mod quickstart;
pub mod report;
pub mod study;
pub mod train;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bt_pipeline::trace::Trace;
use clap::Args;

use crate::checks;
use crate::config::{Misconfigured, RunConfig};

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
            .map_err(|error| Misconfigured(format!("{error:#}")).into())
    }

    /// The same with another `method`: the file's `[loss]` has the options of the file's method,
    /// and of no other.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load_for(&self, method: &str) -> anyhow::Result<RunConfig> {
        RunConfig::load_for(self.config.as_deref(), method, &self.set)
            .map_err(|error| Misconfigured(format!("{error:#}")).into())
    }
}

/// Where shards behind URLs are kept, on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct CacheArgs {
    /// Keep shards behind URLs in this folder [data.cache; default: none]
    #[arg(long, value_name = "DIR")]
    cache: Option<String>,
    /// What the files in it may take together; a GB is 10^9 bytes, a GiB 2^30 [data.cache_size;
    /// default: 100GB]
    #[arg(long, value_name = "BYTES")]
    cache_size: Option<String>,
}

impl CacheArgs {
    /// For [`ConfigSource::load`].
    pub fn pairs(&self) -> [Option<String>; 2] {
        let (cache, size) = (self.cache.as_deref(), self.cache_size.as_deref());
        [text_flag("data.cache", cache), text_flag("data.cache_size", size)]
    }
}

/// A trace that is asked for on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct TraceArgs {
    /// Write what each thread did when, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// Events that a trace holds at most, each 80 bytes of the file; it keeps the first ones
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    pub trace_events: usize,
}

impl TraceArgs {
    /// The trace, where one is asked for.
    ///
    /// # Errors
    /// A file that could not be written in the end.
    pub fn begin(&self) -> anyhow::Result<Option<Arc<Trace>>> {
        let Some(path) = &self.trace else { return Ok(None) };
        let beside = tempfile::tempfile_in(crate::files::parent(path));
        beside.with_context(|| format!("--trace {}", path.display()))?;
        Ok(Some(Trace::new(self.trace_events)))
    }

    /// Writes the lanes that were handed in.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, trace: Option<&Arc<Trace>>) -> anyhow::Result<()> {
        let (Some(path), Some(trace)) = (&self.trace, trace) else { return Ok(()) };
        let mut text = Vec::new();
        trace.write(&mut text)?;
        crate::files::write_atomically(path, &text)?;
        if trace.left_out() > 0 {
            eprintln!(
                "the trace holds {} events, the first of each thread; {} found no room: --trace-events",
                trace.held(),
                trace.left_out()
            );
        }
        Ok(())
    }
}

/// A share of a whole, above 0 and at most 1.
pub(crate) fn share_above_0(text: &str) -> Result<f64, String> {
    checks::SHARE_ABOVE_0.parse(text)
}

/// A part of a whole, at least 0 and below 1.
pub(crate) fn part(text: &str) -> Result<f64, String> {
    checks::PART.parse(text)
}

/// A number above 0.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    checks::POSITIVE.parse(text)
}

/// A number of at least 0.
pub(crate) fn not_negative(text: &str) -> Result<f64, String> {
    checks::NOT_NEGATIVE.parse(text)
}

/// A count above 0.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(error.to_string()),
    }
}

/// `key=value` for [`ConfigSource::load`] when the flag was given.
pub fn flag(key: &str, value: &Option<impl std::fmt::Display>) -> Option<String> {
    value.as_ref().map(|value| format!("{key}={value}"))
}

/// [`flag`] of a text, whatever is in it.
pub fn text_flag(key: &str, text: Option<&str>) -> Option<String> {
    flag(key, &text.map(|text| toml::Value::String(text.to_owned())))
}

/// [`flag`] of a path.
///
/// # Errors
/// A path that is not UTF-8, which no configuration can hold.
pub fn path_flag(key: &str, path: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(path) = path else { return Ok(None) };
    match path.to_str() {
        Some(text) => Ok(text_flag(key, Some(text))),
        None => {
            let path = path.display();
            Err(Misconfigured(format!("{key}: the name {path} is not UTF-8")).into())
        }
    }
}
