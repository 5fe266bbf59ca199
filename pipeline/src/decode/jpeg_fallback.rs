//! The JPEGs that the crate's own decoder leaves, CMYK among them, through zune-jpeg.

use std::borrow::Cow;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{DecodeOptions, Orientation, check_size, fail};
use crate::jpeg::next_segment;
use crate::{Image, Result};

/// Decodes a whole JPEG; returns its EXIF orientation, where that is asked for.
pub(super) fn decode(
    options: &DecodeOptions,
    bytes: &[u8],
    out: &mut Image,
) -> Result<Orientation> {
    let bytes = &*with_known_transform(bytes);
    let mut decoder = open(bytes)?;
    let Some((width, height)) = decoder.dimensions() else {
        return fail("JPEG: no frame header");
    };
    check_size(options, width as u32, height as u32)?;
    if !ends(bytes) {
        return fail("JPEG: the image is cut short, its end marker is missing");
    }
    out.reset(width, height);
    // For CMYK and YCCK this is the product of the stored values, which are
    // inverted: Pillow's `CMYK;I` and its conversion to RGB.
    if let Err(cause) = decoder.decode_into(&mut out.pixels_hwc) {
        return fail(format!("JPEG: {cause}"));
    }
    Ok(if options.exif { oriented(&decoder) } else { Orientation::AsIs })
}

/// A JPEG of four components whose Adobe segment names a transform that these cannot have, with
/// that of YCCK: so libjpeg takes whatever is not 0.
fn with_known_transform(bytes: &[u8]) -> Cow<'_, [u8]> {
    let (mut at, mut four, mut transform) = (2, false, None);
    while let Ok((code, body, next)) = next_segment(bytes, at) {
        match code {
            0xC0..=0xC3 => four = body.get(5) == Some(&4),
            0xEE if body.len() >= 12 && body.starts_with(b"Adobe") => {
                transform = Some(next - body.len() + 11);
            }
            0xD9 | 0xDA => break,
            _ => {}
        }
        at = next;
    }
    match transform.filter(|&at| four && !matches!(bytes[at], 0 | 2)) {
        None => Cow::Borrowed(bytes),
        Some(at) => {
            let mut known = bytes.to_vec();
            known[at] = 2;
            Cow::Owned(known)
        }
    }
}

/// The EXIF orientation, from the headers alone.
pub(super) fn orientation(bytes: &[u8]) -> Result<Orientation> {
    Ok(oriented(&open(bytes)?))
}

type Decoder<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

fn open(bytes: &[u8]) -> Result<Decoder<'_>> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    match decoder.decode_headers() {
        Ok(()) => Ok(decoder),
        Err(cause) => fail(format!("JPEG: {cause}")),
    }
}

fn oriented(decoder: &Decoder<'_>) -> Orientation {
    decoder.exif().map_or(Orientation::AsIs, |exif| Orientation::from_exif(exif))
}

/// True when an end marker follows the first scan. A file without one is cut
/// short: Pillow refuses it, zune-jpeg would fill in gray.
fn ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    // By the segments' lengths: thumbnails in them have scans and ends of their own.
    loop {
        match next_segment(bytes, at) {
            Ok((0xDA, _, scan)) => {
                // Neither coded data, where a zero follows 0xFF, nor the segments between
                // scans hold this pair.
                return bytes[scan..].windows(2).any(|pair| pair == [0xFF, 0xD9]);
            }
            Ok((0xD9, ..)) | Err(_) => return false,
            Ok((_, _, next)) => at = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thumbnail_is_not_that_of_the_image() {
        let thumbnail = b"\xFF\xD8\xFF\xDA\0\x02\x55\xFF\xD9";
        let application = [b"\xFF\xED\0\x0B", &thumbnail[..]].concat();
        let scan = b"\xFF\xDA\0\x02\x12\xFF\0\xD9\x34";
        let cut = [b"\xFF\xD8", &application[..], scan].concat();
        assert!(!ends(&cut));
        // Several scans, each with tables before it.
        let table = b"\xFF\xC4\0\x03\xAA";
        let cut = [&cut[..], table, scan].concat();
        assert!(!ends(&cut));
        assert!(ends(&[&cut[..], b"\xFF\xD9"].concat()));
        assert!(!ends(&[b"\xFF\xD8", &application[..], b"\xFF\xD9"].concat()), "no scan");
    }
}
