//! JPEGs through the crate's own decoder: just the regions that the views need,
//! from the side index where there is one.

use super::{DecodeOptions, Orientation, check_size};
use crate::augment::Crop;
use crate::jpeg::{Jpeg, JpegDecoder, JpegError, Region, SideIndex};
use crate::{Image, Result};

/// Narrower rows than this have no vector path: a little more is decoded faster.
const LEAST_WIDTH: usize = 32;

/// The decoder and what it keeps between images.
#[derive(Debug)]
pub(super) struct NativeJpeg {
    decoder: JpegDecoder,
    index: SideIndex,
    regions: Vec<Region>,
}

/// What was decoded.
pub(super) struct Decoded {
    /// The part of the stored image that `out` holds.
    pub region: Crop,
    /// How the stored image is meant to be shown; as it is, unless asked for.
    pub orientation: Orientation,
}

impl NativeJpeg {
    /// A decoder of images within the limit.
    pub fn new(options: &DecodeOptions) -> Self {
        let decoder = JpegDecoder::new().max_pixels(options.max_pixels);
        NativeJpeg { decoder, index: SideIndex::default(), regions: Vec::new() }
    }

    /// Decodes `regions` or more; the whole where there are none or where the image
    /// is to be turned. None for kinds of JPEG that are left to others.
    ///
    /// # Errors
    /// [`crate::Error::Decode`] when the bytes are damaged, [`crate::Error::TooLarge`] when a limit is
    /// passed.
    pub fn decode(
        &mut self,
        options: &DecodeOptions,
        bytes: &[u8],
        regions: &[Crop],
        side_index: Option<&[u8]>,
        out: &mut Image,
    ) -> Result<Option<Decoded>> {
        let jpeg = match Jpeg::parse(bytes) {
            Ok(jpeg) => jpeg,
            Err(JpegError::Unsupported(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        check_size(options, jpeg.width() as u32, jpeg.height() as u32)?;
        let orientation = match jpeg.exif() {
            Some(chunk) if options.exif => Orientation::from_exif(chunk),
            _ => Orientation::AsIs,
        };
        let whole = Crop::whole(jpeg.width(), jpeg.height());
        self.regions.clear();
        if orientation == Orientation::AsIs {
            self.regions.extend(regions.iter().map(|&region| Region::from(widened(region, whole))));
        }
        if self.regions.is_empty() {
            self.regions.push(whole.into());
        }
        // An index that cannot be read is as good as none: it saves time only.
        let side_index = side_index.filter(|_| options.side_index);
        let index =
            side_index.and_then(|bytes| self.index.read(bytes, &jpeg).ok().map(|()| &self.index));
        match self.decoder.decode_regions_into(&jpeg, &self.regions, index, out) {
            Ok(part) => Ok(Some(Decoded { region: part.into(), orientation })),
            Err(JpegError::Unsupported(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back what an image far larger than others took.
    pub fn trim(&mut self) {
        self.decoder.trim();
        self.index.trim();
    }
}

/// `region`, at least [`LEAST_WIDTH`] wide where the image is.
fn widened(region: Crop, whole: Crop) -> Crop {
    let width = region.width.max(LEAST_WIDTH.min(whole.width));
    let left = region.left.min(whole.width.saturating_sub(width));
    Crop { left, width, ..region }
}
