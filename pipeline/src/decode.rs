//! Encoded bytes to an RGB [`Image`]: what Pillow's `open(..).convert("RGB")`
//! gives, between `shard` and `augment`.
//!
//! Alpha is dropped, not blended, once colours that a TIFF has multiplied by it
//! are divided again; palettes and gray become RGB, but of TIFFs only gray of 1,
//! 8 and 16 bits without alpha, and RGB and CMYK, are read, those with further
//! samples in plain strips alone. 16-bit gray is cut off at 255 and 16-bit colour
//! of PNG and TIFF loses its low byte, as in Pillow; CMYK and YCCK JPEGs are taken
//! as Adobe's inverted ones. Sizes are checked before anything is allocated.
//!
//! Other than in Pillow: values of PNMs with another maximum than 255 are scaled
//! to ones that may differ by 1; CMYK JPEGs of subsampled colour that are no
//! wider than some 20 pixels have other colours; tiles of LZW that reach beyond a
//! TIFF's edge may be refused; of a GIF whose first frame is smaller than its
//! screen, the rest is black, not the palette's background colour.
//!
//! A decoder that panics, of this crate or of others, is an [`Error::Decode`]: its panic is caught
//! where it unwinds. In a program that is built with `panic = "abort"` it ends the process.

mod dct;
mod generic;
mod ifd;
mod jpeg_fallback;
mod native_jpeg;
mod orientation;

use serde::{Deserialize, Serialize};

use crate::augment::Crop;
use crate::dct::DctImage;
use crate::jpeg::{Jpeg, Region};
use crate::shard::{Format, raw_parse, sniff};
use crate::{Error, Image, Result};
use dct::DctImageDecoder;
use native_jpeg::NativeJpeg;
use orientation::Orientation;

/// What a decoder accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Turn and mirror the image as its EXIF orientation says. Off by default, as
    /// in torchvision's `default_loader`. A TIFF's orientation is applied always, as
    /// Pillow does when it loads one.
    pub exif: bool,
    /// Pixels of an image; more is an error.
    pub max_pixels: u64,
    /// Encoded bytes of an image; more is an error.
    pub max_bytes: u64,
    /// Use side indexes of JPEGs where there are any. Off only to measure them.
    pub side_index: bool,
}

impl Default for DecodeOptions {
    /// 178 million pixels, where Pillow has 178,956,970 (`DecompressionBombError`): a whole number of
    /// millions, as configurations give it, so that what is packed can be trained on. 1 GiB of bytes.
    fn default() -> Self {
        DecodeOptions { exif: false, max_pixels: 178_000_000, max_bytes: 1 << 30, side_index: true }
    }
}

/// Decodes images, one for each thread: it keeps its buffers.
#[derive(Debug)]
pub struct Decoder {
    options: DecodeOptions,
    /// The image before it is turned.
    unturned: Image,
    jpeg: NativeJpeg,
    dct: DctImageDecoder,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new(DecodeOptions::default())
    }
}

impl Decoder {
    /// A decoder with these limits.
    pub fn new(options: DecodeOptions) -> Self {
        let (jpeg, dct) = (NativeJpeg::new(&options), DctImageDecoder::new(&options));
        Decoder { options, unturned: Image::default(), jpeg, dct }
    }

    /// Pixels that an image may have.
    pub(crate) fn max_pixels(&self) -> u64 {
        self.options.max_pixels
    }

    /// Decodes the whole image into `out`.
    ///
    /// # Errors
    /// [`Error::Decode`] when the bytes are damaged or of an unknown kind,
    /// [`Error::TooLarge`] when a limit is passed. `out` is unspecified then.
    pub fn decode_into(&mut self, format: Format, bytes: &[u8], out: &mut Image) -> Result<()> {
        self.decode(format, bytes, &[], None, out).map(|_| ())
    }

    /// Decodes the whole, or at least `regions` of the stored image, if there are some, where that
    /// is cheaper; returns the part that `out` holds.
    fn decode(
        &mut self,
        format: Format,
        bytes: &[u8],
        regions: &[Crop],
        side_index: Option<&[u8]>,
        out: &mut Image,
    ) -> Result<Crop> {
        if bytes.len() as u64 > self.options.max_bytes {
            let (bytes, limit) = (bytes.len(), self.options.max_bytes);
            return Err(Error::TooLarge(format!(
                "{bytes} encoded bytes, above the limit of {limit}"
            )));
        }
        let mut part = None;
        let orientation = guarded(|| match format {
            Format::Raw => self.raw(bytes, out),
            Format::Jpeg => {
                match self.jpeg.decode(&self.options, bytes, regions, side_index, out)? {
                    Some(decoded) => {
                        part = Some(decoded.region);
                        Ok(decoded.orientation)
                    }
                    None => jpeg_fallback::decode(&self.options, bytes, out),
                }
            }
            Format::Dct => {
                let decoded = self.dct.decode(&self.options, bytes, regions, out)?;
                part = Some(decoded.region);
                Ok(decoded.orientation)
            }
            Format::Png | Format::Other => generic::decode(&self.options, bytes, out),
        });
        self.jpeg.trim();
        self.dct.trim();
        let orientation = orientation?;
        if orientation != Orientation::AsIs {
            std::mem::swap(out, &mut self.unturned);
            orientation.turn(&self.unturned, out);
            self.unturned.trim();
            part = None;
        }
        Ok(part.unwrap_or(Crop::whole(out.width, out.height)))
    }

