//! Putting a set in place of another, file by file, so that whoever is killed between two files
//! leaves a state that readers know and the next pack of the set can finish. Under `staging`.
//!
//! While it lasts the temporary folder holds a file that says how far it is. `leaving`: the files
//! of the old set are moved into the folder, as `NAME.old`, the manifest first. `entering`: those
//! of the new one, `NAME.part`, get their names, the manifest last. So a set with a manifest is
//! whole in any case. Each step can be done again by somebody else, and undone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{belongs, existing, manifest_name, temporary_for};
use crate::shard::atomic::{PART, sync_folder};
use crate::shard::damaged;
use crate::{Error, Result};

/// How the files of the old set end that make room.
const OLD: &str = ".old";
const LEAVING: &str = "leaving";
const ENTERING: &str = "entering";

/// A set on the way from its temporary folder to its place.
pub(super) struct Publish<'a> {
    pub folder: &'a Path,
    pub staged: &'a Path,
    pub prefix: &'a str,
}

impl Publish<'_> {
    /// Whether this has begun and not ended: files of the old set, the new one or none may be in
    /// place.
    ///
    /// # Errors
    /// When that cannot be told: what is there may be all that is left of both sets.
    pub fn is_unfinished(&self) -> Result<bool> {
        let marked = |name| is_there(&self.staged.join(name));
        Ok((marked(LEAVING)? || marked(ENTERING)?)
            && !is_there(&self.folder.join(manifest_name(self.prefix)))?)
    }

    /// Does what is left to do until the new set is in place.
    pub fn run(&self) -> Result<()> {
        if !is_there(&self.staged.join(ENTERING))? {
            self.begin()?;
            self.leave()?;
            self.mark(LEAVING, ENTERING)?;
        }
        self.enter()
    }

    /// Takes the mark away behind `run`. The set is in place, and its manifest says so to whoever
    /// finds the mark: that this fails is no reason to put the old one back.
    pub fn done(&self) {
        let _ = self.unmark(ENTERING);
    }

    /// Puts the old set back; the new one waits again.
    pub fn undo(&self) -> Result<()> {
        if is_there(&self.staged.join(ENTERING))? {
            self.put_away(PART)?;
            self.mark(ENTERING, LEAVING)?;
        }
        self.take_out(OLD)?;
        self.unmark(LEAVING)
    }

    /// What no file can replace, before anything is moved.
    pub fn refuse_folders(&self) -> Result<()> {
        let names = self.waiting(PART)?;
        match names.iter().map(|name| self.folder.join(name)).find(|path| path.is_dir()) {
            Some(path) => Err(Error::Usage(format!("{} is a folder", path.display()))),
            None => Ok(()),
        }
    }

    fn begin(&self) -> Result<()> {
        // The names of the new files first: with the mark they must all be there.
        sync_folder(self.staged)?;
        let mark = self.staged.join(LEAVING);
        std::fs::write(&mark, b"").map_err(|e| Error::io(&mark, e))?;
        sync_folder(self.staged)?;
        sync_folder(self.folder)
    }

    fn leave(&self) -> Result<()> {
        self.put_away(OLD)
    }

    fn enter(&self) -> Result<()> {
        self.take_out(PART)
    }

    /// Moves the set that is in place into the temporary folder, the manifest first.
    fn put_away(&self, suffix: &str) -> Result<()> {
        let mut files = existing(self.folder, self.prefix)?;
        files.sort_by_key(|path| !self.is_manifest(&name_of(path)));
        for path in files {
            let name = name_of(&path);
            rename(&path, &self.staged.join(format!("{name}{suffix}")), &path)?;
            if self.is_manifest(&name) {
                self.sync()?;
            }
        }
        self.sync()
    }

    /// Gives what waits in the temporary folder its names, the manifest last.
    fn take_out(&self, suffix: &str) -> Result<()> {
        for name in self.waiting(suffix)? {
            if self.is_manifest(&name) {
                self.sync()?;
            }
            let to = self.folder.join(&name);
            rename(&self.staged.join(format!("{name}{suffix}")), &to, &to)?;
        }
        self.sync()
    }

    /// Names of the files that wait in the temporary folder, the manifest last.
    fn waiting(&self, suffix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let failed = |e| Error::io(self.staged, e);
        for entry in std::fs::read_dir(self.staged).map_err(failed)? {
            let name = name_of(&entry.map_err(failed)?.path());
            names.extend(name.strip_suffix(suffix).map(str::to_owned));
        }
        names.retain(|name| belongs(name, self.prefix));
        names.sort_by_cached_key(|name| (self.is_manifest(name), name.clone()));
        Ok(names)
    }

    fn is_manifest(&self, name: &str) -> bool {
        name == manifest_name(self.prefix)
    }

    fn mark(&self, from: &str, to: &str) -> Result<()> {
        let path = self.staged.join(to);
        rename(&self.staged.join(from), &path, &path)?;
        sync_folder(self.staged)
    }

    fn unmark(&self, name: &str) -> Result<()> {
        let path = self.staged.join(name);
        #[cfg(test)]
        if tests::refuses() {
            return Err(Error::io(path, std::io::ErrorKind::PermissionDenied.into()));
        }
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, e)),
            _ => sync_folder(self.staged),
        }
    }

    fn sync(&self) -> Result<()> {
        sync_folder(self.staged)?;
        sync_folder(self.folder)
    }
}

