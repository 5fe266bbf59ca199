//! A cache that users share: locks that all may take, and whose files may be removed.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use crate::{Error, Result};

/// Opens the file of a lock. One that another user made may not be open to writing, which a lock
/// does not need.
pub fn open_lock(path: &Path) -> Result<File> {
    let opened = File::options().write(true).create(true).truncate(false).open(path);
    let opened = match opened {
        Err(denied) if denied.kind() == ErrorKind::PermissionDenied => {
            File::open(path).or(Err(denied))
        }
        other => other,
    };
    opened.map_err(|e| Error::io(path, e))
}

/// Whether `path` still names the open `file`: it may have been unlinked, and another made. True
/// where the system does not tell.
pub fn is_at(_file: &File, _path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let (open, there) = (_file.metadata().map(place), std::fs::metadata(_path).map(place));
        matches!((open, there), (Ok(open), Ok(there)) if open == there)
    }
    #[cfg(not(unix))]
    true
}

/// The folder of locks, as open to others as the cache is.
pub fn make_locks(folder: &Path, locks: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    match std::fs::create_dir(locks) {
        Ok(()) => std::fs::set_permissions(locks, std::fs::metadata(folder)?.permissions()),
        Err(_) if locks.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The user whose file it is; 0 for all where the system does not tell.
pub fn owner(_meta: &std::fs::Metadata) -> u32 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::uid(_meta);
    #[cfg(not(unix))]
    0
}

/// Who may remove what: in a folder with the sticky bit, as those have that all may write to, only
/// the owners of the folder and of the file.
pub struct Owners {
    pub sticky: bool,
    pub folder: u32,
    pub me: u32,
}

impl Owners {
    pub fn of(folder: &Path) -> Result<Owners> {
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

    /// Whether a file of `owner`'s goes when this user asks.
    pub fn may_remove(&self, owner: u32) -> bool {
        !self.sticky || [0, self.folder, owner].contains(&self.me)
    }
}
