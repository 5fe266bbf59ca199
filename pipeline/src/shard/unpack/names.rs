//! What unpacked files and the folders of classes are called: names that any file system takes, and
//! from which packing makes the same classes again. Under `unpack`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::Result;
use crate::shard::set::ShardSet;

/// Bytes of a name that file systems take.
const NAME_BYTES: usize = 255;
/// Bytes of an extension that is kept as it is.
const EXTENSION_BYTES: usize = 64;
/// Bytes of a key whose folders are made; the system's limit counts those above, too.
const PATH_BYTES: usize = 1024;
/// Classes that get a folder each, whether they have samples or not.
const FOLDERS: usize = 1 << 17;
/// Where samples without a label go.
const UNLABELLED: &str = "unlabelled";

/// What the folders of the classes are called.
pub(super) struct ClassFolders {
    /// By number, where the classes have names.
    names: Vec<String>,
    count: usize,
}

impl ClassFolders {
    pub fn of(set: &ShardSet) -> Result<Self> {
        let (names, count) = (set.classes(), set.num_classes()?);
        let clean: Vec<String> =
            names.iter().map(|name| cut(&component(name), NAME_BYTES)).collect();
        let names = match keeps_numbers(&clean) && !comes_between(&clean, set)? {
            true => clean,
            false => numbered(names),
        };
        Ok(ClassFolders { names, count })
    }

    /// How many classes there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The folder of a label's samples, or of those without; `None` beyond the classes.
    pub fn folder(&self, label: Option<u32>) -> Option<String> {
        let Some(label) = label.map(|label| label as usize) else {
            return Some(if self.count == 0 { String::new() } else { UNLABELLED.to_owned() });
        };
        let width = digits(self.count);
        let number = || format!("{label:0width$}");
        (label < self.count).then(|| self.names.get(label).cloned().unwrap_or_else(number))
    }

    /// The folders that have to be there although nothing lies in them: packing counts the classes.
    pub fn all(&self) -> impl Iterator<Item = String> {
        if self.count > FOLDERS {
            tracing::warn!(
                "{} classes: those without samples get no folder, and the others other numbers where \
                 the folders are packed again",
                self.count
            );
        }
        let count = if self.count > FOLDERS { 0 } else { self.count as u32 };
        (0..count).filter_map(|label| self.folder(Some(label)))
    }
}

/// Whether packing gives folders of these names the numbers that the classes have: they are in
/// order, differ, are not hidden, and none is that of samples without a label.
fn keeps_numbers(names: &[String]) -> bool {
    let in_order = names.windows(2).all(|pair| pair[0] < pair[1]);
    let lower: HashSet<String> = names.iter().map(|name| name.to_lowercase()).collect();
    // Where `A` and `a` are one name, they would be one class.
    in_order
        && lower.len() == names.len()
        && !names.iter().any(|name| name.starts_with('.') || name == UNLABELLED)
}

/// Whether the folder of samples without a label takes the number of one of these, in order, of a
/// set.
fn comes_between(names: &[String], set: &ShardSet) -> Result<bool> {
    if names.last().is_none_or(|last| last.as_str() < UNLABELLED) {
        return Ok(false);
    }
    for sample in 0..set.len() {
        if set.label(sample)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn numbered(names: &[String]) -> Vec<String> {
    let width = digits(names.len());
    let numbered = names
        .iter()
        .enumerate()
        .map(|(label, name)| cut(&format!("{label:0width$}_{}", component(name)), NAME_BYTES));
    numbered.collect()
}

/// Digits of the largest number of `count` classes.
fn digits(count: usize) -> usize {
    count.saturating_sub(1).to_string().len()
}

/// A name that is one harmless path component.
pub(super) fn component(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c })
        .collect();
    match clean.as_str() {
        "" | "." | ".." => format!("_{clean}"),
        _ => clean,
    }
}

/// A component of at most `bytes` bytes: as it is, or its beginning and a hash of all of it.
pub(super) fn cut(name: &str, bytes: usize) -> String {
    if name.len() <= bytes {
        return name.to_owned();
    }
    let hash = format!("-{:016x}", xxh3_64(name.as_bytes()));
    let most = bytes.saturating_sub(hash.len());
    let kept = (0..=most).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    format!("{}{hash}", &name[..kept])
}

/// `STEM.EXTENSION`, or with a number `STEM-2.EXTENSION`, each cut if need be.
pub(super) fn file_name(stem: &str, number: u32, extension: &str) -> String {
    let number = if number > 1 { format!("-{number}") } else { String::new() };
    let behind = format!("{number}.{}", cut(extension, EXTENSION_BYTES));
    format!("{}{behind}", cut(stem, NAME_BYTES.saturating_sub(behind.len())))
}

/// The folders of a key and what its files are called, which have `extensions`.
pub(super) fn place_of<'a>(
    key: &str,
    extensions: impl Iterator<Item = &'a str>,
) -> (PathBuf, String) {
    let parts = || key.split('/').filter(|part| !matches!(*part, "" | ".")).map(component);
    let mut folders: Vec<String> = parts().map(|part| cut(&part, NAME_BYTES)).collect();
    folders.pop();
    if key.len() > PATH_BYTES {
        folders = vec![cut(&component(key), NAME_BYTES)];
    }
    // All files of a key have one stem.
    let longest = extensions.map(str::len).max().unwrap_or(0).min(EXTENSION_BYTES);
    let stem = parts().next_back().unwrap_or_else(|| component(""));
    (folders.into_iter().collect(), cut(&stem, NAME_BYTES - 1 - longest))
}

/// Whether a path is what a key and an extension ask for.
pub(super) fn is_asked(path: &Path, key: &str, extension: &str) -> bool {
    let parts = key.split('/').filter(|part| !matches!(*part, "" | ".")).map(component);
    let mut asked = parts.collect::<PathBuf>().into_os_string();
    asked.push(format!(".{extension}"));
    path.as_os_str() == asked
}
