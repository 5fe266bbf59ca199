//! The index beside a shard: where each sample lies and what it is, in
//! entries of fixed size, so that a set of millions opens without reading them.
//!
//! Specified in `docs/shard-format.md`. Typed sections with lengths: a reader
//! passes over kinds that it does not know.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

mod build;
mod head;

pub(super) use build::IndexBuilder;
pub(crate) use head::{Head, fingerprint, foreign};
#[cfg(feature = "remote")]
pub(crate) use head::{fingerprint_of, fingerprint_ranges};

use super::map::{Map, MapCheck, slice};
use super::source::read_within;
use super::{Format, Limits, damaged};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"BTSHARDX";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const SECTION: usize = 32;
/// Bytes of one entry.
const ENTRY: usize = 64;
/// Section of the entries, one per sample.
const KIND_ENTRIES: u32 = 1;
/// Section of the keys, one after the other, UTF-8.
const KIND_KEYS: u32 = 2;
/// Section of where each sample's side index ends in the next section; u64.
const KIND_SIDE_ENDS: u32 = 16;
/// Section of the side indexes ([`crate::jpeg::SideIndex`]), one after the
/// other, empty where a sample has none. Each has its own checksum, so that
/// opening a shard need not read them; the section's is 0.
const KIND_SIDE: u32 = 17;
/// More sections than this are no index.
const MAX_SECTIONS: u32 = 64;
const NO_LABEL: u32 = u32::MAX;
/// Bytes of an index that is read into memory where maps are many.
const SMALL: u64 = 1 << 20;

/// Where the index of `shard` lies: the same name with `.idx` behind it.
pub fn index_path(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(".idx");
    name.into()
}

/// What an index knows of one sample. Offsets count decompressed bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where the image's bytes begin in the tar.
    pub offset: u64,
    /// Bytes of the image.
    pub length: u32,
    /// Where the sample's first tar header begins.
    pub start: u64,
    /// Bytes from `start` to the end of the sample's last member, padding included.
    pub span: u32,
    /// XXH3-64 of the image's bytes; 0 where nobody has computed it.
    pub checksum: u64,
    /// The class, if the sample has one.
    pub label: Option<u32>,
    /// Pixels; 0 where unknown.
    pub width: u32,
    /// Pixels; 0 where unknown.
    pub height: u32,
    /// How the image is coded.
    pub format: Format,
}

/// What is said of an image whose bytes are not those that were indexed.
pub(super) fn other_checksum(found: u64, indexed: u64) -> String {
    format!("the image's checksum is {found:016x}, the index says {indexed:016x}")
}

impl Entry {
    /// Whether `image` is what was indexed, as far as its checksum is known: a copy of another
    /// would have a good one of its own.
    ///
    /// # Errors
    /// [`Error::Sample`] where it is not.
    pub(super) fn check(&self, image: &[u8], shard: &Path, key: &str) -> Result<()> {
        if self.checksum == 0 {
            return Ok(());
        }
        let found = xxh3_64(image);
        if found == self.checksum {
            return Ok(());
        }
        let cause = other_checksum(found, self.checksum);
        let cause = format!("{cause}; `shard verify --repair` saves the others");
        Err(Error::Sample {
            path: shard.to_owned(),
            key: key.to_owned(),
            offset: self.offset,
            cause,
        })
    }

    fn to_bytes(self, key: (u32, u32)) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.offset.to_le_bytes());
        put(8, &self.start.to_le_bytes());
        put(16, &self.length.to_le_bytes());
        put(20, &self.span.to_le_bytes());
        put(24, &self.checksum.to_le_bytes());
        put(32, &key.0.to_le_bytes());
        put(36, &key.1.to_le_bytes());
        put(40, &self.label.unwrap_or(NO_LABEL).to_le_bytes());
        put(44, &self.width.to_le_bytes());
        put(48, &self.height.to_le_bytes());
        put(52, &[self.format as u8]);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> (Entry, (u32, u32)) {
        let label = word(bytes, 40);
        let entry = Entry {
            offset: long(bytes, 0),
            start: long(bytes, 8),
            length: word(bytes, 16),
            span: word(bytes, 20),
            checksum: long(bytes, 24),
            label: (label != NO_LABEL).then_some(label),
            width: word(bytes, 44),
            height: word(bytes, 48),
            format: Format::from_u8(bytes[52]),
        };
        (entry, (word(bytes, 32), word(bytes, 36)))
    }
}

