//! The folder of whole shards that several processes share. An entry's name says which object in
//! which state it holds, so that a changed object has another name; entries appear by renaming a
//! synced file, and go by unlinking, which a process that has them mapped does not notice.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::Identity;
use crate::shard::atomic::PART;
use crate::{Error, Result};

/// A part that nobody wrote to for so long is a dead process's, where no lock can tell.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Subfolder of the locks.
const LOCKS: &str = "locks";
/// An entry that was used so lately is in use: processes touch what they read every few seconds.
const IN_USE: Duration = Duration::from_secs(60);

/// A cache folder.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit: u64,
    /// [`File::try_lock`], but for tests of file systems without locks.
    try_lock: fn(&File) -> Result<(), TryLockError>,
}

/// The right to download an entry; ends with the process, however that ends.
pub(super) struct Lock {
    path: PathBuf,
    /// `None` where the file system knows no locks, so that others may be at the entry, too.
    file: Option<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Who waits for the file that is unlinked here gets a lock that no newcomer sees, and at
        // worst downloads what another does: renaming makes that harmless.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The name of the entry of an object in a state: by its ETag, or its time of modification, or the
/// checksum that a manifest gives it. `None` where there is none of them: an object that was
/// replaced by one of the same size would be read from the cache for ever.
pub(super) fn entry_name(url: &str, identity: &Identity, checksum: Option<&str>) -> Option<String> {
    let modified = (identity.modified != 0).then(|| identity.modified.to_string());
    let told = identity.etag.as_deref().or(modified.as_deref()).or(checksum)?;
    let state = format!("{} {told}", identity.size);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = super::url::file_name(url).chars().map(plain).collect();
    let name = &name[name.len().saturating_sub(100)..];
    let (object, state) = (xxh3_64(url.as_bytes()), xxh3_64(state.as_bytes()));
    Some(format!("{object:016x}-{state:016x}-{name}"))
}

impl Cache {
    /// Makes the folder, where there is none, and clears away what crashed processes left.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made or read.
    pub fn open(folder: &Path, limit: u64) -> Result<Cache> {
        Cache::open_with(folder, limit, File::try_lock)
    }

