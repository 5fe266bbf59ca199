//! The crate's only memory map. Shards and indexes are read through it, so
//! that an image goes from the page cache to the decoder without a copy; where
//! they are read at random it is copied, unless it is large.

use std::fs::{File, FileType};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Error, Result};

/// Opens a file to be read. Not a FIFO, whose opening may wait for ever for one who writes, nor a
/// device, which may have no end.
///
/// # Errors
/// [`Error::Io`], of the kind `InvalidInput` for what is neither a file nor a folder.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        let cause = format!("{}, not a file", special(kind));
        return Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::InvalidInput, cause)));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// What is neither a file nor a folder, in words.
pub(crate) fn special(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kinds = [
            (kind.is_fifo(), "a FIFO"),
            (kind.is_socket(), "a socket"),
            (kind.is_char_device() || kind.is_block_device(), "a device"),
        ];
        if let Some((_, name)) = kinds.into_iter().find(|(is, _)| *is) {
            return name;
        }
    }
    let _ = kind;
    "something else"
}

/// A whole file, mapped read-only. Cloning shares the map.
#[derive(Clone, Debug)]
pub(crate) struct Map(Arc<Mapped>);

/// How a map is asked whether what was read of it was there; with its path.
pub(crate) type MapCheck<'a> = &'a dyn Fn(&Map, &Path) -> Result<()>;

#[derive(Debug)]
struct Mapped {
    // First, so that it has ended when the addresses become free.
    #[cfg(unix)]
    watch: super::fault::Watch,
    map: memmap2::Mmap,
    /// Device and number of the file.
    #[cfg(unix)]
    identity: (u64, u64),
    /// The file, where samples are read from it and descriptors are not short.
    #[cfg(unix)]
    file: Option<super::kept::KeptFile>,
}

impl Mapped {
    /// The length of the file, if it is shorter than what was mapped. It is asked for by its name:
    /// to keep it open would take a descriptor for each of thousands of shards. A name that is
    /// another file's by now tells nothing, and the map has the bytes of the one it was made of.
    #[cfg(unix)]
    fn shorter(&self, path: &Path) -> Option<u64> {
        let now = std::fs::metadata(path).ok()?;
        (identity(&now) == self.identity && now.len() < self.map.len() as u64).then_some(now.len())
    }
}

