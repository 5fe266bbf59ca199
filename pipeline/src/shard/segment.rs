//! Runs of consecutive samples as bytes ready to be appended to a shard: what
//! packing threads make, and `writer` puts into files in order.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::group::is_image;
use super::index::Entry;
use super::recode::Recoded;
use super::scan::side_index_of;
use super::source::Loaded;
use super::tar::{SliceSource, Tar};
use super::tar_write::append_member;
use super::{Limits, damaged};
use crate::{Error, Result};

/// Decompressed bytes of a frame, about: large enough to compress well, small
/// enough that reading one image decompresses little else.
pub(crate) const FRAME_BYTES: usize = 128 << 10;

/// What a shard of one frame has beside what zstd makes of each 256 bytes of it: headers and
/// checksum of the frame, the frame of the archive's end and the seek table.
const FRAME_REST: u64 = 512;

/// Decompressed bytes that a frame may have for a shard of it to have at most `bytes_per_shard`,
/// whatever is in it. Of bytes that cannot be made smaller zstd makes 1/256 more at most.
fn frame_room(bytes_per_shard: u64) -> u64 {
    let room = bytes_per_shard.saturating_sub(FRAME_REST);
    room - room / 256
}

/// What the index will say of a sample.
#[derive(Clone, Debug)]
pub(crate) struct IndexRow {
    pub key: String,
    pub entry: Entry,
    /// The side index of a JPEG; empty where there is none.
    pub side_index: Vec<u8>,
}

/// Whole samples, in the bytes of the shard's file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    /// What is appended to the file: tar blocks, or one zstd frame of them.
    pub bytes: Vec<u8>,
    /// Bytes of the tar blocks.
    pub tar_bytes: u64,
    /// Its samples; offsets count from the segment's beginning.
    pub samples: Vec<IndexRow>,
}

/// Builds segments from samples.
pub(crate) struct SegmentBuilder {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    open: Segment,
    done: Vec<Segment>,
    /// Decompressed bytes of a frame, unless it is of one sample.
    room: u64,
    /// Those of readers that are told nothing else.
    limits: Limits,
}

impl SegmentBuilder {
    /// Frames of zstd level `zstd`, none of which makes a shard of several samples larger than
    /// `bytes_per_shard`; or plain tar: a segment per sample.
    pub fn new(zstd: Option<i32>, bytes_per_shard: u64) -> Result<Self> {
        let compressor = zstd.map(compressor).transpose()?;
        let (open, done, limits) = (Segment::default(), Vec::new(), Limits::default());
        let room = frame_room(bytes_per_shard);
        Ok(SegmentBuilder { compressor, open, done, room, limits })
    }

    /// Whether readers with the limits that are the default would read a sample.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; the caller knows whose image it is.
    pub fn check(&self, sample: &Loaded) -> Result<()> {
        let limits = &self.limits;
        let extras = || sample.extras.iter().map(|(_, data)| data.len() as u64);
        let image = sample.image.len() as u64;
        let all = extras().fold(image, u64::saturating_add);
        let over = |what: &str, bytes: u64, limit: u64| {
            Err(Error::TooLarge(format!(
                "{what} has {bytes} bytes, and readers take {limit} at most: make it smaller \
                 (`shard pack --max-side`) or leave it out (`--skip-bad`)"
            )))
        };
        if image > limits.member_bytes {
            return over("the image as it is packed", image, limits.member_bytes);
        }
        if let Some(extra) = extras().find(|&extra| extra > limits.member_bytes) {
            return over("another member of the sample", extra, limits.member_bytes);
        }
        if all > limits.sample_bytes {
            return over("the sample", all, limits.sample_bytes);
        }
        if self.compressor.is_some() && span(sample) > limits.frame_bytes {
            return over("the sample", span(sample), limits.frame_bytes);
        }
        // Image and label come on top.
        if sample.extras.len() + 2 > limits.members_per_sample {
            let (members, limit) = (sample.extras.len() + 2, limits.members_per_sample);
            let cause = format!("the sample has {members} members, and readers take {limit}");
            return Err(Error::TooLarge(cause));
        }
        Ok(())
    }