/// Little-endian, from a slice that is known to be long enough.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[derive(Debug)]
enum Bytes {
    Mapped(Map),
    Owned(Vec<u8>),
}

/// The index of one shard, mapped or in memory.
#[derive(Debug)]
pub struct ShardIndex {
    bytes: Bytes,
    path: PathBuf,
    head: Head,
    entries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
    /// Empty where there are no side indexes.
    side_ends: std::ops::Range<usize>,
    side: std::ops::Range<usize>,
    /// Samples that cannot be used, and why; known only of a shard that was scanned.
    faults: BTreeMap<usize, String>,
}

/// Where an index's sections lie; nowhere where it has none.
struct Sections {
    entries: Range<usize>,
    keys: Range<usize>,
    side_ends: Range<usize>,
    side: Range<usize>,
}

impl Sections {
    /// Finds them by their `table`. Side indexes are not checked here: each has a checksum of its
    /// own.
    fn find(bytes: &[u8], table: &[u8], bad: &dyn Fn(usize, &str) -> Error) -> Result<Sections> {
        let (mut entries, mut keys) = (None, None);
        let (mut side_ends, mut side) = (0..0, 0..0);
        for (number, section) in table.chunks_exact(SECTION).enumerate() {
            let at = HEADER + number * SECTION;
            let (kind, element, offset, length) =
                (word(section, 0), word(section, 4), long(section, 8), long(section, 16));
            let found = slice(bytes, offset, length)
                .ok_or_else(|| bad(at, "a section lies beyond the end"))?;
            let place = offset as usize..offset as usize + length as usize;
            match kind {
                KIND_ENTRIES if element as usize == ENTRY => entries = Some(place),
                KIND_KEYS => keys = Some(place),
                KIND_SIDE_ENDS if element == 8 => side_ends = place,
                KIND_SIDE => {
                    side = place;
                    continue;
                }
                // Kinds of later versions; their readers verify them.
                _ => continue,
            }
            if xxh3_64(found) != long(section, 24) {
                return Err(bad(offset as usize, "a section does not match its checksum"));
            }
        }
        let entries = entries.ok_or_else(|| bad(HEADER, "the index has no entries"))?;
        let keys = keys.ok_or_else(|| bad(HEADER, "the index has no keys"))?;
        Ok(Sections { entries, keys, side_ends, side })
    }
}

impl ShardIndex {
    /// Maps the index at `path` and verifies it; a small one is read instead where maps are many.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::Shard`](crate::Error::Shard) when it is damaged.
    pub fn open(path: &Path, limits: &Limits) -> Result<ShardIndex> {
        ShardIndex::new(Bytes::open(path)?, path, limits)
    }

    /// Takes an index that is mapped already; `path` is for messages.
    #[cfg(feature = "remote")]
    pub(crate) fn of_map(map: Map, path: &Path, limits: &Limits) -> Result<ShardIndex> {
        ShardIndex::new(Bytes::Mapped(map), path, limits)
    }

    /// Whether a scan found samples that cannot be used.
    #[cfg(feature = "remote")]
    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Takes an index from memory; `path` is for messages.
    pub(crate) fn from_vec(bytes: Vec<u8>, path: &Path, limits: &Limits) -> Result<ShardIndex> {
        ShardIndex::new(Bytes::Owned(bytes), path, limits)
    }

