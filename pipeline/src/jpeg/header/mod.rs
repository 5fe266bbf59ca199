//! The markers before the entropy-coded data: bytes -> [`Jpeg`].
//!
//! Nothing is allocated in proportion to what a header claims: the tables have
//! fixed sizes and the entropy-coded data is borrowed.

mod parser;
mod scan;
mod standard;

use super::error::JpegError;
use parser::Parser;

pub(crate) use parser::next_segment;
pub(crate) use scan::{ScanHeader, Scans};

/// Zig-zag position -> row-major position in the 8 x 8 block (T.81, figure 5).
pub(crate) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What the components mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// One component; RGB output repeats it.
    Gray,
    /// Y, Cb, Cr of JFIF (full range BT.601).
    YCbCr,
    /// Red, green, blue as they are.
    Rgb,
}

/// One component of the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// The identifier scans refer to.
    pub id: u8,
    /// Horizontal sampling factor, 1..=4.
    pub h: u8,
    /// Vertical sampling factor, 1..=4.
    pub v: u8,
    pub(crate) quant: u8,
    pub(crate) dc_table: u8,
    pub(crate) ac_table: u8,
}

/// A Huffman table as the DHT segment gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HuffmanSpec<'a> {
    /// Codes of length 1..=16.
    pub counts: &'a [u8],
    /// Symbols in the order of their codes.
    pub symbols: &'a [u8],
}

/// The header of a JPEG, with its entropy-coded data still encoded.
#[derive(Clone, Debug)]
pub struct Jpeg<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where the entropy-coded data of the first scan begins in `bytes`.
    pub(crate) scan_start: usize,
    pub(crate) scans: Scans,
    width: usize,
    height: usize,
    color: Color,
    components: [Component; 3],
    count: usize,
    /// Component numbers in the order in which the scan interleaves them.
    pub(crate) scan_order: [u8; 3],
    /// Row-major quantisation steps.
    pub(crate) quant: [Option<[u16; 64]>; 4],
    pub(crate) dc: [Option<HuffmanSpec<'a>>; 4],
    pub(crate) ac: [Option<HuffmanSpec<'a>>; 4],
    restart_interval: usize,
    exif: Option<&'a [u8]>,
}

impl<'a> Jpeg<'a> {
    /// Reads everything up to the first scan.
    ///
    /// # Errors
    /// [`JpegError::Unsupported`] for a JPEG that is fine but not for this
    /// decoder, [`JpegError::Truncated`] and [`JpegError::Corrupt`] for bytes
    /// that are not fine.
    pub fn parse(bytes: &'a [u8]) -> Result<Jpeg<'a>, JpegError> {
        Jpeg::parse_with(bytes, true)
    }

    /// As [`Jpeg::parse`], for headers whose Huffman tables were taken out, whatever their numbers.
    ///
    /// # Errors
    /// As [`Jpeg::parse`].
    pub(crate) fn parse_without_tables(bytes: &'a [u8]) -> Result<Jpeg<'a>, JpegError> {
        Jpeg::parse_with(bytes, false)
    }

    fn parse_with(bytes: &'a [u8], tables: bool) -> Result<Jpeg<'a>, JpegError> {
        if bytes.len() < 2 || bytes[..2] != [0xFF, 0xD8] {
            return Err(JpegError::Corrupt("no SOI marker"));
        }
        let mut parser = Parser::new(bytes);
        let mut at = 2;
        loop {
            let (code, segment, next) = next_segment(bytes, at)?;
            at = next;
            match code {
                0xDA => {
                    parser.first_scan(segment)?;
                    parser.jpeg.scan_start = at;
                    return parser.finish(tables);
                }
                0xD9 => return Err(JpegError::Corrupt("EOI before any scan")),
                _ => parser.segment(code, segment)?,
            }
        }
    }

    fn empty(bytes: &'a [u8]) -> Self {
        Jpeg {
            bytes,
            scan_start: 0,
            scans: Scans::One,
            width: 0,
            height: 0,
            color: Color::Gray,
            components: [Component::default(); 3],
            count: 0,
            scan_order: [0; 3],
            quant: [None; 4],
            dc: [None; 4],
            ac: [None; 4],
            restart_interval: 0,
            exif: None,
        }
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// What the components mean.
    pub fn color(&self) -> Color {
        self.color
    }

    /// The components in the order of the frame header: one or three. A lone
    /// component has factors 1, 1, whatever its header says: without others,
    /// its factors mean nothing.
    pub fn components(&self) -> &[Component] {
        &self.components[..self.count]
    }

    /// MCUs between restart markers; 0 when there are none.
    pub fn restart_interval(&self) -> usize {
        self.restart_interval
    }

    /// The first EXIF chunk before the scan, from its TIFF header on.
    pub fn exif(&self) -> Option<&'a [u8]> {
        self.exif
    }

    /// The encoded bytes the header was read from.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The quantisation table of a component, row-major: the one that is in force where the header
    /// ends.
    pub(crate) fn quant_of(&self, component: &Component) -> Option<&[u16; 64]> {
        self.quant[usize::from(component.quant)].as_ref()
    }

    /// The largest sampling factors, horizontal and vertical.
    pub(crate) fn max_factors(&self) -> (u8, u8) {
        let components = self.components();
        (
            components.iter().map(|c| c.h).max().unwrap_or(1),
            components.iter().map(|c| c.v).max().unwrap_or(1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_or_foreign_bytes_are_errors() {
        assert!(matches!(Jpeg::parse(b""), Err(JpegError::Corrupt(_))));
        assert!(matches!(Jpeg::parse(b"\x89PNG"), Err(JpegError::Corrupt(_))));
        assert!(matches!(Jpeg::parse(b"\xFF\xD8"), Err(JpegError::Truncated(_))));
        assert!(matches!(Jpeg::parse(b"\xFF\xD8\xFF\xE0\x00"), Err(JpegError::Truncated(_))));
        assert!(matches!(Jpeg::parse(b"\xFF\xD8\xFF\xE0\x00\x01"), Err(JpegError::Corrupt(_))));
        assert!(matches!(Jpeg::parse(b"\xFF\xD8\xFF\xD9"), Err(JpegError::Corrupt(_))));
    }

    #[test]
    fn an_arithmetic_frame_is_unsupported() {
        let bytes = b"\xFF\xD8\xFF\xC9\x00\x0B\x08\x00\x01\x00\x01\x01\x01\x11\x00";
        assert_eq!(Jpeg::parse(bytes).unwrap_err(), JpegError::Unsupported("arithmetic coding"));
    }
}
