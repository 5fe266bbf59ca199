//! Reads a shard from front to back to learn what an index would say: for
//! shards that have none, and to make one.

use std::collections::BTreeMap;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::group::{Group, Groups, Keep};
use super::index::{Entry, IndexBuilder, ShardIndex, fingerprint};
use super::map::Map;
use super::passage::Passage;
use super::tar::{AnyTar, BLOCK, Links, ReadSource, Source, Tar};
use super::zst::is_zstd;
use super::{Format, Limits, damaged, dimensions_of, sniff};
use crate::jpeg::SideIndex;
use crate::{Error, Result};

/// How much a scan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Tar headers and labels. Sizes, formats and checksums stay unknown.
    Headers,
    /// The images too: everything an index holds.
    Full,
}

/// What a scan found.
#[derive(Debug)]
pub struct Scanned {
    /// The index that belongs to the shard.
    pub index: ShardIndex,
    /// Its bytes, to be written beside the shard.
    pub bytes: Vec<u8>,
    /// Samples passed over because they have no image.
    pub without_image: u32,
    /// Links in place of members of samples.
    pub links: Links,
    /// Whether the archive ends with the end-of-archive marker, as it should.
    pub ended: bool,
    /// Where bytes stand behind the end of the archive that are not zero: those of another archive,
    /// or of this one when its end is damage. They are not read.
    pub trailing: Option<u64>,
}

/// Scans the shard at `path`. With [`Depth::Headers`] a sample that cannot be used (two members of
/// one name, a label that is no number) is in the index all the same, and is refused when it is
/// read.
///
/// # Errors
/// [`Error::Io`]; [`Error::Shard`] and, with [`Depth::Full`], [`Error::Sample`] with the offset of
/// the first damage.
pub fn scan(path: &Path, depth: Depth, limits: &Limits) -> Result<Scanned> {
    scan_map(&Map::open(path)?, path, depth, limits)
}

pub(crate) fn scan_map(map: &Map, path: &Path, depth: Depth, limits: &Limits) -> Result<Scanned> {
    let file = map.as_ref();
    let belongs = || (file.len() as u64, fingerprint(file));
    scan_tar(open_tar(map, path, limits)?, path, depth, limits, || {
        map.check(path)?;
        Ok(belongs())
    })
}

/// Scans the headers of an archive that is read as a stream; the index belongs to a shard of
/// `bytes` bytes with `fingerprint`.
#[cfg(feature = "remote")]
pub(crate) fn scan_stream(
    tar: AnyTar,
    path: &Path,
    limits: &Limits,
    (bytes, fingerprint): (u64, u64),
) -> Result<Scanned> {
    scan_tar(tar, path, Depth::Headers, limits, || Ok((bytes, fingerprint)))
}

/// `belongs` is asked at the end for the shard's length and fingerprint.
fn scan_tar(
    tar: AnyTar,
    path: &Path,
    depth: Depth,
    limits: &Limits,
    belongs: impl FnOnce() -> Result<(u64, u64)>,
) -> Result<Scanned> {
    let mut builder = IndexBuilder::default();
    let keep = if depth == Depth::Full { Keep::Images } else { Keep::Labels };
    let mut groups = Groups::new(tar, keep);
    let mut group = Group::default();
    let mut faults = BTreeMap::new();
    while groups.next_into(&mut group)? {
        let entry = match entry_of(&group, depth, path, limits) {
            Err(Error::Sample { offset, cause, .. }) if depth == Depth::Headers => {
                faults.insert(builder.len(), cause);
                Some(Entry { offset, start: group.start, ..Entry::default() })
            }
            entry => entry?,
        };
        match entry {
            Some(entry) => {
                builder.push(&group.key, &entry)?;
                let image = group.image().filter(|_| depth == Depth::Full);
                if let Some(side) = image.and_then(|image| side_index_of(&image.data)) {
                    builder.attach_side_index(&side);
                }
            }
            None => builder.skip(),
        }
    }
    let mut tar = groups.into_tar();
    let trailing = tar.drain()?;
    let (length, fingerprint) = belongs()?;
    let bytes = builder.finish(length, fingerprint);
    let index = ShardIndex::from_vec(bytes.clone(), path, limits)?.with_faults(faults);
    let without_image = index.head().without_image;
    let Tar { ended, links, .. } = tar;
    Ok(Scanned { index, bytes, without_image, links, ended, trailing })
}