    fn open_with(
        folder: &Path,
        limit: u64,
        try_lock: fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Cache> {
        let locks = folder.join(LOCKS);
        std::fs::create_dir_all(&locks).map_err(|e| Error::io(&locks, e))?;
        let cache = Cache { folder: folder.to_owned(), limit, try_lock };
        let now = SystemTime::now();
        for part in cache.files()? {
            let Some(entry) = part_of(&part.path) else { continue };
            let old = now.duration_since(part.used).is_ok_and(|since| since > ABANDONED);
            if cache.lock(&entry)?.is_some_and(|lock| lock.file.is_some() || old) {
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
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        match (self.try_lock)(&file) {
            Ok(()) => Ok(Some(Lock { path, file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: two downloads of one shard do no harm.
            Err(TryLockError::Error(_)) => Ok(Some(Lock { path, file: None })),
        }
    }

    /// Begins an entry of `size` bytes and makes room for it. With `gentle` entries in use are not
    /// put out. `None` when there is no room.
    pub fn begin(&self, name: &str, size: u64, gentle: bool) -> Result<Option<Part>> {
        // One process at a time counts; the lock is held for milliseconds.
        let counting = self.folder.join(LOCKS).join("room.lock");
        let counting_file = File::create(&counting).map_err(|e| Error::io(&counting, e))?;
        let _ = counting_file.lock();
        if !self.make_room(size, gentle)? {
            return Ok(None);
        }
        let failed = |e| Error::io(&self.folder, e);
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PART);
        let file = builder.tempfile_in(&self.folder).map_err(failed)?;
        // Its length counts from now on for everyone who makes room.
        file.as_file().set_len(size).map_err(failed)?;
        Ok(Some(Part { file, target: self.path(name), left: size }))
    }

    /// Removes the entries used longest ago until `size` bytes more stay within the limit.
    fn make_room(&self, size: u64, gentle: bool) -> Result<bool> {
        let mut files = self.files()?;
        let mut total: u64 = files.iter().map(|file| file.size).sum();
        if size > self.limit {
            return Ok(false);
        }
        files.sort_by_key(|file| file.used);
        let now = SystemTime::now();
        let fresh = |file: &Cached| now.duration_since(file.used).is_ok_and(|since| since < IN_USE);
        let removable = |file: &&Cached| part_of(&file.path).is_none() && !(gentle && fresh(file));
        let mut doomed = Vec::new();
        for file in files.iter().filter(removable) {
            if total <= self.limit - size {
                break;
            }
            total -= file.size;
            doomed.push(&file.path);
        }
        if total > self.limit - size {
            return Ok(false);
        }
        for path in doomed {
            tracing::debug!("{} is put out of the cache", path.display());
            let _ = std::fs::remove_file(path);
        }
        Ok(true)
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
        let parts = parts.filter(|file| part_of(&file.path).is_some_and(|entry| entry == name));
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

    /// All entries and those under way.
    fn files(&self) -> Result<Vec<Cached>> {
        let failed = |e| Error::io(&self.folder, e);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Another process may have removed it by now.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() {
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push(Cached { path: entry.path(), size: meta.len(), used });
            }
        }
        Ok(files)
    }
}

struct Cached {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// The entry that an unfinished file will be.
fn part_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(PART)?;
    name.rsplit_once('.').map(|(entry, _)| entry.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cache: &Cache, name: &str, size: u64, age: u64) -> PathBuf {
        let mut part = cache.begin(name, size, false).unwrap().unwrap();
        part.write(&vec![7; size as usize]).unwrap();
        let path = part.finish().unwrap();
        let then = SystemTime::now() - Duration::from_secs(age);
        File::options().append(true).open(&path).unwrap().set_modified(then).unwrap();
        path
    }

    #[test]
    fn the_entries_used_longest_ago_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100).unwrap();
        let old = entry(&cache, "old", 40, 500);
        let new = entry(&cache, "new", 40, 5);
        let more = entry(&cache, "more", 50, 0);
        assert!(!old.exists() && new.exists() && more.exists());
        // What is under way counts, and what is in use stays where that was asked for.
        assert!(cache.begin("gentle", 20, true).unwrap().is_none());
        let part = cache.begin("part", 60, false).unwrap().unwrap();
        assert!(!new.exists() && !more.exists());
        assert!(cache.begin("another", 60, false).unwrap().is_none());
        drop(part);
        assert!(cache.begin("another", 60, false).unwrap().is_some());
        assert!(cache.begin("huge", 101, false).unwrap().is_none());
    }

    #[test]
    fn a_lock_is_held_by_one_and_parts_of_the_dead_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100).unwrap();
        let held = cache.lock("a").unwrap().unwrap();
        assert!(cache.lock("a").unwrap().is_none());
        let alive = folder.path().join(".a.x1.part");
        let dead = folder.path().join(".b.x2.part");
        std::fs::write(&alive, "1").unwrap();
        std::fs::write(&dead, "1").unwrap();
        Cache::open(folder.path(), 100).unwrap();
        assert!(alive.exists() && !dead.exists());
        drop(held);
        assert!(cache.lock("a").unwrap().is_some());
    }

    #[test]
    fn without_locks_only_parts_that_nobody_writes_to_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let [alive, dead] = [".a.x1.part", ".b.x2.part"].map(|name| folder.path().join(name));
        for (path, age) in [(&alive, Duration::from_secs(60)), (&dead, 2 * ABANDONED)] {
            std::fs::write(path, "1").unwrap();
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let none = |_: &File| Err(TryLockError::Error(std::io::ErrorKind::Unsupported.into()));
        let cache = Cache::open_with(folder.path(), 100, none).unwrap();
        assert!(alive.exists() && !dead.exists());
        let (path, when) = cache.progress("a").unwrap();
        assert_eq!(path, alive);
        std::fs::write(&alive, "2").unwrap();
        assert!(cache.progress("a").unwrap().1 > when && cache.progress("b").is_none());
    }

    #[test]
    fn an_object_has_an_entry_only_where_something_tells_its_states_apart() {
        let state = |etag: Option<&str>, modified| Identity {
            size: 4,
            etag: etag.map(str::to_owned),
            modified,
        };
        let name = |state: &Identity, checksum| entry_name("http://h/a.tar", state, checksum);
        assert_eq!(name(&state(None, 0), None), None);
        let mut names: Vec<_> = [
            name(&state(Some("x"), 0), None),
            name(&state(None, 7), None),
            name(&state(None, 8), None),
            name(&state(None, 0), Some("xxh3:1")),
            name(&state(None, 0), Some("xxh3:2")),
        ]
        .map(Option::unwrap)
        .to_vec();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn another_state_of_an_object_is_another_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100).unwrap();
        let state = |size, etag: &str| Identity { size, etag: Some(etag.into()), modified: 0 };
        let name = |url, state: &Identity| entry_name(url, state, None).unwrap();
        let (was, is) =
            (name("s3://b/a.tar", &state(4, "x")), name("s3://b/a.tar", &state(4, "y")));
        let other = name("s3://c/a.tar", &state(4, "x"));
        assert!(was != is && was[17..] != other[..17] && was.ends_with("-a.tar"));
        let paths = [&was, &is, &other].map(|name| entry(&cache, name, 4, 0));
        cache.forget_stale(&is);
        assert_eq!(paths.map(|path| path.exists()), [false, true, true]);
        assert!(cache.find(&is, Some(5)).is_none(), "a wrong size");
        assert!(!cache.path(&is).exists());
    }
}
