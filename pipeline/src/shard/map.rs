//! The crate's only memory map. Shards and indexes are read through it, so
//! that an image goes from the page cache to the decoder without a copy.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result};

/// A whole file, mapped read-only. Cloning shares the map.
#[derive(Clone, Debug)]
pub(crate) struct Map(Arc<Mapped>);

#[derive(Debug)]
struct Mapped {
    // First, so that it has ended when the addresses become free.
    #[cfg(unix)]
    watch: super::fault::Watch,
    map: memmap2::Mmap,
}

impl Map {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Map> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Map::of(&file).map_err(|e| Error::io(path, e))
    }

    /// Maps an open file; the map outlives the descriptor.
    pub fn of(file: &File) -> std::io::Result<Map> {
        // SAFETY: the bytes behind the map must not change while it lives.
        // That is the promise of whoever opens a shard set: shards, indexes
        // and manifests are replaced by renaming a finished file over the old
        // name (as this crate's writer does), never rewritten in place. The
        // map is private and read-only, so nothing here breaks the promise;
        // and every length and offset read from it is checked against the
        // map's own length, never believed, so that changed bytes can give
        // wrong pixels or an error, not an access out of bounds. A file that
        // becomes shorter nevertheless reads as zeros (`fault`), which `check`
        // turns into an error.
        let map = unsafe { memmap2::Mmap::map(file)? };
        #[cfg(unix)]
        let watch = super::fault::Watch::new(map.as_ptr(), map.len());
        Ok(Map(Arc::new(Mapped {
            #[cfg(unix)]
            watch,
            map,
        })))
    }

    /// Whether what was read so far was there.
    ///
    /// # Errors
    /// [`Error::Shard`] when the file became shorter and bytes beyond its new end
    /// were read: they came as zeros.
    pub fn check(&self, path: &Path) -> Result<()> {
        #[cfg(unix)]
        if self.0.watch.hit() {
            let mapped = self.0.map.len();
            let now = std::fs::metadata(path).map_or(0, |file| file.len());
            let cause = format!("the file became shorter while it was read: it had {mapped} bytes");
            return Err(super::damaged(path, now, cause));
        }
        let _ = path;
        Ok(())
    }

    /// Lets go of the pages that were touched: they stay in the page cache and are
    /// mapped anew when they are next read.
    pub fn release(&self) {
        // SAFETY: the map is of a file and read-only, so its pages come back with
        // the file's bytes (or as zeros, where it became shorter, see `of`).
        #[cfg(unix)]
        let _ = unsafe { self.0.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    /// Asks the system to read a range ahead; a hint, so that its failure
    /// and a range beyond the end are of no consequence.
    pub fn will_need(&self, offset: u64, length: u64) {
        #[cfg(unix)]
        if let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length))
            && offset.checked_add(length).is_some_and(|end| end <= self.0.map.len())
            && length > 0
        {
            let _ = self.0.map.advise_range(memmap2::Advice::WillNeed, offset, length);
        }
        #[cfg(not(unix))]
        let _ = (offset, length);
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// `bytes[offset..offset + length]`, or `None` beyond the end.
pub(crate) fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let offset = usize::try_from(offset).ok()?;
    let end = offset.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(offset..end)
}
