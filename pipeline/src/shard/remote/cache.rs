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

/// Subfolder of the locks.
const LOCKS: &str = "locks";
/// An entry that was used so lately is in use: processes touch what they read every few seconds.
const IN_USE: Duration = Duration::from_secs(60);

/// A cache folder.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit: u64,
}

/// The right to download an entry; ends with the process, however that ends.
pub(super) struct Lock {
    path: PathBuf,
    _file: Option<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Who waits for the file that is unlinked here gets a lock that no newcomer sees, and at
        // worst downloads what another does: renaming makes that harmless.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The name of the entry of an object in a state.
pub(super) fn entry_name(url: &str, identity: &Identity) -> String {
    let modified = identity.modified.to_string();
    let state = format!("{} {}", identity.size, identity.etag.as_ref().unwrap_or(&modified));
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = super::url::file_name(url).chars().map(plain).collect();
    let name = &name[name.len().saturating_sub(100)..];
    format!("{:016x}-{:016x}-{name}", xxh3_64(url.as_bytes()), xxh3_64(state.as_bytes()))
}

impl Cache {
    /// Makes the folder, where there is none, and clears away what crashed processes left.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made or read.
    pub fn open(folder: &Path, limit: u64) -> Result<Cache> {
        let locks = folder.join(LOCKS);
        std::fs::create_dir_all(&locks).map_err(|e| Error::io(&locks, e))?;
        let cache = Cache { folder: folder.to_owned(), limit };
        for file in cache.files()? {
            let Some(entry) = part_of(&file.path) else { continue };
            if cache.lock(&entry)?.is_some() {
                let _ = std::fs::remove_file(&file.path);
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
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { path, _file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: two downloads of one shard do no harm.
            Err(TryLockError::Error(_)) => Ok(Some(Lock { path, _file: None })),
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
    fn another_state_of_an_object_is_another_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100).unwrap();
        let state = |size, etag: &str| Identity { size, etag: Some(etag.into()), modified: 0 };
        let name = |url, state: &Identity| entry_name(url, state);
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
