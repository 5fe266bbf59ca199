//! What can be saved of damaged shards: every sample that is still whole, in a
//! clean set beside the damaged one, which is only read.
//!
//! A shard is walked through twice: `walk` finds where samples are and where damage
//! is, then each sample is read and examined. What comes out are tars of whole
//! samples in a temporary folder, which `pack` then makes a set of.

mod known;
mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::group::{Group, Groups, Keep};
use super::map::{Map, slice};
use super::pack::{PackOptions, Packed, pack};
use super::pattern::resolve;
use super::pool::{Progress, in_order};
use super::scan::{Depth, entry_of};
use super::source::ShardSource;
use super::staging::{existing, for_salvage};
use super::tar::{SliceSource, Tar};
use super::tar_write::append_member;
use super::zst::{SeekTable, is_zstd};
use super::{Damage, Limits, OpenOptions, damaged, sniff};
use crate::decode::{Decoder, NO_IMAGE};
use crate::{Error, Image, Result};
use known::Known;
use walk::{Step, Stretch, walk};

/// A set saved from a damaged one.
#[derive(Debug)]
pub struct Salvaged {
    /// The clean set.
    pub packed: Packed,
    /// The damage that was met, and each sample that is not in the set, by its key where it is
    /// known.
    pub lost: Vec<Damage>,
}

/// Packs every sample of the set that is whole into `out`. Whole are samples all
/// of whose members are there, whose label is a number, whose image can be
/// decoded, and which agree with the index where there is an intact one. A sample
/// beside damage, which may have taken members of it, has all of them if the index
/// says so, or if it has its label and those that the shard's other samples have.
/// Shards become `.tar.zst` when one of the damaged ones was.
///
/// # Errors
/// [`Error::Usage`] when nothing is found, or `out` has a set of the same name already;
/// [`Error::TooManyBad`] when nothing can be saved; [`Error::Io`].
pub fn salvage(
    pattern: &str,
    out: &Path,
    options: &OpenOptions,
    threads: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Salvaged> {
    let found = resolve(pattern, options.use_manifest, &options.limits).or_else(|error| {
        if !error.is_damage() {
            return Err(error);
        }
        // A manifest that contradicts the shards is part of the damage.
        let found = resolve(pattern, false, &options.limits);
        found.inspect(|_| tracing::warn!("{error}; saved without what the manifest says"))
    })?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let shards: Vec<PathBuf> = found.shards.iter().map(|shard| shard.path.clone()).collect();
    let prefix = prefix(&shards);
    let temporary = for_salvage(out, &prefix)?;
    // Before the work, not after it.
    if let Some(path) = existing(out, &prefix)?.first() {
        return Err(Error::Usage(format!("{} exists: choose another folder", path.display())));
    }
    found.warn_of_names();
    let classes = found.classes;
    let total = shards.len() as u64;
    let (mut lost, mut compressed) = (Vec::new(), false);
    in_order(
        threads,
        shards.len(),
        || (Decoder::default(), Image::default()),
        |tools, number| {
            let to = temporary.path().join(format!("{number:06}.tar"));
            save_shard(&shards[number], &to, &options.limits, tools)
        },
        |number, saved: Result<Saved>| {
            let saved = saved?;
            compressed |= saved.compressed;
            lost.extend(saved.lost);
            let done = number as u64 + 1;
            progress(Progress { unit: "shards", done, total, bytes: 0 });
            Ok(())
        },
    )?;
    let whole = temporary.path().to_string_lossy().into_owned();
    let source = ShardSource::open(&whole, temporary.path(), options).map_err(|error| {
        // Nothing is there. What keeps it from being read is no damage.
        let Error::Usage(none) = error else { return error };
        let cause = lost.first().map_or(none, |damage| damage.cause.clone());
        Error::TooManyBad(format!("{pattern}: no sample can be saved: {cause}"))
    })?;
    // Shards hold numbers; what they are called is in the manifest of the damaged set, if anywhere.
    let source = source.named(classes);
    let packing =
        PackOptions { prefix, zstd: compressed.then_some(3), threads, ..PackOptions::default() };
    let packed = pack(&source, out, &format!("saved from {pattern}"), &packing, progress)?;
    if let Err(error) = temporary.close() {
        tracing::warn!("{}: what was saved on the way stays: {error}", out.display());
    }
    Ok(Salvaged { packed, lost })
}

/// What the first shard is called before its number.
fn prefix(shards: &[PathBuf]) -> String {
    let name = shards.first().and_then(|path| path.file_name()).unwrap_or_default();
    let name = name.to_string_lossy();
    let stem = name.split(".tar").next().unwrap_or("");
    let prefix = stem.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_']);
    if prefix.is_empty() { "saved".to_owned() } else { prefix.to_owned() }
}

/// What became of one shard.
struct Saved {
    lost: Vec<Damage>,
    compressed: bool,
}

/// Copies the whole samples of a shard to the tar `to`; without one there is no file.
fn save_shard(
    shard: &Path,
    to: &Path,
    limits: &Limits,
    tools: &mut (Decoder, Image),
) -> Result<Saved> {
    let mut saved = Saved { lost: Vec::new(), compressed: false };
    let file = match Map::open(shard) {
        Ok(file) => file,
        Err(error) if error.is_damage() => {
            saved.note(shard, &error);
            return Ok(saved);
        }
        Err(error) => return Err(error),
    };
    let known = Known::of(shard, &file, limits)?;
    saved.compressed = is_zstd(file.as_ref());
    let tar = match saved.compressed {
        true => expand(shard, &file, to, limits, &mut saved)?,
        false => file,
    };
    let mut clean = Clean { path: to, file: None, last: String::new() };
    let walked = walk(shard, tar.as_ref(), limits);
    let mut group = Group::default();
    // The keys that were met -> whether a sample of that key was lost.
    let mut met = HashMap::new();
    // Whether the index is known to be of this shard: it was made for it, or a whole sample agrees
    // with it.
    let mut confirmed = known.belongs;
    for step in &walked.steps {
        let stretch = match step {
            Step::Fault(error) => {
                saved.note(shard, error);
                continue;
            }
            Step::Sample(stretch) => stretch,
        };
        let beside = stretch.beside.as_ref().filter(|beside| !walked.is_complete(beside));
        let lost = beside.map(|beside| match (beside.torn, beside.before) {
            (true, _) => "damage is within it",
            (_, true) => "damage before it may have taken members of it",
            (_, false) => "damage behind it may have taken members of it",
        });
        let whole = load(stretch, tar.as_ref(), shard, limits, &mut group)
            .and_then(|()| examine(&group, shard, limits, &known, lost, tools))
            .and_then(|()| apart(&group, &clean.last, shard, limits));
        let before = met.insert(group.key.clone(), whole.is_err());
        if let Err(error) = whole {
            // Of the parts of one sample on both sides of damage the first is named.
            if before != Some(true) || stretch.beside.is_none() {
                saved.note_of(&group, shard, &error);
            }
            continue;
        }
        confirmed |= !known.of_key(&group.key).is_empty();
        clean.write(&group)?;
    }
    tar.check(shard).unwrap_or_else(|error| saved.note(shard, &error));
    // Of another shard's index, if it is that, nothing is missing here.
    if confirmed {
        saved.missing(shard, &known, &met);
    }
    clean.finish()?;
    Ok(saved)
}

/// The tar of what was saved; without a sample there is no file.
struct Clean<'a> {
    path: &'a Path,
    file: Option<BufWriter<File>>,
    /// The key of what was written last.
    last: String,
}

