//! What is wrong with a shard, as a line of a report: for `verify` and `salvage`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Error;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The shard.
    #[serde(serialize_with = "crate::error::path_as_text")]
    pub shard: PathBuf,
    /// The sample, where it is one sample's fault.
    pub key: Option<String>,
    /// Where in the (decompressed) shard.
    pub offset: u64,
    /// What was expected and what was found.
    pub cause: String,
}

impl Damage {
    /// What an error that was met in `shard` tells. One that is about another file, an index say,
    /// stays whole, with that file's name.
    pub(super) fn of(shard: &Path, error: &Error) -> Self {
        let (key, offset, cause) = match error {
            Error::Shard { path, offset, cause } if path == shard => (None, *offset, cause.clone()),
            Error::Sample { key, offset, cause, .. } => (Some(key.clone()), *offset, cause.clone()),
            other => (None, 0, other.to_string()),
        };
        Damage { shard: shard.to_owned(), key, offset, cause }
    }

    /// Of one sample of `shard`, by its key.
    pub(super) fn of_sample(
        shard: &Path,
        key: &str,
        offset: u64,
        cause: impl Into<String>,
    ) -> Self {
        let (shard, key, cause) = (shard.to_owned(), Some(key.to_owned()), cause.into());
        Damage { shard, key, offset, cause }
    }
}
