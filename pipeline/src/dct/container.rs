//! The file of a re-coded image, taken apart: bytes -> [`DctImage`].

use xxhash_rust::xxh3::xxh3_64;

use super::book::{CLASSES, MAX_INDEX_BITS};
use super::decode::{Coded, PAD};
use super::error::DctError;
use super::segment::Segments;
use crate::jpeg::Jpeg;

/// The first bytes of the file.
pub(crate) const MAGIC: [u8; 8] = *b"BTDCTIMG";
pub(super) const VERSION: u16 = 1;

/// Bytes before the JPEG header.
const FIXED: usize = 32;
const CHECKSUM: usize = 8;

/// The header of a re-coded image, with its segments still coded.
#[derive(Clone, Debug)]
pub struct DctImage<'a> {
    jpeg: Jpeg<'a>,
    pub(super) segments: Segments,
    pub(super) index_bits: [u32; CLASSES],
    /// Two bytes a segment.
    lengths: &'a [u8],
    /// The segments, and behind them PAD bytes.
    payload: &'a [u8],
    payload_checksum: u64,
}

impl<'a> DctImage<'a> {
    /// Reads everything but the segments, and verifies its checksum.
    ///
    /// # Errors
    /// [`DctError::Checksum`], [`DctError::Corrupt`] and [`DctError::Jpeg`] for bytes
    /// that [`super::encode`] did not write, [`DctError::Unsupported`] for those of a
    /// later version.
    pub fn parse(bytes: &'a [u8]) -> Result<DctImage<'a>, DctError> {
        DctImage::parse_with(bytes, true)
    }

    /// As [`DctImage::parse`], without a look at the checksum: what a fuzzer calls, so that
    /// it gets beyond it.
    ///
    /// # Errors
    /// As [`DctImage::parse`], but for [`DctError::Checksum`].
    pub fn parse_unsealed(bytes: &'a [u8]) -> Result<DctImage<'a>, DctError> {
        DctImage::parse_with(bytes, false)
    }

    fn parse_with(bytes: &'a [u8], sealed: bool) -> Result<DctImage<'a>, DctError> {
        const SHORT: DctError = DctError::Corrupt("too short");
        let fixed: &[u8; FIXED] = bytes.first_chunk().ok_or(SHORT)?;
        if fixed[..8] != MAGIC {
            return Err(DctError::Corrupt("not a re-coded image"));
        }
        let word = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        if word(8) != VERSION {
            return Err(DctError::Unsupported("a later version"));
        }
        let index_bits = [u32::from(fixed[10]), u32::from(fixed[11])];
        if index_bits.iter().any(|&bits| bits > MAX_INDEX_BITS) {
            return Err(DctError::Corrupt("bits of an index"));
        }
        let (header_bytes, payload_bytes) = (long(16) as usize, long(20) as usize);
        let payload_checksum = u64::from(long(24)) | u64::from(long(28)) << 32;
        let (header, rest) = bytes[FIXED..].split_at_checked(header_bytes).ok_or(SHORT)?;
        let jpeg = Jpeg::parse_without_tables(header)?;
        // What followed the scan's header would be taken for coded data of its own.
        if jpeg.scan_start != header.len() {
            return Err(DctError::Corrupt("bytes behind the header"));
        }
        let segments = Segments::new(&jpeg, usize::from(word(12)))?;
        let table_bytes = segments.count() * 2;
        let (lengths, rest) = rest.split_at_checked(table_bytes).ok_or(SHORT)?;
        let (checksum, payload) = rest.split_first_chunk::<CHECKSUM>().ok_or(SHORT)?;
        let front = &bytes[..FIXED + header_bytes + table_bytes];
        if sealed && xxh3_64(front) != u64::from_le_bytes(*checksum) {
            return Err(DctError::Checksum("the header"));
        }
        if payload.len() != payload_bytes.saturating_add(PAD) {
            return Err(DctError::Corrupt("length"));
        }
        let image = DctImage { jpeg, segments, index_bits, lengths, payload, payload_checksum };
        if image.row_bytes(0..segments.grid.rows) != payload_bytes {
            return Err(DctError::Corrupt("lengths of segments"));
        }
        Ok(image)
    }

    /// The header of the JPEG that this was: size, colour, components, EXIF. It has
    /// no scan that could be decoded.
    pub fn jpeg(&self) -> &Jpeg<'a> {
        &self.jpeg
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.jpeg.width()
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.jpeg.height()
    }

    /// Verifies the checksum of the segments.
    ///
    /// # Errors
    /// [`DctError::Checksum`] where it differs.
    pub fn verify(&self) -> Result<(), DctError> {
        let segments = &self.payload[..self.payload.len() - PAD];
        if xxh3_64(segments) != self.payload_checksum {
            return Err(DctError::Checksum("the segments"));
        }
        Ok(())
    }

    /// Bytes of the segments in these rows of MCUs.
    pub(super) fn row_bytes(&self, rows: std::ops::Range<usize>) -> usize {
        let row = 2 * self.segments.per_row;
        let lengths = &self.lengths[rows.start * row..rows.end * row];
        lengths.chunks_exact(2).map(|l| usize::from(u16::from_le_bytes([l[0], l[1]]))).sum()
    }

    /// The length of a segment.
    pub(super) fn length(&self, row: usize, at: usize) -> usize {
        let at = 2 * (row * self.segments.per_row + at);
        usize::from(u16::from_le_bytes([self.lengths[at], self.lengths[at + 1]]))
    }

    /// The segment of `length` bytes at `start`.
    pub(super) fn coded(&self, start: usize, length: usize) -> Result<Coded<'a>, DctError> {
        Coded::new(self.payload, start, length).ok_or(DctError::Corrupt("lengths of segments"))
    }
}
