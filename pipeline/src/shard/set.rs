//! A set of shards as one numbered list of samples: opened from manifests and
//! indexes without reading either the samples or their entries. Between
//! `pattern`, which finds the files, and `access`, which reads samples.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::access::Data;
use super::index::{Head, ShardIndex, foreign, index_path};
use super::map::Map;
use super::pattern::{Found, resolve};
use super::scan::{Depth, scan_map};
use super::stream::ShardStream;
use super::zst::{FOOTER, SeekTable, has_table, is_zstd};
use super::{Entry, Format, Limits, damaged};
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

struct Shard {
    index: OnceLock<ShardIndex>,
    data: OnceLock<Data>,
}

/// A numbered list of samples in tar shards. `Send + Sync`; share it in an `Arc`.
///
/// Files are mapped when they are first needed and stay mapped.
pub struct ShardSet {
    pub(super) id: u64,
    pub(super) infos: Vec<ShardInfo>,
    shards: Vec<Shard>,
    samples: usize,
    classes: Vec<String>,
    pub(super) options: OpenOptions,
    /// Bytes of the maps that were read so far.
    touched: AtomicU64,
}

/// Bytes read from the maps after which their pages are let go. Otherwise a
/// process would seem to hold as much of the data set as the page cache does.
const RESIDENT: u64 = 32 << 20;

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
            touched: AtomicU64::new(0),
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

    /// Reads a shard from `map`, its decompressed archive, from now on.
    pub(crate) fn replace_data(&mut self, shard: usize, map: Map) -> Result<()> {
        // What is known of the shard counts decompressed bytes: it stays true.
        self.index(shard)?;
        self.shards[shard].data = OnceLock::from(Data { map, compressed: false, table: None });
        self.infos[shard].seekable = true;
        Ok(())
    }

    pub(super) fn entry(&self, sample: usize) -> Result<(usize, Entry, &str)> {
        let shard = self.shard_of(sample);
        let (entry, key) = self.index(shard)?.get(sample - self.infos[shard].first_sample)?;
        Ok((shard, entry, key))
    }

    /// Notes that `bytes` of the maps were read, and now and then lets go of all of them.
    pub(super) fn touch(&self, bytes: u64) {
        let before = self.touched.fetch_add(bytes, Ordering::Relaxed);
        if before / RESIDENT == (before + bytes) / RESIDENT {
            return;
        }
        for Shard { index, data } in &self.shards {
            if let Some(data) = data.get() {
                data.map.release();
            }
            if let Some(index) = index.get() {
                index.release();
            }
        }
    }

    /// The state of what is mapped of a shard.
    pub(super) fn opened(&self, shard: usize) -> impl Iterator<Item = Result<()>> {
        let path = &self.infos[shard].path;
        let Shard { index, data } = &self.shards[shard];
        let data = data.get().map(|data| data.map.check(path));
        data.into_iter().chain(index.get().map(ShardIndex::check))
    }

    pub(super) fn data(&self, shard: usize) -> Result<&Data> {
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

    pub(super) fn index(&self, shard: usize) -> Result<&ShardIndex> {
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