/// Whether something of this name is there. What cannot be looked at is neither there nor not, unless
/// it is somebody else's.
fn is_there(path: &Path) -> Result<bool> {
    use std::io::ErrorKind;
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied => {
                Ok(false)
            }
            _ => Err(Error::io(path, error)),
        },
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn rename(from: &Path, to: &Path, named: &Path) -> Result<()> {
    #[cfg(test)]
    if tests::refuses() {
        return Err(Error::io(named, std::io::ErrorKind::PermissionDenied.into()));
    }
    std::fs::rename(from, to).map_err(|e| Error::io(named, e))
}

/// The sets of each folder that are not in place altogether: for readers, who would take what there
/// is for a set.
#[derive(Default)]
pub(crate) struct Unfinished(HashMap<PathBuf, Vec<(String, PathBuf)>>);

impl Unfinished {
    /// Refuses a folder that holds such a set, or of its files the one called `name` if it is of
    /// one.
    ///
    /// # Errors
    /// [`Error::Shard`] with the temporary folder; [`Error::Io`] when it cannot be told.
    pub fn refuse(&mut self, folder: &Path, name: Option<&str>) -> Result<()> {
        if !self.0.contains_key(folder) {
            self.0.insert(folder.to_owned(), unfinished(folder)?);
        }
        let sets = self.0.get(folder).map(Vec::as_slice).unwrap_or_default();
        match sets.iter().find(|(prefix, _)| name.is_none_or(|name| belongs(name, prefix))) {
            Some((prefix, staged)) => Err(damaged(staged, 0, cause(prefix))),
            None => Ok(()),
        }
    }
}

fn cause(prefix: &str) -> String {
    format!(
        "the set `{prefix}` is being put in place, or whoever did that was killed: what is there now \
         is no whole set. The next `shard pack` or `shard synth` of that prefix into its folder \
         finishes it"
    )
}