#[cfg(unix)]
fn identity(file: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

/// Maps from which on a process should do without more of them: a quarter of what Linux lets it
/// have (`vm.max_map_count`, 65,530).
const MANY: usize = 16_384;

/// Maps that a process may have, where that is known.
pub(super) fn most_maps() -> Option<usize> {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?;
    most.trim().parse().ok()
}

/// Why bytes of a file could not be had.
#[cfg(unix)]
const UNREADABLE: &str = "the system could not read the file here: its disk or server failed, or it \
                          was shorter for a while or is gone";

/// Bytes that Linux maps around the first access to a page (`fault_around_bytes`).
pub(super) const FAULT_AROUND: usize = 64 << 10;

/// Bytes that it maps at most, of a page in a large piece of the page cache; such a piece is as long
/// as what was written or read ahead in one go.
pub(super) const PIECE: usize = 2 << 20;

/// Maps there are.
static MAPS: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are copied at most, where pieces are read at random. To map the pages around a
/// kilobyte and to let go of them takes several times as long as to copy it. Of a photograph one
/// thread does so in less time than it copies it, two do not, as each core that runs the process is
/// interrupted when pages are let go of; and a copy is decoded faster, from the CPU's cache.
pub(super) const COPIED: usize = 1 << 20;

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Map {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Map> {
        let file = open_regular(path)?;
        Map::of(&file).map_err(|e| Error::io(path, e))
    }

    /// As [`Map::open`], of a file of which pieces will be read at random ([`Map::copy`]).
    pub fn open_for_samples(path: &Path) -> Result<Map> {
        let file = open_regular(path)?;
        let mapped = Map::mapped(&file).map_err(|e| Error::io(path, e))?;
        #[cfg(unix)]
        let mapped = {
            let mut mapped = mapped;
            mapped.file = super::kept::KeptFile::of(file);
            mapped
        };
        Ok(Map(Arc::new(mapped)))
    }

    /// Maps an open file; the map outlives the descriptor.
    pub fn of(file: &File) -> std::io::Result<Map> {
        Ok(Map(Arc::new(Map::mapped(file)?)))
    }

    fn mapped(file: &File) -> std::io::Result<Mapped> {
        #[cfg(unix)]
        let identity = identity(&file.metadata()?);
        // SAFETY: the bytes behind the map must not change while it lives.
        // That is asked of whoever opens a shard set (`ShardSet`): shards, indexes
        // and manifests are replaced by renaming a finished file over the old
        // name (as this crate's writer does), never rewritten in place. The
        // map is read-only, so nothing here breaks the promise;
        // and every length and offset read from it is checked against the
        // map's own length, never believed, so that changed bytes can give
        // wrong pixels or an error, not an access out of bounds. Pages that cannot be
        // had, because the file became shorter nevertheless or its disk failed, read
        // as zeros (`fault`), which `check` turns into an error.
        let map = unsafe { memmap2::Mmap::map(file).map_err(explained)? };
        // One byte that is read would map two megabytes where the page cache holds such pieces,
        // and a set that is read at random would soon be mapped whole. No harm where the system
        // knows no such pieces.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::NoHugePage);
        #[cfg(unix)]
        let watch = super::fault::Watch::new(map.as_ptr(), map.len());
        MAPS.fetch_add(1, Ordering::Relaxed);
        Ok(Mapped {
            #[cfg(unix)]
            watch,
            map,
            #[cfg(unix)]
            identity,
            #[cfg(unix)]
            file: None,
        })
    }

    /// A copy of `length` bytes at `offset`, in `buffer`, where that is better than to map them.
    /// `None` for longer pieces, such that the map does not hold, and where the file is not open.
    ///
    /// # Errors
    /// [`Error::Shard`] as [`Map::check`] has them; `path` is the file's.
    pub fn copy<'a>(
        &self,
        path: &Path,
        (offset, length): (u64, u64),
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>> {
        let place = slice(self.as_ref(), offset, length);
        let Some(length) = place.map(<[u8]>::len).filter(|&length| length <= COPIED) else {
            return Ok(None);
        };
        #[cfg(unix)]
        if let Some(file) = &self.0.file {
            if buffer.len() < length {
                buffer.resize(length.next_power_of_two(), 0);
            }
            let copy = &mut buffer[..length];
            return match file.read_at(copy, offset) {
                Ok(()) => Ok(Some(copy)),
                Err(_) => {
                    self.check(path)?;
                    Err(super::damaged(path, offset, UNREADABLE))
                }
            };
        }
        let _ = (path, buffer, length);
        Ok(None)
    }

    /// Whether what was read so far was there.
    ///
    /// # Errors
    /// [`Error::Shard`] when the file at `path`, if that is the one that was mapped, became
    /// shorter, or the system could not read a page: zeros may have come instead. Up to the end of
    /// the page in which a shorter file ends they come without a fault, hence the look at its
    /// length.
    pub fn check(&self, path: &Path) -> Result<()> {
        #[cfg(unix)]
        {
            if let Some(now) = self.0.shorter(path) {
                let mapped = self.0.map.len();
                let cause =
                    format!("the file became shorter while it was read: it had {mapped} bytes");
                return Err(super::damaged(path, now, cause));
            }
            if let Some(offset) = self.0.watch.hit() {
                return Err(super::damaged(path, offset as u64, UNREADABLE));
            }
        }
        let _ = path;
        Ok(())
    }

    /// As [`Map::check`], of `bytes` of the map or a copy of them, after their last use: it asks
    /// for the file's length, which takes as long as a tenth of a small image, only where they end
    /// with a zero. What a file has lost reads as zeros up to the end of its last page, and with a
    /// fault behind that; so, too, does the last of these bytes if any of them is lost.
    pub fn check_read(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        // SAFETY: a reference to a byte. Read again: to the compiler it is what it was before, and
        // here zeros may have taken its place since.
        let ends_with_zero =
            bytes.last().is_some_and(|last| unsafe { std::ptr::read_volatile(last) } == 0);
        #[cfg(unix)]
        let ends_with_zero = ends_with_zero || self.0.watch.hit().is_some();
        if ends_with_zero { self.check(path) } else { Ok(()) }
    }

    /// Whether there are so many maps that small files should be read instead.
    pub fn are_many() -> bool {
        MAPS.load(Ordering::Relaxed) >= MANY
    }

    /// Lets go of the pages that were touched: they stay in the page cache and are
    /// mapped anew when they are next read.
    pub fn release(&self) {
        // SAFETY: the map is of a file and read-only, so its pages come back with
        // the file's bytes (or as zeros, where it became shorter, see `of`).
        #[cfg(unix)]
        let _ = unsafe { self.0.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    /// As [`Map::release`], of the pages that a range touches.
    pub fn release_range(&self, range: std::ops::Range<usize>) {
        let end = range.end.min(self.0.map.len());
        let start = range.start.min(end);
        // SAFETY: as in `release`; the range lies within the map.
        #[cfg(unix)]
        let _ = unsafe {
            let dont_need = memmap2::UncheckedAdvice::DontNeed;
            self.0.map.unchecked_advise_range(dont_need, start, end - start)
        };
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

/// The error of a file that cannot be mapped, with what may be behind it.
fn explained(error: std::io::Error) -> std::io::Error {
    #[cfg(unix)]
    let no_maps = error.raw_os_error() == Some(libc::ENODEV);
    #[cfg(not(unix))]
    let no_maps = false;
    let text = if no_maps {
        format!("{error}: its file system maps no files into memory; one that does is wanted")
    } else if error.kind() == std::io::ErrorKind::OutOfMemory {
        let maps = MAPS.load(Ordering::Relaxed);
        format!(
            "{error}: it cannot be mapped; {maps} files are, and the system may allow no more \
             (vm.max_map_count). Larger shards are fewer"
        )
    } else {
        return error;
    };
    std::io::Error::new(error.kind(), text)
}

/// `bytes[offset..offset + length]`, or `None` beyond the end.
pub(crate) fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let offset = usize::try_from(offset).ok()?;
    let end = offset.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(offset..end)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_page_that_cannot_be_had_takes_no_other_with_it_and_no_false_cause() {
        // Of 64 KiB, as large as pages get.
        const PAGE: usize = 65536;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 4 * PAGE]).unwrap();
        let map = Map::open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(PAGE as u64).unwrap();
        let byte = |at: usize| std::hint::black_box(map.as_ref())[at];
        assert_eq!(byte(2 * PAGE), 0);
        let error = map.check(&path).unwrap_err().to_string();
        assert!(error.contains("became shorter") && error.contains("byte 65536"), "{error}");
        // The page comes back, as after an error of the disk that passes: the file is as long as it
        // was.
        file.write_all_at(&vec![9; 3 * PAGE], PAGE as u64).unwrap();
        assert_eq!((byte(PAGE), byte(3 * PAGE)), (9, 9), "pages around have their bytes");
        assert_eq!(byte(2 * PAGE), 0, "the page that was read as zeros stays so");
        let error = map.check(&path).unwrap_err().to_string();
        assert!(!error.contains("became shorter") && error.contains("byte 131072"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(map.check(&path).is_err());
    }

    #[test]
    fn a_file_that_ends_within_a_page_now_is_told_from_one_that_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 5000]).unwrap();
        let map = Map::open(&path).unwrap();
        let shorter = folder.path().join("shorter");
        std::fs::write(&shorter, [9; 10]).unwrap();
        std::fs::rename(&shorter, &path).unwrap();
        assert_eq!(map.as_ref(), [7; 5000], "the old file, which has no name");
        map.check(&path).unwrap();

        let path = folder.path().join("another");
        std::fs::write(&path, [7; 5000]).unwrap();
        let map = Map::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(9).unwrap();
        assert_eq!(std::hint::black_box(map.as_ref())[9], 0, "and no fault");
        let error = map.check(&path).unwrap_err().to_string();
        assert!(error.contains("became shorter") && error.contains("byte 9"), "{error}");
        let read = |bytes| map.check_read(&path, &map.as_ref()[bytes]);
        assert!(read(8..10).is_err() && read(9..4000).is_err());
        assert!(read(0..9).is_ok() && read(5..5).is_ok(), "nothing of these is lost");
    }

    #[test]
    fn pieces_are_copied_from_the_file_that_was_mapped() {
        const LENGTH: u64 = COPIED as u64 + 8000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..LENGTH / 4).flat_map(|word| (word as u32).to_le_bytes()).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Map::open_for_samples(&path).unwrap();
        let mut buffer = Vec::new();
        let mut copied = |place| {
            let found = map.copy(&path, place, &mut buffer);
            found.map(|copy| copy.map(<[u8]>::to_vec)).map_err(|error| error.to_string())
        };
        let most = COPIED as u64;
        for (place, range) in [((5, 3), 5..8), ((77, most), 77..77 + COPIED), ((LENGTH, 0), 0..0)] {
            assert_eq!(copied(place).unwrap().unwrap(), bytes[range]);
        }
        for place in [(0, most + 1), (LENGTH - 1, 2), (u64::MAX, 2), (1, u64::MAX)] {
            assert_eq!(copied(place).unwrap(), None);
        }
        // Another file of that name changes nothing.
        let other = folder.path().join("other");
        std::fs::rename(&path, &other).unwrap();
        std::fs::write(&path, [9; 10]).unwrap();
        assert_eq!(copied((5, 3)).unwrap().unwrap(), bytes[5..8]);
        std::fs::rename(&other, &path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert_eq!(copied((90, 10)).unwrap().unwrap(), bytes[90..100]);
        let error = copied((90, 11)).unwrap_err();
        assert!(error.contains("became shorter") && error.contains("byte 100"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = copied((90, 11)).unwrap_err();
        assert!(error.contains("could not read") && error.contains("byte 90"), "{error}");
        std::fs::write(&path, &bytes).unwrap();
        let unkept = Map::open(&path).unwrap();
        assert!(unkept.copy(&path, (5, 3), &mut buffer).unwrap().is_none());
    }

    #[test]
    fn what_keeps_a_file_from_being_mapped_is_told() {
        let error = |code| explained(std::io::Error::from_raw_os_error(code)).to_string();
        assert!(error(libc::ENOMEM).contains("vm.max_map_count"), "{}", error(libc::ENOMEM));
        assert!(error(libc::ENODEV).contains("its file system"), "{}", error(libc::ENODEV));
        let other = std::io::Error::from_raw_os_error(libc::EACCES).to_string();
        assert_eq!(error(libc::EACCES), other);
    }

    #[test]
    fn a_large_file_that_is_gone_is_read_as_zeros_in_few_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let length = 64 << 20;
        File::create(&path).unwrap().set_len(length).unwrap();
        let map = Map::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        // Every other page, so that no two neighbours become one piece.
        for at in (0..length as usize).step_by(8192) {
            assert_eq!(std::hint::black_box(map.as_ref())[at], 0);
        }
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
        let ours = path.to_str().unwrap();
        let pieces = maps.lines().filter(|line| line.ends_with(ours)).count();
        assert!((2..=1030).contains(&pieces), "{pieces}");
    }
}
