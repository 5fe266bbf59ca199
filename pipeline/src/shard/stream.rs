//! The samples of one shard in order: works for every shard, also for a
//! `.tar.zst` without a seek table.

use std::path::Path;

use super::group::{Group, Groups, Keep};
use super::map::Map;
use super::tar::{AnyTar, Source};
use super::{Format, Limits, Sample, sniff};
use crate::Result;

/// A sample that owns its bytes. Made to be reused.
#[derive(Clone, Debug, Default)]
pub struct OwnedSample {
    /// Its number in the set.
    pub sample: usize,
    /// Its key in the shard.
    pub key: String,
    /// Its class, if it has one.
    pub label: Option<u32>,
    /// How the image is coded, by its first bytes.
    pub format: Format,
    /// The encoded image.
    pub image: Vec<u8>,
    /// Where the image begins in the (decompressed) tar.
    pub offset: u64,
}

impl OwnedSample {
    /// The sample as one that was read from `shard` at random.
    pub fn borrowed<'a>(&'a self, shard: &'a Path) -> Sample<'a> {
        Sample {
            key: &self.key,
            label: self.label,
            format: self.format,
            image: &self.image,
            shard,
            offset: self.offset,
            side_index: None,
        }
    }
}

/// Reads one shard from front to back.
pub struct ShardStream {
    groups: Groups<Box<dyn Source + Send>>,
    group: Group,
    limits: Limits,
    next: usize,
    /// Where it is read from a file.
    map: Option<Map>,
}

impl std::fmt::Debug for ShardStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardStream").finish_non_exhaustive()
    }
}

impl ShardStream {
    /// The stream of an archive whose first sample is number `first` of the set; `map` is what it
    /// is in, if it is in a file.
    pub(crate) fn of_tar(tar: AnyTar, map: Option<Map>, first: usize, limits: &Limits) -> Self {
        let (groups, group) = (Groups::new(tar, Keep::Images), Group::default());
        ShardStream { groups, group, limits: *limits, next: first, map }
    }

    /// The next sample into `out`; false at the end of the shard. Samples
    /// without an image are passed over, as they are by an index.
    ///
    /// # Errors
    /// [`crate::Error::Shard`] when the archive is damaged from here on;
    /// [`crate::Error::Sample`] when only this sample is (a label that is no
    /// number, two members of one name): the next call goes on behind it.
    pub fn next_into(&mut self, out: &mut OwnedSample) -> Result<bool> {
        let read = self.read_into(out);
        if let Some(map) = &self.map {
            let path = self.groups.tar().path();
            // Whatever came of it: zeros in place of what is gone explain anything, the end of the
            // archive as well.
            match read {
                Ok(true) if !self.groups.is_finished() => map.check_read(path, &out.image)?,
                _ => map.check(path)?,
            }
        }
        read
    }

    fn read_into(&mut self, out: &mut OwnedSample) -> Result<bool> {
        while self.groups.next_into(&mut self.group)? {
            let Some(image) = self.group.image_place() else { continue };
            out.sample = self.next;
            self.next += 1;
            out.key.clone_from(&self.group.key);
            out.offset = self.group.parts()[image].offset;
            self.group.check(self.groups.tar().path())?;
            out.label = self.group.label(self.groups.tar().path(), &self.limits)?;
            self.group.swap_data(image, &mut out.image);
            out.format = sniff(&out.image);
            return Ok(true);
        }
        Ok(false)
    }

    /// Bytes of the (decompressed) archive that were read so far.
    pub fn position(&self) -> u64 {
        self.groups.tar().position()
    }
}
