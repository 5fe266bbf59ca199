//! A set of shards as one numbered list of samples: opened from manifests and
//! indexes without reading either the samples or their entries, read at random.
//! Between `pattern`, which finds the files, and the loader.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::index::{Head, ShardIndex, foreign, index_path};
use super::map::{Map, slice};
use super::pattern::{Found, resolve};
use super::scan::{Depth, scan_map};
use super::stream::ShardStream;
use super::zst::{FOOTER, SeekTable, has_table, is_zstd};
use super::{Entry, Format, Limits, damaged, sniff};
use crate::{Error, Result};

/// How a set is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Limits on what its files may claim.
    pub limits: Limits,
    /// Whether manifests are read. Default true.
    pub use_manifest: bool,
    /// Whether indexes are read; without them every shard is scanned. Default true.
    pub use_index: bool,
    /// Whether [`ShardSet::read`] verifies each image's checksum, where the
    /// index has one (about 10 us for 100 KB). Default false.
    pub verify: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            limits: Limits::default(),
            use_manifest: true,
            use_index: true,
            verify: false,
        }
    }
}

/// One shard of a set.
#[derive(Clone, Debug)]
pub struct ShardInfo {
    /// Its file.
    pub path: PathBuf,
    /// Samples in it.
    pub samples: usize,
    /// The number in the set of its first sample.
    pub first_sample: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether its samples can be read in any order.
    pub seekable: bool,
}

/// What is known of a sample without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleMeta {
    /// Its key in the shard.
    pub key: String,
    /// Its class, if it has one.
    pub label: Option<u32>,
    /// Pixels; 0 when the shard has no index.
    pub width: u32,
    /// Pixels; 0 when the shard has no index.
    pub height: u32,
    /// Where the image begins in the (decompressed) tar.
    pub offset: u64,
    /// Bytes of the image.
    pub length: u64,
    /// How the image is coded; by its extension alone when the shard has no index.
    pub format: Format,
    /// XXH3-64 of the image's bytes; 0 when the shard has no index.
    pub checksum: u64,
    /// The number of its shard in the set.
    pub shard: usize,
}

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
struct Data {
    map: Map,
    /// Whether `map` is a zstd file, and its seek table.
    compressed: bool,
    table: Option<SeekTable>,
}

struct Shard {
    index: OnceLock<ShardIndex>,
    data: OnceLock<Data>,
}

/// A numbered list of samples in tar shards. `Send + Sync`; share it in an `Arc`.
///
/// Files are mapped when they are first needed and stay mapped.
pub struct ShardSet {
    id: u64,
    infos: Vec<ShardInfo>,
    shards: Vec<Shard>,
    samples: usize,
    classes: Vec<String>,
    options: OpenOptions,
}

impl std::fmt::Debug for ShardSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardSet")
            .field("shards", &self.infos.len())
            .field("samples", &self.samples)
            .finish()
    }
}

