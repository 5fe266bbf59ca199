//! Folders of images on disk, as torchvision sees them: what is an image by its name, and what
//! lies in a folder.

use std::collections::HashSet;
use std::fs::{DirEntry, FileType};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::extension_of;
use crate::decode::DecodeOptions;
use crate::shard::map::open_regular;
use crate::{Error, Result};

/// What torchvision takes for an image.
pub(super) const EXTENSIONS: [&str; 9] =
    ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];
/// Folders within folders, before it looks like a loop of links.
pub(super) const MAX_DEPTH: usize = 64;
/// Folders that are searched for an image: whoever names the root of a disk waits for no walk of
/// it.
const MAX_FOLDERS: usize = 1000;

pub(super) fn is_image(path: &Path) -> bool {
    EXTENSIONS.contains(&extension_of(path).as_str())
}

/// Folders and files in a folder, both by name; links are followed.
pub(super) fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let failed = |e| Error::io(folder, e);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let mut kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            kind = match std::fs::metadata(entry.path()) {
                Ok(found) => found.file_type(),
                Err(_) if is_image(&entry.path()) => {
                    files.push(entry.path());
                    continue;
                }
                // It may stand for a class, and the next ones would get its number.
                Err(e) => return Err(Error::io(entry.path(), e)),
            };
        }
        if kind.is_dir() {
            folders.push(entry.path());
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

/// The bytes of an image's file.
///
/// # Errors
/// [`Error::Io`]; [`Error::TooLarge`] when there are more than a decoder takes.
pub(super) fn read_image(path: &Path) -> Result<Vec<u8>> {
    let limit = DecodeOptions::default().max_bytes;
    let over = || format!("the file has more than {limit} bytes, which is the limit of an image");
    read_within(path, limit)?.ok_or_else(|| Error::TooLarge(over()))
}

/// The bytes of a file, `None` where it has more than `limit`. A file that is said to have more is
/// not read: it may be one hole.
pub(crate) fn read_within(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let failed = |e| Error::io(path, e);
    let file = open_regular(path)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > limit {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// An image in `folder` or below it, if one is found among its first folders; what begins with a
/// dot or cannot be read counts as none.
pub(crate) fn image_below(folder: &Path) -> Option<PathBuf> {
    below(folder, &mut HashSet::new())
}

fn below(folder: &Path, visited: &mut HashSet<PathBuf>) -> Option<PathBuf> {
    // Links may lead back.
    if visited.len() >= MAX_FOLDERS || !visited.insert(folder.canonicalize().ok()?) {
        return None;
    }
    let shown = |entry: &DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut entries: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().filter(shown).collect();
    entries.sort_by_key(DirEntry::file_name);
    let image = entries.iter().map(DirEntry::path).find(|path| is_image(path) && path.is_file());
    image.or_else(|| {
        let folders = entries.iter().filter(|entry| is_folder(entry)).map(DirEntry::path);
        folders.into_iter().find_map(|inner| below(&inner, visited))
    })
}

fn is_folder(entry: &DirEntry) -> bool {
    let is_link = |kind: FileType| kind.is_symlink() && entry.path().is_dir();
    entry.file_type().is_ok_and(|kind| kind.is_dir() || is_link(kind))
}
