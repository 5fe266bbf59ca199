//! The index of a shard behind a URL: from the cache, from beside the shard, or from a pass over
//! it.

use std::path::PathBuf;

use bytes::Bytes;

use super::cache::Cache;
use super::fetch;
use super::object::RemoteShard;
use super::reader::Reader;
use crate::shard::index::{Head, ShardIndex, fingerprint_of, fingerprint_ranges, foreign};
use crate::shard::map::Map;
use crate::shard::{Limits, damaged, index_path};
use crate::{Error, Result};

impl RemoteShard {
    /// The header of the index beside the shard; `None` where there is no index.
    pub(super) fn index_head(&self) -> Result<Option<&Head>> {
        if let Some(head) = self.head.get() {
            return Ok(head.as_ref());
        }
        let cached = self.cached_index()?.map(|path| Head::read(&path)).transpose().ok().flatten();
        let head = match cached.flatten() {
            Some(head) => Some(head),
            None => match self.now(fetch::range(&self.index, 0..64, None)) {
                Ok((bytes, _)) if is_page(&bytes) => {
                    let path = self.index.path.display();
                    tracing::warn!("{path}: taken for an index that is not there: a page of text");
                    None
                }
                Ok((bytes, _)) => Some(Head::parse(&bytes, &self.index.path)?),
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    None
                }
                // So S3 answers for what is not there whoever may not list the bucket, and others
                // with a page, whole, whatever part was asked for. A server that always does gives
                // no shard.
                Err(Error::Io { path, source })
                    if matches!(
                        source.kind(),
                        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::Unsupported
                    ) =>
                {
                    let path = path.display();
                    tracing::warn!("{path}: taken for an index that is not there: {source}");
                    None
                }
                Err(error) => return Err(error),
            },
        };
        Ok(self.head.get_or_init(|| head).as_ref())
    }

    /// The header of the index beside the shard, where it was asked for already.
    pub fn head(&self) -> Option<&Head> {
        self.head.get()?.as_ref()
    }

    /// As `index::fingerprint`, from five short reads.
    fn fingerprint(&self) -> Result<u64> {
        if let Some(data) = self.cached()? {
            return Ok(crate::shard::index::fingerprint(data.map.as_ref()));
        }
        let (form, identity) = (self.form()?, self.identity()?);
        let [first, quarters @ .., last] = fingerprint_ranges(identity.size);
        let mut pieces = vec![form.head.slice(..(first.end - first.start) as usize)];
        let quarters = quarters.map(|range| fetch::range(&self.target, range, Some(identity)));
        for read in self.now(async { Ok(futures_util::future::join_all(quarters).await) })? {
            pieces.push(read?.0);
        }
        pieces.push(form.tail.slice(form.tail.len() - (last.end - last.start) as usize..));
        Ok(fingerprint_of(identity.size, pieces.iter().map(Bytes::as_ref)))
    }

    /// The index: that of the cache, the one beside the shard, or what `scan` finds in the shard.
    pub fn index(
        &self,
        limits: &Limits,
        use_index: bool,
        scan: impl FnOnce() -> Result<crate::shard::Scanned>,
    ) -> Result<ShardIndex> {
        if let Some(path) = self.cached_index()? {
            match ShardIndex::open(&path, limits) {
                Ok(index) if index.head().shard_bytes == self.identity()?.size => {
                    Cache::touch(&path);
                    return Ok(index);
                }
                // What another user wrote and keeps to himself is not damaged.
                Err(Error::Io { source, .. }) => {
                    tracing::debug!("not read from the cache ({}): {source}", path.display());
                }
                _ => drop(std::fs::remove_file(&path)),
            }
        }
        match if use_index { self.index_head()? } else { None } {
            Some(_) => self.fetch_index(limits),
            None => self.scanned_index(scan),
        }
    }

    /// Downloads the index beside the shard into the cache, or else into a file without a name:
    /// it is a few percent of the shard, too much for the memory.
    fn fetch_index(&self, limits: &Limits) -> Result<ShardIndex> {
        let path = &self.index.path;
        let (_, identity) = self.now(fetch::range(&self.index, 0..64, None))?;
        if identity.size > limits.index_bytes {
            let (bytes, limit) = (identity.size, limits.index_bytes);
            let cause = format!("an index of {bytes} bytes is over the limit of {limit}");
            return Err(damaged(path, 0, cause));
        }
        let mut reader = Reader::open(&self.index, &identity)?;
        let mut file = tempfile::tempfile().map_err(|e| Error::io(std::env::temp_dir(), e))?;
        std::io::copy(&mut reader, &mut file).map_err(|e| match e.downcast::<Error>() {
            Ok(error) => error,
            Err(e) => Error::io(std::env::temp_dir(), e),
        })?;
        let map = Map::of(&file).map_err(|e| Error::io(path, e))?;
        let index = ShardIndex::of_map(map.clone(), path, limits)?;
        let size = self.identity()?.size;
        if index.head().shard_bytes != size || index.head().fingerprint != self.fingerprint()? {
            return Err(foreign(path, &self.target.path, index.head(), size));
        }
        match self.keep_index(map.as_ref(), true) {
            Some(kept) => ShardIndex::open(&kept, limits),
            None => Ok(index),
        }
    }

    /// Reads the shard to know what is in it; the next time the cache knows.
    fn scanned_index(
        &self,
        scan: impl FnOnce() -> Result<crate::shard::Scanned>,
    ) -> Result<ShardIndex> {
        let kept = if self.remote.cache.is_some() {
            "; the index is kept in the cache"
        } else {
            "; with an index beside it (`shard index`) or a cache it need not be"
        };
        let path = self.target.path.display();
        tracing::warn!("{path}: no index, the whole shard is read to know its samples{kept}");
        let scanned = scan()?;
        if !scanned.index.has_faults() {
            // The next pass over the shard costs more than another shard's place.
            self.keep_index(&scanned.bytes, false);
        }
        Ok(scanned.index)
    }

    /// Bytes that an index belongs to.
    pub fn size_and_fingerprint(&self) -> Result<(u64, u64)> {
        Ok((self.identity()?.size, self.fingerprint()?))
    }

    fn index_name(&self) -> Result<Option<String>> {
        let name = |entry: String| index_path(entry.as_ref()).to_string_lossy().into_owned();
        Ok(self.entry()?.map(name))
    }

    fn cached_index(&self) -> Result<Option<PathBuf>> {
        let Some(cache) = &self.remote.cache else { return Ok(None) };
        Ok(self.index_name()?.and_then(|name| cache.find(&name, None)))
    }

    /// Puts an index into the cache, where there is one with room that can be written; with
    /// `gentle` not in the place of entries in use.
    fn keep_index(&self, bytes: &[u8], gentle: bool) -> Option<PathBuf> {
        self.try_keep_index(bytes, gentle).unwrap_or_else(|error| {
            tracing::warn!("not cached: {error}");
            None
        })
    }

    fn try_keep_index(&self, bytes: &[u8], gentle: bool) -> Result<Option<PathBuf>> {
        let Some(cache) = &self.remote.cache else { return Ok(None) };
        let Some(name) = self.index_name()? else { return Ok(None) };
        // Without the lock another process would take the part for one of a dead process.
        let Some(_lock) = cache.lock(&name)? else { return Ok(None) };
        let Some(mut part) = cache.begin(&name, bytes.len() as u64, gentle)? else {
            return Ok(None);
        };
        part.write(bytes)?;
        part.finish().map(Some)
    }
}

/// Whether what should be an index is HTML or XML, as some servers answer for what they do not
/// have.
fn is_page(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    text.trim_ascii_start().starts_with(b"<")
}
