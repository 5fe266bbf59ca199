//! Temporary folders, each with a file that its maker keeps locked: of whoever was killed nobody has
//! the lock.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::atomic::PART;
use crate::{Error, Result};

/// The file that a running pack keeps locked.
pub(super) const LOCK: &str = "lock";

/// A folder without that file is nobody's after so long: whoever removed it was killed between the
/// file and the folder, and whoever makes one gives it the file at once.
pub(super) const ABANDONED: Duration = Duration::from_secs(3600);

/// A temporary folder, removed with all that is left in it.
pub(crate) struct Staged {
    path: PathBuf,
    /// Whether it stays.
    kept: bool,
    /// Locked until it is gone.
    _lock: File,
}

impl Staged {
    /// Makes one in `folder`, which must exist: `.NAME.XXXXXX.part`.
    pub fn new(folder: &Path, name: &str) -> Result<Staged> {
        let failed = |e| Error::io(folder, e);
        let named = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&named).suffix(PART);
        // As any other new folder: whoever reads the set looks into it.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let made = builder.tempdir_in(folder);
        // Its kind alone: the rest speaks of the temporary name.
        let made = made.map_err(|e| failed(e.kind().into()))?;
        let lock = File::create_new(made.path().join(LOCK)).map_err(failed)?;
        // Where the system has no locks nobody takes one away either: see `owner`.
        let _ = lock.try_lock();
        Ok(Staged { path: made.keep(), kept: false, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there.
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.path.clone()
    }

    /// Removes it now.
    pub fn close(mut self) -> Result<()> {
        self.kept = true;
        remove(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept {
            let _ = remove(&self.path);
        }
    }
}

/// Removes a temporary folder with its files, of which the lock is the last: when this is killed,
/// the next one knows that nobody has what is left.
pub(super) fn remove(staged: &Path) -> Result<()> {
    let failed = |e| Error::io(staged, e);
    for entry in std::fs::read_dir(staged).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() != LOCK {
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    std::fs::remove_file(staged.join(LOCK)).map_err(failed)?;
    std::fs::remove_dir(staged).map_err(failed)
}

/// Who writes a temporary file or folder.
pub(super) enum Owner {
    /// Nobody any more; its lock, which is ours now.
    Nobody(#[expect(dead_code, reason = "held, not read")] File),
    /// A process that runs.
    Another,
    /// That cannot be known.
    Unknown,
}

/// Looks at the lock, and takes it where nobody has it.
pub(super) fn owner(path: &Path) -> Owner {
    let is_folder = path.is_dir();
    let lock = if is_folder { path.join(LOCK) } else { path.to_owned() };
    let mut options = File::options();
    // Of several that find a folder without a lock, one gets it.
    options.write(true).create(is_folder && is_abandoned(path)).truncate(false);
    let Ok(file) = options.open(lock) else { return Owner::Unknown };
    match file.try_lock() {
        Ok(()) => Owner::Nobody(file),
        Err(TryLockError::WouldBlock) => Owner::Another,
        Err(TryLockError::Error(_)) => Owner::Unknown,
    }
}

/// Whether nothing has come into a folder, or gone, for so long that nobody is at it who has not
/// locked it.
fn is_abandoned(folder: &Path) -> bool {
    let modified = std::fs::metadata(folder).and_then(|folder| folder.modified());
    modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > ABANDONED))
}