    /// Appends a sample: the image with its extension, `.cls`, and the extras. An extra that has
    /// the extension of one of these gets a number in front of it: a preview `.jpg` beside a PNG
    /// that becomes a JPEG is `.2.jpg`, which no reader takes for the sample's image.
    pub fn push(&mut self, sample: &Loaded, kind: Recoded) -> Result<()> {
        let Loaded { key, label, image, .. } = sample;
        let most = self.room.min(self.limits.frame_bytes);
        let full = self.open.bytes.len() as u64 + span(sample) > most;
        if full && !self.open.samples.is_empty() {
            self.cut()?;
        }
        let start = self.open.bytes.len();
        let known = Some(sample.extension.as_str()).filter(|extension| is_image(extension));
        let extension = kind.format.extension().or(known).unwrap_or("img");
        append_member(&mut self.open.bytes, &format!("{key}.{extension}"), image);
        let offset = self.open.bytes.len() - image.len().next_multiple_of(512);
        if let Some(label) = label {
            append_member(
                &mut self.open.bytes,
                &format!("{key}.cls"),
                label.to_string().as_bytes(),
            );
        }
        let mut taken = vec![extension.to_owned(), "cls".to_owned()];
        for (extension, data) in &sample.extras {
            let extension = another(extension, &taken);
            append_member(&mut self.open.bytes, &format!("{key}.{extension}"), data);
            taken.push(extension.to_lowercase());
        }
        let narrow = |n: usize| {
            u32::try_from(n).map_err(|_| {
                Error::Usage(format!("sample `{key}` has {n} bytes, the limit is 4 GiB"))
            })
        };
        let entry = Entry {
            offset: offset as u64,
            length: narrow(image.len())?,
            start: start as u64,
            span: narrow(self.open.bytes.len() - start)?,
            checksum: xxh3_64(image),
            label: *label,
            width: kind.width,
            height: kind.height,
            format: kind.format,
        };
        let side_index = side_index_of(image).unwrap_or_default();
        self.open.samples.push(IndexRow { key: key.clone(), entry, side_index });
        if self.compressor.is_none() || self.open.bytes.len() >= FRAME_BYTES {
            self.cut()?;
        }
        Ok(())
    }

    /// Ends the open segment.
    fn cut(&mut self) -> Result<()> {
        let mut segment = std::mem::take(&mut self.open);
        segment.tar_bytes = segment.bytes.len() as u64;
        if let Some(compressor) = &mut self.compressor {
            segment.bytes = compress(compressor, &segment.bytes)?;
        }
        self.done.push(segment);
        Ok(())
    }

    /// The segments so far, the last one cut short.
    pub fn finish(&mut self) -> Result<Vec<Segment>> {
        if !self.open.samples.is_empty() {
            self.cut()?;
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// The bytes that end an archive.
    pub fn end(zstd: Option<i32>) -> Result<Segment> {
        let mut builder = SegmentBuilder::new(zstd, u64::MAX)?;
        builder.open.bytes = super::tar_write::END.to_vec();
        builder.cut()?;
        Ok(builder.done.remove(0))
    }
}

/// Bytes of a sample's tar blocks, at most.
fn span(sample: &Loaded) -> u64 {
    // A header, and one for a long name and that name.
    let member = |data: usize| (data + sample.key.len() + 4096) as u64;
    sample.extras.iter().map(|(_, data)| member(data.len())).sum::<u64>()
        + member(sample.image.len())
        + member(0)
}

impl Segment {
    /// The segment with other keys, where there are any; `zstd` is what it was made with.
    pub fn with_keys(&self, keys: &[Option<String>], zstd: Option<i32>) -> Result<Segment> {
        let failed = |e| Error::Usage(format!("a frame just compressed cannot be read: {e}"));
        let blocks = match zstd {
            None => self.bytes.clone(),
            Some(_) => {
                zstd::bulk::decompress(&self.bytes, self.tar_bytes as usize).map_err(failed)?
            }
        };
        let mut out = Segment::default();
        for (sample, key) in self.samples.iter().zip(keys) {
            let (start, mut renamed) = (out.bytes.len() as u64, sample.clone());
            let entry = &mut renamed.entry;
            let from = entry.start as usize;
            let blocks = &blocks[from..from + entry.span as usize];
            match key {
                None => {
                    out.bytes.extend(blocks);
                    entry.offset = start + (entry.offset - entry.start);
                }
                Some(key) => {
                    let image = entry.offset - entry.start;
                    entry.offset = start + rename(blocks, &sample.key, key, image, &mut out.bytes)?;
                    renamed.key.clone_from(key);
                }
            }
            let span = out.bytes.len() as u64 - start;
            (entry.start, entry.span) = (start, u32::try_from(span).unwrap_or(u32::MAX));
            out.samples.push(renamed);
        }
        out.tar_bytes = out.bytes.len() as u64;
        if let Some(level) = zstd {
            out.bytes = compress(&mut compressor(level)?, &out.bytes)?;
        }
        Ok(out)
    }
}

/// Appends the members in `blocks` with `key` in place of `old`. Where the data of the member lies
/// whose data lay at `image`, both from the front of the blocks.
fn rename(blocks: &[u8], old: &str, key: &str, image: u64, out: &mut Vec<u8>) -> Result<u64> {
    let (path, start) = (Path::new(old), out.len());
    let limits = Limits { name_bytes: u64::MAX, ..Limits::default() };
    let mut tar = Tar::new(SliceSource::new(blocks), path, 0, limits);
    let mut place = 0;
    while let Some(member) = tar.next_member()? {
        let data = super::map::slice(blocks, member.offset, member.size);
        let rest = member.name.strip_prefix(old);
        let (rest, data) = rest
            .zip(data)
            .ok_or_else(|| damaged(path, member.start, "a sample just written cannot be read"))?;
        append_member(out, &format!("{key}{rest}"), data);
        if member.offset == image {
            place = (out.len() - start - data.len().next_multiple_of(512)) as u64;
        }
    }
    Ok(place)
}

/// An extension that is none of those taken: `extension` itself, or with a number in front.
fn another(extension: &str, taken: &[String]) -> String {
    // Readers do not tell upper case from lower.
    let free = |name: &String| !taken.contains(&name.to_lowercase());
    let numbered = (2..).map(|n: u32| format!("{n}.{extension}"));
    let mut names = std::iter::once(extension.to_owned()).chain(numbered);
    names.find(free).unwrap_or_default()
}

fn compressor(level: i32) -> Result<zstd::bulk::Compressor<'static>> {
    let failed = |e| Error::Usage(format!("zstd level {level}: {e}"));
    let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).map_err(failed)?;
    Ok(compressor)
}

