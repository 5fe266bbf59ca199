//! What an image's bytes are, from their first bytes and never from a name.

use serde::{Deserialize, Serialize};

use super::raw::raw_size;
use crate::dct::{self, DctImage};

/// How a sample's image is coded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Format {
    /// Whatever else the `image` crate reads, or nothing at all.
    #[default]
    Other = 0,
    /// JPEG, of any kind.
    Jpeg = 1,
    /// PNG.
    Png = 2,
    /// Decoded RGB pixels behind a binary PPM header; see [`super::raw_parse`].
    Raw = 3,
    /// A JPEG's coefficients, packed for decoding speed; see [`crate::dct`].
    Dct = 4,
}

impl Format {
    /// The format of a number in an index; unknown numbers are `Other`.
    pub(crate) fn from_u8(number: u8) -> Format {
        match number {
            1 => Format::Jpeg,
            2 => Format::Png,
            3 => Format::Raw,
            4 => Format::Dct,
            _ => Format::Other,
        }
    }

    /// The extension given to such an image, if the format has just one.
    pub fn extension(self) -> Option<&'static str> {
        match self {
            Format::Jpeg => Some("jpg"),
            Format::Png => Some("png"),
            Format::Raw => Some("ppm"),
            Format::Dct => Some("dct"),
            Format::Other => None,
        }
    }
}

/// The format of an image from its first bytes.
pub fn sniff(bytes: &[u8]) -> Format {
    if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        Format::Jpeg
    } else if bytes.starts_with(b"\x89PNG\r\n\x1A\n") {
        Format::Png
    } else if raw_size(bytes).is_some() {
        Format::Raw
    } else if bytes.starts_with(&dct::MAGIC) {
        Format::Dct
    } else {
        Format::Other
    }
}

/// Width and height in pixels from an image's header, nothing decoded;
/// `None` when the header cannot be understood. EXIF orientation is not applied; a TIFF's own is.
pub fn dimensions_of(bytes: &[u8]) -> Option<(u32, u32)> {
    let found = match sniff(bytes) {
        Format::Jpeg => jpeg_size(bytes),
        Format::Png => png_size(bytes),
        Format::Raw => raw_size(bytes).map(|(width, height, _)| (width, height)),
        // Other than a JPEG's, the whole header is looked at, and its checksum.
        Format::Dct => {
            DctImage::parse(bytes).ok().map(|image| (image.width() as u32, image.height() as u32))
        }
        Format::Other => crate::decode::dimensions(bytes).ok(),
    };
    found.filter(|&(width, height)| width > 0 && height > 0)
}

fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.get(12..24)?.strip_prefix(b"IHDR")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some((number(0)?, number(4)?))
}

/// Walks the marker segments to the frame header (SOF0..15 except DHT, JPG, DAC).
fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    loop {
        while *bytes.get(at)? != 0xFF {
            at += 1;
        }
        while *bytes.get(at)? == 0xFF {
            at += 1;
        }
        let marker = *bytes.get(at)?;
        at += 1;
        let word =
            |at: usize| Some(u32::from(*bytes.get(at)?) << 8 | u32::from(*bytes.get(at + 1)?));
        match marker {
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xD9 | 0xDA => return None,
            0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                return Some((word(at + 5)?, word(at + 3)?));
            }
            _ => at += word(at)?.max(2) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, RgbImage};
    use std::io::Cursor;

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(31, 17).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn the_size_is_read_from_the_header_of_each_format() {
        for (format, expected) in [
            (ImageFormat::Jpeg, Format::Jpeg),
            (ImageFormat::Png, Format::Png),
            (ImageFormat::Bmp, Format::Other),
            (ImageFormat::Gif, Format::Other),
        ] {
            let bytes = encoded(format);
            assert_eq!(
                (sniff(&bytes), dimensions_of(&bytes)),
                (expected, Some((31, 17))),
                "{format:?}"
            );
            for cut in 0..bytes.len().min(700) {
                let _ = dimensions_of(&bytes[..cut]);
            }
        }
        assert_eq!(dimensions_of(b""), None);
        assert_eq!(dimensions_of(b"\xFF\xD8\xFF\xE0\xFF\xFF"), None);
    }
}
