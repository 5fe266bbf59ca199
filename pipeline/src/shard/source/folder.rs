//! An ImageFolder tree, `ROOT/CLASS/.../NAME.jpg`, read as torchvision reads it:
//! classes sorted by name, files sorted within. A folder with images and
//! no subfolders is a set without labels.

use std::path::{Path, PathBuf};

use super::{Keys, Loaded, Source, extension_of};
use crate::shard::ReadScratch;
use crate::{Error, Result};

/// What torchvision takes for an image.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];
/// Folders within folders, before it looks like a loop of links.
const MAX_DEPTH: usize = 64;

struct File {
    path: PathBuf,
    key: String,
    label: Option<u32>,
    bytes: u64,
}

/// The images of a folder.
pub struct FolderSource {
    files: Vec<File>,
    classes: Vec<String>,
}

impl FolderSource {
    /// Lists the tree at `root`. Names that begin with a dot are passed over.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Usage`] when there is no image.
    pub fn open(root: &Path) -> Result<FolderSource> {
        let (folders, files) = entries(root)?;
        let mut source = FolderSource { files: Vec::new(), classes: Vec::new() };
        let mut keys = Keys::default();
        if folders.is_empty() {
            for file in files {
                source.add(root, file, None, &mut keys)?;
            }
        }
        for (label, folder) in folders.into_iter().enumerate() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            source.classes.push(name);
            source.walk(root, &folder, label as u32, &mut keys, 0)?;
        }
        if source.files.is_empty() {
            let kinds = EXTENSIONS.join(", ");
            return Err(Error::Usage(format!(
                "{}: no images ({kinds}) in it or its folders",
                root.display()
            )));
        }
        Ok(source)
    }

    fn walk(
        &mut self,
        root: &Path,
        folder: &Path,
        label: u32,
        keys: &mut Keys,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::Usage(format!(
                "{}: folders nest deeper than {MAX_DEPTH}",
                folder.display()
            )));
        }
        let (folders, files) = entries(folder)?;
        for file in files {
            self.add(root, file, Some(label), keys)?;
        }
        for inner in folders {
            self.walk(root, &inner, label, keys, depth + 1)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        root: &Path,
        path: PathBuf,
        label: Option<u32>,
        keys: &mut Keys,
    ) -> Result<()> {
        if EXTENSIONS.contains(&extension_of(&path).as_str()) {
            let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
            let key = keys.make(path.strip_prefix(root).unwrap_or(&path));
            self.files.push(File { path, key, label, bytes });
        }
        Ok(())
    }
}

/// Folders and files in a folder, both by name; links are followed.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let failed = |e| Error::io(folder, e);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let mut kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            kind = std::fs::metadata(entry.path())
                .map_err(|e| Error::io(entry.path(), e))?
                .file_type();
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

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, i: usize) -> Result<Option<u32>> {
        Ok(self.files[i].label)
    }

    fn bytes(&self, i: usize) -> Result<u64> {
        Ok(self.files[i].bytes)
    }

    fn name(&self, i: usize) -> String {
        self.files[i].path.display().to_string()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let file = &self.files[i];
        into.key.clone_from(&file.key);
        (into.label, into.extension) = (file.label, extension_of(&file.path));
        into.extras.clear();
        into.image = std::fs::read(&file.path).map_err(|e| Error::io(&file.path, e))?;
        Ok(())
    }
}
