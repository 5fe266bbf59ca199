//! Against fixtures, limits and damaged bytes; `tests/decode_pillow.rs` asks
//! Pillow itself.

use super::*;
use crate::shard::raw_header;
use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;

fn picture() -> RgbImage {
    RgbImage::from_fn(23, 17, |x, y| Rgb([(x * 9) as u8, (y * 13) as u8, (x + y) as u8]))
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decode(format: Format, bytes: &[u8]) -> Result<Image> {
    let mut image = Image::default();
    Decoder::new(DecodeOptions::default()).decode_into(format, bytes, &mut image)?;
    Ok(image)
}

#[test]
fn lossless_formats_give_the_pixels_back() {
    for (format, kind) in [
        (ImageFormat::Png, Format::Png),
        (ImageFormat::Bmp, Format::Other),
        (ImageFormat::WebP, Format::Other),
    ] {
        let image = decode(kind, &encoded(format)).unwrap();
        assert_eq!((image.width, image.height), (23, 17), "{format:?}");
        assert_eq!(image.pixels_hwc, picture().into_raw(), "{format:?}");
    }
}

#[test]
fn a_raw_sample_is_its_pixels() {
    let mut bytes = raw_header(23, 17).to_vec();
    bytes.extend(picture().into_raw());
    assert_eq!(decode(Format::Raw, &bytes).unwrap().pixels_hwc, picture().into_raw());
    bytes.pop();
    assert!(decode(Format::Raw, &bytes).is_err());
}

#[test]
fn limits_are_checked_and_named() {
    let mut image = Image::default();
    let options = DecodeOptions { max_pixels: 23 * 17 - 1, ..DecodeOptions::default() };
    for (format, kind) in [
        (ImageFormat::Png, Format::Png),
        (ImageFormat::Jpeg, Format::Jpeg),
        (ImageFormat::Bmp, Format::Other),
    ] {
        let error = Decoder::new(options).decode_into(kind, &encoded(format), &mut image);
        assert!(error.unwrap_err().to_string().contains("limit of 390"), "{format:?}");
    }
    let options = DecodeOptions { max_bytes: 10, ..DecodeOptions::default() };
    let bytes = encoded(ImageFormat::Png);
    assert!(Decoder::new(options).decode_into(Format::Png, &bytes, &mut image).is_err());
    // A header that promises what memory cannot hold.
    let mut huge = raw_header(u32::MAX, u32::MAX).to_vec();
    huge.extend([0; 100]);
    assert!(decode(Format::Raw, &huge).is_err());
}

#[test]
fn every_prefix_and_every_flipped_byte_is_an_error_or_an_image_never_a_panic() {
    for (format, kind) in [
        (ImageFormat::Png, Format::Png),
        (ImageFormat::Jpeg, Format::Jpeg),
        (ImageFormat::Gif, Format::Other),
    ] {
        let bytes = encoded(format);
        // A PNG without its closing chunk has all its pixels.
        for end in 0..bytes.len() - if format == ImageFormat::Png { 16 } else { 1 } {
            let cut = decode(kind, &bytes[..end]);
            assert!(cut.is_err() || format == ImageFormat::Gif, "{format:?} cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xFF;
            let _ = decode(kind, &damaged);
        }
    }
}

#[test]
fn exif_orientation_turns_only_when_asked() {
    use image::ImageEncoder;
    // A TIFF header and one entry: orientation (0x0112), short, 1 value, 6.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(&picture(), 23, 17, image::ExtendedColorType::Rgb8).unwrap();
    assert_eq!(decode(Format::Png, &bytes).unwrap().pixels_hwc, picture().into_raw());
    let mut decoder = Decoder::new(DecodeOptions { exif: true, ..DecodeOptions::default() });
    let mut image = Image::default();
    decoder.decode_into(Format::Png, &bytes, &mut image).unwrap();
    assert_eq!(image.pixels_hwc, image::imageops::rotate90(&picture()).into_raw());
    assert_eq!(decoder.dimensions(Format::Png, &bytes).unwrap(), (17, 23));
}
