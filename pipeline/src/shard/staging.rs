//! Where a set is written before it gets its names: a folder of its own inside
//! the set's, so that what is there stays whole until all of the new set is. Under
//! the writer.
//!
//! The folder is called `.PREFIX.XXXXXX.part` and holds a file that its pack keeps
//! locked. One that nobody has locked was left by a pack that was killed.
//!
//! `salvage` keeps what it saves in such a folder, too: `..salvage.PREFIX.XXXXXX.part`,
//! which no set's is called, as no prefix begins with a dot.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::atomic::{AtomicFile, PART};
use super::manifest::MANIFEST_SUFFIX;
use super::pattern::files_in;
use crate::{Error, Result};

mod folder;
mod publish;

pub(crate) use folder::Staged;
use folder::{Owner, owner, remove};
use publish::Publish;
pub(crate) use publish::Unfinished;

/// A folder for what is saved of damaged shards to become the set `prefix`; those that were left of
/// that are removed, and a set that was being put in place is finished.
pub(crate) fn for_salvage(folder: &Path, prefix: &str) -> Result<Staged> {
    finish_killed(folder, prefix)?;
    let name = format!(".salvage.{prefix}");
    for path in leftovers(folder, &name)?.iter().filter(|path| path.is_dir()) {
        // Held until it is gone.
        let owner = owner(path);
        if matches!(owner, Owner::Nobody(_)) {
            remove(path)?;
        }
    }
    Staged::new(folder, &name)
}

/// The files of a set on their way.
pub(crate) struct Staging {
    folder: PathBuf,
    prefix: String,
    staged: Staged,
}

impl Staging {
    /// Begins a set called `prefix` in `folder`, which must exist. What packs of this prefix left
    /// that were killed is removed, unless they were putting their set in place: then that is
    /// finished. The set that is there is not touched.
    ///
    /// # Errors
    /// [`Error::Usage`] when a set of that prefix is there and `overwrite` is not set, and when
    /// another pack is writing one.
    pub fn begin(folder: &Path, prefix: &str, overwrite: bool) -> Result<Staging> {
        if !any_unfinished(folder, prefix)? {
            refuse_existing(folder, prefix, overwrite)?;
        }
        let staged = Staged::new(folder, prefix)?;
        // Only now, so that of two packs that begin at once neither overlooks the other.
        for path in leftovers(folder, prefix)? {
            // By name: a temporary folder's path is absolute, `folder` need not be.
            if path.file_name() != staged.path().file_name() {
                clear_up(folder, prefix, &path)?;
            }
        }
        refuse_existing(folder, prefix, overwrite)?;
        Ok(Staging { folder: folder.to_owned(), prefix: prefix.to_owned(), staged })
    }

    /// Begins the file that will be called `name`.
    pub fn create(&self, name: &str) -> Result<AtomicFile> {
        AtomicFile::staged(&self.folder.join(name), &self.place(name))
    }

    /// A whole small file.
    pub fn write_all(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write(bytes)?;
        file.commit()
    }

    /// Where a file waits: under a name that no pattern takes for a shard's.
    fn place(&self, name: &str) -> PathBuf {
        self.staged.path().join(format!("{name}{PART}"))
    }

    /// Puts the set, all that was written so far, in place of the one that is there; returns the
    /// manifest's path. Where that fails the old set is put back.
    pub fn publish(self) -> Result<PathBuf> {
        let publish =
            Publish { folder: &self.folder, staged: self.staged.path(), prefix: &self.prefix };
        publish.refuse_folders()?;
        if let Err(error) = publish.run() {
            let Err(second) = publish.undo() else { return Err(error) };
            return Err(self.keep(&error, &second));
        }
        publish.done();
        let path = self.folder.join(manifest_name(&self.prefix));
        if let Err(error) = self.staged.close() {
            tracing::warn!("{}: what it replaced cannot be removed: {error}", path.display());
        }
        Ok(path)
    }

    /// Leaves the files of both sets where they are, and says where that is.
    fn keep(self, error: &Error, second: &Error) -> Error {
        let staged = self.staged.keep();
        let text = format!(
            "{error}; and the set that was there cannot be put back: {second}. Nothing is lost: its \
             files are here as NAME.old, those of the new set as NAME.part, or both in their place. \
             `shard pack` of this prefix puts the new set in place when it can"
        );
        Error::io(staged, std::io::Error::other(text))
    }
}

/// Puts the set `prefix` in its place in `folder` where a pack was killed while it did that, and
/// returns whether there was one. [`pack()`](super::pack()) does so by itself; this is for a set that is to be
/// packed into its own place, and that nobody can open before.
///
/// # Errors
/// [`Error::Io`] when a file cannot be moved; [`Error::Usage`] when another pack is at it.
pub fn finish_killed(folder: &Path, prefix: &str) -> Result<bool> {
    if !folder.is_dir() || !any_unfinished(folder, prefix)? {
        return Ok(false);
    }
    leftovers(folder, prefix)?.iter().try_for_each(|path| clear_up(folder, prefix, path))?;
    Ok(!any_unfinished(folder, prefix)?)
}

