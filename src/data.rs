//! The sets of shards that a configuration or a command names.

use std::sync::Arc;

use anyhow::{Result, bail};
use bt_pipeline::ShardSet;
use bt_pipeline::shard::OpenOptions;

use crate::config::Misconfigured;

/// What is said where the shards that a run was begun with were not found.
pub(crate) const NOT_FOUND: &str = "the run's shards were not found; relative paths are resolved \
    from the current folder: run from where training was started";

/// Opens the shards of a set; `hint` is told where none were named: the key that names them, or what
/// to do.
///
/// # Errors
/// No shards, or unreadable ones.
pub fn open_set(pattern: &str, hint: &str, options: &OpenOptions) -> Result<Arc<ShardSet>> {
    if pattern.is_empty() {
        bail!(Misconfigured(format!("no shards were given: {hint}")));
    }
    Ok(Arc::new(ShardSet::open(pattern, options)?))
}
