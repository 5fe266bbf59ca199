//! PNG and everything else, through the `image` crate.

use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{DecodeOptions, Orientation, check_size, fail, ifd};
use crate::{Image, Result};

/// Decodes a whole image; returns how it is to be turned, by its EXIF orientation where that is
/// asked for. A TIFF's orientation is no wish of EXIF but says where its rows and columns lie: it
/// counts always, as it does when Pillow loads one.
///
/// Pixels of the file's own kind become RGB where they are, in `out`: an image takes the larger of
/// the two, not both.
pub(super) fn decode(
    options: &DecodeOptions,
    bytes: &[u8],
    out: &mut Image,
) -> Result<Orientation> {
    let (format, mut decoder) = open(bytes)?;
    let (width, height) = decoder.dimensions();
    check_size(options, width, height)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(options.max_pixels.saturating_mul(16).saturating_add(1 << 20));
    if let Err(cause) = decoder.set_limits(limits) {
        return fail(cause.to_string());
    }
    let orientation = match format {
        Some(ImageFormat::Tiff) => of_tiff(&mut decoder),
        _ if options.exif => of_exif(&mut decoder),
        _ => Orientation::AsIs,
    };
    let color = decoder.color_type();
    let (width, height) = (width as usize, height as usize);
    let size = usize::from(color.bytes_per_pixel());
    // Within `max_pixels`, and a pixel has at most 16 bytes; a limit that was raised beyond all
    // memory is no reason to wrap around.
    let bytes_of = |size: usize| width.checked_mul(height)?.checked_mul(size);
    let (Some(native), Some(held)) = (bytes_of(size), bytes_of(size.max(3))) else {
        return fail(format!("{width} x {height} pixels of {size} bytes are no memory's"));
    };
    out.reset_to_bytes(width, height, held);
    // At the end: as RGB comes to lie before it, pixel by pixel, it overtakes nothing.
    if let Err(cause) = decoder.read_image(&mut out.pixels_hwc[held - native..]) {
        return fail(cause_of(&cause, format, bytes));
    }
    to_rgb(color, Kind::of(format, bytes), native, &mut out.pixels_hwc)?;
    out.pixels_hwc.truncate(width * height * 3);
    Ok(orientation)
}

/// The EXIF orientation, from the headers alone; none of a TIFF, whose own is part of its size.
pub(super) fn orientation(bytes: &[u8]) -> Result<Orientation> {
    let (format, mut decoder) = open(bytes)?;
    Ok(match format {
        Some(ImageFormat::Tiff) => Orientation::AsIs,
        _ => of_exif(&mut decoder),
    })
}

/// Width and height from the headers alone, a TIFF's orientation applied.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    let (format, mut decoder) = open(bytes)?;
    let (width, height) = decoder.dimensions();
    let turned = format == Some(ImageFormat::Tiff) && of_tiff(&mut decoder).swaps_sides();
    Ok(if turned { (height, width) } else { (width, height) })
}

fn of_exif(decoder: &mut impl ImageDecoder) -> Orientation {
    let chunk = decoder.exif_metadata().ok().flatten();
    chunk.map_or(Orientation::AsIs, |chunk| Orientation::from_exif(&chunk))
}

fn of_tiff(decoder: &mut impl ImageDecoder) -> Orientation {
    decoder.orientation().map_or(Orientation::AsIs, Orientation::from)
}

fn open(bytes: &[u8]) -> Result<(Option<ImageFormat>, impl ImageDecoder + '_)> {
    let reader = match ImageReader::new(Cursor::new(bytes)).with_guessed_format() {
        Ok(reader) => reader,
        Err(cause) => return fail(cause.to_string()),
    };
    let format = reader.format();
    if format == Some(ImageFormat::Tiff) && is_planes_in_tiles(bytes) {
        return fail("a TIFF whose colours have tiles of their own: not supported");
    }
    let decoder = match reader.into_decoder() {
        Ok(decoder) => decoder,
        Err(cause) => return fail(cause.to_string()),
    };
    if format == Some(ImageFormat::Tiff) {
        check_tiff(bytes, decoder.original_color_type().channel_count())?;
    }
    Ok((format, decoder))
}

/// Whether a TIFF is what tiff 0.11 panics on.
fn is_planes_in_tiles(bytes: &[u8]) -> bool {
    let number = |tag| ifd::first_number_of(bytes, tag);
    number(ifd::PLANAR_CONFIGURATION) == Some(2) && number(ifd::TILE_WIDTH).is_some()
}

/// Refuses what tiff 0.11 decodes to wrong pixels.
fn check_tiff(bytes: &[u8], channels: u8) -> Result<()> {
    let number = |tag| ifd::first_number_of(bytes, tag);
    let tiled = number(ifd::TILE_WIDTH).is_some();
    let samples = number(ifd::SAMPLES_PER_PIXEL).unwrap_or(1);
    let predicted = number(ifd::PREDICTOR).is_some_and(|predictor| predictor != 1);
    if samples != u32::from(channels) && (tiled || predicted) {
        let how = if tiled { "tiles" } else { "strips with a predictor" };
        return fail(format!(
            "a TIFF of {samples} samples a pixel in {how}, some of them neither colour nor alpha: \
             not supported"
        ));
    }
    Ok(())
}

