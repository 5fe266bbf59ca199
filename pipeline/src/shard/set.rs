//! A set of shards as one numbered list of samples: opened from manifests and
//! indexes without reading either the samples or their entries. Between
//! `pattern`, which finds the files, and `access`, which reads samples.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Arc, OnceLock};

mod open;
mod residency;

use super::access::MappedShard;
use super::index::{ShardIndex, index_path};
use super::map::{Map, MapCheck, open_regular};
use super::remote::{self, RemoteShard};
use super::scan::{Depth, Scanned, open_tar, scan_map};
use super::stream::ShardStream;
use super::tar::{AnyTar, NO_END};
use super::{Entry, Format, Limits, RemoteOptions, damaged};
use crate::Result;

/// How a set is opened.
#[derive(Clone, Debug)]
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
    /// Whether a file that is missing or has another length than a manifest or an index says stays
    /// in the set, with the samples that they tell, each of which is an error when it is read
    /// ([`LoaderConfig::on_bad_shard`](crate::LoaderConfig)). Default false: an error of opening.
    pub keep_bad_shards: bool,
    /// How shards behind URLs are read.
    pub remote: RemoteOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            limits: Limits::default(),
            use_manifest: true,
            use_index: true,
            verify: false,
            keep_bad_shards: false,
            remote: RemoteOptions::default(),
        }
    }
}

/// One shard of a set.
#[derive(Clone, Debug)]
pub struct ShardInfo {
    /// Its file, or its URL.
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
    data: OnceLock<MappedShard>,
    /// Where it is behind a URL; unused once `data` is there.
    remote: Option<Arc<RemoteShard>>,
    /// How many more times its maps are let go of; see `residency`.
    releases_left: AtomicU8,
}

impl Shard {
    fn new(remote: Option<Arc<RemoteShard>>) -> Shard {
        let (index, data) = (OnceLock::new(), OnceLock::new());
        Shard { index, data, remote, releases_left: AtomicU8::new(0) }
    }
}

/// A numbered list of samples in tar shards. `Send + Sync`; share it in an `Arc`.
///
/// Files are mapped when they are first needed and stay mapped, and open as far as descriptors go.
///
/// # What is asked of whoever has the files
/// Shards, indexes and manifests do not change while a set is open: they are replaced by renaming a
/// finished file to the old name, as `shard pack` does, never written to in place. Memory that is
/// read changes otherwise, which Rust's rules for references exclude. What the crate does about it
/// all the same: lengths and offsets are checked, so that other bytes are wrong pixels or an error,
/// and a file that becomes shorter, or cannot be read, is an error.
///
/// For the latter a handler of SIGBUS is installed for the process with the first map (on Unix). It
/// looks at addresses in its own maps alone, and hands all else to the handler that it found. Whoever
/// installs another later hands on what is not its own in the same way; without that a page that
/// cannot be read goes to that handler, or ends the process.
pub struct ShardSet {
    pub(super) id: u64,
    pub(super) infos: Vec<ShardInfo>,
    shards: Vec<Shard>,
    samples: usize,
    /// Shards that can be read in order only: asked for with each sample.
    in_order_only: usize,
    classes: Vec<String>,
    pub(super) options: OpenOptions,
    /// Bytes of the maps that were read so far.
    bytes_read: AtomicU64,
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
    /// The index of a shard behind a URL: one that is kept somewhere, or that a pass over it makes.
    fn remote_index(&self, remote: &Arc<RemoteShard>, path: &Path) -> Result<ShardIndex> {
        let (limits, use_index) = (&self.options.limits, self.options.use_index);
        remote.index(limits, use_index, || {
            remote::scan(remote, path, limits).inspect(|scanned| warn_of(scanned, path))
        })
    }

    /// Whether any shard is behind a URL.
    pub fn is_remote(&self) -> bool {
        (0..self.infos.len()).any(|shard| self.remote(shard).is_some())
    }

