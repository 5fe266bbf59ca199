//! JPEGs through the crate's own decoder: just the region that the views need,
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
        NativeJpeg { decoder, index: SideIndex::default() }
    }

    /// Decodes `region` or more; the whole where there is none or where the image
    /// is to be turned. None for kinds of JPEG that are left to others.
    ///
    /// # Errors
    /// [`crate::Error::Decode`] when the bytes are damaged, [`crate::Error::TooLarge`] when a limit is
    /// passed.
    pub fn decode(
        &mut self,
        options: &DecodeOptions,
        bytes: &[u8],
        region: Option<Crop>,
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
        let region = match region {
            Some(region) if orientation == Orientation::AsIs => widened(region, whole),
            _ => whole,
        };
        // An index that cannot be read is as good as none: it saves time only.
        let side_index = side_index.filter(|_| options.side_index);
        let index =
            side_index.and_then(|bytes| self.index.read(bytes, &jpeg).ok().map(|()| &self.index));
        let Crop { top, left, height, width } = region;
        let wanted = Region { left, top, width, height };
        match self.decoder.decode_region_into(&jpeg, wanted, index, out) {
            Ok(()) => Ok(Some(Decoded { region, orientation })),
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
