//! The folder of whole shards that several processes share. An entry's name says which object in
//! which state it holds, so that a changed object has another name; entries appear by renaming a
//! synced file, and go by unlinking, which a process that has them mapped does not notice. Whatever
//! else is in the folder is somebody else's: it is neither counted nor removed.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tempfile::NamedTempFile;
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::Identity;
use super::net::is_given_up;
use crate::shard::atomic::PART;
use crate::{Error, Result};

/// A part that nobody wrote to for so long is a dead process's, where no lock can tell.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Subfolder of the locks.
const LOCKS: &str = "locks";
/// Bytes of a shard's name that its entry's name ends with.
const NAME_BYTES: usize = 100;
/// How the name of an entry's index ends, as [`crate::shard::index_path`] has it.
const INDEX: &str = ".idx";
/// An entry that was used so lately is in use: processes touch what they read every few seconds, also
/// while they download.
const IN_USE: Duration = Duration::from_secs(60);

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
        make_locks(folder).map_err(|e| Error::io(folder, e))?;
        let cache = Cache { folder: folder.to_owned(), limit, patience, try_lock };
        let now = SystemTime::now();
        for part in cache.files()? {
            let Some(entry) = part.part_of() else { continue };
            let old = now.duration_since(part.used).is_ok_and(|since| since > ABANDONED);
            // Who may not lock another's entry may well read the others.
            let Ok(Some(lock)) = cache.lock(entry) else { continue };
            if lock.file.is_some() || old {
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
        let file = open_lock(&path)?;
        match (self.try_lock)(&file) {
            Ok(()) => Ok(Some(Lock { path, file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: two downloads of one shard do no harm.
            Err(TryLockError::Error(_)) => Ok(Some(Lock { path, file: None })),
        }
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

    /// The lock of those who count what is there, one process at a time. It is held for milliseconds,
    /// but by a process that was stopped for ever: `None`, then.
    fn count_alone(&self) -> Result<Option<File>> {
        let file = open_lock(&self.folder.join(LOCKS).join("room.lock"))?;
        let start = Instant::now();
        while let Err(TryLockError::WouldBlock) = (self.try_lock)(&file) {
            if is_given_up() || start.elapsed() > self.patience {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
        Ok(Some(file))
    }

    /// Removes the entries used longest ago, shards before indexes, until `size` bytes more stay within the limit.
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
        let owners = Owners::of(&self.folder)?;
        let removable = |file: &&Cached| {
            file.part_of().is_none() && !(gentle && fresh(file)) && owners.may_remove(file)
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

/// Opens the file of a lock. One that another user made may not be open to writing, which a lock
/// does not need.
fn open_lock(path: &Path) -> Result<File> {
    let opened = File::options().write(true).create(true).truncate(false).open(path);
    let opened = match opened {
        Err(denied) if denied.kind() == ErrorKind::PermissionDenied => {
            File::open(path).or(Err(denied))
        }
        other => other,
    };
    opened.map_err(|e| Error::io(path, e))
}

/// The folder of locks, as open to others as the cache is.
fn make_locks(folder: &Path) -> std::io::Result<()> {
    let locks = folder.join(LOCKS);
    std::fs::create_dir_all(folder)?;
    match std::fs::create_dir(&locks) {
        Ok(()) => std::fs::set_permissions(&locks, std::fs::metadata(folder)?.permissions()),
        Err(_) if locks.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The user whose file it is; 0 for all where the system does not tell.
fn owner(_meta: &std::fs::Metadata) -> u32 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::uid(_meta);
    #[cfg(not(unix))]
    0
}

/// Who may remove what: in a folder with the sticky bit, as those have that all may write to, only
/// the owners of the folder and of the file.
struct Owners {
    sticky: bool,
    folder: u32,
    me: u32,
}

impl Owners {
    fn of(folder: &Path) -> Result<Owners> {
        let meta = std::fs::metadata(folder).map_err(|e| Error::io(folder, e))?;
        #[cfg(unix)]
        let (sticky, me) = {
            use std::os::unix::fs::PermissionsExt;
            // SAFETY: it takes nothing, cannot fail and changes nothing.
            (meta.permissions().mode() & 0o1000 != 0, unsafe { libc::geteuid() })
        };
        #[cfg(not(unix))]
        let (sticky, me) = (false, 0);
        Ok(Owners { sticky, folder: owner(&meta), me })
    }

    fn may_remove(&self, file: &Cached) -> bool {
        !self.sticky || [0, self.folder, file.owner].contains(&self.me)
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

    const PATIENCE: Duration = Duration::from_millis(300);

    /// The name of an entry.
    fn named(shard: &str) -> String {
        let state = Identity { size: 4, etag: Some("x".into()), modified: 0 };
        entry_name(&format!("http://h/{shard}"), &state, None).unwrap()
    }

    #[test]
    fn the_entries_used_longest_ago_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let old = entry(&cache, &named("old"), 40, 500);
        let new = entry(&cache, &named("new"), 40, 5);
        let more = entry(&cache, &named("more"), 50, 0);
        assert!(!old.exists() && new.exists() && more.exists());
        // What is under way counts, and what is in use stays where that was asked for.
        assert!(cache.begin(&named("gentle"), 20, true).unwrap().is_none());
        let part = cache.begin(&named("part"), 60, false).unwrap().unwrap();
        assert!(!new.exists() && !more.exists());
        assert!(cache.begin(&named("another"), 60, false).unwrap().is_none());
        drop(part);
        assert!(cache.begin(&named("another"), 60, false).unwrap().is_some());
        assert!(cache.begin(&named("huge"), 101, false).unwrap().is_none());
    }

    #[test]
    fn indexes_make_room_after_all_shards() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let index = entry(&cache, &format!("{}.idx", named("a.tar")), 20, 900);
        let newer = entry(&cache, &format!("{}.idx", named("b.tar")), 20, 800);
        let shard = entry(&cache, &named("a.tar"), 50, 5);
        let more = entry(&cache, &named("b.tar"), 60, 5);
        assert!(index.exists() && newer.exists() && !shard.exists() && more.exists());
        let large = entry(&cache, &named("c.tar"), 70, 0);
        assert!(!index.exists() && newer.exists() && !more.exists() && large.exists());
    }

    #[test]
    fn files_that_are_no_entries_are_neither_counted_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (hash, upper) = ("0123456789abcdef", "0123456789ABCDEF");
        let foreign = [
            "thesis.tex".to_owned(),
            "train-000000.tar".to_owned(),
            "train-000000.tar.idx".to_owned(),
            ".bashrc".to_owned(),
            ".train.tar.Ab12Cd.part".to_owned(),
            "film.part".to_owned(),
            format!("{hash}-a.tar"),
            format!("{hash}-{hash}"),
            format!("{hash}-{hash}-"),
            format!("{hash}-{hash}-.idx"),
            format!("{hash}-{upper}-a.tar"),
            format!("{hash}-{}-a.tar", &hash[1..]),
            format!("{hash}-{hash}-a b.tar"),
            format!("{hash}-{hash}-{}", "a".repeat(101)),
            format!("x{hash}-{hash}-a.tar"),
            format!(".{hash}-{hash}-a.tar"),
            format!(".{hash}-{hash}-a.tar.part"),
            format!("{hash}-{hash}-a.tar.abcDE1.part~"),
            "locks/thesis.lock".to_owned(),
            "folder/inner.tar".to_owned(),
        ];
        std::fs::create_dir(folder.path().join("locks")).unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        // A folder whose name is an entry's.
        std::fs::create_dir(folder.path().join(named("folder"))).unwrap();
        let then = SystemTime::now() - 100 * ABANDONED;
        for name in &foreign {
            let path = folder.path().join(name);
            std::fs::write(&path, [7; 1000]).unwrap();
            File::options().append(true).open(&path).unwrap().set_modified(then).unwrap();
        }
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let entries = ["a", "b", "c"].map(|shard| entry(&cache, &named(shard), 60, 0));
        assert_eq!(entries.map(|path| path.exists()), [false, false, true]);
        cache.forget_stale(&named("a"));
        drop(
            Cache::open(folder.path(), 0, PATIENCE).unwrap().begin(&named("d"), 0, false).unwrap(),
        );
        for name in &foreign {
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), [7; 1000], "{name}");
        }
        assert!(folder.path().join(named("folder")).is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn entries_have_the_mode_of_any_new_file_so_that_a_cache_can_be_shared() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let path = entry(&cache, &named("a"), 40, 0);
        let other = folder.path().join("other");
        std::fs::write(&other, "1").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), mode(&other));
        // A lock that another user made is taken without writing to it.
        let lock = folder.path().join(LOCKS).join(format!("{}.lock", named("b")));
        std::fs::write(&lock, "").unwrap();
        std::fs::set_permissions(&lock, PermissionsExt::from_mode(0o444)).unwrap();
        assert!(cache.lock(&named("b")).unwrap().is_some());

        // Who may write to the cache may lock in it.
        let shared = folder.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).unwrap();
        Cache::open(&shared, 100, PATIENCE).unwrap();
        assert_eq!(mode(&shared.join(LOCKS)), 0o777);
    }

    #[test]
    fn nothing_goes_for_room_that_the_files_of_others_leave_none_of() {
        let file =
            |owner| Cached { path: PathBuf::new(), size: 1, used: SystemTime::UNIX_EPOCH, owner };
        let may = |sticky, folder, me| {
            [7, 8, 9].map(|owner| Owners { sticky, folder, me }.may_remove(&file(owner)))
        };
        assert_eq!(may(true, 7, 9), [false, false, true]);
        assert_eq!(may(true, 9, 9), [true; 3]);
        assert_eq!(may(true, 7, 0), [true; 3]);
        assert_eq!(may(false, 7, 9), [true; 3]);
    }

    #[test]
    fn a_lock_that_cannot_be_had_keeps_nobody_from_the_other_entries() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let whole = entry(&cache, &named("a"), 40, 0);
        let b = named("b");
        std::fs::write(folder.path().join(format!(".{b}.abcDE1.part")), "1").unwrap();
        std::fs::create_dir(folder.path().join(LOCKS).join(format!("{b}.lock"))).unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        assert_eq!(cache.find(&named("a"), Some(40)), Some(whole));
        assert!(cache.lock(&b).is_err());
    }

    #[test]
    fn a_process_that_stands_still_while_it_counts_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let stopped = open_lock(&folder.path().join(LOCKS).join("room.lock")).unwrap();
        stopped.lock().unwrap();
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let begun = cache.begin(&named("a"), 10, false).unwrap().is_some();
            sender.send((begun, cache)).unwrap();
        });
        let (begun, cache) = done.recv_timeout(Duration::from_secs(20)).expect("it waits");
        assert!(!begun);
        drop(stopped);
        assert!(cache.begin(&named("a"), 10, false).unwrap().is_some());
    }

    #[test]
    fn a_lock_is_held_by_one_and_parts_of_the_dead_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
        let (a, b) = (named("a"), named("b"));
        let held = cache.lock(&a).unwrap().unwrap();
        assert!(cache.lock(&a).unwrap().is_none());
        let alive = folder.path().join(format!(".{a}.abcDE1.part"));
        let dead = folder.path().join(format!(".{b}.abcDE2.part"));
        std::fs::write(&alive, "1").unwrap();
        std::fs::write(&dead, "1").unwrap();
        Cache::open(folder.path(), 100, PATIENCE).unwrap();
        assert!(alive.exists() && !dead.exists());
        drop(held);
        assert!(cache.lock(&a).unwrap().is_some());
    }

    #[test]
    fn without_locks_only_parts_that_nobody_writes_to_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (named("a"), named("b"));
        let [alive, dead] =
            [&a, &b].map(|entry| folder.path().join(format!(".{entry}.abcDE1.part")));
        for (path, age) in [(&alive, Duration::from_secs(60)), (&dead, 2 * ABANDONED)] {
            std::fs::write(path, "1").unwrap();
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let none = |_: &File| Err(TryLockError::Error(std::io::ErrorKind::Unsupported.into()));
        let cache = Cache::open_with(folder.path(), 100, PATIENCE, none).unwrap();
        assert!(alive.exists() && !dead.exists());
        let (path, when) = cache.progress(&a).unwrap();
        assert_eq!(path, alive);
        std::fs::write(&alive, "2").unwrap();
        assert!(cache.progress(&a).unwrap().1 > when && cache.progress(&b).is_none());
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
        let cache = Cache::open(folder.path(), 100, PATIENCE).unwrap();
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
