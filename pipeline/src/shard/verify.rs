//! Looks at every byte of a set and tells what is wrong with it, without
//! stopping at the first fault.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;

use super::group::{Group, Groups, Keep};
use super::index::{Entry, ShardIndex, index_path, other_checksum};
use super::manifest::{Manifest, checksum_text};
use super::map::Map;
use super::pattern::{Found, Resolved, resolve};
use super::pool::{Progress, in_order};
use super::scan::{Depth, entry_of, open_tar};
use super::tar::{Links, NO_END, Source};
use super::touched::Touched;
use super::zst::{SeekTable, is_seekable, is_zstd};
use super::{Damage, Limits, OpenOptions, damaged, passage, sniff};
use crate::decode::{Decoder, NO_IMAGE};
use crate::jpeg::SideIndex;
use crate::{Error, Image, Result};

/// What [`verify`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Shards looked at.
    pub shards: usize,
    /// Samples that were reached, with those that cannot be used.
    pub samples: u64,
    /// Bytes of the shard files.
    pub bytes: u64,
    /// Shards that have an index.
    pub indexed: usize,
    /// Samples passed over because they have no image.
    pub without_image: u64,
    /// Links in place of members of samples; they are not followed.
    pub links: Links,
    /// Everything that is wrong, in the order of the shards.
    pub damage: Vec<Damage>,
}

/// Verifies the shards of `pattern`: archives, checksums of files and images, indexes, what
/// manifests say of shards that are all among them, and, with `decode`, that every image can be
/// decoded. `threads` threads, 0 for one per core.
///
/// # Errors
/// [`Error::Usage`] when nothing matches, [`Error::Io`] when a folder cannot be
/// read. What is wrong with a shard is in the report instead.
pub fn verify(
    pattern: &str,
    options: &OpenOptions,
    decode: bool,
    threads: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport> {
    let Resolved { shards: found, manifests, .. } =
        resolve(pattern, options.use_manifest, &options.limits)?;
    let mut counts = HashMap::new();
    let mut report = VerifyReport { shards: found.len(), ..VerifyReport::default() };
    let total = found.len() as u64;
    in_order(
        threads,
        found.len(),
        || decode.then(Scratch::default),
        |scratch, shard| verify_shard(&found[shard], &options.limits, scratch),
        |done, (shard, labels): (VerifyReport, Option<Labels>)| {
            counts.insert(found[done].path.as_path(), labels);
            report.samples += shard.samples;
            report.bytes += shard.bytes;
            report.indexed += shard.indexed;
            report.without_image += shard.without_image;
            report.links.add(shard.links);
            report.damage.extend(shard.damage);
            let done = done as u64 + 1;
            progress(Progress { unit: "shards", done, total, bytes: report.bytes });
            Ok(())
        },
    )?;
    for (path, manifest) in &manifests {
        let cause = miscounted(path, manifest, &counts);
        let error = cause.map(|cause| damaged(path, 0, format!("manifest: {cause}")));
        report.damage.extend(error.map(|error| Damage::of(path, &error)));
    }
    Ok(report)
}

/// How many samples have each label, or none.
type Labels = BTreeMap<Option<u32>, u64>;

/// What a manifest says of its classes that its shards do not, if all of them were counted.
fn miscounted(
    path: &Path,
    manifest: &Manifest,
    counts: &HashMap<&Path, Option<Labels>>,
) -> Option<String> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut found = Labels::new();
    for shard in &manifest.shards {
        let labels = counts.get(folder.join(&shard.name).as_path())?.as_ref()?;
        labels.iter().for_each(|(label, count)| *found.entry(*label).or_default() += count);
    }
    let classes = manifest.numbered().map(|(label, class)| (Some(label), class.samples));
    let said: Labels = classes.chain([(None, manifest.unlabelled)]).collect();
    let counts_of = |label: &Option<u32>| {
        let count = |labels: &Labels| labels.get(label).copied().unwrap_or(0);
        (count(&found), count(&said))
    };
    let mut labels = said.keys().chain(found.keys()).map(|label| (label, counts_of(label)));
    let (label, (is, was)) = labels.find(|(_, (is, was))| is != was)?;
    let of = label.map_or("without a label".to_owned(), |label| format!("of class {label}"));
    Some(format!("{was} samples {of}, but its shards have {is}"))
}

/// What a thread decodes with.
#[derive(Default)]
struct Scratch {
    decoder: Decoder,
    image: Image,
}

/// One shard under examination.
struct Examined<'a> {
    path: &'a Path,
    report: VerifyReport,
    labels: Labels,
    /// Whether all samples could be counted.
    counted: bool,
}

