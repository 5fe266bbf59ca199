//! One error type for the crate: a variant per cause a caller can act on.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a shard on disk and a batch in memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A shard, index or manifest whose bytes do not follow the format.
    #[error("{}: {cause} (at byte {offset})", path.display())]
    Shard {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file the damage was noticed.
        offset: u64,
        /// What was expected and what was found.
        cause: String,
    },
    /// One sample that cannot be used; the rest of its shard may be fine.
    #[error("{}: sample `{key}` at byte {offset}: {cause}", path.display())]
    Sample {
        /// The shard.
        path: PathBuf,
        /// The sample's key in the shard.
        key: String,
        /// Where in the shard the sample's image begins.
        offset: u64,
        /// What was expected and what was found.
        cause: String,
    },
    /// Image bytes that cannot be decoded; the caller knows whose they are.
    #[error("{0}")]
    Decode(String),
    /// A request that cannot be met, in the words of the person who made it.
    #[error("{0}")]
    Usage(String),
    /// More samples than may be cannot be used.
    #[error("{0}")]
    TooManyBad(String),
    /// A worker thread panicked; the run cannot go on.
    #[error("a loader thread panicked: {0}")]
    Panic(String),
}

impl Error {
    /// An I/O error with the path it concerns.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }
}
