//! PNG and everything else, through the `image` crate.

use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageReader, Limits};

use super::{DecodeOptions, Orientation, check_size, fail};
use crate::{Image, Result};

/// Decodes a whole image; returns its EXIF orientation. `native` is scratch.
pub(super) fn decode(
    options: &DecodeOptions,
    bytes: &[u8],
    native: &mut Vec<u8>,
    out: &mut Image,
) -> Result<Orientation> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    check_size(options, width, height)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(options.max_pixels.saturating_mul(16).saturating_add(1 << 20));
    if let Err(cause) = decoder.set_limits(limits) {
        return fail(cause.to_string());
    }
    let orientation = if options.exif {
        decoder.orientation().unwrap_or(AS_IS).into()
    } else {
        Orientation::AsIs
    };
    let color = decoder.color_type();
    out.reset(width as usize, height as usize);
    if color == ColorType::Rgb8 {
        return match decoder.read_image(&mut out.pixels_hwc) {
            Ok(()) => Ok(orientation),
            Err(cause) => fail(cause.to_string()),
        };
    }
    // The size was checked, and a pixel has at most 16 bytes.
    native.resize(width as usize * height as usize * usize::from(color.bytes_per_pixel()), 0);
    if let Err(cause) = decoder.read_image(native) {
        return fail(cause.to_string());
    }
    to_rgb(color, is_gray16_png(bytes), native, &mut out.pixels_hwc)?;
    Ok(orientation)
}

const AS_IS: image::metadata::Orientation = image::metadata::Orientation::NoTransforms;

/// The EXIF orientation, from the headers alone.
pub(super) fn orientation(bytes: &[u8]) -> Result<Orientation> {
    Ok(open(bytes)?.orientation().unwrap_or(AS_IS).into())
}

fn open(bytes: &[u8]) -> Result<impl ImageDecoder + '_> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    match reader.map_err(image::ImageError::IoError).and_then(ImageReader::into_decoder) {
        Ok(decoder) => Ok(decoder),
        Err(cause) => fail(cause.to_string()),
    }
}

/// Gray with 16 bits, with or without a transparent value: `I;16` to Pillow.
fn is_gray16_png(bytes: &[u8]) -> bool {
    bytes.get(12..16) == Some(b"IHDR") && bytes.get(24..26) == Some(&[16, 0])
}

/// Pillow's `convert("RGB")` from each layout that `image` decodes to.
fn to_rgb(color: ColorType, gray16: bool, native: &[u8], rgb: &mut [u8]) -> Result<()> {
    let word = |v: &[u8]| u16::from_ne_bytes([v[0], v[1]]);
    let float = |v: &[u8]| f32::from_ne_bytes([v[0], v[1], v[2], v[3]]);
    // Pillow's modes `I;16` and `F` are cut off at 255; of other 16-bit images it
    // reads the high bytes.
    let clipped = |v: &[u8]| word(v).min(255) as u8;
    let high = |v: &[u8]| (word(v) >> 8) as u8;
    let cut = |v: &[u8]| float(v) as u8;
    match color {
        ColorType::L8 => spread(native, 1, rgb, |p| [p[0]; 3]),
        ColorType::La8 => spread(native, 2, rgb, |p| [p[0]; 3]),
        ColorType::Rgba8 => spread(native, 4, rgb, |p| [p[0], p[1], p[2]]),
        ColorType::L16 => spread(native, 2, rgb, |p| [clipped(p); 3]),
        ColorType::La16 if gray16 => spread(native, 4, rgb, |p| [clipped(p); 3]),
        ColorType::La16 => spread(native, 4, rgb, |p| [high(p); 3]),
        ColorType::Rgb16 => spread(native, 6, rgb, |p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => spread(native, 8, rgb, |p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgb32F => spread(native, 12, rgb, |p| [cut(p), cut(&p[4..]), cut(&p[8..])]),
        ColorType::Rgba32F => spread(native, 16, rgb, |p| [cut(p), cut(&p[4..]), cut(&p[8..])]),
        other => return fail(format!("pixels of an unknown kind: {other:?}")),
    }
    Ok(())
}

fn spread(native: &[u8], size: usize, rgb: &mut [u8], convert: impl Fn(&[u8]) -> [u8; 3]) {
    for (to, from) in rgb.chunks_exact_mut(3).zip(native.chunks_exact(size)) {
        to.copy_from_slice(&convert(from));
    }
}
