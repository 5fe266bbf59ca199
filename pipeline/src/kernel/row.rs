//! [`Row`]: one row of a view in the form every operation works on.

/// Elements that rows are padded to: one 512-bit vector of 16-bit integers.
pub const LANES: usize = 32;

/// `width` rounded up to whole vectors.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// Three planes (red, green, blue) of one row, each [`padded`]. Values are
/// 0..=255; what stands in the padding is unspecified unless said otherwise.
#[derive(Debug)]
pub struct Row<'a> {
    /// Red.
    pub r: &'a mut [i16],
    /// Green.
    pub g: &'a mut [i16],
    /// Blue.
    pub b: &'a mut [i16],
}

impl<'a> Row<'a> {
    /// The row in `planes`, three planes of equal length after one another.
    ///
    /// # Panics
    /// When the length is not three times a multiple of [`LANES`].
    pub fn new(planes: &'a mut [i16]) -> Self {
        let stride = planes.len() / 3;
        assert!(stride.is_multiple_of(LANES) && stride * 3 == planes.len(), "rows are padded");
        let (r, rest) = planes.split_at_mut(stride);
        let (g, b) = rest.split_at_mut(stride);
        Row { r, g, b }
    }
}
