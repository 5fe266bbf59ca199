//! Pictures inside the page: PNG files as `data:` addresses.

use anyhow::{Context, Result};
use base64::Engine as _;
use bt_pipeline::Image;

use crate::picture::correlation::{MOST_ROWS, colour};
use crate::picture::{Correlation, fit};

/// Pixels that the longer side of an image from a shard has on a page at most: more than it is
/// shown with.
const LONGEST_SIDE: usize = 256;

/// An image as an `<img>` address that carries it.
///
/// # Errors
/// When the image has no pixels.
pub fn data_uri(image: &Image) -> Result<String> {
    Ok(address(&bt_pipeline::synth::encode_png(image)?))
}

/// [`data_uri`] of an image that is made smaller first where its longer side is above 256 pixels:
/// photos would make pages of hundreds of megabytes.
///
/// # Errors
/// When the image has no pixels.
pub fn small_uri(image: &Image) -> Result<String> {
    match image.width.max(image.height) > LONGEST_SIDE {
        true => data_uri(&fit(image, LONGEST_SIDE)),
        false => data_uri(image),
    }
}

fn address(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png))
}

/// C as a picture, at most its first [`MOST_ROWS`] rows and columns: orange is positive, blue
/// negative, and nothing is transparent, so that it suits a light and a dark page.
///
/// # Errors
/// When the matrix is empty.
pub fn correlation_uri(c: &Correlation) -> Result<String> {
    let side = c.dim.min(MOST_ROWS);
    let mut pixels = Vec::with_capacity(side * side * 4);
    for row in 0..side {
        for value in &c.values[row * c.dim..][..side] {
            pixels.extend(colour(*value));
        }
    }
    let mut png = Vec::new();
    use image::ImageEncoder as _;
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(&pixels, side as u32, side as u32, image::ExtendedColorType::Rgba8)
        .context("the picture of C")?;
    Ok(address(&png))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, value: u8) -> Image {
        Image { width, height, pixels_hwc: vec![value; width * height * 3] }
    }

    #[test]
    fn a_photo_is_made_smaller_for_the_page_and_a_small_image_stays_as_it_is() {
        let size = |image: &Image| {
            let uri = small_uri(image).unwrap();
            let text = uri.strip_prefix("data:image/png;base64,").unwrap();
            let png = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            let decoded = image::load_from_memory(&png).unwrap();
            (decoded.width(), decoded.height())
        };
        assert_eq!(size(&plain(1200, 900, 9)), (256, 192));
        assert_eq!(size(&plain(256, 100, 9)), (256, 100));
        assert_eq!(size(&plain(32, 24, 9)), (32, 24));
    }

    #[test]
    fn the_picture_of_c_is_a_png_with_a_solid_diagonal() {
        let c = Correlation {
            name: String::new(),
            dim: 3,
            values: vec![1., 0., -1., 0., 1., 0., 0., 0., 1.],
        };
        let uri = correlation_uri(&c).unwrap();
        let text = uri.strip_prefix("data:image/png;base64,").unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let pixels = image::load_from_memory(&png).unwrap().to_rgba8();
        assert_eq!(pixels.get_pixel(1, 1).0, [230, 110, 20, 255]);
        assert_eq!(pixels.get_pixel(1, 0).0[3], 0);
        assert_eq!(pixels.get_pixel(2, 0).0, [40, 120, 240, 255]);
    }
}
