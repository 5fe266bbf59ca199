//! Random access: one sample's bytes, borrowed from the map or decompressed
//! into a scratch. The other half of `set`, which knows what there is.

use std::path::Path;

use super::map::{Map, slice};
use super::set::ShardSet;
use super::zst::SeekTable;
use super::{Entry, Format, damaged, sniff};
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
    /// Which frames `bytes` holds: set, shard, frames.
    holds: Option<(u64, usize, std::ops::Range<usize>)>,
    bytes: Vec<u8>,
    context: Option<zstd::bulk::Decompressor<'static>>,
}

impl ReadScratch {
    /// An empty scratch.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A mapped shard.
pub(super) struct Data {
    pub map: Map,
    /// Whether `map` is a zstd file, and its seek table.
    pub compressed: bool,
    pub table: Option<SeekTable>,
}

impl ShardSet {
    /// Reads a sample. From a plain tar the image is borrowed from the map;
    /// from a `.tar.zst` the frames that hold it are decompressed into
    /// `scratch`, unless they are there from the last read.
    ///
    /// # Errors
    /// [`Error::Usage`] when the shard has no seek table; [`Error::Io`],
    /// [`Error::Shard`] and [`Error::Sample`] for what is wrong on disk.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn read<'a>(&'a self, sample: usize, scratch: &'a mut ReadScratch) -> Result<Sample<'a>> {
        let (shard, entry, key) = self.sound_entry(sample)?;
        let image = self.bytes(shard, entry.offset, entry.length.into(), scratch)?;
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
        Ok(Sample {
            key,
            label: entry.label,
            format: sniff(image),
            image,
            shard: path,
            offset: entry.offset,
            side_index: self.index(shard)?.side_index(sample - self.infos[shard].first_sample),
        })
    }

    /// Whether what was read of a shard so far was there; to be asked when what
    /// [`ShardSet::read`] gave has been used.
    ///
    /// # Errors
    /// [`Error::Shard`] when the shard or its index became shorter meanwhile, so
    /// that zeros were read in place of what is missing.
    ///
    /// # Panics
    /// When `shard >= shards().len()`.
    pub fn check(&self, shard: usize) -> Result<()> {
        self.opened(shard).try_for_each(|checked| checked)
    }

    /// All the tar blocks of a sample, headers included.
    pub(crate) fn blocks<'a>(
        &'a self,
        sample: usize,
        scratch: &'a mut ReadScratch,
    ) -> Result<(Entry, &'a [u8])> {
        let (shard, entry, _) = self.sound_entry(sample)?;
        Ok((entry, self.bytes(shard, entry.start, entry.span.into(), scratch)?))
    }

    /// The entry of a sample that no scan found fault with.
    fn sound_entry(&self, sample: usize) -> Result<(usize, Entry, &str)> {
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

    /// Hints that `sample` will be read soon, so that the system reads ahead.
    /// Never fails: what is wrong shows itself when the sample is read.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn advise(&self, sample: usize) {
        let Ok((shard, entry, _)) = self.entry(sample) else { return };
        let Ok(data) = self.data(shard) else { return };
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

    /// A range of a shard's decompressed bytes.
    fn bytes<'a>(
        &'a self,
        shard: usize,
        offset: u64,
        length: u64,
        scratch: &'a mut ReadScratch,
    ) -> Result<&'a [u8]> {
        let (data, path) = (self.data(shard)?, &self.infos[shard].path);
        let beyond = || {
            damaged(
                path,
                offset,
                format!("{length} bytes of a sample lie beyond the end of the shard"),
            )
        };
        if !data.compressed {
            self.touch(length);
            return slice(data.map.as_ref(), offset, length).ok_or_else(beyond);
        }
        let Some(table) = &data.table else {
            return Err(Error::Usage(format!(
                "{}: compressed without a seek table, so it can be read in order only: pack it with `shard pack`, or choose an order that streams",
                path.display()
            )));
        };
        let limit = self.options.limits.member_bytes;
        if length > limit {
            return Err(damaged(
                path,
                offset,
                format!("a sample of {length} bytes is over the limit of {limit}"),
            ));
        }
        let frames = table.frames(offset, length).ok_or_else(beyond)?;
        let held = scratch.holds.as_ref().filter(|(set, held, range)| {
            *set == self.id
                && *held == shard
                && range.start <= frames.start
                && frames.end <= range.end
        });
        let first = match held {
            Some((_, _, range)) => range.start,
            None => {
                scratch.holds = None;
                self.touch(table.file_range(&frames).1);
                let context = match &mut scratch.context {
                    Some(context) => context,
                    empty => empty
                        .insert(zstd::bulk::Decompressor::new().map_err(|e| Error::io(path, e))?),
                };
                table.decompress(
                    data.map.as_ref(),
                    path,
                    frames.clone(),
                    context,
                    &mut scratch.bytes,
                )?;
                scratch.holds = Some((self.id, shard, frames.clone()));
                frames.start
            }
        };
        slice(&scratch.bytes, offset - table.start(first), length).ok_or_else(beyond)
    }
}
