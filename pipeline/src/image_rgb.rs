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
    ///
    /// # Panics
    /// As [`Image::reset`].
    pub fn new(width: usize, height: usize) -> Self {
        let mut image = Image::default();
        image.reset(width, height);
        image
    }

    /// Gives the image a new size. The pixels' values are unspecified
    /// afterwards; the allocation is kept when it is large enough.
    ///
    /// # Panics
    /// When no memory has as many bytes.
    pub fn reset(&mut self, width: usize, height: usize) {
        let bytes = values(width, height).expect("an image fits the memory");
        self.reset_to_bytes(width, height, bytes);
    }

    /// Whether there are as many bytes as width and height say: the fields are anybody's to change.
    /// Then places and lengths of rectangles inside are whole numbers below that of the bytes.
    pub(crate) fn is_whole(&self) -> bool {
        values(self.width, self.height) == Some(self.pixels_hwc.len())
    }

    /// As [`Image::reset`], but of `bytes` bytes, until they have become pixels.
    pub(crate) fn reset_to_bytes(&mut self, width: usize, height: usize, bytes: usize) {
        self.width = width;
        self.height = height;
        if bytes > self.pixels_hwc.capacity() {
            // Neither copies what is of no use any more, nor takes more than is needed; and the
            // system's zeros cost nothing.
            self.pixels_hwc = Vec::new();
            self.pixels_hwc = vec![0; bytes];
        } else {
            self.pixels_hwc.resize(bytes, 0);
        }
    }

    /// Empties the image where it takes more than a thread keeps
    /// ([`KEPT_BYTES`](crate::scratch::KEPT_BYTES)).
    pub(crate) fn trim(&mut self) {
        crate::scratch::trim(&mut self.pixels_hwc);
        if self.pixels_hwc.is_empty() {
            (self.width, self.height) = (0, 0);
        }
    }

    /// Row `y`: `width * 3` bytes.
    ///
    /// # Panics
    /// When `y >= height`.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.pixels_hwc[y * self.width * 3..][..self.width * 3]
    }
}

/// Values of so many pixels in three channels; `None` for more than memory has addresses.
pub(crate) fn values(width: usize, height: usize) -> Option<usize> {
    width.checked_mul(height)?.checked_mul(3)
}