    /// Decodes at least `region` of the image and returns the part that `out`
    /// then holds, which is `region` or more. Pixels are those of
    /// [`Decoder::decode_into`]. Views drawn for the whole image are moved with
    /// [`crate::augment::ViewParams::within`]. `side_index` is a
    /// [`crate::jpeg::SideIndex`] in bytes; one of other bytes is not used.
    ///
    /// # Errors
    /// As [`Decoder::decode_into`], and when `region` does not lie in the image.
    pub fn decode_region_into(
        &mut self,
        format: Format,
        bytes: &[u8],
        region: Crop,
        side_index: Option<&[u8]>,
        out: &mut Image,
    ) -> Result<Crop> {
        self.decode_regions_into(format, bytes, &[region], side_index, out)
    }

    /// As [`Decoder::decode_region_into`] for several regions. What `out` holds beside them is
    /// unspecified.
    ///
    /// # Errors
    /// As [`Decoder::decode_region_into`].
    pub fn decode_regions_into(
        &mut self,
        format: Format,
        bytes: &[u8],
        regions: &[Crop],
        side_index: Option<&[u8]>,
        out: &mut Image,
    ) -> Result<Crop> {
        let part = self.decode(format, bytes, regions, side_index, out)?;
        let (right, bottom) = (part.left + out.width, part.top + out.height);
        for region in regions {
            let inside = region.left >= part.left && region.top >= part.top;
            if !inside || !region.fits(right, bottom) {
                return fail(format!("{region:?} is not in {} x {}", out.width, out.height));
            }
        }
        Ok(part)
    }

    /// Width and height of what [`Decoder::decode_into`] would give, from the
    /// header alone.
    ///
    /// # Errors
    /// [`Error::Decode`] when there is no readable header.
    pub fn dimensions(&self, format: Format, bytes: &[u8]) -> Result<(u32, u32)> {
        let (width, height) = dimensions(bytes)?;
        let turned =
            self.options.exif && guarded(|| exif_orientation(format, bytes))?.swaps_sides();
        Ok(if turned { (height, width) } else { (width, height) })
    }

    fn raw(&self, bytes: &[u8], out: &mut Image) -> Result<Orientation> {
        let Some((width, height, pixels)) = raw_parse(bytes) else {
            return fail("not a decoded image: a PPM header with sizes is missing, or pixels are");
        };
        check_size(&self.options, width, height)?;
        out.reset(width as usize, height as usize);
        out.pixels_hwc.copy_from_slice(pixels);
        Ok(Orientation::AsIs)
    }
}

impl From<Crop> for Region {
    fn from(Crop { top, left, height, width }: Crop) -> Region {
        Region { left, top, width, height }
    }
}

impl From<Region> for Crop {
    fn from(Region { left, top, width, height }: Region) -> Crop {
        Crop { top, left, height, width }
    }
}

/// The EXIF orientation of what a decoder without [`DecodeOptions::exif`] gives.
fn exif_orientation(format: Format, bytes: &[u8]) -> Result<Orientation> {
    let of_chunk = |chunk: Option<&[u8]>| chunk.map_or(Orientation::AsIs, Orientation::from_exif);
    match format {
        Format::Raw => Ok(Orientation::AsIs),
        Format::Jpeg => match Jpeg::parse(bytes) {
            Ok(jpeg) => Ok(of_chunk(jpeg.exif())),
            Err(_) => jpeg_fallback::orientation(bytes),
        },
        Format::Dct => Ok(of_chunk(DctImage::parse(bytes)?.jpeg().exif())),
        Format::Png | Format::Other => generic::orientation(bytes),
    }
}

/// The EXIF orientation, 1 to 8, of what a decoder without [`DecodeOptions::exif`] gives; 1 where
/// there is none or no readable header.
pub(crate) fn exif_number(bytes: &[u8]) -> u8 {
    guarded(|| exif_orientation(sniff(bytes), bytes)).unwrap_or_default() as u8
}

/// What is said of bytes in which no image was found.
pub(crate) const NO_IMAGE: &str = "not an image of a known format, or its header is damaged";

/// Width and height from an image's header, EXIF orientation not applied; a TIFF's own is.
///
/// # Errors
/// [`Error::Decode`] when there is no readable header, or one of pixels that are not supported.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    let size = guarded(|| match sniff(bytes) {
        Format::Other => generic::dimensions(bytes).map(Some),
        _ => Ok(crate::shard::dimensions_of(bytes)),
    })?;
    match size {
        Some((width, height)) if width > 0 && height > 0 => Ok((width, height)),
        _ => fail(NO_IMAGE),
    }
}

/// Runs a decoder, this crate's own or one that others wrote: bytes from disk never bring the run
/// down, unless panics abort.
fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // Whatever a panic leaves behind is only a buffer, reset before the next use.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode))
        .unwrap_or_else(|_| fail("the decoder gave up on these bytes"))
}

/// Checks the pixel limit; to be called before anything of that size exists.
fn check_size(options: &DecodeOptions, width: u32, height: u32) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return fail("an image without pixels");
    }
    if pixels > options.max_pixels {
        let limit = options.max_pixels;
        let text = format!("{width} x {height} pixels, above the limit of {limit}");
        return Err(Error::TooLarge(text));
    }
    Ok(())
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Decode(message.into()))
}

#[cfg(test)]
mod tests;
