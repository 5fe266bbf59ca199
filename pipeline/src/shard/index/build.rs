//! Laying out an index.

use xxhash_rust::xxh3::xxh3_64;

use super::{
    ENTRY, Entry, HEADER, KIND_ENTRIES, KIND_KEYS, KIND_SIDE, KIND_SIDE_ENDS, MAGIC, SECTION,
    VERSION,
};
use crate::{Error, Result};

/// Collects entries and lays out an index.
#[derive(Clone, Debug, Default)]
pub struct IndexBuilder {
    entries: Vec<u8>,
    keys: Vec<u8>,
    side: Vec<u8>,
    side_ends: Vec<u8>,
    classes: u32,
    without_image: u32,
}

impl IndexBuilder {
    /// Adds the next sample.
    ///
    /// # Errors
    /// [`Error::Usage`] when the keys of the shard exceed 4 GiB.
    pub fn push(&mut self, key: &str, entry: &Entry) -> Result<()> {
        let place = u32::try_from(self.keys.len()).ok().zip(u32::try_from(key.len()).ok());
        let place = place.filter(|(at, length)| at.checked_add(*length).is_some());
        let place =
            place.ok_or_else(|| Error::Usage("the keys of one shard exceed 4 GiB".to_owned()))?;
        self.keys.extend(key.as_bytes());
        self.entries.extend(entry.to_bytes(place));
        self.classes = self.classes.max(entry.label.map_or(0, |label| label.saturating_add(1)));
        self.side_ends.extend((self.side.len() as u64).to_le_bytes());
        Ok(())
    }

    /// Gives the sample added last a side index.
    pub fn attach_side_index(&mut self, side: &[u8]) {
        if let Some(end) = self.side_ends.last_chunk_mut::<8>() {
            self.side.extend(side);
            *end = (self.side.len() as u64).to_le_bytes();
        }
    }

    /// Counts a sample without an image, which the index passes over.
    pub fn skip(&mut self) {
        self.without_image = self.without_image.saturating_add(1);
    }

    /// Samples so far.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY
    }

    /// The bytes of the index of a shard of `shard_bytes` bytes with the given fingerprint.
    pub(crate) fn finish(&self, shard_bytes: u64, fingerprint: u64) -> Vec<u8> {
        let mut sections =
            vec![(KIND_ENTRIES, ENTRY as u32, &self.entries), (KIND_KEYS, 1, &self.keys)];
        if !self.side.is_empty() {
            sections.extend([(KIND_SIDE_ENDS, 8, &self.side_ends), (KIND_SIDE, 1, &self.side)]);
        }
        let body = HEADER + sections.len() * SECTION;
        let mut at = body;
        let mut table = Vec::new();
        for &(kind, element, bytes) in &sections {
            table.extend(kind.to_le_bytes());
            table.extend(element.to_le_bytes());
            table.extend((at as u64).to_le_bytes());
            table.extend((bytes.len() as u64).to_le_bytes());
            let checksum = if kind == KIND_SIDE { 0 } else { xxh3_64(bytes) };
            table.extend(checksum.to_le_bytes());
            at += bytes.len().next_multiple_of(8);
        }
        let mut out = Vec::with_capacity(at);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((sections.len() as u32).to_le_bytes());
        out.extend(shard_bytes.to_le_bytes());
        out.extend(fingerprint.to_le_bytes());
        out.extend((self.len() as u64).to_le_bytes());
        out.extend(self.classes.to_le_bytes());
        out.extend(self.without_image.to_le_bytes());
        out.extend((at as u64).to_le_bytes());
        let checksum = xxh3_64(&[&out[..], &table[..]].concat());
        out.extend(checksum.to_le_bytes());
        out.extend(table);
        for (_, _, bytes) in sections {
            out.extend(bytes.iter());
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out
    }
}
