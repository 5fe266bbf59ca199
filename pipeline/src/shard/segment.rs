//! Runs of consecutive samples as bytes ready to be appended to a shard: what
//! packing threads make, and `writer` puts into files in order.

use xxhash_rust::xxh3::xxh3_64;

use super::index::Entry;
use super::recode::Recoded;
use super::scan::side_index_of;
use super::source::Loaded;
use super::tar_write::append_member;
use crate::{Error, Result};

/// Decompressed bytes of a frame, about: large enough to compress well, small
/// enough that reading one image decompresses little else.
pub(crate) const FRAME_BYTES: usize = 128 << 10;

/// What the index will say of a sample.
#[derive(Debug)]
pub(crate) struct Indexed {
    pub key: String,
    pub entry: Entry,
    /// The side index of a JPEG; empty where there is none.
    pub side_index: Vec<u8>,
}

/// Whole samples, in the bytes of the shard's file.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// What is appended to the file: tar blocks, or one zstd frame of them.
    pub bytes: Vec<u8>,
    /// Bytes of the tar blocks.
    pub tar_bytes: u64,
    /// Its samples; offsets count from the segment's beginning.
    pub samples: Vec<Indexed>,
}

/// Builds segments from samples.
pub(crate) struct SegmentBuilder {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    open: Segment,
    done: Vec<Segment>,
}

impl SegmentBuilder {
    /// Frames of zstd level `zstd`, or plain tar: a segment per sample.
    pub fn new(zstd: Option<i32>) -> Result<Self> {
        let failed = |e| Error::Usage(format!("zstd level {}: {e}", zstd.unwrap_or(0)));
        let mut compressor = zstd.map(zstd::bulk::Compressor::new).transpose().map_err(failed)?;
        if let Some(compressor) = &mut compressor {
            compressor
                .set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))
                .map_err(failed)?;
        }
        Ok(SegmentBuilder { compressor, open: Segment::default(), done: Vec::new() })
    }

    /// Appends a sample: the image with its extension, `.cls`, and the extras.
    pub fn push(&mut self, sample: &Loaded, kind: Recoded) -> Result<()> {
        let Loaded { key, label, image, .. } = sample;
        let start = self.open.bytes.len();
        let extension = kind.format.extension().unwrap_or(&sample.extension);
        let extension = if extension.is_empty() { "img" } else { extension };
        append_member(&mut self.open.bytes, &format!("{key}.{extension}"), image);
        let offset = self.open.bytes.len() - image.len().next_multiple_of(512);
        if let Some(label) = label {
            append_member(
                &mut self.open.bytes,
                &format!("{key}.cls"),
                label.to_string().as_bytes(),
            );
        }
        for (extension, data) in &sample.extras {
            append_member(&mut self.open.bytes, &format!("{key}.{extension}"), data);
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
        self.open.samples.push(Indexed { key: key.clone(), entry, side_index });
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
        let mut builder = SegmentBuilder::new(zstd)?;
        builder.open.bytes = super::tar_write::END.to_vec();
        builder.cut()?;
        Ok(builder.done.remove(0))
    }
}

fn compress(compressor: &mut zstd::bulk::Compressor<'static>, bytes: &[u8]) -> Result<Vec<u8>> {
    let fits = u32::try_from(bytes.len()).is_ok();
    let frame =
        compressor.compress(bytes).ok().filter(|frame| fits && u32::try_from(frame.len()).is_ok());
    frame.ok_or_else(|| {
        Error::Usage(format!("a frame of {} bytes cannot be compressed", bytes.len()))
    })
}
