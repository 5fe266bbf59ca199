//! Shards back to files: a tree as ImageFolder reads it, or every member
//! under its own name. Packed coefficients become JPEGs again.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::atomic::PART;
use super::group::{Group, Groups, Keep, Part};
use super::pack::Progress;
use super::set::ShardSet;
use super::{Format, Limits, OpenOptions, sniff};
use crate::{Error, Result};

/// What an unpacked set looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// `CLASS/NAME.jpg`: the class's name, or its number with leading zeros;
    /// `NUMBER_NAME` when the names are not in the order of the numbers. `NAME` is the key behind its last
    /// slash. Samples without a label go to `unlabelled/`, or, when none has
    /// one, into the folder itself.
    Folders,
    /// `KEY.EXTENSION` for every member of every sample.
    Members,
}

/// What [`unpack`] wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Samples.
    pub samples: u64,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// Files that were given another name because theirs was taken: the
    /// shard's name in front, then a number behind.
    pub renamed: u64,
}

/// Writes the samples of `pattern` below `folder`, which must be empty or missing. Each file is
/// written under a temporary name, `.unpack.part`, and renamed when it is whole.
///
/// # Errors
/// [`Error::Usage`] when the folder is not empty; those of [`ShardSet::open`]; the
/// first damage, which a shard with other than the expected number of samples has, too;
/// [`Error::Io`] when a file cannot be written.
pub fn unpack(
    pattern: &str,
    folder: &Path,
    tree: Tree,
    options: &OpenOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked> {
    let set = ShardSet::open(pattern, options)?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    if std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.next().is_some() {
        return Err(Error::Usage(format!(
            "{}: not empty; unpack into a new folder",
            folder.display()
        )));
    }
    let classes = match tree {
        Tree::Folders => Some(ClassFolders::of(&set)?),
        Tree::Members => None,
    };
    let mut writer =
        Writer { folder, taken: HashSet::new(), made: HashSet::new(), done: Unpacked::default() };
    for (number, shard) in set.shards().iter().enumerate() {
        let stem = shard.path.file_name().unwrap_or_default().to_string_lossy();
        let stem = stem.split('.').next().unwrap_or("shard").to_owned();
        let (tar, map) = set.tar(number)?;
        let keep = if tree == Tree::Members { Keep::All } else { Keep::Images };
        let mut groups = Groups::new(tar, keep);
        let mut group = Group::default();
        while groups.next_into(&mut group)? {
            if group.image().is_none() {
                continue;
            }
            group.check(&shard.path)?;
            match &classes {
                Some(classes) => {
                    writer.image(&group, classes, &stem, &shard.path, &options.limits)?
                }
                None => writer.members(&group, &stem, &shard.path)?,
            }
            writer.done.samples += 1;
            let (done, total) = (writer.done.samples, set.len() as u64);
            progress(Progress { done, total, bytes: writer.done.bytes });
        }
        if let Some(map) = map {
            map.check(&shard.path)?;
        }
        let found = writer.done.samples - shard.first_sample as u64;
        if found != shard.samples as u64 {
            let cause = format!("{found} samples, but {} were expected", shard.samples);
            return Err(super::damaged(&shard.path, groups.tar().position(), cause));
        }
    }
    Ok(writer.done)
}

/// What the folders of the classes are called.
struct ClassFolders<'a> {
    names: &'a [String],
    /// Whether the names are in the order of the numbers.
    sorted: bool,
    count: usize,
}

impl<'a> ClassFolders<'a> {
    fn of(set: &'a ShardSet) -> Result<Self> {
        let (names, count) = (set.classes(), set.num_classes()?);
        let sorted = names.windows(2).all(|pair| pair[0] < pair[1]);
        Ok(ClassFolders { names, sorted, count })
    }

    /// The folder of a label's samples, or of those without; `None` beyond the classes.
    fn folder(&self, label: Option<u32>) -> Option<String> {
        let Some(label) = label.map(|label| label as usize) else {
            return Some(if self.count == 0 { String::new() } else { "unlabelled".to_owned() });
        };
        let width = self.count.saturating_sub(1).to_string().len();
        (label < self.count).then(|| match self.names.get(label).map(|name| component(name)) {
            Some(name) if self.sorted => name,
            Some(name) => format!("{label:0width$}_{name}"),
            None => format!("{label:0width$}"),
        })
    }
}

/// A name that is one harmless path component.
fn component(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| if c == '/' || c == '\\' || c.is_control() { '_' } else { c })
        .collect();
    match clean.as_str() {
        "" | "." | ".." => format!("_{clean}"),
        _ => clean,
    }
}

struct Writer<'a> {
    folder: &'a Path,
    /// Relative paths written so far.
    taken: HashSet<PathBuf>,
    made: HashSet<PathBuf>,
    done: Unpacked,
}

