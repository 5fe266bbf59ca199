//! EXIF orientation: turning and mirroring an image.

use super::ifd;
use crate::Image;

/// How stored rows and columns become shown ones; EXIF's values 1 to 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Orientation {
    #[default]
    AsIs = 1,
    MirrorX,
    Rotate180,
    MirrorY,
    Transpose,
    Rotate90,
    Transverse,
    Rotate270,
}

impl Orientation {
    /// From an EXIF chunk, which begins with a TIFF header or, as in a JPEG's segment, with
    /// `Exif\0\0`; anything odd is taken as is.
    pub fn from_exif(chunk: &[u8]) -> Self {
        let chunk = chunk.strip_prefix(b"Exif\0\0").unwrap_or(chunk);
        ifd::number_of(chunk, ifd::ORIENTATION).map_or(Orientation::AsIs, Self::from_number)
    }

    fn from_number(number: u32) -> Self {
        match number {
            2 => Orientation::MirrorX,
            3 => Orientation::Rotate180,
            4 => Orientation::MirrorY,
            5 => Orientation::Transpose,
            6 => Orientation::Rotate90,
            7 => Orientation::Transverse,
            8 => Orientation::Rotate270,
            _ => Orientation::AsIs,
        }
    }

    /// True when width and height change places.
    pub fn swaps_sides(self) -> bool {
        use Orientation::*;
        matches!(self, Transpose | Rotate90 | Transverse | Rotate270)
    }

    /// Writes the image as it is meant to be shown.
    pub fn turn(self, stored: &Image, shown: &mut Image) {
        let (w, h) = (stored.width, stored.height);
        if self.swaps_sides() {
            shown.reset(h, w);
        } else {
            shown.reset(w, h);
        }
        let width = shown.width;
        for (index, pixel) in shown.pixels_hwc.chunks_exact_mut(3).enumerate() {
            let (y, x) = (index / width, index % width);
            let (from_y, from_x) = match self {
                Orientation::AsIs => (y, x),
                Orientation::MirrorX => (y, w - 1 - x),
                Orientation::Rotate180 => (h - 1 - y, w - 1 - x),
                Orientation::MirrorY => (h - 1 - y, x),
                Orientation::Transpose => (x, y),
                Orientation::Rotate90 => (h - 1 - x, y),
                Orientation::Transverse => (h - 1 - x, w - 1 - y),
                Orientation::Rotate270 => (x, w - 1 - y),
            };
            pixel.copy_from_slice(&stored.pixels_hwc[3 * (from_y * w + from_x)..][..3]);
        }
    }
}

impl From<image::metadata::Orientation> for Orientation {
    fn from(orientation: image::metadata::Orientation) -> Self {
        Orientation::from_number(orientation.to_exif().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_orientation_equals_that_of_the_image_crate() {
        let (width, height) = (3u32, 2u32);
        let pixels: Vec<u8> = (0..18).collect();
        let stored = Image { width: 3, height: 2, pixels_hwc: pixels.clone() };
        for exif in 1..=8 {
            let theirs = image::metadata::Orientation::from_exif(exif).unwrap();
            let buffer = image::RgbImage::from_raw(width, height, pixels.clone()).unwrap();
            let mut expected = image::DynamicImage::ImageRgb8(buffer);
            expected.apply_orientation(theirs);
            let mut shown = Image::default();
            Orientation::from(theirs).turn(&stored, &mut shown);
            assert_eq!(shown.width as u32, expected.width(), "{exif}");
            assert_eq!(shown.pixels_hwc, expected.into_rgb8().into_raw(), "{exif}");
        }
    }
}
