//! Files that matter: written to a temporary name beside their place, synced,
//! renamed, so that a reader sees the old file or the new one and never a half.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Tensor;

/// What temporary names begin with; [`DRAWN`] letters and digits follow.
const TEMPORARY: &str = ".tmp-";
/// Letters and digits that tell temporary names apart.
const DRAWN: usize = 6;

/// Replaces `path` by `bytes`.
///
/// # Errors
/// When the folder cannot be written; the previous file is then intact.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |mut file| Ok(file.write_all(bytes)?))
}

/// Replaces `path` by what `fill` writes.
///
/// # Errors
/// Those of `fill`, or when the folder cannot be written; the previous file is then intact.
pub fn replace(path: &Path, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let folder = parent(path);
    let write = || -> Result<()> {
        let file = temporary(folder)?;
        fill(file.as_file())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(sync_folder(folder)?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// What a JSON file beside a run's metrics tells, where there is one; nothing where it is torn,
/// which is warned of.
pub(crate) fn optional_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let json = std::fs::read(path).ok()?;
    let read = serde_json::from_slice(&json);
    read.inspect_err(|error| tracing::warn!("{}: {error}; going on without it", path.display()))
        .ok()
}

/// A new file in `folder`, readable as any other new file; tempfile's default is for secrets.
fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY).rand_bytes(DRAWN);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Removes the files that a process which was killed in [`replace`] left in `folder`.
///
/// # Errors
/// When one cannot be removed, or the folder cannot be read.
pub fn clean(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file of this name is one of [`temporary`]'s; somebody else's may begin alike.
fn is_temporary(name: &str) -> bool {
    let drawn = name.strip_prefix(TEMPORARY).unwrap_or_default();
    drawn.len() == DRAWN && drawn.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Replaces `path` by a safetensors file of `tensors`, on disk when this returns.
///
/// # Errors
/// When it cannot be written; the previous file is then intact.
pub fn save_tensors<K>(tensors: &HashMap<K, Tensor>, path: &Path) -> Result<()>
where
    K: AsRef<str> + Ord + std::fmt::Display + Eq + std::hash::Hash,
{
    let folder = parent(path);
    let write = || -> Result<()> {
        // In a folder of its own: a copy of all tensors as the bytes of one file may not fit the
        // memory.
        let aside = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(folder)?;
        let whole = aside.path().join("tensors");
        write_tensors(tensors, &whole)?;
        std::fs::rename(&whole, path)?;
        Ok(sync_folder(folder)?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a safetensors file of `tensors`, on disk when this returns, into a folder that is not in
/// its place yet: the file has its name before it is synced.
///
/// # Errors
/// When it cannot be written.
pub fn write_tensors<K>(tensors: &HashMap<K, Tensor>, path: &Path) -> Result<()>
where
    K: AsRef<str> + Ord + std::fmt::Display + Eq + std::hash::Hash,
{
    let write = || -> Result<()> {
        // By a temporary file of its own, for its owner alone.
        candle_core::safetensors::save(tensors, path)?;
        let usual = temporary(parent(path))?.as_file().metadata()?.permissions();
        // Some file systems refuse it; it is its owner's then, and whole.
        let _ = std::fs::set_permissions(path, usual);
        Ok(File::open(path)?.sync_all()?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A file that grows by lines. What a full disk does not take is kept and written with a later
/// line, and no half of a line stays in the file.
#[derive(Debug)]
pub struct LineLog {
    path: PathBuf,
    pending: String,
}

impl LineLog {
    /// A log at `path`; the file is made with its first line. A line that was cut off at the end,
    /// by a killed process, is taken out.
    ///
    /// # Errors
    /// When a file that is there cannot be read or written.
    pub fn open(path: &Path) -> Result<Self> {
        let whole = match std::fs::read(path) {
            Ok(bytes) => bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let log = LineLog { path: path.to_owned(), pending: String::new() };
        if path.exists() {
            let cut = OpenOptions::new().write(true).open(path);
            let cut = cut.and_then(|file| file.set_len(whole as u64));
            cut.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(log)
    }

    /// Adds a line, and those that could not be written before.
    ///
    /// # Errors
    /// When they cannot be written; they are kept.
    pub fn add(&mut self, line: &str) -> Result<()> {
        self.pending.push_str(line);
        self.pending.push('\n');
        self.flush()
    }

    /// Writes the lines that could not be written so far.
    ///
    /// # Errors
    /// When they cannot be written now either.
    pub fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let append = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            let before = file.metadata()?.len();
            file.write_all(self.pending.as_bytes()).inspect_err(|_| {
                // There is room for less.
                let _ = file.set_len(before);
            })
        };
        append().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.pending.clear();
        Ok(())
    }
}

/// Makes a rename in `folder` durable.
///
/// # Errors
/// When the folder cannot be synced.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that holds `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_written_are_written_later_and_torn_ones_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\nto").unwrap();
        let mut log = LineLog::open(&path).unwrap();
        log.add("two").unwrap();
        // A folder stands in the way for a while.
        std::fs::rename(&path, dir.path().join("away")).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(log.add("three").is_err() && log.flush().is_err());
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(dir.path().join("away"), &path).unwrap();
        log.add("four").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let left = temporary(dir.path()).unwrap().into_temp_path().keep().unwrap();
        let others = [".tmp-notes.txt", ".tmp-1234567", "tmp-abcdef", ".tmp-", "report.html"];
        others.iter().for_each(|name| std::fs::write(dir.path().join(name), "x").unwrap());
        std::fs::create_dir(dir.path().join(".tmp-abcdef")).unwrap();
        clean(dir.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), others.len() + 1);
        assert!(clean(&dir.path().join("nowhere")).is_err());
    }

    #[test]
    fn a_write_that_fails_leaves_the_previous_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        // A folder stands where the file should go: the rename fails.
        let taken = dir.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        std::fs::write(taken.join("inside"), "x").unwrap();
        assert!(write_atomically(&taken, b"third").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        // Tensors are as readable as the rest.
        let tensors = HashMap::from([(
            "t",
            Tensor::zeros(3, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(),
        )]);
        save_tensors(&tensors, &dir.path().join("t.safetensors")).unwrap();
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions();
        assert_eq!(mode("t.safetensors"), mode("report.html"));
        std::fs::remove_file(dir.path().join("t.safetensors")).unwrap();
        let error = save_tensors(&tensors, &taken).unwrap_err().to_string();
        assert!(error.contains("taken"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        // What fills it fails half-way.
        let half = replace(&path, |mut file| {
            file.write_all(b"ha")?;
            anyhow::bail!("no more")
        });
        assert!(half.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
    }
}
