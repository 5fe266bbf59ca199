//! What an index tells of the samples of a damaged shard. It has checksums of its
//! own, so that it is either what was written or not used.

use std::collections::HashMap;
use std::path::Path;

use crate::Result;
use crate::shard::Limits;
use crate::shard::index::{Entry, ShardIndex, index_path};
use crate::shard::map::Map;

/// What an intact index says of a shard's samples.
#[derive(Default)]
pub(super) struct Known {
    /// By key, which a damaged shard may have twice.
    pub entries: HashMap<String, Vec<Entry>>,
    /// Whether the index was made for just these bytes, so that it is right where they differ.
    pub belongs: bool,
}

impl Known {
    /// # Errors
    /// Where the index cannot be read for what is no damage.
    pub fn of(shard: &Path, file: &Map, limits: &Limits) -> Result<Known> {
        let index = match ShardIndex::open(&index_path(shard), limits) {
            Ok(index) => index,
            Err(error) if error.is_damage() => return Ok(Known::default()),
            Err(error) => return Err(error),
        };
        let mut entries: HashMap<String, Vec<Entry>> = HashMap::new();
        for (entry, key) in (0..index.len()).filter_map(|i| index.get(i).ok()) {
            entries.entry(key.to_owned()).or_default().push(entry);
        }
        Ok(Known { entries, belongs: index.belongs_to(shard, file.as_ref()).is_ok() })
    }

    pub fn of_key(&self, key: &str) -> &[Entry] {
        self.entries.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether a sample that was found is, image, label and members, one of the index's. It may
    /// stand elsewhere in the shard: bytes before it may be missing.
    pub fn confirms(&self, key: &str, found: &Entry) -> bool {
        self.of_key(key).iter().any(|known| {
            let same = known.checksum != 0 && known.checksum == found.checksum;
            same && (known.label, known.span) == (found.label, found.span)
        })
    }

    /// What contradicts the index: everything, where it was made for just these bytes; else that an
    /// image which it knows has lost its label.
    pub fn contradiction(&self, key: &str, found: &Entry) -> Option<String> {
        let known = self.of_key(key);
        let same = |known: &&Entry| match known.checksum {
            0 => self.belongs,
            checksum => checksum == found.checksum,
        };
        let mut same = known.iter().filter(same);
        let Some(first) = same.next() else {
            let cause = "the image does not match its checksum in the index";
            return (self.belongs && !known.is_empty()).then(|| cause.to_owned());
        };
        let agrees = |known: &Entry| known.label == found.label;
        if agrees(first) || same.any(agrees) || !(self.belongs || found.label.is_none()) {
            return None;
        }
        let text = |label: Option<u32>| label.map_or("none".to_owned(), |label| label.to_string());
        let (label, known) = (text(found.label), text(first.label));
        Some(format!("its label is {label}, the index says {known}"))
    }
}
