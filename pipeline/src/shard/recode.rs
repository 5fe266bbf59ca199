//! Images on their way into a shard: kept byte for byte, made smaller and
//! encoded anew, decoded for good (`--raw`), or re-coded as packed coefficients
//! (`--recode`). Between sources and writer.

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde::Serialize;

use super::raw::{raw_header, raw_parse};
use super::{Format, sniff};
use crate::Level;
use crate::decode::{Decoder, dimensions, exif_number};
use crate::kernel::resize::{Filter, Geometry, Resize, resize_whole};
use crate::{Error, Image, Result};

/// How far an image is made smaller. None is ever made larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shrink {
    /// Until its longer side has this many pixels.
    MaxSide(u32),
    /// Until its shorter side has this many pixels.
    ShortSide(u32),
}

/// What is done to each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Recode {
    /// The size that images are reduced to.
    pub shrink: Option<Shrink>,
    /// JPEG quality of reduced images, 1 to 100.
    pub quality: u8,
    /// Decoded RGB instead of a coded image, for every image: the pixels as they are stored. A PPM
    /// cannot say how an image is to be turned, so that its EXIF orientation is lost.
    pub raw: bool,
    /// JPEGs, those of reduced images too, as packed coefficients ([`crate::dct`])
    /// where that can be done.
    pub dct: bool,
}

impl Recode {
    /// Every image as it is.
    pub const KEEP: Recode = Recode { shrink: None, quality: 90, raw: false, dct: false };

    /// The size that an image of `width` x `height` pixels is given.
    pub fn size(&self, width: u32, height: u32) -> (u32, u32) {
        let (side, limit) = match self.shrink {
            None => return (width, height),
            Some(Shrink::MaxSide(limit)) => (width.max(height), limit),
            Some(Shrink::ShortSide(limit)) => (width.min(height), limit),
        };
        if side <= limit || limit == 0 {
            return (width, height);
        }
        let scaled = |n: u32| {
            ((u64::from(n) * u64::from(limit) + u64::from(side) / 2) / u64::from(side)).max(1)
                as u32
        };
        (scaled(width), scaled(height))
    }

    /// Replaces `image` by what goes into the shard. Images within the
    /// limit stay byte for byte, unless `raw` or `dct` is set.
    ///
    /// # Errors
    /// [`Error::Decode`] when the header or, where it must be decoded, the image is not understood;
    /// [`Error::TooLarge`] where it has more pixels than the decoder takes or would take too much
    /// memory to be made smaller.
    pub fn apply(&self, image: &mut Vec<u8>, decoder: &mut Decoder) -> Result<Recoded> {
        let mut recoded = self.shrunk_or_raw(image, decoder)?;
        if self.dct && recoded.format == Format::Jpeg {
            match crate::dct::encode_within(image, decoder.max_pixels()) {
                Ok(packed) => (*image, recoded.format) = (packed, Format::Dct),
                Err(error) if error.is_unsupported() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(recoded)
    }

    fn shrunk_or_raw(&self, image: &mut Vec<u8>, decoder: &mut Decoder) -> Result<Recoded> {
        let (width, height) = dimensions(image)?;
        let (new_width, new_height) = self.size(width, height);
        let format = sniff(image);
        let raw = format == Format::Raw;
        if (new_width, new_height) == (width, height) && (!self.raw || raw) {
            if raw && raw_parse(image).is_none() {
                return Err(Error::Decode("a decoded image that lacks pixels".to_owned()));
            }
            return Ok(Recoded { width, height, format });
        }
        let mut decoded = Image::default();
        decoder.decode_into(format, image, &mut decoded)?;
        if (new_width, new_height) != (width, height) {
            let size = (new_width as usize, new_height as usize);
            Resize::check(&Geometry::whole((decoded.width, decoded.height), size))?;
            decoded = resize_whole(Level::detect(), Filter::Lanczos3, &decoded, size);
        }
        *image = if self.raw {
            to_raw(&decoded)
        } else {
            to_jpeg(&decoded, self.quality, exif_number(image))?
        };
        let format = if self.raw { Format::Raw } else { Format::Jpeg };
        Ok(Recoded { width: new_width, height: new_height, format })
    }
}

/// What an image in a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recoded {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How it is coded.
    pub format: Format,
}

fn to_raw(image: &Image) -> Vec<u8> {
    let header = raw_header(image.width as u32, image.height as u32);
    [&header[..], &image.pixels_hwc].concat()
}

/// Colour at half the width and height, as most JPEGs have it: a fifth fewer bytes
/// than 4:4:4, and faster to decode. The standard Huffman tables: with its own the
/// encoder writes one component after the other, which the fast decoder does not
/// read.
fn to_jpeg(image: &Image, quality: u8, orientation: u8) -> Result<Vec<u8>> {
    let bad = |e: &dyn std::fmt::Display| Error::Decode(format!("cannot be encoded: {e}"));
    let side = |side: usize| u16::try_from(side).map_err(|e| bad(&e));
    let (width, height) = (side(image.width)?, side(image.height)?);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality.clamp(1, 100));
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(&image.pixels_hwc, width, height, ColorType::Rgb).map_err(|e| bad(&e))?;
    if (2..=8).contains(&orientation) {
        bytes.splice(2..2, exif(orientation));
    }
    Ok(bytes)
}

