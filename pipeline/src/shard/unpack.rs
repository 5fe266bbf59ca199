//! Shards back to files: a tree as ImageFolder reads it, or every member
//! under its own name. Packed coefficients become JPEGs again.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

mod names;

use names::{ClassFolders, component, file_name, is_asked, place_of};

use super::atomic::PART;
use super::group::{Group, Groups, Keep, Part};
use super::pool::Progress;
use super::set::ShardSet;
use super::{Format, Limits, OpenOptions, sniff};
use crate::{Error, Result};

/// What an unpacked set looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// `CLASS/NAME.jpg`: the class's name, or its number with leading zeros; `NUMBER_NAME` where
    /// packing would give folders of the names other numbers (they are not in the order of the
    /// numbers, say, or one begins with a dot). Classes without samples have empty folders. `NAME`
    /// is the key behind its last slash. Samples without a label go to `unlabelled/`, or, when none
    /// has one, into the folder itself.
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
    /// Files that were given another name: because theirs was taken, with the shard's name in front
    /// and then a number behind; or because it was too long, its beginning with a hash of all of
    /// it.
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
    let (taken, numbers, made) = (HashSet::new(), HashMap::new(), HashSet::new());
    let mut writer = Writer { folder, taken, numbers, made, done: Unpacked::default() };
    for class in classes.iter().flat_map(ClassFolders::all) {
        writer.make(folder.join(class))?;
    }
    for (number, shard) in set.shards().iter().enumerate() {
        let stem = shard.path.file_name().unwrap_or_default().to_string_lossy();
        let stem = stem.split('.').next().unwrap_or("shard").to_owned();
        let (tar, map) = set.tar(number)?;
        // What can be read in order only has none.
        let index = if shard.seekable { Some(set.index(number)?) } else { None };
        let keep = if tree == Tree::Members { Keep::All } else { Keep::Images };
        let mut groups = Groups::new(tar, keep);
        let mut group = Group::default();
        while groups.next_into(&mut group)? {
            let Some(image) = group.image() else { continue };
            group.check(&shard.path)?;
            let place = writer.done.samples as usize - shard.first_sample;
            // How many samples there are is compared at the end; labels are the archive's here.
            let known = index.filter(|index| place < index.len());
            if let Some(Ok((entry, _))) = known.map(|index| index.get(place)) {
                entry.check(&image.data, &shard.path, &group.key)?;
            }
            match &classes {
                Some(classes) => {
                    writer.image(&group, classes, &stem, &shard.path, &options.limits)?
                }
                None => writer.members(&group, &stem, &shard.path)?,
            }
            writer.done.samples += 1;
            let (done, total) = (writer.done.samples, set.len() as u64);
            progress(Progress { unit: "samples", done, total, bytes: writer.done.bytes });
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

/// Where a file is to go.
struct Place<'a> {
    folder: PathBuf,
    stem: String,
    extension: &'a str,
}

impl Place<'_> {
    /// The path, relative, of the `number`th file that is to go there.
    fn path(&self, number: u32) -> PathBuf {
        self.folder.join(file_name(&self.stem, number, self.extension))
    }
}

struct Writer<'a> {
    folder: &'a Path,
    /// Relative paths written so far.
    taken: HashSet<PathBuf>,
    /// By the first path of a second place, the last number that was used there: all before it are
    /// taken.
    numbers: HashMap<PathBuf, u32>,
    made: HashSet<PathBuf>,
    done: Unpacked,
}

impl Writer<'_> {
    fn image(
        &mut self,
        group: &Group,
        classes: &ClassFolders,
        stem: &str,
        shard: &Path,
        limits: &Limits,
    ) -> Result<()> {
        let Some(part) = group.image() else { return Ok(()) };
        let label = group.label(shard, limits)?;
        let class = classes.folder(label).ok_or_else(|| {
            let (label, count) = (label.unwrap_or_default(), classes.count());
            let cause = format!("label {label} is beyond the set's {count} classes");
            super::damaged(shard, group.start, cause)
        })?;
        let (data, format) = restored(&group.key, part, shard)?;
        let extension = format.extension().unwrap_or_else(|| last(&part.extension));
        let name = component(group.key.rsplit('/').next().unwrap_or(""));
        let place = |stem: String| Place { folder: class.clone().into(), stem, extension };
        let (wanted, second) = (place(name.clone()), place(format!("{stem}_{name}")));
        let is_cut = file_name(&name, 1, extension) != format!("{name}.{extension}");
        self.done.renamed += u64::from(self.write(&wanted, &second, &data)? || is_cut);
        Ok(())
    }

    fn members(&mut self, group: &Group, stem: &str, shard: &Path) -> Result<()> {
        let extensions = group.parts().iter().map(|part| part.extension.as_str());
        let (folder, name) = place_of(&group.key, extensions);
        let mut renamed = false;
        for part in group.parts() {
            let (data, format) = restored(&group.key, part, shard)?;
            let extension = match &data {
                Cow::Owned(_) => with_last(&part.extension, format.extension().unwrap_or("jpg")),
                Cow::Borrowed(_) => part.extension.clone(),
            };
            let extension = &component(&extension);
            let place = |folder: PathBuf| Place { folder, stem: name.clone(), extension };
            let (wanted, second) = (place(folder.clone()), place(Path::new(stem).join(&folder)));
            renamed |= !is_asked(&wanted.path(1), &group.key, extension);
            renamed |= self.write(&wanted, &second, &data)?;
        }
        self.done.renamed += u64::from(renamed);
        Ok(())
    }

    /// Writes a file where it is wanted, or where that is taken into the second place; returns
    /// whether it was.
    fn write(&mut self, wanted: &Place, second: &Place, data: &[u8]) -> Result<bool> {
        let mut relative = wanted.path(1);
        let moved = self.taken.contains(&relative);
        if moved {
            let number = self.numbers.entry(second.path(1)).or_insert(0);
            while self.taken.contains(&relative) {
                *number += 1;
                relative = second.path(*number);
            }
        }
        let path = self.folder.join(&relative);
        let parent = path.parent().unwrap_or(self.folder).to_owned();
        self.make(parent.clone())?;
        write_whole(&path, &parent, data).map_err(|e| Error::io(&path, e))?;
        self.done.files += 1;
        self.done.bytes += data.len() as u64;
        self.taken.insert(relative);
        Ok(moved)
    }

    fn make(&mut self, folder: PathBuf) -> Result<()> {
        if !self.made.contains(&folder) {
            std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            self.made.insert(folder);
        }
        Ok(())
    }
}

/// A new file in `folder` that has its name only when it is whole. Not synced, unlike the files of
/// a set: that takes milliseconds for each, and all of them can be unpacked again.
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
