//! The tar shard format: index, manifest, reader, writer. No other folder knows it.
//!
//! A shard is a WebDataset tar, plain or compressed with zstd; `docs/shard-format.md`
//! specifies every byte of what is written here. First in the flow: a
//! [`ShardSet`] hands encoded images ([`Sample`]) to `decode`.
//!
//! # Layout
//!
//! - `tar`, `group`: archive members, and the samples they form.
//! - `map`, `kept`, `fault`, `zst`: the one memory map; files that stay open beside it, to copy from;
//!   files that shrink under it; the seek table of a `.tar.zst`; `frames`: what a thread keeps of one.
//! - `passage`, `touched`: letting go of what was read of a map, in order and at random.
//! - `index`, `manifest`, `scan`: what is known of a shard before it is read.
//! - `pattern`, `set`, `access`, `stream`: finding shards, random access, reading in order.
//! - `remote` (feature `remote`), `remote_options`, `union`: shards behind URLs.
//! - `source`, `select`, `recode`: what is packed, which of it, and in which form.
//! - `pack`, `pool`, `segment`, `writer`, `staging`, `atomic`: packing in parallel, written in
//!   order.
//! - `reindex`, `verify`, `salvage`, `unpack`: what else is done with whole sets; `damage`: what is
//!   found wrong with them.

mod access;
mod atomic;
mod damage;
#[cfg(unix)]
mod fault;
mod format;
mod frames;
mod group;
mod index;
#[cfg(unix)]
mod kept;
mod manifest;
mod map;
mod pack;
mod passage;
mod pattern;
mod pool;
mod raw;
mod recode;
mod reindex;
#[cfg(feature = "remote")]
pub(crate) mod remote;
#[cfg(not(feature = "remote"))]
#[path = "remote/absent.rs"]
pub(crate) mod remote;
mod remote_options;
mod salvage;
mod scan;
mod segment;
mod select;
mod set;
mod source;
mod staging;
mod stream;
mod tar;
mod tar_write;
mod touched;
mod union;
mod unpack;
mod verify;
mod writer;
mod zst;

use std::path::Path;

use crate::Error;

pub use access::{ReadScratch, Sample};
pub use damage::Damage;
pub(crate) use format::dimensions_of;
pub use format::{Format, sniff};
pub use index::{Entry, ShardIndex, index_path};
pub use manifest::{ClassCount, MANIFEST_SUFFIX, Manifest, ManifestShard, checksum_text};
pub use pack::{OnBadImage, PackOptions, Packed, pack};
pub use pool::Progress;
pub(crate) use pool::thread_count;
pub use raw::{raw_header, raw_parse};
pub use recode::{Recode, Recoded, Shrink};
pub use reindex::{Indexed, index_shards};
pub use remote_options::{RemoteOptions, parse_bytes};
pub use salvage::{Salvaged, salvage};
pub use scan::{Depth, Scanned, scan};
pub use select::{Selection, select};
pub use set::{OpenOptions, SampleMeta, ShardInfo, ShardSet};
pub use source::{FolderSource, ListSource, Loaded, ShardSource, Source, SynthSource, open_source};
pub use staging::finish_killed;
pub use stream::{OwnedSample, ShardStream};
pub use tar::Links;
pub use union::names_urls;
pub use unpack::{Tree, Unpacked, unpack};
pub use verify::{VerifyReport, verify};

/// The largest label that is written.
const MAX_LABEL: u32 = (1 << 24) - 1;

/// Limits on what a shard may claim, checked before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one archive member that is read into memory. Default 256 MiB.
    pub member_bytes: u64,
    /// Archive members in one shard. Default 64 million.
    pub members: u64,
    /// Members of one sample. Default 256.
    pub members_per_sample: usize,
    /// Bytes of a member's name, and of one extended header. Default 64 KiB.
    pub name_bytes: u64,
    /// Bytes of one sample's members that are read into memory together. Default 1 GiB.
    pub sample_bytes: u64,
    /// Decompressed bytes of a shard that is expanded into a temporary file. Default 64 GiB.
    pub shard_bytes: u64,
    /// Decompressed bytes of one frame of a seekable shard. Default 256 MiB.
    pub frame_bytes: u64,
    /// Base-2 logarithm of the largest window that a zstd stream may ask
    /// for. Default 27 (128 MiB), zstd's own.
    pub zstd_window_log: u32,
    /// Bytes of an index or manifest. Default 4 GiB.
    pub index_bytes: u64,
    /// The largest label. Default 16,777,215.
    pub label: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            member_bytes: 256 << 20,
            members: 64_000_000,
            members_per_sample: 256,
            name_bytes: 64 << 10,
            sample_bytes: 1 << 30,
            shard_bytes: 64 << 30,
            frame_bytes: 256 << 20,
            zstd_window_log: 27,
            index_bytes: 4 << 30,
            label: MAX_LABEL,
        }
    }
}

/// Damage in a shard, index or manifest at a byte offset.
fn damaged(path: &Path, offset: u64, cause: impl Into<String>) -> Error {
    Error::Shard { path: path.to_owned(), offset, cause: cause.into() }
}