/// The side index of an image, where it is a JPEG that can have one.
pub(crate) fn side_index_of(image: &[u8]) -> Option<Vec<u8>> {
    if sniff(image) != Format::Jpeg {
        return None;
    }
    SideIndex::build(image).ok().flatten().map(|index| index.to_bytes())
}

/// The archive in a mapped file, whether it is compressed or not.
pub(crate) fn open_tar(map: &Map, path: &Path, limits: &Limits) -> Result<AnyTar> {
    let bytes = map.as_ref();
    if bytes.is_empty() {
        return Err(damaged(path, 0, "the shard is empty: 0 bytes"));
    }
    if bytes.starts_with(&[0x1F, 0x8B]) {
        return Err(damaged(
            path,
            0,
            "compressed with gzip, which is not supported: `gunzip` it first",
        ));
    }
    let source: Box<dyn Source + Send> = if is_zstd(bytes) {
        decompressed(Passage::new(map.clone()), path, limits)?
    } else {
        if (bytes.len() as u64) < BLOCK {
            return Err(damaged(path, 0, format!("{} bytes are not a tar", bytes.len())));
        }
        Box::new(Passage::new(map.clone()))
    };
    Ok(Tar::new(source, path, 0, *limits))
}

/// The archive that a stream gives, whether it is compressed or not.
#[cfg(feature = "remote")]
pub(crate) fn tar_of(
    reader: impl std::io::Read + Send + 'static,
    compressed: bool,
    path: &Path,
    limits: &Limits,
) -> Result<AnyTar> {
    let source: Box<dyn Source + Send> = if compressed {
        decompressed(std::io::BufReader::with_capacity(128 << 10, reader), path, limits)?
    } else {
        Box::new(ReadSource(reader))
    };
    Ok(Tar::new(source, path, 0, *limits))
}

fn decompressed(
    reader: impl std::io::BufRead + Send + 'static,
    path: &Path,
    limits: &Limits,
) -> Result<Box<dyn Source + Send>> {
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(reader).map_err(|e| Error::io(path, e))?;
    decoder.window_log_max(limits.zstd_window_log).map_err(|e| Error::io(path, e))?;
    Ok(Box::new(ReadSource(decoder)))
}

/// The index entry of a sample; `None` when it has no image.
pub(crate) fn entry_of(
    group: &Group,
    depth: Depth,
    path: &Path,
    limits: &Limits,
) -> Result<Option<Entry>> {
    let Some(part) = group.image() else { return Ok(None) };
    group.check(path)?;
    let label = group.label(path, limits)?;
    let narrow = |value: u64, what: &str| {
        u32::try_from(value).map_err(|_| Error::Sample {
            path: path.to_owned(),
            key: group.key.clone(),
            offset: part.offset,
            cause: format!("{what} of {value} bytes, the limit is 4 GiB"),
        })
    };
    let mut entry = Entry {
        offset: part.offset,
        length: narrow(part.length, "an image")?,
        start: group.start,
        span: narrow(group.end - group.start, "a sample")?,
        label,
        ..Entry::default()
    };
    if depth == Depth::Full {
        (entry.format, entry.checksum) = (sniff(&part.data), xxh3_64(&part.data));
        (entry.width, entry.height) = dimensions_of(&part.data).unwrap_or((0, 0));
    } else {
        entry.format = match part.extension.as_str() {
            "jpg" | "jpeg" => Format::Jpeg,
            "png" => Format::Png,
            "dct" => Format::Dct,
            _ => Format::Other,
        };
    }
    Ok(Some(entry))
}
