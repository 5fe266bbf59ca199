//! A run's `checkpoints` folder: what in it is a checkpoint, and what stays. Whatever has another
//! name, a copy that somebody made or an archive, is nobody's to take up or to remove.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Result as IoResult};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::FOLDER;

/// What the names of checkpoints begin with.
pub(super) const PREFIX: &str = "step-";
/// What the names of those begin with that no run goes on from by itself.
pub(super) const ASIDE: &str = "aside-";
/// What the names of unfinished ones begin with.
pub(super) const TEMPORARY: &str = ".tmp-";
/// Digits of a step in a name, at least.
const DIGITS: usize = 10;

/// The checkpoints in a run's folder of them, oldest first; none where there is no such folder.
///
/// # Errors
/// A folder that is there and cannot be read, or a link to one that is not there: what it holds is
/// not nothing; the same of a checkpoint.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for path in entries(folder)? {
        if let Some(step) = step_of(&path)
            && is_folder(&path)?
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Steps of a run's newest checkpoint; none where there is none, or where it cannot be told.
pub fn newest_step(run: &Path) -> Option<u64> {
    step_of(&list(&run.join(FOLDER)).ok()?.pop()?)
}

/// Whether a run has left checkpoints in its folder, also such that were set aside.
///
/// # Errors
/// As [`list`].
pub fn any(run: &Path) -> Result<bool> {
    let begins = |path: &PathBuf, with: &str| name_of(path).starts_with(with);
    let paths = entries(&run.join(FOLDER))?;
    Ok(paths.iter().any(|path| begins(path, PREFIX) || begins(path, ASIDE)))
}

/// Sets the checkpoints after `step` aside, so that a run that goes on from there is not taken up
/// at them later.
///
/// # Errors
/// When one cannot be renamed.
pub fn set_aside_after(run: &Path, step: u64) -> Result<()> {
    let folder = run.join(FOLDER);
    for path in list(&folder)? {
        if let Some(its) = step_of(&path).filter(|its| *its > step) {
            let aside = free_name(&folder, its);
            fs::rename(&path, aside)
                .with_context(|| format!("cannot set {} aside", path.display()))?;
        }
    }
    Ok(())
}

/// Removes what a killed process left behind under temporary names.
///
/// # Errors
/// When a leftover cannot be removed.
pub fn clean(run: &Path) -> Result<()> {
    for path in entries(&run.join(FOLDER))? {
        if name_of(&path).starts_with(TEMPORARY) && path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Keeps the newest `keep` checkpoints up to and with `newest`. Later ones are an earlier life's,
/// damaged, or the run would have gone on from there: they take nobody's place.
pub(super) fn prune(folder: &Path, newest: &Path, keep: usize) -> Result<()> {
    let last = step_of(newest);
    let paths: Vec<PathBuf> =
        list(folder)?.into_iter().filter(|path| step_of(path) <= last).collect();
    paths[..paths.len().saturating_sub(keep)].iter().try_for_each(|path| discard(path))
}

/// Removes a checkpoint, under a temporary name: whoever is killed meanwhile leaves no part of it
/// that is called a checkpoint.
pub(super) fn discard(path: &Path) -> Result<()> {
    let aside = path.with_file_name(format!("{TEMPORARY}{}", name_of(path)));
    let remove = || {
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => fs::rename(path, &aside)?,
        }
        fs::remove_dir_all(&aside)
    };
    remove().with_context(|| path.display().to_string())
}

/// The name of a checkpoint of `step`.
pub(super) fn name(prefix: &str, step: u64) -> String {
    format!("{prefix}{step:0DIGITS$}")
}

/// A name for what is set aside that nothing has yet: what stands there stays until somebody
/// removes it.
pub(super) fn free_name(folder: &Path, step: u64) -> PathBuf {
    let first = folder.join(name(ASIDE, step));
    let further = (2..).map(|number: u64| folder.join(format!("{}.{number}", name(ASIDE, step))));
    std::iter::once(first).chain(further).find(|path| !path.exists()).expect("numbers do not end")
}

pub(super) fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// The step that a checkpoint's name tells; none of other names.
pub(super) fn step_of(path: &Path) -> Option<u64> {
    let digits = name_of(path).strip_prefix(PREFIX)?;
    let all_digits = digits.len() >= DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all_digits)
}

/// Whether a folder is there; what cannot be looked at is not nothing.
fn is_folder(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        found => Ok(found.with_context(|| format!("cannot read {}", path.display()))?.is_dir()),
    }
}

/// What lies in `folder`; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<IoResult<_>>());
    match paths {
        Err(error) if error.kind() == ErrorKind::NotFound && !folder.is_symlink() => Ok(Vec::new()),
        paths => paths.with_context(|| format!("cannot read {}", folder.display())),
    }
}
