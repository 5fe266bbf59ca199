//! Regions of images, drawn and cut out.

use bt_pipeline::Image;
use bt_pipeline::jpeg::Region;
use bt_pipeline::rng::Rng;

/// The pixels of a region.
pub fn crop(image: &Image, region: Region) -> Image {
    let mut out = Image::new(region.width, region.height);
    for y in 0..region.height {
        let row = &image.row(region.top + y)[region.left * 3..][..region.width * 3];
        out.pixels_hwc[y * region.width * 3..][..region.width * 3].copy_from_slice(row);
    }
    out
}

/// A region anywhere in an image, from one pixel to all of it.
pub fn random_region(rng: &mut Rng, width: usize, height: usize) -> Region {
    let mut span = |length: usize| {
        let size = 1 + rng.below(length as u64) as usize;
        (rng.below((length - size + 1) as u64) as usize, size)
    };
    let ((left, width), (top, height)) = (span(width), span(height));
    Region { left, top, width, height }
}
