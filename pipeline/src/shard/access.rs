//! Random access: one sample's bytes, copied or decompressed into a scratch, or
//! borrowed from the map. The other half of `set`, which knows what there is.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::frames::Frames;
use super::map::{Map, slice};
use super::set::ShardSet;
use super::touched::Touched;
use super::zst::{SeekTable, is_zstd};
use super::{Entry, Format, Limits, damaged, remote, sniff};
use crate::{Error, Result};

/// A sample whose bytes are borrowed from the map or from a [`ReadScratch`].
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Its key in the shard.
    pub key: &'a str,
    /// Its class, if it has one.
    pub label: Option<u32>,
    /// How the image is coded, by its first bytes.
    pub format: Format,
    /// The encoded image.
    pub image: &'a [u8],
    /// The shard's file.
    pub shard: &'a Path,
    /// Where the image begins in the (decompressed) tar.
    pub offset: u64,
    /// The JPEG's [`crate::jpeg::SideIndex`] in bytes, if the shard's index has one.
    pub side_index: Option<&'a [u8]>,
}

/// What a thread keeps between reads: the last decompressed frames. One per thread.
#[derive(Default)]
pub struct ReadScratch {
    pub(super) of_file: FileScratch,
    pub(super) remote: remote::Scratch,
    /// A copy of the side index.
    side: Vec<u8>,
}

impl std::fmt::Debug for ReadScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadScratch").finish_non_exhaustive()
    }
}

/// What a thread keeps of the last reads from files.
#[derive(Default)]
pub(super) struct FileScratch {
    pub frames: Frames,
    /// What was copied of a file: a sample, or frames as they lie there.
    copied: Vec<u8>,
    /// What was read of maps.
    touched: Touched,
}

impl ReadScratch {
    /// An empty scratch.
    pub fn new() -> Self {
        Self::default()
    }

    /// One whose samples are fetched ahead.
    pub(crate) fn reading_ahead(ahead: Option<Arc<remote::Ahead>>) -> Self {
        ReadScratch { remote: remote::Scratch::reading_ahead(ahead), ..Self::default() }
    }

    /// Gives back what a frame or a sample far larger than others took.
    pub(crate) fn trim(&mut self) {
        self.of_file.frames.trim();
        self.remote.trim();
    }
}

/// `length` bytes at `offset` of something of which `bytes` are those from `start` on.
pub(super) fn window(bytes: &[u8], start: u64, offset: u64, length: u64) -> Option<&[u8]> {
    slice(bytes, offset.checked_sub(start)?, length)
}

/// The error of an index that points where there is nothing.
pub(super) fn beyond(path: &Path, offset: u64, length: u64) -> Error {
    damaged(path, offset, format!("{length} bytes of a sample lie beyond the end of the shard"))
}

/// The error of random access to what has no seek table.
pub(super) fn in_order_only(path: &Path) -> Error {
    Error::Usage(format!(
        "{}: compressed without a seek table, so it can be read in order only: pack it with `shard pack`, or choose an order that streams",
        path.display()
    ))
}

/// What is read of the archive of a shard: a sample's image, or all of the sample.
#[derive(Clone, Copy)]
pub(super) struct Extent<'a> {
    pub shard: usize,
    /// The sample's.
    pub key: &'a str,
    pub offset: u64,
    pub length: u64,
    /// Bytes that it may have, where it has to be held in memory.
    pub limit: u64,
}

/// A mapped shard.
pub(crate) struct MappedShard {
    pub map: Map,
    /// Whether `map` is a zstd file, and its seek table.
    pub compressed: bool,
    pub table: Option<SeekTable>,
}

impl MappedShard {
    /// Of a mapped shard; `path` is for messages.
    pub fn new(map: Map, path: &Path, limits: &Limits) -> Result<MappedShard> {
        let compressed = is_zstd(map.as_ref());
        let table = if compressed { SeekTable::parse(map.as_ref(), path, limits)? } else { None };
        Ok(MappedShard { map, compressed, table })
    }
}

