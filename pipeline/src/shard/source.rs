//! Where images to be packed come from. Sources are lists with random
//! access, so that selection, shuffling and threads need not know them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::ReadScratch;
use super::pattern::{expand_braces, files_in, is_shard_name, parts};
use super::staging::Unfinished;
use super::union::is_url;
use super::{Limits, OpenOptions};
use crate::{Error, Result};

mod folder;
mod list;
mod shards;
mod synth;
mod tree;

pub use folder::FolderSource;
pub use list::ListSource;
pub use shards::ShardSource;
pub use synth::SynthSource;
pub(crate) use tree::{image_below, read_within};

/// One image with its key and label, as a source gives it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Its key; unique within the source.
    pub key: String,
    /// Its class, if it has one.
    pub label: Option<u32>,
    /// The encoded image.
    pub image: Vec<u8>,
    /// The extension it had, lower case, for formats that do not imply one.
    pub extension: String,
    /// Other members of the sample (`json`, ...): extension and bytes.
    pub extras: Vec<(String, Vec<u8>)>,
}

/// A numbered list of labelled images.
pub trait Source: Send + Sync {
    /// How many images there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of image `i`.
    ///
    /// # Errors
    /// Those of reading it from disk.
    fn label(&self, i: usize) -> Result<Option<u32>>;

    /// About how many bytes image `i` has; decides how work is divided.
    ///
    /// # Errors
    /// Those of reading it from disk.
    fn bytes(&self, i: usize) -> Result<u64>;

    /// Where image `i` is, for messages.
    fn name(&self, i: usize) -> String;

    /// Where a list names image `i`, for messages: `line 7 of images.csv`. `None` where there is no
    /// list.
    fn listed(&self, _i: usize) -> Option<String> {
        None
    }

    /// Names of the classes by number; empty where only numbers are known.
    fn classes(&self) -> &[String];