impl Clean<'_> {
    fn write(&mut self, group: &Group) -> Result<()> {
        let mut blocks = Vec::new();
        for part in group.parts() {
            let name = format!("{}.{}", group.key, part.extension);
            append_member(&mut blocks, &name, &part.data);
        }
        self.last.clone_from(&group.key);
        let failed = |error| Error::io(self.path, error);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::new(File::create(self.path).map_err(failed)?)),
        };
        file.write_all(&blocks).map_err(failed)
    }

    fn finish(self) -> Result<()> {
        let Some(mut file) = self.file else { return Ok(()) };
        let ended = file.write_all(&[0; 1024]).and_then(|()| file.flush());
        ended.map_err(|error| Error::io(self.path, error))
    }
}

impl Saved {
    fn note(&mut self, shard: &Path, error: &Error) {
        self.lost.push(Damage::of(shard, error));
    }

    /// As `note`, of something that is known to be the fault of one sample.
    fn note_of(&mut self, group: &Group, shard: &Path, error: &Error) {
        self.lost.push(Damage { key: Some(group.key.clone()), ..Damage::of(shard, error) });
    }

    /// Notes the samples of the index whose keys were not met.
    fn missing(&mut self, shard: &Path, known: &Known, met: &HashMap<String, bool>) {
        let missing = known.entries.iter().filter(|(key, _)| !met.contains_key(*key));
        let mut missing: Vec<_> = missing
            .flat_map(|(key, all)| all.iter().map(move |entry| (entry.start, key)))
            .collect();
        missing.sort();
        let cause = "it is in the index, and was not found";
        let missing = missing.into_iter();
        self.lost.extend(missing.map(|(offset, key)| Damage::of_sample(shard, key, offset, cause)));
    }
}