    fn new(owner: Bytes, path: &Path, limits: &Limits) -> Result<ShardIndex> {
        let bytes = owner.as_slice();
        let bad = |at: usize, cause: &str| {
            damaged(path, at as u64, format!("{cause}; make the index anew with `shard index`"))
        };
        let head = Head::parse(bytes, path)?;
        if bytes.len() as u64 > limits.index_bytes {
            let (bytes, limit) = (bytes.len(), limits.index_bytes);
            let cause = format!("an index of {bytes} bytes is over the limit of {limit}");
            return Err(damaged(path, 0, cause));
        }
        head.checked_classes(path, limits)?;
        if head.index_bytes != bytes.len() as u64 {
            return Err(bad(
                48,
                &format!(
                    "the index should have {} bytes and has {}",
                    head.index_bytes,
                    bytes.len()
                ),
            ));
        }
        if head.sections > MAX_SECTIONS {
            return Err(bad(12, &format!("{} sections", head.sections)));
        }
        let table = head.sections as usize * SECTION;
        let table = bytes
            .get(HEADER..HEADER + table)
            .ok_or_else(|| bad(HEADER, "the index ends in its section table"))?;
        if xxh3_64(&[&bytes[..HEADER - 8], table].concat()) != long(bytes, HEADER - 8) {
            return Err(bad(HEADER - 8, "the index's header does not match its checksum"));
        }
        let Sections { entries, keys, side_ends, side } = Sections::find(bytes, table, &bad)?;
        if head.samples.checked_mul(ENTRY as u64) != Some(entries.len() as u64) {
            return Err(bad(
                32,
                &format!("{} samples, but {} bytes of entries", head.samples, entries.len()),
            ));
        }
        if !side_ends.is_empty() && side_ends.len() != entries.len() / ENTRY * 8 {
            return Err(bad(HEADER, "side indexes for another number of samples"));
        }
        let path = path.to_owned();
        let faults = BTreeMap::new();
        Ok(ShardIndex { path, head, entries, keys, side_ends, side, faults, bytes: owner })
    }

    /// With what a scan found wrong with samples, by their number in the shard.
    pub(super) fn with_faults(self, faults: BTreeMap<usize, String>) -> ShardIndex {
        ShardIndex { faults, ..self }
    }

    /// Why the `i`-th sample of the shard cannot be used.
    pub(super) fn fault(&self, i: usize) -> Option<&str> {
        self.faults.get(&i).map(String::as_str)
    }

    /// As [`Map::release`], for an index that is mapped.
    pub(super) fn release(&self) {
        if let Bytes::Mapped(map) = &self.bytes {
            map.release();
        }
    }

    /// Asks the map of an index that is mapped.
    pub(super) fn check(&self, check: MapCheck<'_>) -> Result<()> {
        match &self.bytes {
            Bytes::Mapped(map) => check(map, &self.path),
            Bytes::Owned(_) => Ok(()),
        }
    }

