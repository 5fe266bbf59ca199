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
fn four_components_of_whatever_transform_but_none_are_ycck() {
    let picture: Vec<u8> = (0..32 * 16 * 4).map(|at| (at * 7 % 251) as u8).collect();
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    encoder.encode(&picture, 32, 16, jpeg_encoder::ColorType::CmykAsYcck).unwrap();
    let transform = bytes.windows(5).position(|word| word == b"Adobe").unwrap() + 11;
    assert_eq!(bytes[transform], 2);
    let expected = decode(Format::Jpeg, &bytes).unwrap();
    for other in [1, 3, 255] {
        bytes[transform] = other;
        assert!(decode(Format::Jpeg, &bytes).unwrap() == expected, "{other}");
    }
    bytes[transform] = 0;
    assert!(decode(Format::Jpeg, &bytes).unwrap() != expected);
    // Cut short it is none, though the decoder would fill it up.
    for end in [bytes.len() - 1, bytes.len() * 3 / 4] {
        assert!(decode(Format::Jpeg, &bytes[..end]).is_err(), "cut at {end}");
    }
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
        let error = error.unwrap_err();
        assert!(
            matches!(&error, Error::TooLarge(text) if text.contains("limit of 390")),
            "{error}"
        );
    }
    let options = DecodeOptions { max_bytes: 10, ..DecodeOptions::default() };
    let bytes = encoded(ImageFormat::Png);
    let error = Decoder::new(options).decode_into(Format::Png, &bytes, &mut image).unwrap_err();
    assert!(matches!(error, Error::TooLarge(_)), "{error}");
    // A header that promises what memory cannot hold.
    let mut huge = raw_header(u32::MAX, u32::MAX).to_vec();
    huge.extend([0; 100]);
    assert!(decode(Format::Raw, &huge).is_err());
    // The crate's own decoder has the limit for itself.
    let jpeg = encoded(ImageFormat::Jpeg);
    let mut decoder = crate::jpeg::JpegDecoder::new().max_pixels(23 * 17 - 1);
    let error = decoder.decode_into(&Jpeg::parse(&jpeg).unwrap(), &mut image).unwrap_err();
    assert!(matches!(error.into(), Error::TooLarge(_)));
}

#[test]
fn the_limit_may_be_above_the_decoders_own() {
    let mut jpeg = encoded(ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    // Height and width: 400 million pixels, of which the bytes hold a few.
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x4E, 0x20, 0x4E, 0x20]);
    for (max_pixels, cause) in [(1 << 30, "fewer bits than blocks"), (399_999_999, "limit of")] {
        let options = DecodeOptions { max_pixels, ..DecodeOptions::default() };
        let decoded = Decoder::new(options).decode_into(Format::Jpeg, &jpeg, &mut Image::default());
        let error = decoded.unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
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
    let short = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let long = b"II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    for exif in [[&b"Exif\0\0"[..], &short].concat(), short, long] {
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
}