impl Examined<'_> {
    fn note(&mut self, error: Error) {
        self.report.damage.push(Damage::of(self.path, &error));
    }

    fn sample(&mut self, group: &Group, cause: String) {
        let offset = group.image().map_or(group.start, |image| image.offset);
        self.report.damage.push(Damage::of_sample(self.path, &group.key, offset, cause));
    }
}

/// What is wrong with a shard, and the labels of its samples where all of them could be read.
fn verify_shard(
    found: &Found,
    limits: &Limits,
    scratch: &mut Option<Scratch>,
) -> (VerifyReport, Option<Labels>) {
    let mut examined = Examined {
        path: &found.path,
        report: VerifyReport::default(),
        labels: Labels::new(),
        counted: true,
    };
    let map = match Map::open(&found.path) {
        Ok(map) => map,
        Err(error) => {
            examined.note(error);
            return (examined.report, None);
        }
    };
    let bytes = map.as_ref();
    examined.report.bytes = bytes.len() as u64;
    if let Some(known) = &found.known {
        let checksum = checksum_text(passage::checksum(&map));
        let seekable = is_seekable(bytes, bytes);
        if (known.bytes, &known.checksum) != (bytes.len() as u64, &checksum) {
            let cause = format!(
                "{} bytes with checksum {checksum}, the manifest says {} and {}",
                bytes.len(),
                known.bytes,
                known.checksum
            );
            examined.note(damaged(&found.path, 0, cause));
        } else if known.seekable != seekable {
            let can = |seekable| if seekable { "can" } else { "cannot" };
            let (can, said) = (can(seekable), can(known.seekable));
            let cause = format!("it {can} be read in any order, the manifest says it {said}");
            examined.note(damaged(&found.path, 0, cause));
        }
    }
    let index = open_index(&mut examined, bytes, limits);
    if let Err(error) = verify_samples(&mut examined, &map, index.as_ref(), limits, scratch) {
        examined.counted = false;
        examined.note(error);
    }
    if let Some(known) = &found.known
        && known.samples != examined.report.samples
    {
        let cause =
            format!("{} samples, the manifest says {}", examined.report.samples, known.samples);
        examined.note(damaged(&found.path, 0, cause));
    }
    (examined.report, examined.counted.then_some(examined.labels))
}

fn open_index(examined: &mut Examined<'_>, shard: &[u8], limits: &Limits) -> Option<ShardIndex> {
    let path = index_path(examined.path);
    // One that cannot be looked at cannot be opened, which is told.
    if !path.try_exists().unwrap_or(true) {
        return None;
    }
    examined.report.indexed = 1;
    let index = ShardIndex::open(&path, limits);
    match index.and_then(|index| index.belongs_to(examined.path, shard).map(|()| index)) {
        Ok(index) => Some(index),
        Err(error) => {
            examined.note(error);
            None
        }
    }
}

/// Walks the archive; an error is one that keeps the walk from going on.
fn verify_samples(
    examined: &mut Examined<'_>,
    map: &Map,
    index: Option<&ShardIndex>,
    limits: &Limits,
    scratch: &mut Option<Scratch>,
) -> Result<()> {
    let mut groups = Groups::new(open_tar(map, examined.path, limits)?, Keep::Images);
    let mut group = Group::default();
    let mut number = 0;
    while groups.next_into(&mut group)? {
        let entry = match entry_of(&group, Depth::Full, examined.path, limits) {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                examined.report.without_image += 1;
                continue;
            }
            Err(error) => {
                examined.counted = false;
                examined.note(error);
                examined.report.samples += 1;
                number += 1;
                continue;
            }
        };
        let image = group.image().map_or(&[][..], |image| &image.data);
        if let Some(index) = index
            && let Some(cause) = differs(index, number, &group.key, &entry, image)?
        {
            examined.sample(&group, cause);
        }
        let readable = match scratch {
            Some(s) => s.decoder.decode_into(sniff(image), image, &mut s.image),
            None => Ok(()),
        };
        if let Err(error) = readable {
            examined.sample(&group, error.to_string());
        } else if entry.width == 0 {
            examined.sample(&group, NO_IMAGE.to_owned());
        }
        number += 1;
        examined.report.samples += 1;
        *examined.labels.entry(entry.label).or_default() += 1;
    }
    if let Some(index) = index {
        verify_head(examined, index, groups.tar().position());
    }
    if let Some(index) = index.filter(|index| index.len() != number) {
        let cause = format!("{number} samples, the index says {}", index.len());
        examined.note(damaged(examined.path, groups.tar().position(), cause));
    }
    verify_end(examined, groups, map, limits)
}