impl ShardSet {
    /// Opens a folder, a glob, a brace list (`train-{000000..000009}.tar.zst`) or
    /// a manifest; several, separated by whitespace or `::`, are read one after the other.
    ///
    /// What a manifest says of a shard is taken from there, what an index says
    /// from the index; a shard with neither is scanned, which takes one pass over
    /// its headers, and for `.tar.zst` one decompression.
    ///
    /// # Errors
    /// [`Error::Usage`] when nothing matches or there is no sample;
    /// [`Error::Io`]; [`Error::Shard`] for a damaged shard, a stale manifest
    /// or an index that belongs to another shard.
    pub fn open(pattern: &str, options: &OpenOptions) -> Result<ShardSet> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let found = resolve(pattern, options.use_manifest, &options.limits)?;
        let mut set = ShardSet {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            infos: Vec::with_capacity(found.shards.len()),
            shards: Vec::with_capacity(found.shards.len()),
            samples: 0,
            classes: found.classes,
            options: *options,
        };
        for shard in found.shards {
            set.add(shard)?;
        }
        if set.samples == 0 {
            return Err(Error::Usage(format!("`{}`: the shards hold no samples", pattern.trim())));
        }
        Ok(set)
    }

    fn add(&mut self, found: Found) -> Result<()> {
        let path = found.path;
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        let shard = Shard { index: OnceLock::new(), data: OnceLock::new() };
        let (samples, seekable) = match found.known {
            Some(known) if known.bytes != bytes => {
                let cause = format!(
                    "the manifest says {} bytes, the file has {bytes}: pack anew, or remove the manifest",
                    known.bytes
                );
                return Err(damaged(&path, bytes, cause));
            }
            Some(known) => (known.samples, known.seekable),
            None => (self.count(&path, bytes, &shard)?, is_seekable(&path)?),
        };
        let samples = usize::try_from(samples)
            .ok()
            .filter(|&samples| self.samples.checked_add(samples).is_some());
        let samples =
            samples.ok_or_else(|| damaged(&path, 0, "more samples than memory can number"))?;
        self.infos.push(ShardInfo { path, samples, first_sample: self.samples, bytes, seekable });
        self.shards.push(shard);
        self.samples += samples;
        Ok(())
    }

    /// Samples of a shard that no manifest knows.
    fn count(&self, path: &Path, bytes: u64, shard: &Shard) -> Result<u64> {
        let index = index_path(path);
        if self.options.use_index
            && let Some(head) = Head::read(&index)?
        {
            return if head.shard_bytes == bytes {
                Ok(head.samples)
            } else {
                Err(foreign(&index, path, &head, bytes))
            };
        }
        let map = Map::open(path)?;
        let scanned = scan_map(&map, path, Depth::Headers, &self.options.limits)?;
        if !scanned.ended {
            tracing::warn!(
                "{}: no end-of-archive marker; the shard may have been cut short",
                path.display()
            );
        }
        if scanned.without_image > 0 {
            tracing::warn!(
                "{}: {} samples have no image and are passed over",
                path.display(),
                scanned.without_image
            );
        }
        Ok(shard.index.get_or_init(|| scanned.index).len() as u64)
    }

    /// Samples in the set.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether the set has no sample; [`ShardSet::open`] refuses such a set.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The shards in order.
    pub fn shards(&self) -> &[ShardInfo] {
        &self.infos
    }

    /// Names of the classes, by number; empty where no manifest names them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The number of classes: of names, or the largest label + 1.
    ///
    /// # Errors
    /// Those of opening an index.
    pub fn num_classes(&self) -> Result<usize> {
        let mut classes = self.classes.len();
        if classes == 0 {
            for shard in 0..self.infos.len() {
                classes = classes.max(self.index(shard)?.head().classes as usize);
            }
        }
        Ok(classes)
    }

    /// Whether every shard allows random access.
    pub fn seekable(&self) -> bool {
        self.infos.iter().all(|info| info.seekable)
    }

    /// The number of the shard that holds `sample`.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn shard_of(&self, sample: usize) -> usize {
        assert!(sample < self.samples, "sample {sample} of {}", self.samples);
        self.infos.partition_point(|info| info.first_sample <= sample) - 1
    }

    /// What the index says of a sample.
    ///
    /// # Errors
    /// Those of opening the index.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn meta(&self, sample: usize) -> Result<SampleMeta> {
        let (shard, entry, key) = self.entry(sample)?;
        Ok(SampleMeta {
            key: key.to_owned(),
            label: entry.label,
            width: entry.width,
            height: entry.height,
            offset: entry.offset,
            length: entry.length.into(),
            format: entry.format,
            checksum: entry.checksum,
            shard,
        })
    }

    /// The label of a sample, without the rest of [`ShardSet::meta`].
    ///
    /// # Errors
    /// Those of opening the index.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn label(&self, sample: usize) -> Result<Option<u32>> {
        Ok(self.entry(sample)?.1.label)
    }

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
        let (shard, entry, key) = self.entry(sample)?;
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
        })
    }

    /// All the tar blocks of a sample, headers included.
    pub(crate) fn blocks<'a>(
        &'a self,
        sample: usize,
        scratch: &'a mut ReadScratch,
    ) -> Result<(Entry, &'a [u8])> {
        let (shard, entry, _) = self.entry(sample)?;
        Ok((entry, self.bytes(shard, entry.start, entry.span.into(), scratch)?))
    }

    /// The samples of one shard in order.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Shard`] when the file cannot be opened.
    ///
    /// # Panics
    /// When `shard >= shards().len()`.
    pub fn stream(&self, shard: usize) -> Result<ShardStream> {
        let info = &self.infos[shard];
        ShardStream::new(
            &self.data(shard)?.map,
            &info.path,
            info.first_sample,
            &self.options.limits,
        )
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

    fn entry(&self, sample: usize) -> Result<(usize, Entry, &str)> {
        let shard = self.shard_of(sample);
        let (entry, key) = self.index(shard)?.get(sample - self.infos[shard].first_sample)?;
        Ok((shard, entry, key))
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

    fn data(&self, shard: usize) -> Result<&Data> {
        let (cell, info) = (&self.shards[shard].data, &self.infos[shard]);
        if let Some(data) = cell.get() {
            return Ok(data);
        }
        let map = Map::open(&info.path)?;
        let length = map.as_ref().len() as u64;
        if length != info.bytes {
            let cause = format!(
                "the shard had {} bytes when the set was opened and has {length} now",
                info.bytes
            );
            return Err(damaged(&info.path, length, cause));
        }
        let compressed = is_zstd(map.as_ref());
        let table = if compressed {
            SeekTable::parse(map.as_ref(), &info.path, &self.options.limits)?
        } else {
            None
        };
        // Two threads may map it at once; one map is dropped.
        Ok(cell.get_or_init(|| Data { map, compressed, table }))
    }

    fn index(&self, shard: usize) -> Result<&ShardIndex> {
        let (cell, info) = (&self.shards[shard].index, &self.infos[shard]);
        if let Some(index) = cell.get() {
            return Ok(index);
        }
        let (path, limits) = (index_path(&info.path), &self.options.limits);
        let map = &self.data(shard)?.map;
        let index = if self.options.use_index && path.exists() {
            let index = ShardIndex::open(&path, limits)?;
            index.belongs_to(&info.path, map.as_ref())?;
            index
        } else {
            scan_map(map, &info.path, Depth::Headers, limits)?.index
        };
        if index.len() != info.samples {
            let cause = format!(
                "{} samples, but {} were expected when the set was opened",
                index.len(),
                info.samples
            );
            return Err(damaged(&info.path, 0, cause));
        }
        Ok(cell.get_or_init(|| index))
    }
}

/// Whether a file allows random access, from its first and last bytes.
fn is_seekable(path: &Path) -> Result<bool> {
    let failed = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(failed)?;
    let mut head = [0; 4];
    if file.read(&mut head).map_err(failed)? < 4 || !is_zstd(&head) {
        return Ok(true);
    }
    let mut tail = Vec::with_capacity(FOOTER);
    if file.seek(SeekFrom::End(-(FOOTER as i64))).is_ok() {
        file.read_to_end(&mut tail).map_err(failed)?;
    }
    Ok(has_table(&tail))
}
