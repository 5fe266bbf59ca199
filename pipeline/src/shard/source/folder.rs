//! An ImageFolder tree, `ROOT/CLASS/.../NAME.jpg`, read as torchvision reads it:
//! classes sorted by name, files sorted within. A folder with images and
//! no subfolders is a set without labels.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::tree::{EXTENSIONS, MAX_DEPTH, entries, is_image, read_image};
use super::{Keys, Loaded, Source, extension_of};
use crate::shard::ReadScratch;
use crate::{Error, Result};

struct File {
    path: PathBuf,
    key: String,
    label: Option<u32>,
    /// `None` for a link that leads nowhere: whoever wants the image is told.
    bytes: Option<u64>,
}

/// The images of a folder.
#[derive(Default)]
pub struct FolderSource {
    files: Vec<File>,
    classes: Vec<String>,
    /// Files that are no images by their names: how many of each extension.
    others: BTreeMap<String, usize>,
    /// Images beside the folders of classes.
    unclassed: usize,
    /// Classes without an image.
    empty: Vec<String>,
    /// Links to folders whose images their class has already.
    repeated: Vec<PathBuf>,
    /// Folders beside those of classes whose names begin with a dot.
    hidden: Vec<String>,
}

impl std::fmt::Debug for FolderSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FolderSource")
            .field("images", &self.files.len())
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

/// A class whose folders are walked.
struct Class<'a> {
    root: &'a Path,
    label: u32,
    keys: &'a mut Keys,
    /// Its folders by their own names: links that lead back would be followed for ever.
    visited: HashSet<PathBuf>,
}

impl FolderSource {
    /// Lists the tree at `root`. Names that begin with a dot are passed over. A link with an
    /// image's name that leads nowhere is listed, and an error when the image is asked for.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Usage`] when there is no image.
    pub fn open(root: &Path) -> Result<FolderSource> {
        let (folders, files) = entries(root)?;
        let mut source = FolderSource { hidden: hidden_folders(root)?, ..Self::default() };
        let mut keys = Keys::default();
        for file in files {
            match folders.is_empty() {
                true => source.add(root, file, None, &mut keys)?,
                false => source.unclassed += usize::from(is_image(&file)),
            }
        }
        for (label, folder) in folders.into_iter().enumerate() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let before = source.files.len();
            let (label, visited) = (label as u32, own_name(root).into_iter().collect());
            source.walk(&mut Class { root, label, keys: &mut keys, visited }, &folder, 0)?;
            if source.files.len() == before {
                source.empty.push(name.clone());
            }
            source.classes.push(name);
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

    fn walk(&mut self, class: &mut Class<'_>, folder: &Path, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::Usage(format!(
                "{}: folders nest deeper than {MAX_DEPTH}",
                folder.display()
            )));
        }
        if own_name(folder).is_some_and(|name| !class.visited.insert(name)) {
            self.repeated.push(folder.to_owned());
            return Ok(());
        }
        let (folders, files) = entries(folder)?;
        for file in files {
            self.add(class.root, file, Some(class.label), class.keys)?;
        }
        folders.iter().try_for_each(|inner| self.walk(class, inner, depth + 1))
    }

    fn add(
        &mut self,
        root: &Path,
        path: PathBuf,
        label: Option<u32>,
        keys: &mut Keys,
    ) -> Result<()> {
        if !is_image(&path) {
            *self.others.entry(extension_of(&path)).or_default() += 1;
        } else {
            let bytes = std::fs::metadata(&path).ok().map(|found| found.len());
            let key = keys.make(path.strip_prefix(root).unwrap_or(&path));
            self.files.push(File { path, key, label, bytes });
        }
        Ok(())
    }
}

/// The folders in `root` whose names begin with a dot.
fn hidden_folders(root: &Path) -> Result<Vec<String>> {
    let mut hidden = Vec::new();
    for entry in std::fs::read_dir(root).map_err(|e| Error::io(root, e))? {
        let entry = entry.map_err(|e| Error::io(root, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && entry.path().is_dir() {
            hidden.push(name);
        }
    }
    hidden.sort();
    Ok(hidden)
}

/// The name of a folder without links. Where there is none, reading the folder fails as well.
fn own_name(folder: &Path) -> Option<PathBuf> {
    folder.canonicalize().ok()
}

/// The first five of `names`.
fn few(names: &[String]) -> String {
    let more = if names.len() > 5 { ", ..." } else { "" };
    names.iter().take(5).cloned().collect::<Vec<_>>().join(", ") + more
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, i: usize) -> Result<Option<u32>> {
        Ok(self.files[i].label)
    }

    fn bytes(&self, i: usize) -> Result<u64> {
        let File { path, bytes, .. } = &self.files[i];
        match bytes {
            Some(bytes) => Ok(*bytes),
            None => Ok(std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len()),
        }
    }

    fn name(&self, i: usize) -> String {
        self.files[i].path.display().to_string()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn passed_over(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.others.is_empty() {
            let each: Vec<String> = self
                .others
                .iter()
                .map(|(extension, files)| match extension.as_str() {
                    "" => format!("{files} without an extension"),
                    extension => format!("{files} .{extension}"),
                })
                .collect();
            notes.push(format!(
                "files that are not read as images: {} (those that are: {})",
                each.join(", "),
                EXTENSIONS.join(", ")
            ));
        }
        if self.unclassed > 0 {
            notes.push(format!("{} images that lie in no class's folder", self.unclassed));
        }
        if !self.empty.is_empty() {
            let few = few(&self.empty);
            notes.push(format!("classes without an image, which have a number: {few}"));
        }
        if !self.hidden.is_empty() {
            let few = few(&self.hidden);
            notes.push(format!(
                "folders whose names begin with a dot (torchvision would take them for classes): {few}"
            ));
        }
        if let Some(first) = self.repeated.first() {
            let (links, first) = (self.repeated.len(), first.display());
            notes.push(format!(
                "folders whose images their class has already, behind links: {links} ({first})"
            ));
        }
        notes
    }

    fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let file = &self.files[i];
        into.key.clone_from(&file.key);
        (into.label, into.extension) = (file.label, extension_of(&file.path));
        into.extras.clear();
        into.image = read_image(&file.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_over_is_said() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        ["a/1.jpg", "b/2.PNG"].into_iter().for_each(file);
        assert!(FolderSource::open(root.path()).unwrap().passed_over().is_empty());
        ["a/3.gif", "a/4.gif", "b/README", "5.jpg", ".hidden", ".a/6.jpg", "a/.b/7.jpg"]
            .into_iter()
            .for_each(file);
        std::fs::create_dir(root.path().join("c")).unwrap();
        let source = FolderSource::open(root.path()).unwrap();
        assert_eq!((source.len(), source.classes().len()), (2, 3));
        let notes = source.passed_over();
        let expected = [
            "1 without an extension, 2 .gif",
            "1 images that lie in no",
            "number: c",
            "classes): .a",
        ];
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(notes.iter().zip(expected).all(|(note, part)| note.contains(part)), "{notes:?}");
    }
}
