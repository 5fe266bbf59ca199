//! The header of an index, and which shard it was made for.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::{HEADER, MAGIC, VERSION, long, word};
use crate::shard::map::open_regular;
use crate::shard::{Limits, damaged, union};
use crate::{Error, Result};

/// What stands in an index's first 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub shard_bytes: u64,
    pub fingerprint: u64,
    pub samples: u64,
    /// The largest label + 1.
    pub classes: u32,
    pub without_image: u32,
    pub(super) sections: u32,
    pub(super) index_bytes: u64,
}

impl Head {
    /// Reads the header of the index at `path` and nothing else; `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Head>> {
        use std::io::Read;
        let mut bytes = [0; HEADER];
        let mut file = match open_regular(path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            file => file?,
        };
        match file.read_exact(&mut bytes) {
            Ok(()) => Head::parse(&bytes, path).map(Some),
            Err(_) => Err(damaged(
                path,
                0,
                "the index is shorter than its header; make it anew with `shard index`",
            )),
        }
    }

    /// The header at the front of an index's bytes; `path` is for messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Head> {
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return Err(damaged(path, 0, "not a shard index; make it anew with `shard index`"));
        }
        let version = word(bytes, 8);
        if version != VERSION {
            return Err(damaged(
                path,
                8,
                format!("index version {version}, this program reads version {VERSION}"),
            ));
        }
        Ok(Head {
            sections: word(bytes, 12),
            shard_bytes: long(bytes, 16),
            fingerprint: long(bytes, 24),
            samples: long(bytes, 32),
            classes: word(bytes, 40),
            without_image: word(bytes, 44),
            index_bytes: long(bytes, 48),
        })
    }

    /// The largest label + 1, which others make tables of.
    ///
    /// # Errors
    /// [`Error::Shard`] when it is over the limit; `path` is the index's.
    pub fn checked_classes(&self, path: &Path, limits: &Limits) -> Result<u32> {
        if self.classes <= limits.label.saturating_add(1) {
            return Ok(self.classes);
        }
        let (label, limit) = (self.classes - 1, limits.label);
        Err(damaged(path, 40, format!("label {label} is over the limit of {limit}")))
    }
}

/// A number that tells one shard file from another: XXH3-64 of its length,
/// its first and last 4096 bytes and 512 bytes at each quarter.
pub(crate) fn fingerprint(shard: &[u8]) -> u64 {
    let length = shard.len() as u64;
    let piece = |range: std::ops::Range<u64>| &shard[range.start as usize..range.end as usize];
    fingerprint_of(length, fingerprint_ranges(length).map(piece))
}

/// The parts of a shard of `length` bytes that its fingerprint looks at.
pub(crate) fn fingerprint_ranges(length: u64) -> [std::ops::Range<u64>; 5] {
    let quarter = |n: u64| length / 4 * n..length.min(length / 4 * n + 512);
    let last = length.saturating_sub(4096)..length;
    [0..length.min(4096), quarter(1), quarter(2), quarter(3), last]
}

/// The fingerprint by the bytes of [`fingerprint_ranges`].
pub(crate) fn fingerprint_of<'a>(length: u64, pieces: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut bytes = Vec::with_capacity(10_000);
    bytes.extend(length.to_le_bytes());
    pieces.into_iter().for_each(|piece| bytes.extend(piece));
    xxh3_64(&bytes)
}

/// The error of an index that was made for another shard.
pub(crate) fn foreign(index: &Path, shard: &Path, head: &Head, bytes: u64) -> Error {
    let was = if head.shard_bytes == bytes {
        "with other content".to_owned()
    } else {
        format!("of {} bytes, this one has {bytes}", head.shard_bytes)
    };
    let name = shard.to_string_lossy();
    let advice = if union::is_url(&name) {
        "make it anew with `shard index` where the shard is a file, and put it beside this one"
            .to_owned()
    } else {
        format!(
            "make it anew with `shard index {name}`, or, where it is the shard that was damaged, save the rest with `shard verify --repair`"
        )
    };
    damaged(index, 16, format!("the index was made for a shard {was}; {advice}"))
}