    /// The shard behind a URL that is read as one: not when its bytes are here otherwise.
    pub(crate) fn remote(&self, shard: usize) -> Option<&Arc<RemoteShard>> {
        let shard = &self.shards[shard];
        shard.remote.as_ref().filter(|_| shard.data.get().is_none())
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
    /// Those of opening an index; [`Error::Shard`](crate::Error::Shard) for one whose largest label
    /// is over the limit.
    pub fn num_classes(&self) -> Result<usize> {
        let mut classes = self.classes.len();
        if classes == 0 {
            for shard in 0..self.infos.len() {
                if let Some(head) = self.remote(shard).and_then(|remote| remote.head()) {
                    let path = index_path(&self.infos[shard].path);
                    let known = head.checked_classes(&path, &self.options.limits)?;
                    classes = classes.max(known as usize);
                    continue;
                }
                classes = classes.max(self.index(shard)?.head().classes as usize);
            }
        }
        Ok(classes)
    }

    /// Whether every shard allows random access.
    pub fn seekable(&self) -> bool {
        self.in_order_only == 0
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

    /// Whether the index has a side index of a sample's JPEG.
    ///
    /// # Errors
    /// Those of opening the index.
    ///
    /// # Panics
    /// When `sample >= len()`.
    pub fn has_side_index(&self, sample: usize) -> Result<bool> {
        let shard = self.shard_of(sample);
        let place = sample - self.infos[shard].first_sample;
        Ok(self.index(shard)?.side_index(place).is_some())
    }

    /// The samples of one shard in order.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) and [`Error::Shard`](crate::Error::Shard) when the file
    /// cannot be opened.
    ///
    /// # Panics
    /// When `shard >= shards().len()`.
    pub fn stream(&self, shard: usize) -> Result<ShardStream> {
        let info = &self.infos[shard];
        let (tar, map) = self.tar(shard)?;
        Ok(ShardStream::of_tar(tar, map, info.first_sample, &self.options.limits))
    }

    /// The archive of a shard, from its front, and the map that it is in, if it is in one.
    pub(super) fn tar(&self, shard: usize) -> Result<(AnyTar, Option<Map>)> {
        let (path, limits) = (&self.infos[shard].path, &self.options.limits);
        if let Some(remote) = self.remote(shard) {
            return remote::open_tar(remote, path, limits);
        }
        let map = &self.data(shard)?.map;
        Ok((open_tar(map, path, limits)?, Some(map.clone())))
    }

    /// A shard's file, to be read from its front.
    pub(crate) fn open_file(&self, shard: usize) -> Result<Box<dyn Read + Send>> {
        if let Some(remote) = self.remote(shard) {
            return remote.bytes();
        }
        let path = &self.infos[shard].path;
        Ok(Box::new(open_regular(path)?))
    }

    /// Reads a shard from `map`, its decompressed archive, from now on.
    pub(crate) fn replace_data(&mut self, shard: usize, map: Map) -> Result<()> {
        // What is known of the shard counts decompressed bytes: it stays true.
        self.index(shard)?;
        self.shards[shard].data =
            OnceLock::from(MappedShard { map, compressed: false, table: None });
        if !std::mem::replace(&mut self.infos[shard].seekable, true) {
            self.in_order_only -= 1;
        }
        Ok(())
    }

    pub(super) fn entry(&self, sample: usize) -> Result<(usize, Entry, &str)> {
        let shard = self.shard_of(sample);
        let (entry, key) = self.index(shard)?.get(sample - self.infos[shard].first_sample)?;
        Ok((shard, entry, key))
    }

    /// Asks for each map of a shard's files whether all that was read of it was there.
    pub(super) fn check_maps(&self, shard: usize, check: MapCheck<'_>) -> Result<()> {
        let path = &self.infos[shard].path;
        let Shard { index, data, remote, .. } = &self.shards[shard];
        data.get().map_or(Ok(()), |data| check(&data.map, path))?;
        remote.as_ref().map_or(Ok(()), |remote| remote.check(check))?;
        index.get().map_or(Ok(()), |index| index.check(check))
    }

    /// A shard's map, if both it and the index are open already.
    pub(super) fn opened(&self, shard: usize) -> Option<&MappedShard> {
        let shard = &self.shards[shard];
        shard.index.get().and(shard.data.get())
    }

    pub(super) fn data(&self, shard: usize) -> Result<&MappedShard> {
        let (cell, info) = (&self.shards[shard].data, &self.infos[shard]);
        self.shards[shard].mark_read();
        if let Some(data) = cell.get() {
            return Ok(data);
        }
        let map = Map::open_for_samples(&info.path)?;
        let length = map.as_ref().len() as u64;
        if length != info.bytes {
            let cause = format!(
                "the shard has {length} bytes, and had {} when the set was opened, or by its manifest or index",
                info.bytes
            );
            return Err(damaged(&info.path, length, cause));
        }
        // An index that is known before the map is one that opening the set made by a scan.
        if let Some(index) = self.shards[shard].index.get()
            && index.belongs_to(&info.path, map.as_ref()).is_err()
        {
            let cause = "the shard has other content than when the set was opened";
            return Err(damaged(&info.path, 0, cause));
        }
        let data = MappedShard::new(map, &info.path, &self.options.limits)?;
        // Two threads may map it at once; one map is dropped.
        Ok(cell.get_or_init(|| data))
    }

    /// Whether [`ShardSet::index`] has been called with success.
    #[cfg(feature = "remote")]
    pub(super) fn has_index(&self, shard: usize) -> bool {
        self.shards[shard].index.get().is_some()
    }

    pub(super) fn index(&self, shard: usize) -> Result<&ShardIndex> {
        let (cell, info) = (&self.shards[shard].index, &self.infos[shard]);
        self.shards[shard].mark_read();
        if let Some(index) = cell.get() {
            return Ok(index);
        }
        let (path, limits) = (index_path(&info.path), &self.options.limits);
        let index = if let Some(remote) = self.remote(shard) {
            self.remote_index(remote, &info.path)?
        } else if self.options.use_index && path.try_exists().unwrap_or(true) {
            let index = ShardIndex::open(&path, limits)?;
            // All of it was read.
            index.release();
            index.belongs_to(&info.path, self.data(shard)?.map.as_ref())?;
            index
        } else {
            let scanned = scan_map(&self.data(shard)?.map, &info.path, Depth::Headers, limits)?;
            warn_of(&scanned, &info.path);
            scanned.index
        };
        if index.len() != info.samples {
            let cause = format!(
                "{} samples, but {} were expected when the set was opened",
                index.len(),
                info.samples
            );
            return Err(damaged(&info.path, 0, cause));
        }
        // Again: all of the index was read, or of the shard, and that takes a while.
        self.shards[shard].mark_read();
        Ok(cell.get_or_init(|| index))
    }
}

/// Says what a scan found that is no error.
fn warn_of(scanned: &Scanned, path: &Path) {
    let path = path.display();
    if !scanned.ended {
        tracing::warn!("{path}: {NO_END}");
    }
    if let Some(at) = scanned.trailing {
        tracing::warn!("{path}: more follows the end of the archive, at byte {at}; it is not read");
    }
    if scanned.without_image > 0 {
        let count = scanned.without_image;
        tracing::warn!("{path}: {count} samples have no image and are passed over");
    }
    if scanned.links.count > 0 {
        tracing::warn!("{path}: {}: their samples lack an image or a label", scanned.links);
    }
}
