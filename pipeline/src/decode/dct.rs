//! Re-coded images: the regions that the views need, from packed coefficients.

use super::native_jpeg::Decoded;
use super::{DecodeOptions, Orientation, check_size};
use crate::augment::Crop;
use crate::dct::{DctDecoder, DctImage};
use crate::jpeg::Region;
use crate::{Image, Result};

/// The decoder and what it keeps between images.
#[derive(Debug)]
pub(super) struct DctImageDecoder {
    decoder: DctDecoder,
    regions: Vec<Region>,
}

impl DctImageDecoder {
    /// A decoder of images within the limit.
    pub fn new(options: &DecodeOptions) -> Self {
        let decoder = DctDecoder::new().max_pixels(options.max_pixels);
        DctImageDecoder { decoder, regions: Vec::new() }
    }

    /// Decodes `regions` or more; the whole, with its checksum verified, where there
    /// are none or where the image is to be turned.
    ///
    /// # Errors
    /// [`crate::Error::Decode`] when the bytes are damaged, [`crate::Error::TooLarge`] when a limit is
    /// passed.
    pub fn decode(
        &mut self,
        options: &DecodeOptions,
        bytes: &[u8],
        regions: &[Crop],
        out: &mut Image,
    ) -> Result<Decoded> {
        let image = DctImage::parse(bytes)?;
        let (width, height) = (image.width(), image.height());
        check_size(options, width as u32, height as u32)?;
        let orientation = match image.jpeg().exif() {
            Some(chunk) if options.exif => Orientation::from_exif(chunk),
            _ => Orientation::AsIs,
        };
        if !regions.is_empty() && orientation == Orientation::AsIs {
            self.regions.clear();
            self.regions.extend(regions.iter().map(|&region| Region::from(region)));
            let part = self.decoder.decode_regions_into(&image, &self.regions, out)?;
            return Ok(Decoded { region: part.into(), orientation });
        }
        self.decoder.decode_into(&image, out)?;
        Ok(Decoded { region: Crop::whole(width, height), orientation })
    }

    /// Gives back what an image far larger than others took.
    pub fn trim(&mut self) {
        self.decoder.trim();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_may_be_above_the_decoders_own() {
        let options = DecodeOptions { max_pixels: 1 << 30, ..DecodeOptions::default() };
        assert_eq!(DctImageDecoder::new(&options).decoder.limit(), 1 << 30);
    }
}
