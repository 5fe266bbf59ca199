//! The decoded image that stands between `decode` and `augment`.

/// An 8-bit RGB image, rows from the top, channels interleaved (HWC).
///
/// Made to be reused: [`Image::reset`] keeps the allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub pixels_hwc: Vec<u8>,
}

impl Image {
    /// An image of zeros.
    pub fn new(width: usize, height: usize) -> Self {
        let mut image = Image::default();
        image.reset(width, height);
        image
    }

    /// Gives the image a new size. The pixels' values are unspecified
    /// afterwards; the allocation is kept when it is large enough.
    pub fn reset(&mut self, width: usize, height: usize) {
        self.width = width;
        self.height = height;
        self.pixels_hwc.resize(width * height * 3, 0);
    }

    /// Row `y`: `width * 3` bytes.
    ///
    /// # Panics
    /// When `y >= height`.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.pixels_hwc[y * self.width * 3..][..self.width * 3]
    }
}