impl ShardSet {
    /// Reads a sample. From a plain tar the image is copied into `scratch`, or
    /// borrowed from the map where it is large; from a `.tar.zst` the frames
    /// that hold it are decompressed into `scratch`, unless they are there from
    /// the last read.
    ///
    /// # Errors
    /// [`Error::Usage`] when the shard has no seek table; [`Error::Io`],
    /// [`Error::Shard`] and [`Error::Sample`] for what is wrong on disk.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn read<'a>(&'a self, sample: usize, scratch: &'a mut ReadScratch) -> Result<Sample<'a>> {
        let sound = self.sound_entry(sample);
        let (shard, entry, key) = sound.inspect_err(|_| scratch.remote.forget(sample))?;
        let (offset, length) = (entry.offset, entry.length.into());
        let wanted = Extent { shard, key, offset, length, limit: self.options.limits.member_bytes };
        let ReadScratch { of_file, remote, side } = scratch;
        let image = self.bytes(wanted, Some(sample), of_file, remote)?;
        let path = &self.infos[shard].path;
        if self.options.verify
            && entry.checksum != 0
            && xxhash_rust::xxh3::xxh3_64(image) != entry.checksum
        {
            let cause = "the image does not match its checksum in the index".to_owned();
            return Err(Error::Sample {
                path: path.clone(),
                key: key.to_owned(),
                offset: entry.offset,
                cause,
            });
        }
        let place = sample - self.infos[shard].first_sample;
        Ok(Sample {
            key,
            label: entry.label,
            format: sniff(image),
            image,
            shard: path,
            offset: entry.offset,
            side_index: self.index(shard)?.read_side_index(place, side)?,
        })
    }

    /// Whether what was read of a shard so far was there; to be asked when what
    /// [`ShardSet::read`] gave has been used.
    ///
    /// # Errors
    /// [`Error::Shard`] when the shard or its index became shorter or unreadable meanwhile, so
    /// that zeros were read in place of what is missing.
    ///
    /// # Panics
    /// When `shard >= shards().len()`.
    pub fn check(&self, shard: usize) -> Result<()> {
        self.check_maps(shard, &Map::check)
    }

    /// As [`ShardSet::check`], after the last use of one image that was read, at less cost.
    pub(crate) fn check_read(&self, shard: usize, image: &[u8]) -> Result<()> {
        self.check_maps(shard, &|map, path| map.check_read(path, image))
    }

    /// All the tar blocks of a sample, headers included.
    pub(crate) fn blocks<'a>(
        &'a self,
        sample: usize,
        scratch: &'a mut ReadScratch,
    ) -> Result<(Entry, &'a [u8])> {
        let (shard, entry, key) = self.sound_entry(sample)?;
        let (offset, length) = (entry.start, entry.span.into());
        let wanted = Extent { shard, key, offset, length, limit: self.options.limits.sample_bytes };
        let ReadScratch { of_file, remote, .. } = scratch;
        Ok((entry, self.bytes(wanted, None, of_file, remote)?))
    }

    /// The entry of a sample that no scan found fault with.
    pub(super) fn sound_entry(&self, sample: usize) -> Result<(usize, Entry, &str)> {
        let (shard, entry, key) = self.entry(sample)?;
        let info = &self.infos[shard];
        match self.index(shard)?.fault(sample - info.first_sample) {
            None => Ok((shard, entry, key)),
            Some(cause) => Err(Error::Sample {
                path: info.path.clone(),
                key: key.to_owned(),
                offset: entry.offset,
                cause: cause.to_owned(),
            }),
        }
    }

    /// Hints that `sample` will be read soon, so that the system reads ahead, once its shard is
    /// open: those who read open them side by side, who hints would one after the other.
    /// Never fails: what is wrong shows itself when the sample is read.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn advise(&self, sample: usize) {
        let shard = self.shard_of(sample);
        // What is fetched ahead the loader says itself, in its order.
        if self.remote(shard).is_some() {
            return;
        }
        let Some(data) = self.opened(shard) else { return };
        let Ok((_, entry, _)) = self.entry(sample) else { return };
        let (offset, length) = (entry.offset, u64::from(entry.length));
        match &data.table {
            None if !data.compressed => data.map.will_need(offset, length),
            None => {}
            Some(table) => {
                if let Some(frames) = table.frames(offset, length) {
                    let (offset, length) = table.file_range(&frames);
                    data.map.will_need(offset, length);
                }
            }
        }
    }

    /// Decompressed bytes of a shard; `sample` is whose image they are.
    fn bytes<'a>(
        &'a self,
        wanted: Extent<'_>,
        sample: Option<usize>,
        of_file: &'a mut FileScratch,
        remote: &'a mut remote::Scratch,
    ) -> Result<&'a [u8]> {
        match self.remote(wanted.shard) {
            Some(shard) => self.remote_bytes(shard, wanted, sample, of_file, remote),
            None => self.of_data(self.data(wanted.shard)?, wanted, of_file),
        }
    }

    /// Decompressed bytes of a shard that is mapped as `data`.
    pub(super) fn of_data<'a>(
        &'a self,
        data: &'a MappedShard,
        wanted: Extent<'_>,
        of_file: &'a mut FileScratch,
    ) -> Result<&'a [u8]> {
        let Extent { shard, offset, length, .. } = wanted;
        let path = &self.infos[shard].path;
        let FileScratch { frames, copied, touched } = of_file;
        if !data.compressed {
            self.count_bytes_read(shard, length);
            if let Some(copy) = data.map.copy(path, (offset, length), copied)? {
                return Ok(copy);
            }
            touched.note(&data.map, (offset, length));
            return slice(data.map.as_ref(), offset, length)
                .ok_or_else(|| beyond(path, offset, length));
        }
        let Some(table) = &data.table else { return Err(in_order_only(path)) };
        let needed = self.needed(table, &wanted)?;
        let key = (self.id, shard);
        let mut file = (data.map.as_ref(), 0);
        if frames.held(key, &needed).is_none() {
            let place = table.file_range(&needed);
            self.count_bytes_read(shard, place.1);
            match data.map.copy(path, place, copied)? {
                Some(copy) => file = (copy, place.0),
                None => touched.note(&data.map, place),
            }
        }
        frames.read(key, table, file, path, (offset, length), || data.map.check(path))
    }

    /// The frames to be decompressed.
    ///
    /// # Errors
    /// [`Error::Sample`] where they, or what is wanted of them, is too large to be held.
    pub(super) fn needed(&self, table: &SeekTable, wanted: &Extent<'_>) -> Result<Range<usize>> {
        self.within_limit(wanted)?;
        let Extent { shard, offset, length, .. } = *wanted;
        let frames = table.frames(offset, length);
        let frames = frames.ok_or_else(|| beyond(&self.infos[shard].path, offset, length))?;
        table.too_large(&frames).map_or(Ok(frames), |cause| Err(self.refused(wanted, cause)))
    }

    /// Whether what is wanted may be held in memory.
    pub(super) fn within_limit(&self, wanted: &Extent<'_>) -> Result<()> {
        let Extent { length, limit, .. } = *wanted;
        if length <= limit {
            return Ok(());
        }
        Err(self.refused(wanted, format!("{length} bytes are over the limit of {limit}")))
    }

    /// The error of one sample that limits keep from being read; others of its shard can be.
    fn refused(&self, wanted: &Extent<'_>, cause: String) -> Error {
        let (path, key) = (self.infos[wanted.shard].path.clone(), wanted.key.to_owned());
        Error::Sample { path, key, offset: wanted.offset, cause }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Page faults of this thread so far that the disk had no part in.
    fn faults() -> i64 {
        // SAFETY: all zeros are a value of that structure of numbers, which the call fills.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
            usage.ru_minflt
        }
    }

    /// Pages that are mapped for a sample are let go of soon after, for which each core that runs the
    /// process is interrupted: two threads would be as fast as one.
    #[test]
    fn small_samples_are_read_at_random_without_a_page_fault_for_each() {
        const SAMPLES: usize = 1000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        for number in 0..SAMPLES {
            for (extension, length) in [("png", 800), ("txt", 30_000)] {
                let mut header = tar::Header::new_ustar();
                header.set_size(length);
                let bytes = vec![number as u8; length as usize];
                tar.append_data(&mut header, format!("{number:04}.{extension}"), &bytes[..])
                    .unwrap();
            }
        }
        tar.finish().unwrap();
        let set = ShardSet::open(path.to_str().unwrap(), &Default::default()).unwrap();
        let mut scratch = ReadScratch::default();
        let mut epoch = || {
            let before = faults();
            for nth in 0..SAMPLES {
                let sample = nth * 617 % SAMPLES;
                let read = set.read(sample, &mut scratch).unwrap();
                assert!(read.image.len() == 800 && read.image[799] == sample as u8);
            }
            faults() - before
        };
        // Of the first one there are those of code that runs for the first time.
        let (_, faults) = (epoch(), epoch());
        assert!(faults < SAMPLES as i64 / 4, "{faults} faults for {SAMPLES} samples");
    }
}