fn compress(compressor: &mut zstd::bulk::Compressor<'static>, bytes: &[u8]) -> Result<Vec<u8>> {
    let fits = u32::try_from(bytes.len()).is_ok();
    let frame =
        compressor.compress(bytes).ok().filter(|frame| fits && u32::try_from(frame.len()).is_ok());
    frame.ok_or_else(|| {
        Error::Usage(format!("a frame of {} bytes cannot be compressed", bytes.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    fn builder(zstd: Option<i32>) -> SegmentBuilder {
        let limits = Limits {
            member_bytes: 50_000,
            sample_bytes: 80_000,
            frame_bytes: 70_000,
            members_per_sample: 5,
            ..Limits::default()
        };
        SegmentBuilder { limits, ..SegmentBuilder::new(zstd, u64::MAX).unwrap() }
    }

    fn sample(image: usize, extras: &[usize]) -> Loaded {
        let extras = extras.iter().enumerate();
        let extras = extras.map(|(n, &size)| (format!("x{n}"), vec![7; size])).collect();
        Loaded { key: "k".into(), image: vec![7; image], extras, ..Loaded::default() }
    }

    #[test]
    fn what_readers_would_refuse_is_not_packed() {
        for (image, extras, plain, compressed) in [
            (50_000, &[][..], true, true),
            (50_001, &[], false, false),
            (10, &[50_001], false, false),
            (40_000, &[40_000], true, false),
            (40_000, &[40_001], false, false),
            (10, &[1, 1, 1], true, true),
            (10, &[1, 1, 1, 1], false, false),
        ] {
            let sample = sample(image, extras);
            let checked = [None, Some(1)].map(|zstd| builder(zstd).check(&sample).is_ok());
            assert_eq!(checked, [plain, compressed], "{image} {extras:?}");
        }
    }

    #[test]
    fn no_frame_is_larger_than_readers_take() {
        let mut builder = builder(Some(1));
        let kind = Recoded { width: 1, height: 1, format: Format::Other };
        for size in [100, 49_000, 100, 100, 49_000, 49_000, 100] {
            let sample = sample(size, &[]);
            builder.check(&sample).unwrap();
            builder.push(&sample, kind).unwrap();
        }
        let segments = builder.finish().unwrap();
        let samples: usize = segments.iter().map(|segment| segment.samples.len()).sum();
        assert_eq!(samples, 7);
        assert!(segments.iter().all(|segment| segment.tar_bytes <= 70_000));
    }
}
