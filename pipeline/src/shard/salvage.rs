//! What can be saved of damaged shards: every sample that is still whole, in a
//! clean set beside the damaged one, which is only read.
//!
//! A shard is walked as `verify` walks it, but after damage the walk goes on at
//! the next header whose checksum is right. What comes out are tars of whole
//! samples in a temporary folder, which `pack` then makes a set of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::group::{Group, Groups, Keep};
use super::index::{ShardIndex, index_path};
use super::map::Map;
use super::pack::{PackOptions, Packed, Progress, pack, threads};
use super::pattern::resolve;
use super::pool::in_order;
use super::scan::{Depth, entry_of};
use super::source::ShardSource;
use super::tar::{SliceSource, Tar, is_header};
use super::zst::{SeekTable, is_zstd};
use super::{Damage, Limits, OpenOptions, sniff};
use crate::decode::Decoder;
use crate::{Error, Image, Result};

/// A set saved from a damaged one.
#[derive(Debug)]
pub struct Salvaged {
    /// The clean set.
    pub packed: Packed,
    /// What is not in it, and why.
    pub lost: Vec<Damage>,
}

/// Packs every sample of the set that is whole into `out`. Whole are samples all
/// of whose members are there, whose label is a number, whose image can be
/// decoded and agrees with its checksum, where an intact index has one. Shards
/// become `.tar.zst` when one of the damaged ones was.
///
/// # Errors
/// [`Error::Usage`] when nothing is found or nothing can be saved; [`Error::Io`].
pub fn salvage(
    pattern: &str,
    out: &Path,
    options: &OpenOptions,
    workers: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Salvaged> {
    // A manifest that contradicts the shards is part of the damage.
    let found = resolve(pattern, options.use_manifest, &options.limits)
        .or_else(|_| resolve(pattern, false, &options.limits))?;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let temporary = tempfile::Builder::new().prefix(".salvage-").tempdir_in(out);
    let temporary = temporary.map_err(|e| Error::io(out, e))?;
    let shards: Vec<PathBuf> = found.shards.into_iter().map(|shard| shard.path).collect();
    let total = shards.len() as u64;
    let (mut lost, mut compressed) = (Vec::new(), false);
    in_order(
        threads(workers),
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
            progress(Progress { done: number as u64 + 1, total, bytes: 0 });
            Ok(())
        },
    )?;
    let whole = temporary.path().to_string_lossy().into_owned();
    let source = ShardSource::open(&whole, temporary.path(), options).map_err(|error| {
        let cause = lost.first().map_or_else(|| error.to_string(), |damage| damage.cause.clone());
        Error::Usage(format!("{pattern}: no sample can be saved: {cause}"))
    })?;
    let packing = PackOptions {
        prefix: prefix(&shards),
        zstd: compressed.then_some(3),
        threads: workers,
        ..PackOptions::default()
    };
    let packed = pack(&source, out, &format!("saved from {pattern}"), &packing, progress)?;
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
        Err(error) => {
            saved.note(shard, &error);
            return Ok(saved);
        }
    };
    let checksums = checksums_of(shard, &file, limits);
    saved.compressed = is_zstd(file.as_ref());
    let tar = match saved.compressed {
        true => expand(shard, &file, to, limits, &mut saved)?,
        false => file,
    };
    let failed = |error| Error::io(to, error);
    let mut out: Option<BufWriter<File>> = None;
    let mut walk = Walk { shard, tar: tar.as_ref(), limits, at: 0 };
    let mut group = Group::default();
    while let Some(step) = walk.next_into(&mut group) {
        if let Err(error) = step.and_then(|()| examine(&group, shard, limits, &checksums, tools)) {
            saved.note(shard, &error);
            continue;
        }
        let blocks = usize::try_from(group.start).ok().zip(usize::try_from(group.end).ok());
        let Some(blocks) = blocks.and_then(|(start, end)| tar.as_ref().get(start..end)) else {
            continue;
        };
        let out = match &mut out {
            Some(out) => out,
            none => none.insert(BufWriter::new(File::create(to).map_err(failed)?)),
        };
        out.write_all(blocks).map_err(failed)?;
    }
    tar.check(shard).unwrap_or_else(|error| saved.note(shard, &error));
    if let Some(mut out) = out {
        out.write_all(&[0; 1024]).and_then(|()| out.flush()).map_err(failed)?;
    }
    Ok(saved)
}

impl Saved {
    fn note(&mut self, shard: &Path, error: &Error) {
        let (key, offset, cause) = match error {
            Error::Shard { offset, cause, .. } => (None, *offset, cause.clone()),
            Error::Sample { key, offset, cause, .. } => (Some(key.clone()), *offset, cause.clone()),
            other => (None, 0, other.to_string()),
        };
        self.lost.push(Damage { shard: shard.to_owned(), key, offset, cause });
    }
}

