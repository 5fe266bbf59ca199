//! Samples of shards behind URLs: what `set` and `access` do for files, for them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Ahead, Block, Opened, RemoteShard};
use crate::Result;
use crate::scratch::KEPT_BYTES;
use crate::shard::access::{Extent, FileScratch, MappedShard, beyond, in_order_only, window};
use crate::shard::scan::{Scanned, scan_stream, tar_of};
use crate::shard::tar::AnyTar;
use crate::shard::{Limits, ShardSet, damaged};

/// What a thread keeps of the last read from behind a URL.
#[derive(Default)]
pub(in crate::shard) struct Scratch {
    /// Its file in the cache, or a piece.
    kept: Option<Arc<MappedShard>>,
    block: Option<Block>,
    /// Where a loader's samples were fetched ahead.
    ahead: Option<Arc<Ahead>>,
}

impl Scratch {
    pub fn reading_ahead(ahead: Option<Arc<Ahead>>) -> Self {
        Scratch { ahead, ..Self::default() }
    }

    /// Gives back a piece far larger than others.
    pub fn trim(&mut self) {
        self.block.take_if(|block| block.len() > KEPT_BYTES);
    }

    /// Says that nobody will take `sample` from what is fetched ahead.
    pub fn forget(&self, sample: usize) {
        if let Some(ahead) = &self.ahead {
            ahead.forget(sample);
        }
    }
}

/// A sample that may be among those that are fetched ahead. Unless it is taken from there it is
/// forgotten there, whatever keeps it from being read: its block would wait for it for ever.
struct Awaited<'a>(Option<(&'a Ahead, usize)>);

impl Awaited<'_> {
    /// As [`Ahead::take`].
    fn take(mut self, set: &ShardSet) -> Result<Option<(Block, u64)>> {
        self.0.take().map_or(Ok(None), |(ahead, sample)| ahead.take(set, sample))
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if let Some((ahead, sample)) = self.0 {
            ahead.forget(sample);
        }
    }
}

impl ShardSet {
    /// Where in its shard's file the bytes of `sample` lie, if a request has to be made for them.
    /// What is wrong with it shows itself when it is read.
    ///
    /// # Errors
    /// The shard's index cannot be had.
    pub(super) fn remote_range(&self, sample: usize) -> Result<Option<Range<u64>>> {
        let shard = self.shard_of(sample);
        let Some(remote) = self.remote(shard) else { return Ok(None) };
        if !matches!(remote.cached(), Ok(None)) {
            return Ok(None);
        }
        remote.want_cached();
        self.index(shard)?;
        let Ok((_, entry, key)) = self.sound_entry(sample) else { return Ok(None) };
        if entry.length == 0 {
            return Ok(None);
        }
        let (offset, length) = (entry.offset, entry.length.into());
        let wanted = Extent { shard, key, offset, length, limit: self.options.limits.member_bytes };
        Ok(self.place(remote, &wanted).ok())
    }

    /// The bytes of the object that hold what is wanted of the archive.
    fn place(&self, remote: &RemoteShard, wanted: &Extent<'_>) -> Result<Range<u64>> {
        let (path, &Extent { offset, length, .. }) = (&remote.target.path, wanted);
        self.within_limit(wanted)?;
        let size = remote.identity()?.size;
        let (start, bytes) = match &remote.form()?.table {
            None => (offset, length),
            Some(table) => table.file_range(&self.needed(table, wanted)?),
        };
        let end = start.checked_add(bytes).filter(|&end| end <= size);
        let end = end.ok_or_else(|| beyond(path, offset, length))?;
        let limit = wanted.limit + self.options.limits.frame_bytes;
        if bytes > limit {
            let cause =
                format!("a sample in {bytes} compressed bytes is over the limit of {limit}");
            return Err(damaged(path, offset, cause));
        }
        Ok(start..end)
    }

    /// Decompressed bytes of a shard behind a URL; `sample` is whose image they are.
    pub(in crate::shard) fn remote_bytes<'a>(
        &'a self,
        remote: &RemoteShard,
        wanted: Extent<'_>,
        sample: Option<usize>,
        of_file: &'a mut FileScratch,
        scratch: &'a mut Scratch,
    ) -> Result<&'a [u8]> {
        let Extent { shard, offset, length, .. } = wanted;
        let Scratch { kept, block, ahead } = scratch;
        let awaited = Awaited(ahead.as_deref().zip(sample));
        if let Some(data) = remote.cached_to_read()? {
            return self.of_data(kept.insert(data), wanted, of_file);
        }
        let path = &self.infos[shard].path;
        let form = remote.form()?;
        if !form.seekable() {
            return Err(in_order_only(path));
        }
        let range = self.place(remote, &wanted)?;
        if length == 0 {
            // No server answers a request for nothing.
            return Ok(&[]);
        }
        let (bytes, start) = match awaited.take(self)? {
            Some(taken) => taken,
            None => (remote.fetch(range.clone())?, range.start),
        };
        let bytes = block.insert(bytes);
        match &form.table {
            None => {
                window(bytes, start, offset, length).ok_or_else(|| beyond(path, offset, length))
            }
            Some(table) => {
                let key = (self.id, shard);
                of_file.frames.read(key, table, (bytes, start), path, (offset, length), || Ok(()))
            }
        }
    }

    /// Reads ahead for one loader within `budget` bytes; `None` for a set on disk. With `scattered`
    /// the order comes to all shards at once.
    pub(crate) fn ahead(&self, budget: u64, scattered: bool) -> Option<Arc<Ahead>> {
        let mut remotes = (0..self.infos.len()).filter_map(|shard| self.remote(shard)).peekable();
        let first = remotes.peek()?;
        first.remote.gentle.store(scattered, Ordering::Relaxed);
        Some(Arc::new(Ahead::new(budget)))
    }

    /// Opens the indexes of all shards behind URLs, of `parallel` at a time. An error shows itself
    /// again where its shard is read.
    pub(crate) fn open_indexes(&self, ahead: &Ahead) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let open = || loop {
            ahead.heed();
            let shard = next.fetch_add(1, Ordering::Relaxed);
            if shard >= self.infos.len() || ahead.is_given_up() {
                return;
            }
            if self.remote(shard).is_some() {
                let _ = self.index(shard);
            }
        };
        let threads = self.options.remote.parallel.min(self.infos.len()).min(8);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Where there is no thread to be had, those that there are do it.
                if std::thread::Builder::new().spawn_scoped(scope, open).is_err() {
                    break;
                }
            }
            open();
        });
    }
}

/// The archive of a shard, from its front.
pub(in crate::shard) fn open_tar(
    remote: &Arc<RemoteShard>,
    path: &Path,
    limits: &Limits,
) -> Result<(AnyTar, Option<crate::shard::map::Map>)> {
    match remote.open()? {
        Opened::Cached(data) => {
            let map = data.map.clone();
            Ok((crate::shard::scan::open_tar(&map, path, limits)?, Some(map)))
        }
        Opened::Streamed(reader, compressed) => {
            Ok((tar_of(reader, compressed, path, limits)?, None))
        }
    }
}

/// Reads a shard to know what is in it.
pub(in crate::shard) fn scan(
    remote: &Arc<RemoteShard>,
    path: &Path,
    limits: &Limits,
) -> Result<Scanned> {
    let (tar, map) = open_tar(remote, path, limits)?;
    let scanned = scan_stream(tar, path, limits, remote.size_and_fingerprint()?)?;
    map.map_or(Ok(()), |map| map.check(path))?;
    Ok(scanned)
}
