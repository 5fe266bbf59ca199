//! The sets of shards that a configuration or a command names.

use std::sync::Arc;

use anyhow::{Result, bail};
use bt_pipeline::ShardSet;
use bt_pipeline::shard::OpenOptions;

use crate::config::Misconfigured;

/// Opens the shards of a set; `key` names them in the answer when there are none.
///
/// # Errors
/// No shards, or unreadable ones.
pub fn open_set(pattern: &str, key: &str, options: &OpenOptions) -> Result<Arc<ShardSet>> {
    if pattern.is_empty() {
        bail!(Misconfigured(format!("no shards were given: {key}")));
    }
    Ok(Arc::new(ShardSet::open(pattern, options)?))
}