/// Key to checksum, from an index that belongs to the shard; else nothing.
fn checksums_of(shard: &Path, file: &Map, limits: &Limits) -> HashMap<String, u64> {
    let index = ShardIndex::open(&index_path(shard), limits);
    let Ok(index) = index.and_then(|i| i.belongs_to(shard, file.as_ref()).map(|()| i)) else {
        return HashMap::new();
    };
    let entries = (0..index.len()).filter_map(|i| index.get(i).ok());
    entries.map(|(entry, key)| (key.to_owned(), entry.checksum)).collect()
}

/// Whether a sample is whole.
fn examine(
    group: &Group,
    shard: &Path,
    limits: &Limits,
    checksums: &HashMap<String, u64>,
    (decoder, pixels): &mut (Decoder, Image),
) -> Result<()> {
    let bad = |offset: u64, cause: String| Error::Sample {
        path: shard.to_owned(),
        key: group.key.clone(),
        offset,
        cause,
    };
    let Some(entry) = entry_of(group, Depth::Full, shard, limits)? else {
        return Err(bad(group.start, "without an image".to_owned()));
    };
    let known = checksums.get(&group.key).copied().unwrap_or(0);
    if known != 0 && known != entry.checksum {
        let cause = "the image does not match its checksum in the index".to_owned();
        return Err(bad(entry.offset, cause));
    }
    let image = group.image().map_or(&[][..], |image| &group.parts()[image].data);
    decoder
        .decode_into(sniff(image), image, pixels)
        .map_err(|error| bad(entry.offset, error.to_string()))
}

/// Goes through the samples of a tar and over its damage.
struct Walk<'a> {
    shard: &'a Path,
    tar: &'a [u8],
    limits: &'a Limits,
    /// Where the next sample, or the search for it, begins.
    at: u64,
}

impl Walk<'_> {
    /// The next sample, or what was wrong on the way to it; None at the end.
    fn next_into(&mut self, group: &mut Group) -> Option<Result<()>> {
        let from = self.next_header()?;
        let rest = &self.tar[usize::try_from(from).ok()?..];
        let tar = Tar::new(SliceSource::new(rest), self.shard, from, *self.limits);
        let mut groups = Groups::new(tar, Keep::All);
        match groups.next_into(group) {
            Ok(true) => {
                self.at = group.end.max(from + 512);
                Some(Ok(()))
            }
            Ok(false) => None,
            Err(error) => {
                // Headers before the damage have been read; what they head is lost.
                let damage = match &error {
                    Error::Shard { offset, .. } => *offset,
                    _ => 0,
                };
                self.at = damage.max(from + 512);
                Some(Err(error))
            }
        }
    }

    /// Where the next header stands: at `at`, or wherever one is found after it,
    /// for bytes may be missing.
    fn next_header(&self) -> Option<u64> {
        let start = usize::try_from(self.at).ok()?;
        let block = |at: usize| self.tar.get(at..)?.first_chunk::<512>();
        if block(start).is_some_and(is_header) {
            return Some(self.at);
        }
        // The magic of ustar and GNU tar, 257 bytes into a header.
        let magic = self.tar.get(start + 257..)?.windows(5);
        let mut found = magic.enumerate().filter(|(_, bytes)| bytes == b"ustar");
        let at = found.find(|(at, _)| block(start + at).is_some_and(is_header));
        at.map(|(at, _)| (start + at) as u64)
    }
}

/// Decompresses what can be decompressed: frame by frame where there is a seek
/// table, zeros in place of a damaged frame; else up to the damage.
fn expand(shard: &Path, file: &Map, to: &Path, limits: &Limits, saved: &mut Saved) -> Result<Map> {
    let failed = |error| Error::io(to, error);
    let mut plain = BufWriter::new(
        tempfile::tempfile_in(to.parent().unwrap_or(Path::new("."))).map_err(failed)?,
    );
    let bytes = file.as_ref();
    let table = SeekTable::parse(bytes, shard, limits).unwrap_or_else(|error| {
        saved.note(shard, &error);
        None
    });
    if let Some(table) = table {
        let mut context = zstd::bulk::Decompressor::new().map_err(failed)?;
        let mut frame = Vec::new();
        for number in 0..table.len() {
            let frames = number..number + 1;
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
        loop {
            match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => plain.write_all(&buffer[..count]).map_err(failed)?,
                Err(error) => {
                    let cause = format!("cannot be decompressed further: {error}");
                    saved.note(shard, &super::damaged(shard, 0, cause));
                    break;
                }
            }
        }
    }
    let plain = plain.into_inner().map_err(|error| failed(error.into_error()))?;
    Map::of(&plain).map_err(failed)
}