/// Reads the sample of a stretch, all of it.
fn load(
    stretch: &Stretch,
    tar: &[u8],
    shard: &Path,
    limits: &Limits,
    group: &mut Group,
) -> Result<()> {
    let end = stretch.end.min(tar.len() as u64);
    let blocks = slice(tar, stretch.start, end.saturating_sub(stretch.start)).unwrap_or(&[]);
    let tar = Tar::new(SliceSource::new(blocks), shard, stretch.start, *limits);
    Groups::new(tar, Keep::All).next_into(group)?;
    if (group.start, group.end) == (stretch.start, stretch.end) {
        return Ok(());
    }
    let cause = "its names depend on a global header elsewhere";
    Err(damaged(shard, stretch.start, cause))
}

/// Whether a sample is still one when it is written behind that of key `last`, with names as
/// `append_member` writes them.
fn apart(group: &Group, last: &str, shard: &Path, limits: &Limits) -> Result<()> {
    let longest = group.parts().iter().map(|part| part.extension.len()).max().unwrap_or(0);
    let cause = if group.key == last {
        "what lay between it and another sample of its key is lost"
    } else if (group.key.len() + longest) as u64 + 32 > limits.name_bytes {
        "its name is too long"
    } else {
        return Ok(());
    };
    let (path, key, offset) = (shard.to_owned(), group.key.clone(), group.start);
    Err(Error::Sample { path, key, offset, cause: cause.to_owned() })
}

/// Whether a sample is whole; `lost` is why it may not be, unless an index tells otherwise.
fn examine(
    group: &Group,
    shard: &Path,
    limits: &Limits,
    known: &Known,
    lost: Option<&str>,
    (decoder, pixels): &mut (Decoder, Image),
) -> Result<()> {
    let bad = |offset: u64, cause: String| Error::Sample {
        path: shard.to_owned(),
        key: group.key.clone(),
        offset,
        cause,
    };
    let entry = entry_of(group, Depth::Full, shard, limits)?;
    let confirmed = entry.is_some_and(|entry| known.confirms(&group.key, &entry));
    if let Some(cause) = lost.filter(|_| !confirmed) {
        return Err(bad(group.start, cause.to_owned()));
    }
    let Some(entry) = entry else {
        return Err(bad(group.start, "without an image".to_owned()));
    };
    if let Some(cause) = known.contradiction(&group.key, &entry) {
        return Err(bad(entry.offset, cause));
    }
    if entry.width == 0 {
        return Err(bad(entry.offset, NO_IMAGE.to_owned()));
    }
    let image = group.image().map_or(&[][..], |image| &image.data);
    decoder
        .decode_into(sniff(image), image, pixels)
        .map_err(|error| bad(entry.offset, error.to_string()))
}

/// Decompresses what can be decompressed: frame by frame where there is a seek
/// table, zeros in place of a damaged frame; else up to the damage. No more than
/// `Limits::shard_bytes`.
fn expand(shard: &Path, file: &Map, to: &Path, limits: &Limits, saved: &mut Saved) -> Result<Map> {
    let failed = |error| Error::io(to, error);
    let mut plain = BufWriter::new(
        tempfile::tempfile_in(to.parent().unwrap_or(Path::new("."))).map_err(failed)?,
    );
    let bytes = file.as_ref();
    let limit = limits.shard_bytes;
    let too_long = || {
        let cause = format!("more than {limit} bytes when decompressed (limit)");
        damaged(shard, limit, cause)
    };
    let table = SeekTable::parse(bytes, shard, limits).unwrap_or_else(|error| {
        saved.note(shard, &error);
        None
    });
    if let Some(table) = table {
        let mut context = zstd::bulk::Decompressor::new().map_err(failed)?;
        let mut frame = Vec::new();
        for number in 0..table.len() {
            let frames = number..number + 1;
            if table.end(number) > limit {
                saved.note(shard, &too_long());
                break;
            }
            if let Some(cause) = table.too_large(&frames) {
                saved.note(shard, &damaged(shard, table.file_range(&frames).0, cause));
                // As much as of a damaged frame, without the memory.
                let gap = table.end(number) - table.start(number);
                std::io::copy(&mut std::io::repeat(0).take(gap), &mut plain).map_err(failed)?;
                continue;
            }
            if let Err(error) = table.decompress(bytes, 0, shard, frames, &mut context, &mut frame)
            {
                saved.note(shard, &error);
                frame.fill(0);
            }
            plain.write_all(&frame).map_err(failed)?;
        }
    } else {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(failed)?;
        decoder.window_log_max(limits.zstd_window_log).map_err(failed)?;
        let mut buffer = vec![0; 1 << 16];
        let mut written = 0;
        loop {
            match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    written += count as u64;
                    if written > limit {
                        saved.note(shard, &too_long());
                        break;
                    }
                    plain.write_all(&buffer[..count]).map_err(failed)?;
                }
                Err(error) => {
                    let cause = format!("cannot be decompressed further: {error}");
                    saved.note(shard, &damaged(shard, 0, cause));
                    break;
                }
            }
        }
    }
    let plain = plain.into_inner().map_err(|error| failed(error.into_error()))?;
    Map::of(&plain).map_err(failed)
}