/// Whether a pack of the set `prefix` was killed while it put its set in place.
fn any_unfinished(folder: &Path, prefix: &str) -> Result<bool> {
    for staged in leftovers(folder, prefix)? {
        if (Publish { folder, staged: &staged, prefix }).is_unfinished()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses to write where a set is, unless it may be replaced.
fn refuse_existing(folder: &Path, prefix: &str, overwrite: bool) -> Result<()> {
    match existing(folder, prefix)?.first().filter(|_| !overwrite) {
        None => Ok(()),
        Some(path) => Err(Error::Usage(format!(
            "{} exists: choose another folder or prefix, or say `--overwrite`",
            path.display()
        ))),
    }
}

/// Removes what a pack left that was killed, when it has put its set in place if it had begun to.
fn clear_up(folder: &Path, prefix: &str, left: &Path) -> Result<()> {
    // Held until all is done: nobody else takes it for left.
    let owner = owner(left);
    match owner {
        Owner::Nobody(_) if left.is_dir() => {
            let publish = Publish { folder, staged: left, prefix };
            if publish.is_unfinished()? {
                publish.run()?;
                publish.done();
                tracing::warn!(
                    "{}: a pack was killed while it put the set `{prefix}` in place; now it is there",
                    folder.display()
                );
            }
            remove(left)
        }
        Owner::Nobody(_) => std::fs::remove_file(left).map_err(|e| Error::io(left, e)),
        Owner::Another if left.is_dir() => Err(Error::Usage(format!(
            "{}: another pack is writing a set `{prefix}` into this folder",
            folder.display()
        ))),
        Owner::Another | Owner::Unknown => Ok(()),
    }
}

/// Removes what processes that were killed left of `files`: files of temporary names that were to
/// become one of them.
pub(crate) fn clear_files(files: &[PathBuf]) -> Result<()> {
    let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    for folder in folders {
        let of_folder = files.iter().filter(|file| file.parent() == Some(folder));
        let names: HashSet<&OsStr> = of_folder.filter_map(|file| file.file_name()).collect();
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        for path in files_in(folder)? {
            let name = path.file_name().and_then(OsStr::to_str).and_then(temporary_for);
            if !name.is_some_and(|name| names.contains(OsStr::new(name))) {
                continue;
            }
            // Held until it is gone.
            let owner = owner(&path);
            if matches!(owner, Owner::Nobody(_)) {
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
    }
    Ok(())
}

/// What a set's manifest is called.
pub(crate) fn manifest_name(prefix: &str) -> String {
    format!("{prefix}.{MANIFEST_SUFFIX}")
}

/// Shards, indexes and manifest of the set `prefix` in a folder.
pub(crate) fn existing(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut files = files_in(folder)?;
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        belongs(&name, prefix)
    });
    Ok(files)
}

fn belongs(name: &str, prefix: &str) -> bool {
    let numbered = |rest: &str| {
        let (digits, kind) = rest.split_at_checked(6)?;
        let kind = kind.strip_suffix(".idx").unwrap_or(kind);
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && matches!(kind, ".tar" | ".tar.zst")).then_some(())
    };
    name == manifest_name(prefix)
        || name
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(numbered)
            .is_some()
}

/// What a temporary file or folder, `.NAME.XXXXXX.part`, is to become: `NAME`.
fn temporary_for(name: &str) -> Option<&str> {
    Some(name.strip_prefix('.')?.strip_suffix(PART)?.rsplit_once('.')?.0)
}

/// Temporary files and folders of the set `prefix`.
fn leftovers(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if temporary_for(&name).is_some_and(|target| match path.is_dir() {
            true => target == prefix,
            false => belongs(target, prefix),
        }) {
            found.push(path.clone());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::folder::{ABANDONED, LOCK};
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_files_of_a_set_are_told_from_those_beside_them() {
        for (name, is) in [
            ("a-000000.tar", true),
            ("a-000012.tar.zst", true),
            ("a-000012.tar.zst.idx", true),
            ("a.manifest.json", true),
            ("a-000000.tar.bak", false),
            ("a-00000.tar", false),
            ("a-0000000.tar", false),
            ("a-b-000000.tar", false),
            ("a-00000ü.tar", false),
            ("a-0000x0.tar", false),
            ("a.manifest.json.old", false),
            ("b.manifest.json", false),
            ("manifest.json", false),
        ] {
            assert_eq!(belongs(name, "a"), is, "{name}");
        }
    }

    #[test]
    fn what_a_killed_pack_left_goes_and_what_a_running_one_writes_stays() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in [".a-000000.tar.idx.abc.part", ".b-000000.tar.abc.part"] {
            std::fs::write(folder.join(name), b"half").unwrap();
        }
        std::fs::create_dir(folder.join(".a.xyz.part")).unwrap();
        std::fs::write(folder.join(".a.xyz.part").join(LOCK), b"").unwrap();
        // `shard index` at work.
        let mut running = AtomicFile::create(&folder.join("a-000001.tar.idx")).unwrap();
        let first = Staging::begin(folder, "a", false).unwrap();
        let left = names(folder);
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left.contains(&".b-000000.tar.abc.part".to_owned()), "{left:?}");
        running.write(b"whole").unwrap();
        running.commit().unwrap();
        std::fs::remove_file(folder.join("a-000001.tar.idx")).unwrap();

        first.write_all("a-000000.tar", b"new").unwrap();
        assert!(matches!(Staging::begin(folder, "a", true), Err(Error::Usage(_))));
        assert!(Staging::begin(folder, "a.b", true).is_ok(), "another set");
        first.write_all("a-000000.tar.idx", b"new").unwrap();
        first.write_all("a.manifest.json", b"new").unwrap();
        first.publish().unwrap();
        let set = ["a-000000.tar", "a-000000.tar.idx", "a.manifest.json"];
        assert_eq!(names(folder), [&[".b-000000.tar.abc.part"], &set[..]].concat());
        assert!(Staging::begin(folder, "a", false).is_err());
    }

    #[test]
    fn a_folder_that_cannot_be_removed_at_once_is_known_as_left_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let left = folder.join(".a.xyz.part");
        let begin = || Staging::begin(folder, "a", true).map(drop);
        // As if it was killed before the last file: this one is not removed.
        std::fs::create_dir_all(left.join("held")).unwrap();
        for name in ["lock", "a-000000.tar.old", "a-000001.tar.old"] {
            std::fs::write(left.join(name), b"old").unwrap();
        }
        begin().unwrap_err();
        assert!(names(&left).contains(&LOCK.to_owned()), "{:?}", names(&left));
        std::fs::remove_dir(left.join("held")).unwrap();
        begin().unwrap();
        assert_eq!(names(folder), [""; 0]);

        // Killed before the folder itself; or whoever made it has not come to its lock.
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("a-000000.tar.old"), b"old").unwrap();
        begin().unwrap();
        assert_eq!(names(&left), ["a-000000.tar.old"]);
        let then = std::time::SystemTime::now() - 2 * ABANDONED;
        File::open(&left).unwrap().set_modified(then).unwrap();
        begin().unwrap();
        assert_eq!(names(folder), [""; 0]);
    }

    #[test]
    fn what_is_saved_of_shards_is_removed_when_nobody_saves_it_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let running = for_salvage(folder, "a").unwrap();
        let killed = for_salvage(folder, "a").unwrap();
        std::fs::write(killed.path().join("000000.tar"), b"half").unwrap();
        let left = killed.keep();
        let others = folder.join("..salvage.b.xyz.part");
        std::fs::create_dir(&others).unwrap();
        let next = for_salvage(folder, "a").unwrap();
        assert!(!left.exists() && running.path().exists() && others.exists());
        drop((running, next));
        assert_eq!(names(folder), ["..salvage.b.xyz.part"]);
    }

    #[test]
    fn what_was_left_of_some_files_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let left = [".a.idx.xyz.part", ".a.idx.held.part", ".b.idx.xyz.part", ".a.idx", "a.idx"];
        left.iter().for_each(|name| drop(File::create(folder.path().join(name)).unwrap()));
        let held = File::options().write(true).open(folder.path().join(left[1])).unwrap();
        held.lock().unwrap();
        let files = ["a.idx", "c.idx"].map(|name| folder.path().join(name));
        clear_files(&files).unwrap();
        assert_eq!(names(folder.path()), [".a.idx", left[1], left[2], "a.idx"]);
    }

    #[cfg(unix)]
    #[test]
    fn whoever_reads_a_set_may_look_where_the_next_one_waits() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let staged = Staged::new(folder.path(), "a").unwrap();
        let usual = folder.path().join("usual");
        std::fs::create_dir(&usual).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(staged.path()), mode(&usual));
    }

    #[test]
    fn a_set_that_cannot_be_put_in_place_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let old = ["a-000000.tar", "a-000000.tar.idx", "a.manifest.json"];
        old.iter().for_each(|name| std::fs::write(folder.join(name), b"old").unwrap());
        std::fs::create_dir(folder.join("a-000001.tar")).unwrap();
        let staging = Staging::begin(folder, "a", true).unwrap();
        let new = ["a-000000.tar", "a-000001.tar"];
        for name in new.iter().chain(&["a-000000.tar.idx", "a-000001.tar.idx", old[2]]) {
            staging.write_all(name, b"new").unwrap();
        }
        assert!(staging.publish().is_err());
        for name in old {
            assert_eq!(std::fs::read(folder.join(name)).unwrap(), b"old", "{name}");
        }
        assert_eq!(names(folder).len(), 4);
    }
}
