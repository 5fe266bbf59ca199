//! Pixels for the page: PNG files as `data:` addresses, contact sheets, and C
//! as a picture.

use anyhow::{Context, Result};
use base64::Engine as _;
use bt_pipeline::Image;

use super::Correlation;

/// Rows and columns of C that are drawn at most: with more of them the diagonal is
/// too thin to be seen.
pub const MOST_ROWS: usize = 64;

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

/// C as a picture on white, at most its first [`MOST_ROWS`] rows and columns, large enough to be
/// looked at.
pub fn correlation_image(c: &Correlation) -> Image {
    let side = c.dim.min(MOST_ROWS);
    let mut out = Image::new(side, side);
    for (i, pixel) in out.pixels_hwc.chunks_exact_mut(3).enumerate() {
        let [r, g, b, strength] = colour(c.values[i / side * c.dim + i % side]);
        let over_white = |channel: u8| {
            let (channel, strength) = (u32::from(channel), u32::from(strength));
            ((channel * strength + 255 * (255 - strength)) / 255) as u8
        };
        pixel.copy_from_slice(&[r, g, b].map(over_white));
    }
    fit(&out, side * (256 / side).max(1))
}

/// Orange over 0, blue under it, opaque at 1.
fn colour(value: f32) -> [u8; 4] {
    let strength = (value.abs().min(1.0) * 255.0).round() as u8;
    let [r, g, b] = if value >= 0.0 { [230, 110, 20] } else { [40, 120, 240] };
    [r, g, b, strength]
}

/// `image` with its longer side at `side` pixels: enlarged by whole pixels or
/// made smaller by averaging, so that it is seen as it is.
pub fn fit(image: &Image, side: usize) -> Image {
    let long = image.width.max(image.height).max(1);
    let scaled = |length: usize| (length * side / long).max(1);
    let mut out = Image::new(scaled(image.width), scaled(image.height));
    for y in 0..out.height {
        let rows = span(y, out.height, image.height);
        for x in 0..out.width {
            let columns = span(x, out.width, image.width);
            let mut sum = [0u64; 3];
            for row in rows.clone() {
                for pixel in image.row(row)[columns.start * 3..columns.end * 3].chunks_exact(3) {
                    (0..3).for_each(|c| sum[c] += u64::from(pixel[c]));
                }
            }
            let count = (rows.len() * columns.len()).max(1) as u64;
            let at = (y * out.width + x) * 3;
            (0..3).for_each(|c| out.pixels_hwc[at + c] = (sum[c] / count) as u8);
        }
    }
    out
}

/// The source pixels that target pixel `i` of `to` stands for, at least one.
fn span(i: usize, to: usize, from: usize) -> std::ops::Range<usize> {
    let start = i * from / to;
    start..((i + 1) * from / to).max(start + 1).min(from)
}

/// Images in a table on one picture: `rows` of cells, each `cell` pixels wide and
/// high, `gap` pixels apart on `ground`.
pub fn sheet(rows: &[Vec<Image>], cell: usize, gap: usize, ground: [u8; 3]) -> Image {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let extent = |count: usize| gap + count * (cell + gap);
    let mut out = Image::new(extent(columns), extent(rows.len()));
    out.pixels_hwc.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&ground));
    for (r, row) in rows.iter().enumerate() {
        for (c, image) in row.iter().enumerate() {
            let small = fit(image, cell);
            let left = gap + c * (cell + gap) + (cell - small.width) / 2;
            let top = gap + r * (cell + gap) + (cell - small.height) / 2;
            for y in 0..small.height {
                let at = ((top + y) * out.width + left) * 3;
                out.pixels_hwc[at..at + small.width * 3].copy_from_slice(small.row(y));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, value: u8) -> Image {
        Image { width, height, pixels_hwc: vec![value; width * height * 3] }
    }

    #[test]
    fn fitting_keeps_the_ratio_and_the_mean() {
        let mut wide = plain(40, 20, 10);
        wide.pixels_hwc[..40 * 10 * 3].fill(30);
        let small = fit(&wide, 10);
        assert_eq!((small.width, small.height), (10, 5));
        assert_eq!((small.row(0)[0], small.row(2)[0], small.row(4)[0]), (30, 20, 10));
        let large = fit(&plain(3, 2, 7), 96);
        assert_eq!((large.width, large.height), (96, 64));
        assert!(large.pixels_hwc.iter().all(|v| *v == 7));
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
    fn a_sheet_puts_every_cell_in_its_place() {
        let rows = vec![vec![plain(8, 8, 1), plain(2, 2, 2)], vec![plain(8, 4, 3)]];
        let sheet = sheet(&rows, 8, 2, [255; 3]);
        assert_eq!((sheet.width, sheet.height), (22, 22));
        let at = |x: usize, y: usize| sheet.row(y)[x * 3];
        assert_eq!((at(2, 2), at(12, 2), at(19, 9), at(1, 1)), (1, 2, 2, 255));
        // The flat one lies in the middle of its cell.
        assert_eq!((at(2, 13), at(2, 14), at(2, 17), at(2, 18)), (255, 3, 3, 255));
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
        let opaque = correlation_image(&c);
        assert_eq!((opaque.width, opaque.height), (255, 255));
        assert_eq!(opaque.row(0)[..3], [230, 110, 20]);
        assert_eq!(opaque.row(0)[3 * 100..][..3], [255; 3]);
        assert!((c.on_diag_mean() - 1.0).abs() < 1e-9);
        assert!((c.off_diag_rms() - (1.0f64 / 6.0).sqrt()).abs() < 1e-9);
    }
}