/// An EXIF segment that says the orientation and nothing else, so that a
/// reduced image is still turned by those who turn images.
fn exif(orientation: u8) -> [u8; 36] {
    let mut segment =
        *b"\xFF\xE1\0\x22Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0";
    segment[29] = orientation;
    segment
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, RgbImage};
    use std::io::Cursor;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image =
            RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5) as u8, (y * 3) as u8, 99]));
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn apply(recode: Recode, image: &mut Vec<u8>) -> Result<Recoded> {
        recode.apply(image, &mut Decoder::default())
    }

    fn decoded(bytes: &[u8]) -> Image {
        let mut image = Image::default();
        Decoder::default().decode_into(sniff(bytes), bytes, &mut image).unwrap();
        image
    }

    #[test]
    fn images_within_the_limit_stay_byte_for_byte_and_larger_ones_shrink() {
        let recode = |shrink| Recode { shrink: Some(shrink), ..Recode::KEEP };
        let original = png(60, 40);
        for (recode, size, kept) in [
            (Recode::KEEP, (60, 40), true),
            (recode(Shrink::MaxSide(60)), (60, 40), true),
            (recode(Shrink::MaxSide(90)), (60, 40), true),
            (recode(Shrink::MaxSide(0)), (60, 40), true),
            (recode(Shrink::MaxSide(30)), (30, 20), false),
            (recode(Shrink::ShortSide(40)), (60, 40), true),
            (recode(Shrink::ShortSide(50)), (60, 40), true),
            (recode(Shrink::ShortSide(10)), (15, 10), false),
        ] {
            let mut image = original.clone();
            let done = apply(recode, &mut image).unwrap();
            assert_eq!(((done.width, done.height), image == original), (size, kept), "{recode:?}");
            assert_eq!(dimensions(&image).unwrap(), size);
        }
        assert_eq!(recode(Shrink::MaxSide(10)).size(1000, 3), (10, 1));
    }

    #[test]
    fn a_raw_image_that_lacks_pixels_is_not_taken() {
        let raw = [&raw_header(2, 1)[..], &[1, 2, 3, 4, 5, 6]].concat();
        let lacking = raw[..raw.len() - 1].to_vec();
        for recode in [Recode::KEEP, Recode { raw: true, ..Recode::KEEP }] {
            assert_eq!(apply(recode, &mut raw.clone()).unwrap().format, Format::Raw);
            assert!(matches!(apply(recode, &mut lacking.clone()), Err(Error::Decode(_))));
        }
    }

    #[test]
    fn reduced_images_are_of_the_kind_that_the_fast_decoder_reads() {
        let mut image = png(60, 40);
        apply(Recode { shrink: Some(Shrink::MaxSide(33)), ..Recode::KEEP }, &mut image).unwrap();
        let jpeg = crate::jpeg::Jpeg::parse(&image).unwrap();
        assert_eq!((jpeg.width(), jpeg.height()), (33, 22));
        let factors: Vec<_> = jpeg.components().iter().map(|c| (c.h, c.v)).collect();
        assert_eq!(factors, [(2, 2), (1, 1), (1, 1)]);
        crate::jpeg::JpegDecoder::new().decode_into(&jpeg, &mut Image::default()).unwrap();
    }

    #[test]
    fn raw_images_hold_the_decoded_pixels() {
        let mut image = png(7, 5);
        let expected = decoded(&image);
        let done = apply(Recode { raw: true, ..Recode::KEEP }, &mut image).unwrap();
        assert_eq!(done, Recoded { width: 7, height: 5, format: Format::Raw });
        assert_eq!(super::super::raw_parse(&image), Some((7, 5, &expected.pixels_hwc[..])));
        assert_eq!(decoded(&image), expected, "other programs read it as PPM");
    }

    #[test]
    fn the_orientation_outlives_the_encoding() {
        let image = decoded(&png(20, 10));
        for turn in 1..=8 {
            let jpeg = to_jpeg(&image, 90, turn).unwrap();
            let again = decoded(&jpeg);
            assert_eq!((exif_number(&jpeg), again.width, again.height), (turn, 20, 10));
        }
    }

    #[test]
    fn raw_images_have_the_pixels_as_stored_and_no_orientation() {
        let stored = decoded(&png(20, 10));
        let mut image = to_jpeg(&stored, 90, 6).unwrap();
        let unturned = decoded(&image);
        let done = apply(Recode { raw: true, ..Recode::KEEP }, &mut image).unwrap();
        assert_eq!((done.width, done.height, exif_number(&image)), (20, 10, 1));
        let options = crate::decode::DecodeOptions { exif: true, ..Default::default() };
        let mut turned = Image::default();
        Decoder::new(options).decode_into(Format::Raw, &image, &mut turned).unwrap();
        assert_eq!(turned, unturned, "nothing is left to turn it by");
    }

    #[test]
    fn an_image_of_more_pixels_than_the_decoder_takes_is_not_recoded() {
        let jpeg = to_jpeg(&decoded(&png(20, 10)), 90, 1).unwrap();
        for (max_pixels, packed) in [(200, true), (199, false)] {
            let options = crate::decode::DecodeOptions { max_pixels, ..Default::default() };
            let recode = Recode { dct: true, ..Recode::KEEP };
            match recode.apply(&mut jpeg.clone(), &mut Decoder::new(options)) {
                Ok(done) => assert!(packed && done.format == Format::Dct),
                Err(Error::TooLarge(cause)) => {
                    assert!(!packed && cause.contains("200 pixels, above the limit of 199"));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_row_of_very_many_pixels_is_not_made_smaller() {
        let shrink = Some(Shrink::MaxSide(999_999));
        let mut image = png(1_000_000, 1);
        let done = apply(Recode { shrink, raw: true, ..Recode::KEEP }, &mut image);
        let Err(Error::TooLarge(cause)) = done else { panic!("{done:?}") };
        assert!(cause.contains("1000000 x 1 pixels take"), "{cause}");
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for bytes in [&b""[..], b"hello", b"\xFF\xD8\xFF\xE0"] {
            let done = apply(Recode::KEEP, &mut bytes.to_vec());
            assert!(matches!(done, Err(Error::Decode(_))), "{bytes:?}: {done:?}");
        }
        let mut torn = png(60, 40);
        torn.truncate(80);
        let done = apply(Recode { raw: true, ..Recode::KEEP }, &mut torn);
        assert!(matches!(done, Err(Error::Decode(_))), "{done:?}");
    }
}