#[test]
fn the_orientation_of_a_jpeg_turns_it_only_when_asked() {
    // A TIFF header and one entry: orientation (0x0112), short, 1 value, 6.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let marked = |jpeg: &[u8]| {
        let length = (exif.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], b"\xFF\xE1", &length, exif, &jpeg[2..]].concat()
    };
    let three = encoded(ImageFormat::Jpeg);
    let inks: Vec<u8> = (0..32 * 16 * 4).map(|at| (at * 7 % 251) as u8).collect();
    let mut four = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut four, 90);
    encoder.encode(&inks, 32, 16, jpeg_encoder::ColorType::CmykAsYcck).unwrap();
    let packed = |jpeg: &[u8]| crate::dct::encode(jpeg).unwrap();
    for (format, plain, turned) in [
        (Format::Jpeg, three.clone(), marked(&three)),
        (Format::Jpeg, four.clone(), marked(&four)),
        (Format::Dct, packed(&three), packed(&marked(&three))),
    ] {
        let stored = decode(format, &plain).unwrap();
        assert!(decode(format, &turned).unwrap() == stored, "{format:?}");
        let (width, height) = (stored.width as u32, stored.height as u32);
        let mut decoder = Decoder::new(DecodeOptions::default());
        assert_eq!(decoder.dimensions(format, &turned).unwrap(), (width, height));
        let mut image = Image::default();
        let region = Crop { top: 3, left: 5, height: 4, width: 6 };
        decoder.decode_region_into(format, &turned, region, None, &mut image).unwrap();
        assert!(image.height < stored.height || plain == four, "{format:?}: a part is enough");

        let mut decoder = Decoder::new(DecodeOptions { exif: true, ..DecodeOptions::default() });
        assert_eq!(decoder.dimensions(format, &turned).unwrap(), (height, width));
        let pixels = RgbImage::from_raw(width, height, stored.pixels_hwc).unwrap();
        let upright = image::imageops::rotate90(&pixels);
        decoder.decode_into(format, &turned, &mut image).unwrap();
        assert!(image.pixels_hwc == *upright.as_raw(), "{format:?}");
        // The region counts in the image as it stands.
        let part = decoder.decode_region_into(format, &turned, region, None, &mut image).unwrap();
        assert_eq!((image.width, image.height), (part.width, part.height));
        let (left, top) = (part.left as u32, part.top as u32);
        let (width, height) = (part.width as u32, part.height as u32);
        let expected = image::imageops::crop_imm(&upright, left, top, width, height).to_image();
        assert!(image.pixels_hwc == expected.into_raw(), "{format:?} {part:?}");
    }
}

