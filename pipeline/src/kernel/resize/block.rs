//! The rows that one call of the horizontal pass works on.

use crate::Image;

/// Up to this many rows of the crop go through the horizontal pass together: as
/// many as one vector has 16-bit lanes.
pub(super) const MAX_ROWS: usize = 32;

/// Bytes that are read beyond the last one that is used.
const OVERREAD: usize = 15;

/// Rows of a crop's columns as byte slices, each with [`OVERREAD`] readable
/// bytes after `bytes`.
pub(super) struct Block<'a> {
    pub rows: [&'a [u8]; MAX_ROWS],
    /// Bytes of a row that are used.
    pub bytes: usize,
}

/// Checks that the rows and columns are an image's, where the products that follow do not wrap.
///
/// # Panics
/// When the rectangle is empty or not in the image, or the image's fields disagree.
pub(super) fn check(image: &Image, (y, y_end): (usize, usize), (x, x_end): (usize, usize)) {
    assert!(image.is_whole(), "an image has as many bytes as its sides say");
    assert!(y < y_end && y_end <= image.height && x < x_end && x_end <= image.width);
}

impl<'a> Block<'a> {
    /// Rows `y..y + MAX_ROWS` of the image, the last one of `y_end` repeated;
    /// columns `x..x_end`. A row that ends with the image's last bytes is copied
    /// to `tail`, so that reading past it is defined.
    ///
    /// # Panics
    /// As [`check`].
    pub fn new(
        image: &'a Image,
        (y, y_end): (usize, usize),
        (x, x_end): (usize, usize),
        tail: &'a mut Vec<u8>,
    ) -> Self {
        check(image, (y, y_end), (x, x_end));
        let bytes = 3 * (x_end - x);
        let begin = |row: usize| 3 * (row * image.width + x);
        let pixels = &image.pixels_hwc[..];
        let is_tail = |row: usize| begin(row) + bytes + OVERREAD > pixels.len();
        let last = (y + MAX_ROWS).min(y_end) - 1;
        tail.clear();
        let first_tail = (y..=last).find(|&row| is_tail(row)).unwrap_or(last + 1);
        tail.reserve_exact((last + 1 - first_tail) * (bytes + OVERREAD));
        for row in first_tail..=last {
            tail.extend(&pixels[begin(row)..][..bytes]);
            tail.resize(tail.len() + OVERREAD, 0);
        }
        let tail = &tail[..];
        let rows = std::array::from_fn(|index| {
            let row = (y + index).min(last);
            if row < first_tail {
                &pixels[begin(row)..][..bytes + OVERREAD]
            } else {
                &tail[(row - first_tail) * (bytes + OVERREAD)..][..bytes + OVERREAD]
            }
        });
        Block { rows, bytes }
    }
}
