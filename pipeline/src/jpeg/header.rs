//! The markers before the entropy-coded data: bytes -> [`Jpeg`].
//!
//! Nothing is allocated in proportion to what a header claims: the tables have
//! fixed sizes and the entropy-coded data is borrowed.

use super::error::JpegError;

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

    /// As [`Jpeg::parse`], for headers whose Huffman tables were taken out.
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
                    // The steps are needed when all coefficients are known.
                    0xDB if scans > 0 => {
                        return Err(JpegError::Unsupported("quantisation table between scans"));
                    }
                    _ => parser.segment(code, segment)?,
                }
            }
        }
        Ok(())
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

    /// The quantisation table of a component, row-major.
    pub(crate) fn quant_of(&self, component: &Component) -> Option<&[u16; 64]> {
        self.quant[usize::from(component.quant)].as_ref()
    }
}

/// The next marker at or after `at`: its code, the segment's body and where
/// the following one begins. Markers without a body are passed over.
pub(crate) fn next_segment(bytes: &[u8], mut at: usize) -> Result<(u8, &[u8], usize), JpegError> {
    const CUT: JpegError = JpegError::Truncated("in the headers");
    loop {
        // As libjpeg does: bytes before a marker are skipped.
        while *bytes.get(at).ok_or(CUT)? != 0xFF {
            at += 1;
        }
        while *bytes.get(at).ok_or(CUT)? == 0xFF {
            at += 1;
        }
        let code = bytes[at];
        at += 1;
        match code {
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return Ok((code, &[], at)),
            _ => {}
        }
        let body = bytes.get(at..).ok_or(CUT)?;
        let [high, low, ..] = *body else { return Err(CUT) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            return Err(JpegError::Corrupt("segment shorter than its length field"));
        }
        return Ok((code, body.get(2..length).ok_or(CUT)?, at + length));
    }
}

/// Scans of one picture: what a hostile one may cost stays in proportion to its bytes.
const MAX_SCANS: usize = 100;

