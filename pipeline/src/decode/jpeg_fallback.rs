//! JPEGs of every kind, through zune-jpeg: CMYK, and whatever else the crate's own
//! decoder leaves.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{DecodeOptions, Orientation, check_size, fail};
use crate::{Image, Result};

/// Decodes a whole JPEG; returns its EXIF orientation.
pub(super) fn decode(
    options: &DecodeOptions,
    bytes: &[u8],
    out: &mut Image,
) -> Result<Orientation> {
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
    Ok(oriented(&decoder))
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
    let marker = |second: u8| move |pair: &[u8]| pair == [0xFF, second];
    let scan = bytes.windows(2).position(marker(0xDA)).unwrap_or(bytes.len());
    let end = bytes.windows(2).rposition(marker(0xD9));
    end.is_some_and(|end| end > scan)
}