/// A TIFF of one row and 8 bits, with more tags that hold one short.
fn tiff(pixels: &[u8], samples: u16, tags: &[(u16, u16)]) -> Vec<u8> {
    let width = pixels.len() as u16 / samples;
    let mut entries = vec![(256, width), (257, 1), (259, 1), (262, 2), (277, samples), (278, 1)];
    entries.push((279, pixels.len() as u16));
    entries.extend(tags);
    // Behind the header and the directory lie the pixels, then the bits of each sample.
    let end = 8 + 2 + 12 * (entries.len() as u16 + 2) + 4;
    entries.extend([(273, end), (258, end + pixels.len() as u16)]);
    entries.sort();
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        let count = if tag == 258 { samples } else { 1 };
        for half in [tag, 3, count, 0, value, 0] {
            bytes.extend(half.to_le_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(pixels);
    bytes.extend([8, 0].repeat(samples.into()));
    bytes
}

#[test]
fn the_orientation_of_a_tiff_is_applied_always_and_once() {
    let bytes = tiff(&[1, 2, 3, 4, 5, 6], 3, &[(274, 8)]);
    assert_eq!(dimensions(&bytes).unwrap(), (1, 2));
    assert_eq!(crate::shard::dimensions_of(&bytes), Some((1, 2)));
    assert_eq!(exif_number(&bytes), 1, "none is left");
    for exif in [false, true] {
        let mut decoder = Decoder::new(DecodeOptions { exif, ..DecodeOptions::default() });
        let mut image = Image::default();
        decoder.decode_into(Format::Other, &bytes, &mut image).unwrap();
        assert_eq!((image.width, image.height), (1, 2), "{exif}");
        assert_eq!(image.pixels_hwc, [4, 5, 6, 1, 2, 3]);
        assert_eq!(decoder.dimensions(Format::Other, &bytes).unwrap(), (1, 2));
    }
}

/// Values of Pillow's `RGBa`: divided by alpha, rounded down; black where that is 0.
#[test]
fn colours_that_were_multiplied_by_alpha_are_divided_by_it() {
    let pixels = [10, 20, 30, 40, 100, 7, 0, 50, 9, 9, 9, 0, 1, 2, 3, 255];
    let associated = decode(Format::Other, &tiff(&pixels, 4, &[(338, 1)])).unwrap();
    assert_eq!(associated.pixels_hwc, [63, 127, 191, 255, 35, 0, 0, 0, 0, 1, 2, 3]);
    let apart = decode(Format::Other, &tiff(&pixels, 4, &[(338, 2)])).unwrap();
    assert_eq!(apart.pixels_hwc, [10, 20, 30, 100, 7, 0, 9, 9, 9, 1, 2, 3]);
}

/// tiff 0.11 leaves out samples that are neither colour nor alpha, and does it right in plain
/// strips alone.
#[test]
fn samples_that_are_no_colour_are_left_out_or_the_tiff_is_refused() {
    let pixels = [10, 20, 30, 40, 11, 21, 31, 41];
    let plain = decode(Format::Other, &tiff(&pixels, 4, &[(338, 0)])).unwrap();
    assert_eq!(plain.pixels_hwc, [10, 20, 30, 11, 21, 31]);
    for tag in [(317, 2), (322, 16)] {
        let error = dimensions(&tiff(&pixels, 4, &[(338, 0), tag])).unwrap_err().to_string();
        assert!(error.contains("not supported"), "{tag:?}: {error}");
    }
    let colours_apart = tiff(&pixels[..6], 3, &[(284, 2), (322, 16)]);
    let error = dimensions(&colours_apart).unwrap_err().to_string();
    assert!(error.contains("not supported"), "{error}");
}

#[test]
fn a_tiff_of_a_kind_that_is_not_read_is_not_called_damaged() {
    let mut bytes = tiff(&[0, 1, 2], 1, &[]);
    let photometric = bytes.windows(2).position(|pair| pair == [6, 1]).unwrap();
    bytes[photometric + 8] = 3;
    let error = dimensions(&bytes).unwrap_err().to_string();
    assert!(error.contains("not support") && !error.contains("damaged"), "{error}");
}

/// More pixels than are converted at a time, in every layout of PNG.
#[test]
fn every_layout_becomes_rgb_where_it_is() {
    use image::{ExtendedColorType, ImageEncoder};
    let (width, height) = (131u32, 9u32);
    let pixels = (width * height) as usize;
    for (color, channels, bytes) in [
        (ExtendedColorType::L8, 1, 1),
        (ExtendedColorType::La8, 2, 1),
        (ExtendedColorType::Rgb8, 3, 1),
        (ExtendedColorType::Rgba8, 4, 1),
        (ExtendedColorType::L16, 1, 2),
        (ExtendedColorType::La16, 2, 2),
        (ExtendedColorType::Rgb16, 3, 2),
        (ExtendedColorType::Rgba16, 4, 2),
    ] {
        let value = |at: usize| ((at * 7919) % 65536) as u16;
        let native: Vec<u8> = match bytes {
            1 => (0..pixels * channels).map(|at| (value(at) >> 8) as u8).collect(),
            _ => (0..pixels * channels).flat_map(|at| value(at).to_ne_bytes()).collect(),
        };
        let mut png = Vec::new();
        image::codecs::png::PngEncoder::new(&mut png)
            .write_image(&native, width, height, color)
            .unwrap();
        let mut image = Image::new(3, 3);
        let mut decoder = Decoder::new(DecodeOptions::default());
        decoder.decode_into(Format::Png, &png, &mut image).unwrap();
        assert_eq!((image.width, image.height), (131, 9));
        assert_eq!(image.pixels_hwc.len(), 3 * pixels);
        for (at, pixel) in image.pixels_hwc.chunks_exact(3).enumerate() {
            let channel = |c: usize| {
                let value = value(at * channels + c.min((channels - 1) / 2 * 2));
                // Pillow cuts 16-bit gray off, and reads the high bytes of all else.
                if color == ExtendedColorType::L16 {
                    value.min(255) as u8
                } else {
                    (value >> 8) as u8
                }
            };
            assert_eq!(pixel, [channel(0), channel(1), channel(2)], "{color:?} {at}");
        }
    }
}

#[test]
fn what_a_huge_image_took_is_given_back_and_what_others_take_is_kept() {
    let kept = crate::scratch::KEPT_BYTES;
    let mut image = Image::new(4000, 2600);
    image.trim();
    assert_eq!((image.width, image.pixels_hwc.len()), (4000, 31_200_000), "a photograph");
    // As decoded: eight bytes a pixel that became three.
    image.reset_to_bytes(4000, 2600, kept + 1);
    assert_eq!(image.pixels_hwc.len(), kept + 1);
    image.pixels_hwc.truncate(31_200_000);
    image.trim();
    assert_eq!((image.width, image.height, image.pixels_hwc.capacity()), (0, 0, 0));
}
