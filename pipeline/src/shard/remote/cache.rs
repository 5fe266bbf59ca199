//! The folder of whole shards that several processes share. An entry's name says which object in
//! which state it holds, so that a changed object has another name; entries appear by renaming a
//! synced file, and go by unlinking, which a process that has them mapped does not notice. Whatever
//! else is in the folder is somebody else's: it is neither counted nor removed.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::Identity;
use super::net::is_given_up;
use crate::shard::atomic::PART;
use crate::{Error, Result};

mod locks;
#[cfg(test)]
mod tests;

use locks::{Owners, is_at, make_locks, open_lock, owner};

/// A part that nobody wrote to for so long is a dead process's, where no lock can tell.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Subfolder of the locks.
const LOCKS: &str = "locks";
/// Bytes of a shard's name that its entry's name ends with.
const NAME_BYTES: usize = 100;
/// How the name of an entry's index ends, as [`crate::shard::index_path`] has it.
const INDEX: &str = ".idx";
/// An entry that was used so lately is in use: processes touch what they read every few seconds,
/// also while they download.
const IN_USE: Duration = Duration::from_secs(60);

/// How often the file of a lock is opened anew where it has gone from its place.
const LOCK_TRIES: usize = 20;

/// Between two looks at the lock of those who count.
const LOOK: Duration = Duration::from_millis(10);

/// A cache folder.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit: u64,
    /// How long it waits for others who count what is there.
    patience: Duration,
    /// [`File::try_lock`], but for tests of file systems without locks.
    try_lock: fn(&File) -> Result<(), TryLockError>,
    /// [`Owners::of`], but for tests of a folder of several users'.
    owners: fn(&Path) -> Result<Owners>,
    /// Whether it is known that an entry is larger than the limit.
    told: AtomicBool,
}

/// The right to download an entry; ends with the process, however that ends.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
    /// False where the file system knows no locks that can be told apart, so that others may be at
    /// the entry, too.
    is_held: bool,
}

/// The lock of those who count. It is let go of in words: where a process was forked meanwhile, the
/// child has the file open, too, and closing it here lets go of nothing.
struct Counting(File);

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Unless it is another's by now, which stays for those who come.
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The name of the entry of an object in a state: by its ETag, or its time of modification, or the
/// checksum that a manifest gives it. `None` where there is none of them: an object that was
/// replaced by one of the same size would be read from the cache for ever.
pub(super) fn entry_name(url: &str, identity: &Identity, checksum: Option<&str>) -> Option<String> {
    let modified = (identity.modified != 0).then(|| identity.modified.to_string());
    let told = identity.etag.as_deref().or(modified.as_deref()).or(checksum)?;
    let state = format!("{} {told}", identity.size);
    let name = super::url::file_name(url).chars().map(|c| if is_plain(c) { c } else { '_' });
    let name: String = name.collect();
    let name = &name[name.len().saturating_sub(NAME_BYTES)..];
    let (object, state) = (xxh3_64(url.as_bytes()), xxh3_64(state.as_bytes()));
    Some(format!("{object:016x}-{state:016x}-{name}"))
}