/// Prefixes and temporary folders. A folder that may not be listed, or is none, has none: reading it
/// tells more.
fn unfinished(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    use std::io::ErrorKind;
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |error| Error::io(listed, error);
    let entries = match std::fs::read_dir(listed) {
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied => {
                return Ok(Vec::new());
            }
            _ => return Err(failed(error)),
        },
        Ok(entries) => entries,
    };
    let mut sets = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let Some(prefix) = name.to_str().and_then(temporary_for) else { continue };
        let staged = folder.join(&name);
        if (Publish { folder, staged: &staged, prefix }).is_unfinished()? {
            sets.push((prefix.to_owned(), staged));
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::Staging;
    use super::*;

    thread_local! {
        /// How many renames go well before one that does not, and how many do not then.
        static FAULT: Cell<(u32, u32)> = const { Cell::new((u32::MAX, 0)) };
    }

    /// As a disk that refuses: an error, where a process that is killed just stops.
    pub(super) fn refuses() -> bool {
        FAULT.with(|fault| {
            let (good, bad) = fault.get();
            fault
                .set((good.saturating_sub(1), if good == 0 { bad.saturating_sub(1) } else { bad }));
            good == 0 && bad > 0
        })
    }

    fn shown(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let files = super::super::files_in(folder).unwrap();
        files.iter().map(|path| (name_of(path), std::fs::read(path).unwrap())).collect()
    }

    /// A folder with an old set of `old` shards, and a new one of two that waits to take its place.
    fn waiting(old: usize) -> (tempfile::TempDir, Staging) {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..old {
            let name = folder.path().join(format!("a-{number:06}.tar"));
            std::fs::write(name, format!("old {number}")).unwrap();
        }
        if old > 0 {
            std::fs::write(folder.path().join("a.manifest.json"), "old").unwrap();
        }
        std::fs::write(folder.path().join("b-000000.tar"), "another set").unwrap();
        let staging = Staging::begin(folder.path(), "a", true).unwrap();
        for name in ["a-000000.tar", "a-000001.tar", "a-000001.tar.idx", "a.manifest.json"] {
            staging.write_all(name, b"new").unwrap();
        }
        (folder, staging)
    }

    fn new_set() -> Vec<(String, Vec<u8>)> {
        let names = ["a-000000.tar", "a-000001.tar", "a-000001.tar.idx", "a.manifest.json"];
        let mut files: Vec<_> = names.map(|name| (name.to_owned(), b"new".to_vec())).into();
        files.insert(3, ("b-000000.tar".to_owned(), b"another set".to_vec()));
        files.sort();
        files
    }

    /// Whether readers take the folder and one of its shards.
    fn is_read(folder: &Path) -> bool {
        let refused = |name| Unfinished::default().refuse(folder, name).is_err();
        assert!(!refused(Some("b-000000.tar")), "it is another set's");
        assert_eq!(refused(None), refused(Some("a-000001.tar")));
        !refused(None)
    }

    #[test]
    fn wherever_it_ends_readers_see_a_whole_set_or_an_error_and_both_sets_can_be_had() {
        for old in [0, 1, 4] {
            let steps = |k| {
                let (folder, staging) = waiting(old);
                let before = shown(folder.path());
                let staged = staging.staged.path().to_owned();
                let publish = || Publish { folder: folder.path(), staged: &staged, prefix: "a" };
                FAULT.set((k, 1));
                let ended = publish().run().is_ok();
                FAULT.set((u32::MAX, 0));
                let whole = [before.clone(), new_set()].contains(&shown(folder.path()));
                assert!(!is_read(folder.path()) || whole, "{old} {k}");
                if ended {
                    assert_eq!(shown(folder.path()), new_set(), "{old} {k}");
                    return false;
                }
                publish().undo().unwrap();
                assert_eq!(shown(folder.path()), before, "{old} {k}");
                assert!(is_read(folder.path()), "{old} {k}");
                // Killed at the same place, and the next pack comes.
                FAULT.set((k, 1));
                publish().run().unwrap_err();
                FAULT.set((u32::MAX, 0));
                let unfinished = publish().is_unfinished().unwrap();
                let kept = staging.staged.keep();
                let next = Staging::begin(folder.path(), "a", true).unwrap();
                let expected = if unfinished { new_set() } else { before };
                assert_eq!(shown(folder.path()), expected, "{old} {k}");
                assert!(is_read(folder.path()) && !kept.exists());
                drop(next);
                true
            };
            assert!((0..).take_while(|&k| steps(k)).count() > old + 4);
        }
    }

    #[test]
    fn an_error_puts_the_old_set_back_and_where_that_fails_nothing_is_lost() {
        for k in 0..9 {
            let (folder, staging) = waiting(3);
            let before = shown(folder.path());
            FAULT.set((k, 1));
            staging.publish().unwrap_err();
            FAULT.set((u32::MAX, 0));
            assert_eq!(shown(folder.path()), before, "{k}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before.len(), "{k}");

            let (folder, staging) = waiting(3);
            let staged = staging.staged.path().to_owned();
            FAULT.set((k, 2));
            let error = staging.publish().unwrap_err().to_string();
            FAULT.set((u32::MAX, 0));
            if k == 0 {
                // Nothing was moved, and nothing has to be put back.
                continue;
            }
            assert!(error.starts_with(&*staged.to_string_lossy()), "{k}: {error}");
            let files = shown(folder.path()).len() + shown(&staged).len();
            // Four old ones, four new ones, that of another set; lock and mark.
            assert_eq!(files, 4 + 4 + 1 + 2, "{k}: {error}");
            assert!(!is_read(folder.path()), "{k}");
            drop(Staging::begin(folder.path(), "a", true).unwrap());
            assert_eq!(shown(folder.path()), new_set(), "{k}");
        }
        // The set is in place, and its mark cannot be taken away.
        let (folder, staging) = waiting(3);
        FAULT.set((9, 1));
        staging.publish().unwrap();
        FAULT.set((u32::MAX, 0));
        assert_eq!(shown(folder.path()), new_set());
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_absent() {
        let folder = tempfile::tempdir().unwrap();
        let (there, nowhere) = (folder.path().join("there"), folder.path().join("nowhere"));
        std::fs::write(&there, b"").unwrap();
        assert!(is_there(&there).unwrap() && !is_there(&nowhere).unwrap());
        assert!(!is_there(&there.join(LEAVING)).unwrap(), "a temporary file, no folder");
        // A name that no file system has room for: an error as of a disk that fails.
        assert!(is_there(&folder.path().join("x".repeat(5000))).is_err());
    }

    #[test]
    fn an_unfinished_set_is_finished_before_another_is_refused_whatever_else_was_left() {
        let (folder, staging) = waiting(3);
        let staged = staging.staged.path().to_owned();
        FAULT.set((2, 1));
        let publish = Publish { folder: folder.path(), staged: &staged, prefix: "a" };
        publish.run().unwrap_err();
        FAULT.set((u32::MAX, 0));
        staging.staged.keep();
        // Of a pack that was killed before it had written anything.
        let other = folder.path().join(".a.xyz.part");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("lock"), b"").unwrap();
        assert!(matches!(Staging::begin(folder.path(), "a", false), Err(Error::Usage(_))));
        assert_eq!(shown(folder.path()), new_set());
        assert!(!staged.exists() && !other.exists());
    }
}
