//! Headers of scans, and the walk through the scans of one picture.

use super::super::error::JpegError;
use super::Jpeg;
use super::parser::{Parser, next_segment};

/// Scans of one picture: what a hostile one may cost stays in proportion to its bytes.
const MAX_SCANS: usize = 100;

/// One of several scans (T.81, B.2.3).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScanHeader {
    /// Component, DC and AC table, in the order of interleaving.
    parts: [(u8, u8, u8); 3],
    count: usize,
    /// The zig-zag positions of its coefficients, first and last (Ss, Se).
    pub band: (u8, u8),
    /// The bit positions before and after it (Ah, Al).
    pub bits: (u8, u8),
}

impl ScanHeader {
    /// Number of a component, its DC and its AC table.
    pub fn parts(&self) -> &[(u8, u8, u8)] {
        &self.parts[..self.count]
    }
}

/// How the coefficients are spread over scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scans {
    /// All in one.
    One,
    /// A scan for each component, or for some.
    Several,
    /// Bands of coefficients, bit by bit.
    Progressive,
}

impl<'a> Jpeg<'a> {
    /// Walks through a picture of several scans: `take` gets the header with the
    /// tables that are in force, a scan's header and where its data begins, and
    /// returns where that ends.
    ///
    /// # Errors
    /// Those of the markers, and `take`'s.
    pub(crate) fn each_scan(
        &self,
        mut take: impl FnMut(&Jpeg<'a>, &ScanHeader, usize) -> Result<usize, JpegError>,
    ) -> Result<(), JpegError> {
        let mut parser = Parser::new(self.bytes);
        let mut at = 2;
        for scans in 0.. {
            loop {
                let (code, segment, next) = next_segment(self.bytes, at)?;
                at = next;
                match code {
                    0xDA => {
                        if scans == MAX_SCANS {
                            return Err(JpegError::Corrupt("more scans than any encoder writes"));
                        }
                        at = take(&parser.jpeg, &parser.scan_header(segment)?, at)?;
                        break;
                    }
                    0xD9 => return Ok(()),
                    _ => parser.segment(code, segment)?,
                }
            }
        }
        Ok(())
    }
}

impl Parser<'_> {
    /// Takes in the header of the first scan; of the only one, its tables and order.
    pub(super) fn first_scan(&mut self, s: &[u8]) -> Result<(), JpegError> {
        let scan = self.scan_header(s)?;
        let jpeg = &mut self.jpeg;
        if jpeg.scans == Scans::Progressive {
            return Ok(());
        }
        if scan.count != jpeg.count {
            jpeg.scans = Scans::Several;
            return Ok(());
        }
        for (place, &(c, dc_table, ac_table)) in scan.parts().iter().enumerate() {
            jpeg.scan_order[place] = c;
            let component = &mut jpeg.components[usize::from(c)];
            (component.dc_table, component.ac_table) = (dc_table, ac_table);
        }
        Ok(())
    }

    pub(super) fn scan_header(&self, s: &[u8]) -> Result<ScanHeader, JpegError> {
        const BAD: JpegError = JpegError::Corrupt("scan header");
        let jpeg = &self.jpeg;
        if jpeg.count == 0 {
            return Err(JpegError::Corrupt("scan before the frame header"));
        }
        let [count, ref rest @ ..] = *s else { return Err(BAD) };
        let count = usize::from(count);
        if !(1..=jpeg.count).contains(&count) || rest.len() != 2 * count + 3 {
            return Err(BAD);
        }
        let [first, last, bits] = rest[2 * count..] else { return Err(BAD) };
        let mut scan = ScanHeader {
            count,
            band: (first, last),
            bits: (bits >> 4, bits & 15),
            ..ScanHeader::default()
        };
        let mut seen = [false; 3];
        for (part, field) in scan.parts.iter_mut().zip(rest.chunks_exact(2)).take(count) {
            let found = (0..jpeg.count).find(|&c| jpeg.components[c].id == field[0] && !seen[c]);
            let c = found.ok_or(JpegError::Corrupt("scan of an unknown component"))?;
            seen[c] = true;
            *part = (c as u8, field[1] >> 4, field[1] & 15);
        }
        Ok(scan)
    }
}
