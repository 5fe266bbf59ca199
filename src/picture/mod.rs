//! Pictures as pixels, for the report, TensorBoard and contact sheets.
//!
//! - [`views`]: samples with their views, as the network sees them.
//! - [`correlation`]: C as a picture.

use bt_pipeline::Image;

pub mod correlation;
pub mod views;

pub use correlation::Correlation;
pub use views::Sample;

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
    fn a_sheet_puts_every_cell_in_its_place() {
        let rows = vec![vec![plain(8, 8, 1), plain(2, 2, 2)], vec![plain(8, 4, 3)]];
        let sheet = sheet(&rows, 8, 2, [255; 3]);
        assert_eq!((sheet.width, sheet.height), (22, 22));
        let at = |x: usize, y: usize| sheet.row(y)[x * 3];
        assert_eq!((at(2, 2), at(12, 2), at(19, 9), at(1, 1)), (1, 2, 2, 255));
        // The flat one lies in the middle of its cell.
        assert_eq!((at(2, 13), at(2, 14), at(2, 17), at(2, 18)), (255, 3, 3, 255));
    }
}
