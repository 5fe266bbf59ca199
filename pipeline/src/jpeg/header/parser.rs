//! The segments of a header, one after the other, and what they must say together.

use super::super::error::JpegError;
use super::{Color, Component, HuffmanSpec, Jpeg, Scans, ZIGZAG, standard};

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

pub(super) struct Parser<'a> {
    pub(super) jpeg: Jpeg<'a>,
    jfif: bool,
    adobe: Option<u8>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Parser { jpeg: Jpeg::empty(bytes), jfif: false, adobe: None }
    }

    /// Takes in a segment that is neither a scan nor the end.
    pub(super) fn segment(&mut self, code: u8, segment: &'a [u8]) -> Result<(), JpegError> {
        match code {
            0xC0..=0xC2 => {
                if code == 0xC2 {
                    self.jpeg.scans = Scans::Progressive;
                } else {
                    self.standard_tables();
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

    /// Gives a sequential JPEG the tables that it need not bring, as libjpeg does: those of Motion
    /// JPEG.
    fn standard_tables(&mut self) {
        let Jpeg { dc, ac, .. } = &mut self.jpeg;
        for (slot, table) in dc.iter_mut().zip(standard::DC).chain(ac.iter_mut().zip(standard::AC))
        {
            slot.get_or_insert(table);
        }
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

    pub(super) fn finish(mut self, tables: bool) -> Result<Jpeg<'a>, JpegError> {
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
            // Several scans may bring theirs later, each before the scan that needs it first.
            if jpeg.scans == Scans::One && jpeg.quant_of(component).is_none() {
                return Err(JpegError::Corrupt("missing quantisation table"));
            }
            let table = |class: &[Option<_>; 4], at: u8| {
                class.get(usize::from(at)).is_some_and(Option::is_some)
            };
            let (dc, ac) = (component.dc_table, component.ac_table);
            if tables && jpeg.scans == Scans::One && !(table(&jpeg.dc, dc) && table(&jpeg.ac, ac)) {
                return Err(JpegError::Corrupt("missing Huffman table"));
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
