//! [`Rows`]: rows of a view in the form every operation works on.

/// Elements that rows are padded to: one 512-bit vector of 16-bit integers.
pub const LANES: usize = 32;

/// `width` rounded up to whole vectors.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// Rows after one another, each of three planes (red, green, blue), each [`padded`]. Values are
/// 0..=255; what stands in the padding is unspecified unless said otherwise.
///
/// Several at a time, so that what an operation does once, its call and its constants, counts
/// little: of a row of 32 pixels it is up to two thirds (solarize), mostly a tenth.
#[derive(Debug)]
pub struct Rows<'a> {
    /// All values of all rows.
    pub planes: &'a mut [i16],
    stride: usize,
}

impl<'a> Rows<'a> {
    /// The rows of `width` pixels in `planes`.
    ///
    /// # Panics
    /// When these are not whole rows.
    pub fn new(planes: &'a mut [i16], width: usize) -> Self {
        let stride = padded(width);
        assert!(planes.len().is_multiple_of(3 * stride), "rows are padded");
        Rows { planes, stride }
    }

    /// Each row's planes.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = [&[i16]; 3]> {
        self.planes.chunks_exact(3 * self.stride).map(|row| {
            let (r, rest) = row.split_at(self.stride);
            let (g, b) = rest.split_at(self.stride);
            [r, g, b]
        })
    }

    /// Each row's planes.
    #[inline(always)]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = [&mut [i16]; 3]> {
        let stride = self.stride;
        self.planes.chunks_exact_mut(3 * stride).map(move |row| {
            let (r, rest) = row.split_at_mut(stride);
            let (g, b) = rest.split_at_mut(stride);
            [r, g, b]
        })
    }

    /// Replaces each pixel.
    #[inline(always)]
    pub fn map(&mut self, pixel: impl Fn(i16, i16, i16) -> (i16, i16, i16)) {
        // Whole vectors, without a rest.
        let len = self.stride / LANES * LANES;
        for [r, g, b] in self.iter_mut() {
            let (r, g, b) = (&mut r[..len], &mut g[..len], &mut b[..len]);
            for x in 0..len {
                (r[x], g[x], b[x]) = pixel(r[x], g[x], b[x]);
            }
        }
    }
}