/// What went wrong in decoding, with what is known of the decoder: LZW tiles that reach beyond the
/// image are refused at times by tiff 0.11, which has to find the end of their codes.
fn cause_of(cause: &impl std::fmt::Display, format: Option<ImageFormat>, bytes: &[u8]) -> String {
    let number = |tag| ifd::first_number_of(bytes, tag);
    let lzw = format == Some(ImageFormat::Tiff) && number(ifd::COMPRESSION) == Some(5);
    match lzw && number(ifd::TILE_WIDTH).is_some() {
        true => format!("{cause} (LZW in tiles is not always read: use strips or deflate)"),
        false => cause.to_string(),
    }
}

/// What pixels of one layout mean differs between files.
#[derive(Clone, Copy)]
struct Kind {
    /// A PNG of gray with 16 bits, with or without a transparent value: `I;16` to Pillow.
    gray16: bool,
    /// A TIFF whose colours were multiplied by alpha ("associated"): `RGBa` to Pillow.
    premultiplied: bool,
}

impl Kind {
    fn of(format: Option<ImageFormat>, bytes: &[u8]) -> Kind {
        let gray16 = bytes.get(12..16) == Some(b"IHDR") && bytes.get(24..26) == Some(&[16, 0]);
        let premultiplied = format == Some(ImageFormat::Tiff)
            && ifd::first_number_of(bytes, ifd::EXTRA_SAMPLES) == Some(1);
        Kind { gray16, premultiplied }
    }
}

/// A colour that was multiplied by alpha, as Pillow divides it.
fn divided(color: u8, alpha: u8) -> u8 {
    let divided = (u32::from(color) * 255).checked_div(alpha.into());
    divided.map_or(0, |value| value.min(255) as u8)
}

/// Pillow's `convert("RGB")` from each layout that `image` decodes to: the last `native` bytes of
/// `pixels` become RGB in front.
fn to_rgb(color: ColorType, kind: Kind, native: usize, pixels: &mut [u8]) -> Result<()> {
    let word = |v: &[u8]| u16::from_ne_bytes([v[0], v[1]]);
    // Pillow's mode `I;16` is cut off at 255; of other 16-bit images it reads the high bytes.
    let clipped = |v: &[u8]| word(v).min(255) as u8;
    let high = |v: &[u8]| (word(v) >> 8) as u8;
    let all = (native, pixels);
    match color {
        ColorType::Rgb8 => {}
        ColorType::L8 => spread::<1>(all, |p| [p[0]; 3]),
        ColorType::La8 => spread::<2>(all, |p| [p[0]; 3]),
        ColorType::Rgba8 if kind.premultiplied => {
            spread::<4>(all, |p| [p[0], p[1], p[2]].map(|color| divided(color, p[3])));
        }
        ColorType::Rgba16 if kind.premultiplied => spread::<8>(all, |p| {
            [high(p), high(&p[2..]), high(&p[4..])].map(|color| divided(color, high(&p[6..])))
        }),
        ColorType::Rgba8 => spread::<4>(all, |p| [p[0], p[1], p[2]]),
        ColorType::L16 => spread::<2>(all, |p| [clipped(p); 3]),
        ColorType::La16 if kind.gray16 => spread::<4>(all, |p| [clipped(p); 3]),
        ColorType::La16 => spread::<4>(all, |p| [high(p); 3]),
        ColorType::Rgb16 => spread::<6>(all, |p| [high(p), high(&p[2..]), high(&p[4..])]),
        ColorType::Rgba16 => spread::<8>(all, |p| [high(p), high(&p[2..]), high(&p[4..])]),
        // Floats from 0 to 1, or to 255? Pillow does not open them.
        other => return fail(format!("pixels of a kind that is not supported: {other:?}")),
    }
    Ok(())
}

/// Pixels that are converted at a time; they stay in the first-level cache.
const PIXELS: usize = 512;

/// Converts the last `native` bytes, pixels of `SIZE` bytes, from the front: they are copied
/// before RGB is written where they, or pixels before them, lay.
fn spread<const SIZE: usize>(
    (native, pixels): (usize, &mut [u8]),
    convert: impl Fn(&[u8; SIZE]) -> [u8; 3],
) {
    let first = pixels.len() - native;
    let mut copy = [[0; SIZE]; PIXELS];
    for start in (0..native / SIZE).step_by(PIXELS) {
        let copy = &mut copy[..PIXELS.min(native / SIZE - start)];
        let from = &pixels[first + start * SIZE..][..copy.len() * SIZE];
        copy.as_flattened_mut().copy_from_slice(from);
        let rgb = &mut pixels[3 * start..][..3 * copy.len()];
        for (to, from) in rgb.chunks_exact_mut(3).zip(copy) {
            to.copy_from_slice(&convert(from));
        }
    }
}