/// What the index's header says of all samples; `end` is where they end.
fn verify_head(examined: &mut Examined<'_>, index: &ShardIndex, end: u64) {
    let head = index.head();
    let largest = examined.labels.last_key_value().and_then(|(label, _)| *label);
    let classes = largest.map_or(0, |label| label.saturating_add(1));
    let fields = [
        ("classes", u64::from(classes), u64::from(head.classes)),
        ("samples without an image", examined.report.without_image, head.without_image.into()),
    ];
    // A sample that cannot be read may have had the largest label.
    for (what, found, said) in fields {
        if examined.counted && found != said {
            let cause = format!("{found} {what}, the index says {said}");
            examined.note(damaged(examined.path, end, cause));
        }
    }
}

/// The end-of-archive marker, what follows it, and the seek table.
fn verify_end(
    examined: &mut Examined<'_>,
    groups: Groups<Box<dyn Source + Send>>,
    map: &Map,
    limits: &Limits,
) -> Result<()> {
    if !groups.tar().ended {
        examined.note(damaged(examined.path, groups.tar().position(), NO_END));
    }
    let mut tar = groups.into_tar();
    examined.report.links = std::mem::take(&mut tar.links);
    if let Some(at) = tar.drain()? {
        let cause = "more follows the end of the archive, which no reader sees";
        examined.note(damaged(examined.path, at, cause));
    }
    let length = tar.position();
    map.check(examined.path)?;
    if is_zstd(map.as_ref())
        && let Some(table) = SeekTable::parse(map.as_ref(), examined.path, limits)?
    {
        if table.length() != length {
            let cause =
                format!("the seek table says {} bytes, its frames hold {length}", table.length());
            examined.note(damaged(examined.path, length, cause));
        }
        verify_frames(examined, map, &table)?;
    }
    Ok(())
}

/// Frames of a shard that are told of one by one: a table of nothing else has millions.
const MOST_FRAMES: usize = 1000;

/// Each frame as the seek table has it, which what reads in order does not look at.
fn verify_frames(examined: &mut Examined<'_>, map: &Map, table: &SeekTable) -> Result<()> {
    let mut context = zstd::bulk::Decompressor::new().map_err(|e| Error::io(examined.path, e))?;
    let (mut out, mut bad, mut touched) = (Vec::new(), 0, Touched::default());
    for frame in 0..table.len() {
        let one = frame..frame + 1;
        touched.note(map, table.file_range(&one));
        let read = table.decompress(map.as_ref(), 0, examined.path, one, &mut context, &mut out);
        map.check(examined.path)?;
        if let Err(error) = read {
            bad += 1;
            if bad <= MOST_FRAMES {
                examined.note(error);
            }
        }
    }
    if bad > MOST_FRAMES {
        let cause = format!("{} more frames are not as the seek table says", bad - MOST_FRAMES);
        examined.note(damaged(examined.path, table.length(), cause));
    }
    Ok(())
}

/// No label has this number.
const NO_LABEL: u64 = u64::MAX;

/// How an index entry differs from the sample it stands for.
fn differs(
    index: &ShardIndex,
    number: usize,
    key: &str,
    found: &Entry,
    image: &[u8],
) -> Result<Option<String>> {
    if number >= index.len() {
        return Ok(Some("not in the index".to_owned()));
    }
    let (entry, indexed_key) = index.get(number)?;
    if indexed_key != key {
        return Ok(Some(format!("the index has sample `{indexed_key}` here")));
    }
    if index.side_index(number).is_some_and(|side| !SideIndex::describes(side, image)) {
        return Ok(Some("its side index does not describe the image".to_owned()));
    }
    // 0 is what an index says that does not know.
    let known = |indexed: u32, found: u32| if indexed == 0 { 0 } else { u64::from(found) };
    let fields = [
        ("offset", entry.offset, found.offset),
        ("length", entry.length.into(), found.length.into()),
        ("start", entry.start, found.start),
        ("span", entry.span.into(), found.span.into()),
        ("format", entry.format as u64, found.format as u64),
        ("width", entry.width.into(), known(entry.width, found.width)),
        ("height", entry.height.into(), known(entry.height, found.height)),
        ("label", entry.label.map_or(NO_LABEL, u64::from), found.label.map_or(NO_LABEL, u64::from)),
        ("checksum", entry.checksum, if entry.checksum == 0 { 0 } else { found.checksum }),
    ];
    let wrong = fields.into_iter().find(|(_, indexed, found)| indexed != found);
    Ok(wrong.map(|(name, indexed, found)| match name {
        "checksum" => other_checksum(found, indexed),
        "label" => {
            let text =
                |label: u64| if label == NO_LABEL { "none".to_owned() } else { label.to_string() };
            format!("label {}, the index says {}", text(found), text(indexed))
        }
        _ => format!("{name} {found}, the index says {indexed}"),
    }))
}