/// Characters of a shard's name that an entry's name keeps.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// Whether a file is an entry by its name, as [`entry_name`] makes it, or an entry's index. Folders
/// hold other files, too, when `--cache` names one that people use: those are left alone.
fn is_entry(name: &str) -> bool {
    let is_hash = |text: &str| {
        text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = name.strip_suffix(INDEX).unwrap_or(name).splitn(3, '-');
    parts.next().is_some_and(is_hash)
        && parts.next().is_some_and(is_hash)
        && parts.next().is_some_and(|shard| {
            (1..=NAME_BYTES).contains(&shard.len()) && shard.chars().all(is_plain)
        })
}

impl Cache {
    /// Makes the folder, where there is none, and clears away what crashed processes left.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made or read.
    pub fn open(folder: &Path, limit: u64, patience: Duration) -> Result<Cache> {
        Cache::open_with(folder, limit, patience, File::try_lock)
    }

    fn open_with(
        folder: &Path,
        limit: u64,
        patience: Duration,
        try_lock: fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Cache> {
        make_locks(folder, &folder.join(LOCKS)).map_err(|e| Error::io(folder, e))?;
        let (folder, owners, told) = (folder.to_owned(), Owners::of, AtomicBool::new(false));
        let cache = Cache { folder, limit, patience, try_lock, owners, told };
        let now = SystemTime::now();
        for part in cache.files()? {
            let Some(entry) = part.part_of() else { continue };
            let old = now.duration_since(part.used).is_ok_and(|since| since > ABANDONED);
            // Who may not lock another's entry may well read the others.
            let Ok(Some(lock)) = cache.lock(entry) else { continue };
            if lock.is_held || old {
                let _ = std::fs::remove_file(&part.path);
            }
        }
        Ok(cache)
    }

    /// Where entry `name` is or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The file of entry `name`, if it is there with `size` bytes; any other is removed.
    pub fn find(&self, name: &str, size: Option<u64>) -> Option<PathBuf> {
        let path = self.path(name);
        let found = std::fs::metadata(&path).ok()?.len();
        if size.is_some_and(|size| size != found) {
            let _ = std::fs::remove_file(&path);
            return None;
        }
        Some(path)
    }

    /// The lock of entry `name`; `None` while another holds it.
    pub fn lock(&self, name: &str) -> Result<Option<Lock>> {
        let path = self.folder.join(LOCKS).join(format!("{name}.lock"));
        let mut tries = 0;
        loop {
            let file = open_lock(&path)?;
            let locks = match (self.try_lock)(&file) {
                Err(TryLockError::WouldBlock) => return Ok(None),
                had => had.is_ok(),
            };
            // Whoever had the lock may have unlinked it meanwhile: nobody who comes would see this
            // one.
            let is_held = locks && is_at(&file, &path);
            tries += 1;
            if is_held || !locks || tries == LOCK_TRIES {
                // Without a lock that others see, two download one shard, which does no harm.
                return Ok(Some(Lock { path, file, is_held }));
            }
        }
    }

    /// The limit, the first time that an entry of `size` bytes alone is over it: whoever asks tells
    /// of it.
    pub fn first_over(&self, size: u64) -> Option<u64> {
        let first = size > self.limit && !self.told.swap(true, Ordering::Relaxed);
        first.then_some(self.limit)
    }

    /// Begins an entry of `size` bytes and makes room for it. With `gentle` entries in use are not
    /// put out. `None` when there is no room, or a process that makes room stands still.
    pub fn begin(&self, name: &str, size: u64, gentle: bool) -> Result<Option<Part>> {
        let Some(_counting) = self.count_alone()? else { return Ok(None) };
        if !self.make_room(size, gentle)? {
            return Ok(None);
        }
        let failed = |e| Error::io(&self.folder, e);
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PART);
        // As any other new file: those who share the cache read what one of them downloads.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(&self.folder).map_err(failed)?;
        // Its length counts from now on for everyone who makes room.
        file.as_file().set_len(size).map_err(failed)?;
        Ok(Some(Part { file, target: self.path(name), left: size }))
    }

    /// The lock of those who count what is there, one process at a time. It is held for
    /// milliseconds, but by a process that was stopped for ever: `None`, then.
    fn count_alone(&self) -> Result<Option<Counting>> {
        let file = open_lock(&self.folder.join(LOCKS).join("room.lock"))?;
        let start = Instant::now();
        while let Err(TryLockError::WouldBlock) = (self.try_lock)(&file) {
            if is_given_up() || start.elapsed() > self.patience {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
        Ok(Some(Counting(file)))
    }

    /// Removes the entries used longest ago, shards before indexes, until `size` bytes more stay
    /// within the limit.
    fn make_room(&self, size: u64, gentle: bool) -> Result<bool> {
        let mut files = self.files()?;
        let mut total: u64 = files.iter().map(|file| file.size).sum();
        if size > self.limit {
            return Ok(false);
        }
        // What an index saves may be a pass over its whole shard, for a few percent of the bytes.
        files.sort_by_key(|file| (file.is_index(), file.used));
        let now = SystemTime::now();
        let fresh = |file: &Cached| now.duration_since(file.used).is_ok_and(|since| since < IN_USE);
        let owners = (self.owners)(&self.folder)?;
        let removable = |file: &&Cached| {
            file.part_of().is_none() && !(gentle && fresh(file)) && owners.may_remove(file.owner)
        };
        let most: u64 = files.iter().filter(removable).map(|file| file.size).sum();
        if total - most > self.limit - size {
            return Ok(false);
        }
        for file in files.iter().filter(removable) {
            if total <= self.limit - size {
                break;
            }
            match std::fs::remove_file(&file.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::debug!("{} stays in the cache: {error}", file.path.display());
                }
                _ => {
                    tracing::debug!("{} is put out of the cache", file.path.display());
                    total -= file.size;
                }
            }
        }
        Ok(total <= self.limit - size)
    }

    /// Notes that a file was used just now.
    pub fn touch(path: &Path) {
        if let Ok(file) = File::options().append(true).open(path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// The part of entry `name` that was written to last, and when; it has its whole length from
    /// the start.
    pub fn progress(&self, name: &str) -> Option<(PathBuf, SystemTime)> {
        let parts = self.files().ok()?.into_iter();
        let parts = parts.filter(|file| file.part_of().is_some_and(|entry| entry == name));
        parts.max_by_key(|part| part.used).map(|part| (part.path, part.used))
    }

    /// Removes the entries of other states of the object that entry `name` holds.
    pub fn forget_stale(&self, name: &str) {
        let (Ok(files), Some(object)) = (self.files(), name.get(..17)) else { return };
        for file in files {
            let entry = file.path.file_name().unwrap_or_default().to_string_lossy();
            if entry.starts_with(object) && !entry.starts_with(name) {
                let _ = std::fs::remove_file(&file.path);
            }
        }
    }

    /// All entries and those under way; no other file.
    fn files(&self) -> Result<Vec<Cached>> {
        let failed = |e| Error::io(&self.folder, e);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| is_entry(name) || part_of(name).is_some()) {
                continue;
            }
            // Another process may have removed it by now.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() {
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let owner = owner(&meta);
                files.push(Cached { path: entry.path(), size: meta.len(), used, owner });
            }
        }
        Ok(files)
    }
}

struct Cached {
    path: PathBuf,
    size: u64,
    used: SystemTime,
    owner: u32,
}

impl Cached {
    /// The entry that it will be, if it is unfinished.
    fn part_of(&self) -> Option<&str> {
        part_of(self.path.file_name()?.to_str()?)
    }

    fn is_index(&self) -> bool {
        self.path.as_os_str().as_encoded_bytes().ends_with(INDEX.as_bytes())
    }
}

/// The entry that an unfinished file will be, by its name.
fn part_of(name: &str) -> Option<&str> {
    let (entry, random) = name.strip_prefix('.')?.strip_suffix(PART)?.rsplit_once('.')?;
    // As `tempfile` makes names.
    let is_random = random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_random && is_entry(entry)).then_some(entry)
}

/// An entry under way. Dropped before it is finished, it leaves nothing.
pub(super) struct Part {
    file: NamedTempFile,
    target: PathBuf,
    left: u64,
}

impl Part {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let over = || Error::Usage(format!("{}: more bytes than promised", self.target.display()));
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(over)?;
        self.file.write_all(bytes).map_err(|e| Error::io(&self.target, e))
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Usage`] when bytes are missing.
    pub fn finish(self) -> Result<PathBuf> {
        let failed = |e| Error::io(&self.target, e);
        if self.left > 0 {
            let (target, left) = (self.target.display(), self.left);
            return Err(Error::Usage(format!("{target}: {left} bytes are missing")));
        }
        self.file.as_file().sync_all().map_err(failed)?;
        self.file.persist(&self.target).map_err(|e| Error::io(&self.target, e.error))?;
        #[cfg(unix)]
        if let Some(folder) = self.target.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(self.target)
    }
}
