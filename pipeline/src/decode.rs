//! Encoded bytes to an RGB [`Image`]: what Pillow's `open(..).convert("RGB")`
//! gives, between `shard` and `augment`.
//!
//! Alpha is dropped, not blended; palettes and gray become RGB; 16-bit gray is
//! cut off at 255 and 16-bit colour loses its low byte, both as Pillow does;
//! CMYK and YCCK JPEGs are taken as Adobe's inverted ones. Sizes are checked
//! before anything is allocated.

mod baseline;
mod coefficients;
mod generic;
mod jpeg_fallback;
mod orientation;

use serde::{Deserialize, Serialize};

use crate::augment::Crop;
use crate::dct::DctImage;
use crate::jpeg::Jpeg;
use crate::shard::{Format, raw_parse};
use crate::{Error, Image, Result};
use baseline::Baseline;
use coefficients::Coefficients;
use orientation::Orientation;

/// What a decoder accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Turn and mirror the image as its EXIF orientation says. Off by default, as
    /// in torchvision's `default_loader`.
    pub exif: bool,
    /// Pixels of an image; more is an error.
    pub max_pixels: u64,
    /// Encoded bytes of an image; more is an error.
    pub max_bytes: u64,
    /// Use side indexes of JPEGs where there are any. Off only to measure them.
    pub side_index: bool,
}

impl Default for DecodeOptions {
    /// Pillow's limit of pixels (`DecompressionBombError`), 1 GiB of bytes.
    fn default() -> Self {
        DecodeOptions { exif: false, max_pixels: 178_956_970, max_bytes: 1 << 30, side_index: true }
    }
}

/// Decodes images, one for each thread: it keeps its buffers.
#[derive(Debug)]
pub struct Decoder {
    options: DecodeOptions,
    /// The image before it is turned.
    unturned: Image,
    jpeg: Baseline,
    dct: Coefficients,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new(DecodeOptions::default())
    }
}

impl Decoder {
    /// A decoder with these limits.
    pub fn new(options: DecodeOptions) -> Self {
        let (jpeg, dct) = (Baseline::new(&options), Coefficients::new(&options));
        Decoder { options, unturned: Image::default(), jpeg, dct }
    }

    /// Pixels that an image may have.
    pub(crate) fn max_pixels(&self) -> u64 {
        self.options.max_pixels
    }

    /// Decodes the whole image into `out`.
    ///
    /// # Errors
    /// [`Error::Decode`] when the bytes are damaged or of an unknown kind, or
    /// when a limit is passed. `out` is unspecified then.
    pub fn decode_into(&mut self, format: Format, bytes: &[u8], out: &mut Image) -> Result<()> {
        self.decode(format, bytes, None, None, out).map(|_| ())
    }

    /// Decodes the whole, or at least `region` of the stored image where that is
    /// cheaper; returns the part that `out` holds.
    fn decode(
        &mut self,
        format: Format,
        bytes: &[u8],
        region: Option<Crop>,
        side_index: Option<&[u8]>,
        out: &mut Image,
    ) -> Result<Crop> {
        if bytes.len() as u64 > self.options.max_bytes {
            return fail(format!(
                "{} encoded bytes, above the limit of {}",
                bytes.len(),
                self.options.max_bytes
            ));
        }
        let mut part = None;
        let orientation = guarded(|| match format {
            Format::Raw => self.raw(bytes, out),
            Format::Jpeg => {
                match self.jpeg.decode(&self.options, bytes, region, side_index, out)? {
                    Some(decoded) => {
                        part = Some(decoded.region);
                        Ok(decoded.orientation)
                    }
                    None => jpeg_fallback::decode(&self.options, bytes, out),
                }
            }
            Format::Dct => {
                let decoded = self.dct.decode(&self.options, bytes, region, out)?;
                part = Some(decoded.region);
                Ok(decoded.orientation)
            }
            Format::Png | Format::Other => generic::decode(&self.options, bytes, out),
        });
        self.jpeg.trim();
        self.dct.trim();
        let orientation = orientation?;
        if self.options.exif && orientation != Orientation::AsIs {
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
        let part = self.decode(format, bytes, Some(region), side_index, out)?;
        let (right, bottom) = (part.left + out.width, part.top + out.height);
        let inside = region.left >= part.left && region.top >= part.top;
        if !inside || !region.fits(right, bottom) {
            return fail(format!("{region:?} is not in {} x {}", out.width, out.height));
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
        let turned = self.options.exif
            && match format {
                Format::Raw => false,
                Format::Jpeg => match Jpeg::parse(bytes) {
                    Ok(jpeg) => {
                        jpeg.exif().is_some_and(|e| Orientation::from_exif(e).swaps_sides())
                    }
                    Err(_) => jpeg_fallback::orientation(bytes)?.swaps_sides(),
                },
                Format::Dct => {
                    let exif = DctImage::parse(bytes)?.jpeg().exif();
                    exif.is_some_and(|e| Orientation::from_exif(e).swaps_sides())
                }
                Format::Png | Format::Other => generic::orientation(bytes)?.swaps_sides(),
            };
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

/// Width and height from an image's header, EXIF orientation not applied.
///
/// # Errors
/// [`Error::Decode`] when there is no readable header.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    match guarded(|| Ok(crate::shard::dimensions_of(bytes)))? {
        Some(size) => Ok(size),
        None => fail("the header of no image format that is known"),
    }
}

/// Runs a decoder that others wrote: bytes from disk never bring the run down.
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
        return fail(format!(
            "{width} x {height} pixels, above the limit of {}",
            options.max_pixels
        ));
    }
    Ok(())
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Decode(message.into()))
}

#[cfg(test)]
mod tests;
