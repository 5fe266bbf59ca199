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

/// One to three regions, with which `decode` is to give their union, and the pixels of each.
pub fn check_regions(
    rng: &mut Rng,
    expected: &Image,
    decode: impl FnOnce(&[Region], &mut Image) -> Region,
) {
    let count = 1 + rng.below(3) as usize;
    let regions: Vec<_> =
        (0..count).map(|_| random_region(rng, expected.width, expected.height)).collect();
    let mut out = Image::default();
    let part = decode(&regions, &mut out);
    assert_eq!(Some(part), regions.iter().copied().reduce(Region::union));
    for region in regions.iter().copied() {
        let inside = Region { left: region.left - part.left, top: region.top - part.top, ..region };
        assert!(crop(&out, inside) == crop(expected, region), "{region:?} of {regions:?}");
    }
}