    /// What a person may have meant to be in it and is not, a sentence each.
    fn passed_over(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads image `i`.
    ///
    /// # Errors
    /// Those of reading it from disk.
    fn load(&self, i: usize, scratch: &mut ReadScratch, into: &mut Loaded) -> Result<()>;
}

/// Opens what `source` names: an ImageFolder tree, a `.csv`/`.tsv` list of path
/// and label, or WebDataset shards in any form [`super::ShardSet::open`]
/// takes; several, separated by `::`, have to be shards. Shards that can only be read in order
/// are expanded into unnamed temporary files in `temporary` first.
///
/// # Errors
/// [`Error::Usage`] when it is none of these, holds no image, or is a folder of shards and of
/// images as well; those of the source.
pub fn open_source(source: &str, temporary: &Path, limits: &Limits) -> Result<Box<dyn Source>> {
    let path = Path::new(source);
    let is_name = !source.contains(['*', '?', '[', '{', ' ']) && !source.contains("::");
    if is_name && !is_url(source) {
        std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    }
    unmistakable(source)?;
    let opened: Box<dyn Source> = if path.is_file() && is_list(path) {
        Box::new(ListSource::open(path, limits)?)
    } else if path.is_dir() && first_shard(path)?.is_none() {
        Box::new(FolderSource::open(path)?)
    } else {
        let options = OpenOptions { limits: *limits, ..OpenOptions::default() };
        Box::new(ShardSource::open(source, temporary, &options)?)
    };
    if opened.is_empty() {
        return Err(Error::Usage(format!("{source}: no images found")));
    }
    Ok(opened)
}

/// Refuses what would be read as less than it holds: a folder of shards and of images as well, and
/// a tree or a list that is one of several sources.
fn unmistakable(source: &str) -> Result<()> {
    let parts = parts(source);
    for part in parts.iter().filter(|part| !is_url(part)) {
        // Braces that cannot be expanded are an error of who opens the shards.
        let names = match Path::new(part).exists() {
            true => vec![(*part).to_owned()],
            false => expand_braces(part).unwrap_or_default(),
        };
        names.iter().try_for_each(|name| unmistakable_path(name, parts.len() == 1))?;
    }
    Ok(())
}

fn unmistakable_path(name: &str, alone: bool) -> Result<()> {
    let path = Path::new(name);
    if path.is_dir() {
        // Its shards may all be on their way, so that it looks like a folder of images.
        Unfinished::default().refuse(path, None)?;
    }
    let shard = if path.is_dir() { first_shard(path)? } else { None };
    if let Some(shard) = &shard {
        return only_shards(name, shard);
    }
    if !alone && (path.is_dir() || path.is_file() && is_list(path)) {
        return Err(Error::Usage(format!(
            "{name}: of several sources each has to be shards, and this is {}: pack it alone",
            if path.is_dir() { "a folder without shards" } else { "a list" }
        )));
    }
    Ok(())
}

/// Refuses a folder that holds images beside its shards, as an extracted archive leaves it: which
/// of them are meant? Either alone would be read without a word of the other.
fn only_shards(folder: &str, shard: &Path) -> Result<()> {
    let Some(image) = image_below(Path::new(folder)) else { return Ok(()) };
    let (shard, image) = (shard.display(), image.display());
    let glob = Path::new(folder).join("*.tar*");
    Err(Error::Usage(format!(
        "{folder}: it holds shards ({shard}) and images ({image}): name the shards by a glob ('{}'), or \
         move them away for the images to be packed",
        glob.display()
    )))
}

fn is_list(path: &Path) -> bool {
    let lists = ["csv", "tsv", "txt"];
    let extension = extension_of(path);
    lists.iter().any(|list| extension == *list)
}

fn first_shard(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(files_in(folder)?.into_iter().find(|path| is_shard_name(path)))
}

/// Makes keys of file paths: forward slashes, no extension, no dots behind
/// the last slash, each only once.
#[derive(Default)]
struct Keys {
    /// Hashes of the keys given so far; a false alarm costs a suffix.
    taken: HashSet<u64>,
    /// By the hash of a key that was asked for again, the last number behind it: one that is asked
    /// for thousands of times is not numbered from the front each time.
    numbers: HashMap<u64, u64>,
}

impl Keys {
    fn make(&mut self, path: &Path) -> String {
        let parts: Vec<String> = path
            .components()
            .filter_map(|part| match part {
                std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let mut key = parts.join("/");
        let base = key.rfind('/').map_or(0, |slash| slash + 1);
        if let Some(dot) = key[base..].rfind('.').filter(|&dot| dot > 0) {
            key.truncate(base + dot);
        }
        let stem = key.split_off(base).replace('.', "_");
        key.push_str(&stem);
        // `__name__` in front would mark a member that WebDataset passes over.
        while key.starts_with("__") {
            key.replace_range(..2, "_");
        }
        let hash = |key: &str| xxhash_rust::xxh3::xxh3_64(key.as_bytes());
        if self.taken.insert(hash(&key)) {
            return key;
        }
        let number = self.numbers.entry(hash(&key)).or_insert(1);
        loop {
            *number += 1;
            let numbered = format!("{key}-{number}");
            if self.taken.insert(hash(&numbered)) {
                return numbered;
            }
        }
    }
}

fn extension_of(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_no_dot_in_the_name_and_are_given_once() {
        let mut keys = Keys::default();
        for (path, key) in [
            ("a/b.c/d.e.jpg", "a/b.c/d_e"),
            ("./a//x.PNG", "a/x"),
            ("a/x.jpg", "a/x-2"),
            ("/a/x", "a/x-3"),
            ("../y.jpg", "y"),
            ("__z__/y.jpg", "_z__/y"),
            ("___z__/y.jpg", "_z__/y-2"),
            ("_____/y.jpg", "_/y"),
            ("c/.x", "c/_x"),
            // Given already, but not to this one.
            ("b-2.jpg", "b-2"),
            ("b.jpg", "b"),
            ("b.jpg", "b-3"),
            ("b-2.jpg", "b-2-2"),
            ("b.jpg", "b-4"),
        ] {
            assert_eq!(keys.make(Path::new(path)), key, "{path}");
        }
        let again = (0..5).map(|_| keys.make(Path::new("many.jpg"))).collect::<Vec<_>>();
        assert_eq!(again.last().unwrap(), "many-5");
        assert_eq!(keys.numbers.values().max(), Some(&5), "the next one begins there");
    }
}