impl Writer<'_> {
    fn image(
        &mut self,
        group: &Group,
        classes: &ClassFolders<'_>,
        stem: &str,
        shard: &Path,
        limits: &Limits,
    ) -> Result<()> {
        let Some(part) = group.image().map(|image| &group.parts()[image]) else { return Ok(()) };
        let label = group.label(shard, limits)?;
        let class = classes.folder(label).ok_or_else(|| {
            let (label, count) = (label.unwrap_or_default(), classes.count);
            let cause = format!("label {label} is beyond the set's {count} classes");
            super::damaged(shard, group.start, cause)
        })?;
        let (data, format) = restored(&group.key, part, shard)?;
        let extension = format.extension().unwrap_or_else(|| last(&part.extension));
        let name = component(group.key.rsplit('/').next().unwrap_or(""));
        let wanted = Path::new(&class).join(format!("{name}.{extension}"));
        let second = Path::new(&class).join(format!("{stem}_{name}.{extension}"));
        self.write(wanted, second, &data)
    }

    fn members(&mut self, group: &Group, stem: &str, shard: &Path) -> Result<()> {
        let key: PathBuf =
            group.key.split('/').filter(|part| !matches!(*part, "" | ".")).map(component).collect();
        let renames = self.done.renamed;
        for part in group.parts() {
            let (data, format) = restored(&group.key, part, shard)?;
            let extension = match &data {
                Cow::Owned(_) => with_last(&part.extension, format.extension().unwrap_or("jpg")),
                Cow::Borrowed(_) => part.extension.clone(),
            };
            let mut name = key.clone().into_os_string();
            name.push(format!(".{}", component(&extension)));
            let second = Path::new(stem).join(&name);
            self.write(name.into(), second, &data)?;
        }
        self.done.renamed = renames + u64::from(self.done.renamed > renames);
        Ok(())
    }

    fn write(&mut self, wanted: PathBuf, second: PathBuf, data: &[u8]) -> Result<()> {
        let mut relative = wanted;
        if self.taken.contains(&relative) {
            self.done.renamed += 1;
            relative = second.clone();
            let mut number = 1;
            while self.taken.contains(&relative) {
                number += 1;
                let (stem, extension) = (second.file_stem(), second.extension());
                let mut name = stem.unwrap_or_default().to_owned();
                name.push(format!("-{number}."));
                name.push(extension.unwrap_or_default());
                relative = second.with_file_name(name);
            }
        }
        let path = self.folder.join(&relative);
        let parent = path.parent().unwrap_or(self.folder).to_owned();
        let failed = |e| Error::io(&path, e);
        if !self.made.contains(&parent) {
            std::fs::create_dir_all(&parent).map_err(failed)?;
            self.made.insert(parent.clone());
        }
        write_whole(&path, &parent, data).map_err(failed)?;
        self.done.files += 1;
        self.done.bytes += data.len() as u64;
        self.taken.insert(relative);
        Ok(())
    }
}

/// A new file in `folder` that has its name only when it is whole. Not synced, unlike the files of a
/// set: that takes milliseconds for each, and all of them can be unpacked again.
fn write_whole(path: &Path, folder: &Path, data: &[u8]) -> std::io::Result<()> {
    // No sample's name begins with a dot, and nobody else writes into what was an empty folder.
    let temporary = folder.join(format!(".unpack{PART}"));
    let mut file = std::fs::File::create_new(&temporary)?;
    let named = file.write_all(data).and_then(|()| {
        // Where `A` and `a` are one name, another sample may have it.
        match path.symlink_metadata() {
            Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
            Err(_) => std::fs::rename(&temporary, path),
        }
    });
    if named.is_err() {
        // What kept it from being written is what the caller has to know.
        let _ = std::fs::remove_file(&temporary);
    }
    named
}

/// A member's data as a file: packed coefficients as a JPEG, all else as it is.
fn restored<'a>(key: &str, part: &'a Part, shard: &Path) -> Result<(Cow<'a, [u8]>, Format)> {
    let format = sniff(&part.data);
    if format != Format::Dct {
        return Ok((Cow::Borrowed(&part.data), format));
    }
    match crate::dct::to_jpeg(&part.data) {
        Ok(jpeg) => Ok((Cow::Owned(jpeg), Format::Jpeg)),
        Err(error) => Err(Error::Sample {
            path: shard.to_owned(),
            key: key.to_owned(),
            offset: part.offset,
            cause: error.to_string(),
        }),
    }
}

/// An extension with another last part.
fn with_last(extension: &str, new: &str) -> String {
    let kept = extension.rfind('.').map_or("", |dot| &extension[..=dot]);
    format!("{kept}{new}")
}

fn last(extension: &str) -> &str {
    extension.rsplit('.').next().unwrap_or(extension)
}
