//! Files that are whole or not there: written under a temporary name beside
//! the target, synced, renamed. A failure removes what was written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;
use xxhash_rust::xxh3::Xxh3;

use crate::{Error, Result};

/// How temporary names end; they begin with a dot.
pub(crate) const PART: &str = ".part";

/// A file on its way.
pub(crate) struct AtomicFile {
    /// What messages call it.
    target: PathBuf,
    /// The name it is given.
    place: PathBuf,
    writer: BufWriter<File>,
    /// The name it has until then.
    temporary: TempPath,
    hash: Xxh3,
    written: u64,
}

impl AtomicFile {
    /// Begins a file that will be called `target`; its folder must exist.
    pub fn create(target: &Path) -> Result<Self> {
        AtomicFile::staged(target, target)
    }

    /// As `create`, but the file is given the name `place` for now; messages speak of `target`.
    pub fn staged(target: &Path, place: &Path) -> Result<Self> {
        let folder = place.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PART);
        // Opened here: as any other new file, with what the umask leaves; and errors are the
        // system's, where `tempfile` would add the temporary name to each.
        let new = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
        let temp = builder.make_in(folder, new).map_err(|e| Error::io(target, e))?;
        let (file, temporary) = temp.into_parts();
        // Tells it from what was left by a process that was killed; where the system has no
        // locks, such files stay.
        let _ = file.try_lock();
        let writer = BufWriter::with_capacity(1 << 20, file);
        let (target, place) = (target.to_owned(), place.to_owned());
        Ok(AtomicFile { target, place, writer, temporary, hash: Xxh3::new(), written: 0 })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|e| Error::io(&self.target, e))?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// XXH3-64 of the bytes so far.
    pub fn checksum(&self) -> u64 {
        self.hash.digest()
    }

    /// Writes out what is buffered and lends the file, to look at it before it is named.
    pub fn flushed(&mut self) -> Result<&File> {
        self.writer.flush().map_err(|e| Error::io(&self.target, e))?;
        Ok(self.writer.get_ref())
    }

    /// Syncs the file and gives it its name, replacing a file that has it.
    pub fn commit(mut self) -> Result<()> {
        self.flushed()?.sync_all().map_err(|e| Error::io(&self.target, e))?;
        let failed = |e| Error::io(&self.target, e);
        // Locked until it has its name.
        let _file = self.writer.into_inner().map_err(|e| failed(e.into_error()))?;
        self.temporary.persist(&self.place).map_err(|e| failed(e.error))?;
        Ok(())
    }

    /// A whole small file.
    pub fn write_all(target: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = AtomicFile::create(target)?;
        file.write(bytes)?;
        file.commit()
    }
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))?;
    let _ = folder;
    Ok(())
}
