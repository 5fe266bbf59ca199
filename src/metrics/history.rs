//! Lines that are there already: read, and taken out where a run goes on from before them.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::{ASIDE_METRICS_FILE, Line, METRICS_FILE};

/// Reads the metrics of a run; lines that are no metrics are passed over, as the
/// last one of a run that was killed may be cut off.
///
/// # Errors
/// When the file cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Line>> {
    let path = dir.join(METRICS_FILE);
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(lines_of(&text).filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The lines of `text` that are UTF-8: a disk may have put anything between them.
pub(super) fn lines_of(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

/// Moves the lines of steps after `step` to [`ASIDE_METRICS_FILE`], behind those that are there
/// already, and returns how many there were: the run will not come by these steps as it did.
///
/// # Errors
/// When a file cannot be read or written.
pub fn set_aside_after(dir: &Path, step: u64) -> Result<usize> {
    let (path, aside) = (dir.join(METRICS_FILE), dir.join(ASIDE_METRICS_FILE));
    let (_, later) = split(&path, step).with_context(|| path.display().to_string())?;
    if !later.is_empty() {
        let file = OpenOptions::new().create(true).append(true).open(&aside);
        let written = file.and_then(|mut file| {
            file.write_all(later.as_bytes())?;
            file.sync_all()
        });
        written.with_context(|| format!("cannot write {}", aside.display()))?;
        drop_later_lines(&path, step)?;
    }
    Ok(later.lines().count())
}

/// Takes out the lines of steps after `step`, and what is no line.
pub(super) fn drop_later_lines(path: &Path, step: u64) -> Result<()> {
    let (kept, _) = split(path, step)?;
    let length = path.metadata().map_or(0, |file| file.len());
    if kept.len() as u64 != length {
        crate::files::write_atomically(path, kept.as_bytes())?;
    }
    Ok(())
}

/// The lines of the steps up to `step`, and those of later ones.
fn split(path: &Path, step: u64) -> Result<(String, String)> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        text => text?,
    };
    let mut parts = (String::new(), String::new());
    for line in lines_of(&text) {
        let Ok(found) = serde_json::from_str::<Line>(line) else { continue };
        let part = if found.step <= step { &mut parts.0 } else { &mut parts.1 };
        part.push_str(line);
        part.push('\n');
    }
    Ok(parts)
}