    /// Samples in the shard.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY
    }

    /// Whether the shard has no sample.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The entry of the `i`-th sample of the shard.
    ///
    /// # Panics
    /// When `i >= len()`.
    pub fn entry(&self, i: usize) -> Entry {
        self.raw(i).0
    }

    /// Entry and key of the `i`-th sample of the shard.
    ///
    /// # Errors
    /// [`Error::Shard`](crate::Error::Shard) when the key lies outside the keys or is not UTF-8, or
    /// the label is beyond the index's classes.
    ///
    /// # Panics
    /// When `i >= len()`.
    pub fn get(&self, i: usize) -> Result<(Entry, &str)> {
        let (entry, (at, length)) = self.raw(i);
        let keys = &self.bytes.as_slice()[self.keys.clone()];
        let key =
            slice(keys, at.into(), length.into()).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let key = key.ok_or_else(|| {
            damaged(&self.path, self.keys.start as u64, format!("sample {i} has no proper key"))
        })?;
        // Zeros may stand for what the file lost when it became shorter, of the entry as well,
        // which lies before its key. Those that came with a fault are told by `check` later.
        if key.is_empty() || key.ends_with('\0') {
            self.check(&Map::check)?;
        }
        if let Some(label) = entry.label.filter(|&label| label >= self.head.classes) {
            let at = (self.entries.start + i * ENTRY + 40) as u64;
            let classes = self.head.classes;
            let cause = format!("sample `{key}` has label {label}, the index {classes} classes");
            return Err(damaged(&self.path, at, cause));
        }
        Ok((entry, key))
    }

    /// The side index of the `i`-th sample of the shard, if it has one. Its
    /// reader verifies it.
    ///
    /// # Panics
    /// When `i >= len()`.
    pub fn side_index(&self, i: usize) -> Option<&[u8]> {
        Some(&self.bytes.as_slice()[self.side_place(i)?])
    }

    /// As [`ShardIndex::side_index`], of a sample that is read now: a copy in `buffer`, where that
    /// is better than to map it.
    ///
    /// # Errors
    /// [`Error::Shard`](crate::Error::Shard) when it cannot be read any more.
    ///
    /// # Panics
    /// When `i >= len()`.
    pub(super) fn read_side_index<'a>(
        &'a self,
        i: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>> {
        let (Some(place), Bytes::Mapped(map)) = (self.side_place(i), &self.bytes) else {
            return Ok(self.side_index(i));
        };
        let (offset, length) = (place.start as u64, place.len() as u64);
        let copy = map.copy(&self.path, (offset, length), buffer)?;
        Ok(copy.or_else(|| self.side_index(i)))
    }

    /// Where the side index of the `i`-th sample lies in the index.
    fn side_place(&self, i: usize) -> Option<Range<usize>> {
        assert!(i < self.len());
        let bytes = self.bytes.as_slice();
        let ends = &bytes[self.side_ends.clone()];
        let end = |i: usize| usize::try_from(long(ends, i * 8)).ok();
        if ends.is_empty() {
            return None;
        }
        let start = if i == 0 { 0 } else { end(i - 1)? };
        let end = end(i)?;
        if start >= end || end > self.side.len() {
            return None;
        }
        Some(self.side.start + start..self.side.start + end)
    }

    fn raw(&self, i: usize) -> (Entry, (u32, u32)) {
        let entries = &self.bytes.as_slice()[self.entries.clone()];
        Entry::from_bytes(&entries[i * ENTRY..(i + 1) * ENTRY])
    }

    /// Checks that the index was made for a shard file with these bytes.
    ///
    /// # Errors
    /// [`Error::Shard`](crate::Error::Shard), naming both, when it was not.
    pub(crate) fn belongs_to(&self, shard: &Path, bytes: &[u8]) -> Result<()> {
        if self.head.shard_bytes == bytes.len() as u64
            && self.head.fingerprint == fingerprint(bytes)
        {
            return Ok(());
        }
        Err(foreign(&self.path, shard, &self.head, bytes.len() as u64))
    }
}

impl Bytes {
    /// Of the file at `path`. Mapped, its pages are the system's to take back; but a process may
    /// have 65,530 maps, and each shard takes one.
    fn open(path: &Path) -> Result<Bytes> {
        if !Map::are_many() {
            return Map::open_for_samples(path).map(Bytes::Mapped);
        }
        let small = read_within(path, SMALL)?;
        let mapped = || Map::open_for_samples(path).map(Bytes::Mapped);
        small.map_or_else(mapped, |bytes| Ok(Bytes::Owned(bytes)))
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map.as_ref(),
            Bytes::Owned(bytes) => bytes,
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_small_index_is_read_where_maps_are_many() {
        let folder = tempfile::tempdir().unwrap();
        let (small, large) = (folder.path().join("small"), folder.path().join("large"));
        std::fs::write(&small, [1; 100]).unwrap();
        std::fs::File::create(&large).unwrap().set_len(SMALL + 1).unwrap();
        assert!(matches!(Bytes::open(&small).unwrap(), Bytes::Mapped(_)));
        let mut maps = Vec::new();
        while !Map::are_many() {
            maps.push(Map::open(&small).unwrap());
        }
        assert!(matches!(Bytes::open(&small).unwrap(), Bytes::Owned(bytes) if bytes == [1; 100]));
        assert!(matches!(Bytes::open(&large).unwrap(), Bytes::Mapped(_)));
    }
}