struct Parser<'a> {
    jpeg: Jpeg<'a>,
    jfif: bool,
    adobe: Option<u8>,
}

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Parser { jpeg: Jpeg::empty(bytes), jfif: false, adobe: None }
    }

    /// Takes in a segment that is neither a scan nor the end.
    fn segment(&mut self, code: u8, segment: &'a [u8]) -> Result<(), JpegError> {
        match code {
            0xC0..=0xC2 => {
                if code == 0xC2 {
                    self.jpeg.scans = Scans::Progressive;
                }
                self.frame(segment)?;
            }
            0xC4 => self.huffman(segment)?,
            0xDB => self.quantisation(segment)?,
            0xDD => self.restart(segment)?,
            0xE0 => self.jfif |= segment.len() >= 14 && segment.starts_with(b"JFIF\0"),
            0xE1 if self.jpeg.exif.is_none() => {
                self.jpeg.exif = segment.strip_prefix(b"Exif\0\0");
            }
            0xEE if segment.len() >= 12 && segment.starts_with(b"Adobe") => {
                self.adobe = Some(segment[11]);
            }
            0xC3 | 0xC7 => return Err(JpegError::Unsupported("lossless")),
            0xC5 | 0xC6 => return Err(JpegError::Unsupported("hierarchical")),
            0xC8..=0xCF => return Err(JpegError::Unsupported("arithmetic coding")),
            0xDC => return Err(JpegError::Unsupported("height after the scan (DNL)")),
            _ => {}
        }
        Ok(())
    }

    fn frame(&mut self, s: &[u8]) -> Result<(), JpegError> {
        const SHORT: JpegError = JpegError::Corrupt("frame header too short");
        let jpeg = &mut self.jpeg;
        if jpeg.count != 0 {
            return Err(JpegError::Corrupt("two frame headers"));
        }
        let [precision, h1, h0, w1, w0, count, ref rest @ ..] = *s else { return Err(SHORT) };
        if precision != 8 {
            return Err(JpegError::Unsupported("not 8 bits a sample"));
        }
        jpeg.height = usize::from(u16::from_be_bytes([h1, h0]));
        jpeg.width = usize::from(u16::from_be_bytes([w1, w0]));
        if jpeg.width == 0 {
            return Err(JpegError::Corrupt("no columns"));
        }
        if jpeg.height == 0 {
            return Err(JpegError::Unsupported("height after the scan (DNL)"));
        }
        if count != 1 && count != 3 {
            return Err(JpegError::Unsupported("neither one nor three components"));
        }
        jpeg.count = usize::from(count);
        if rest.len() != 3 * jpeg.count {
            return Err(SHORT);
        }
        for (component, field) in jpeg.components.iter_mut().zip(rest.chunks_exact(3)) {
            let (h, v, quant) = (field[1] >> 4, field[1] & 15, field[2]);
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || quant > 3 {
                return Err(JpegError::Corrupt("sampling factor or table number out of range"));
            }
            *component = Component { id: field[0], h, v, quant, ..Component::default() };
        }
        if jpeg.count == 1 {
            (jpeg.components[0].h, jpeg.components[0].v) = (1, 1);
        }
        Ok(())
    }

    fn quantisation(&mut self, mut s: &[u8]) -> Result<(), JpegError> {
        while let [head, rest @ ..] = s {
            let wide = match head >> 4 {
                0 => false,
                1 => true,
                _ => return Err(JpegError::Corrupt("quantisation table precision")),
            };
            let size = if wide { 128 } else { 64 };
            let slot = self.jpeg.quant.get_mut(usize::from(head & 15));
            let (Some(slot), Some(body)) = (slot, rest.get(..size)) else {
                return Err(JpegError::Corrupt("quantisation table"));
            };
            let mut table = [0u16; 64];
            for (k, &natural) in ZIGZAG.iter().enumerate() {
                table[usize::from(natural)] = if wide {
                    u16::from_be_bytes([body[2 * k], body[2 * k + 1]])
                } else {
                    u16::from(body[k])
                };
            }
            *slot = Some(table);
            s = &rest[size..];
        }
        Ok(())
    }

    fn huffman(&mut self, mut s: &'a [u8]) -> Result<(), JpegError> {
        const BAD: JpegError = JpegError::Corrupt("Huffman table");
        while let [head, rest @ ..] = s {
            let counts = rest.get(..16).ok_or(BAD)?;
            let total: usize = counts.iter().map(|&n| usize::from(n)).sum();
            let symbols = rest.get(16..16 + total).ok_or(BAD)?;
            let class = match head >> 4 {
                0 => &mut self.jpeg.dc,
                1 => &mut self.jpeg.ac,
                _ => return Err(BAD),
            };
            *class.get_mut(usize::from(head & 15)).ok_or(BAD)? =
                Some(HuffmanSpec { counts, symbols });
            s = &rest[16 + total..];
        }
        Ok(())
    }

    fn restart(&mut self, s: &[u8]) -> Result<(), JpegError> {
        let [high, low] = *s else { return Err(JpegError::Corrupt("restart interval")) };
        self.jpeg.restart_interval = usize::from(u16::from_be_bytes([high, low]));
        Ok(())
    }

    /// Takes in the header of the first scan; of the only one, its tables and order.
    fn first_scan(&mut self, s: &[u8]) -> Result<(), JpegError> {
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

    fn scan_header(&self, s: &[u8]) -> Result<ScanHeader, JpegError> {
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

    fn finish(mut self, tables: bool) -> Result<Jpeg<'a>, JpegError> {
        self.jpeg.color = self.color();
        let jpeg = &self.jpeg;
        // What has no tables is no picture to be walked through scan by scan.
        if !tables && jpeg.scans != Scans::One {
            return Err(JpegError::Corrupt("a header of several scans"));
        }
        let components = jpeg.components();
        if components.iter().map(|c| c.h * c.v).sum::<u8>() > 10 {
            return Err(JpegError::Corrupt("more than 10 blocks in an MCU"));
        }
        let (h_max, v_max) = jpeg.max_factors();
        for component in components {
            if h_max % component.h != 0 || v_max % component.v != 0 {
                return Err(JpegError::Unsupported("fractional sampling ratio"));
            }
            if jpeg.quant_of(component).is_none() {
                return Err(JpegError::Corrupt("missing quantisation table"));
            }
            let table = |class: &[Option<_>; 4], at: u8| {
                class.get(usize::from(at)).is_some_and(Option::is_some)
            };
            // Motion JPEG leaves the standard tables out; general decoders know them.
            let (dc, ac) = (component.dc_table, component.ac_table);
            if tables && jpeg.scans == Scans::One && !(table(&jpeg.dc, dc) && table(&jpeg.ac, ac)) {
                return Err(JpegError::Unsupported("missing Huffman table"));
            }
        }
        Ok(self.jpeg)
    }

    /// The colour space as libjpeg guesses it (`default_decompress_parms`).
    fn color(&self) -> Color {
        if self.jpeg.count == 1 {
            return Color::Gray;
        }
        let ids = self.jpeg.components.map(|c| c.id);
        match (self.jfif, self.adobe) {
            (true, _) => Color::YCbCr,
            (false, Some(0)) => Color::Rgb,
            (false, Some(_)) => Color::YCbCr,
            (false, None) if ids == *b"RGB" => Color::Rgb,
            (false, None) => Color::YCbCr,
        }
    }
}

impl Jpeg<'_> {
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
