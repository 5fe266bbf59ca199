//! Crop and antialiased resize in one, row by row.
//!
//! Pillow's separable convolution: the crop is cut out first, so no filter sees
//! a pixel outside it; horizontally first, then vertically. Rows of the crop are
//! resized horizontally into a ring just before an output row needs them, so the
//! whole intermediate image never exists. A flip is a reversed table of the
//! horizontal pass and costs nothing.
//!
//! Pillow rounds to 8 bits between the passes. Here the intermediate keeps 7
//! fractional bits and is clamped as Pillow's is; the result differs from
//! Pillow's by what its own rounding loses, at most one level. That holds for up to
//! 64 taps, each of which is rounded; sums of more go another way (`fine`).
//!
//! Where the height shrinks by more than twice what the width does, Pillow (13 and
//! later) goes vertically first, and clamping between the passes makes that
//! visible. So does this: a band of output rows is made vertically in 8 bits
//! (`band`), then goes through the horizontal pass as rows of an image do.

mod axis;
mod band;
mod block;
mod fine;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
mod vertical;

use axis::Axis;
pub use axis::{AxisRange, Filter};

use block::{Block, MAX_ROWS, check};
use vertical::vertical;

use super::padded;
#[cfg(target_arch = "aarch64")]
use super::vector::Neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::vector::Vector;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use crate::Level;
use crate::level::Kind;
use crate::scratch::Scratch;
use crate::{Error, Image, Result};

/// Fractional bits of what enters a pass: 255 just fits 16 bits.
const IN_BITS: u32 = 7;

/// Fractional bits of what leaves it, which leaves room for overshoot.
const BITS: u32 = IN_BITS + axis::WEIGHT_BITS - 15;

/// What the tables and rows of a resize may take. A photograph wants less than a megabyte; only
/// millions of pixels in one row or column come near.
const MOST_BYTES: u64 = 256 << 20;

/// The most pixels to each side that a filter looks at, in steps from one output pixel to the next:
/// Lanczos'.
const SUPPORT: u64 = 3;

/// What to resize and to what; sizes in pixels. The crop lies inside the image.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// The crop's first row.
    pub top: usize,
    /// The crop's first column.
    pub left: usize,
    /// Rows of the crop, and of the view.
    pub rows: AxisRange,
    /// The same for columns.
    pub columns: AxisRange,
    /// Mirror left and right.
    pub flip: bool,
}

impl Geometry {
    /// Of a whole image; both sizes are `(width, height)`.
    pub fn whole(from: (usize, usize), to: (usize, usize)) -> Geometry {
        let (rows, columns) = (AxisRange::whole(from.1, to.1), AxisRange::whole(from.0, to.0));
        Geometry { top: 0, left: 0, rows, columns, flip: false }
    }

    /// Whether Pillow resizes vertically first (`ImagingResampleInner`).
    fn is_vertical_first(&self) -> bool {
        let less = |axis: AxisRange| axis.input as i64 - axis.total as i64;
        let (columns, rows) = (less(self.columns), less(self.rows));
        rows > 0 && rows > 2 * columns
    }
}

/// The resize of one view. Reused from view to view.
#[derive(Debug, Default)]
pub struct Resize {
    horizontal: Axis,
    vertical: Axis,
    geometry: Option<Geometry>,
    /// Whose rows a block has.
    level: Option<Level>,
    /// Rows of the crop, resized horizontally.
    ring: Scratch,
    /// The block on its way through the horizontal pass.
    columns: Scratch,
    tail: Vec<u8>,
    /// Where the ring has the rows of the output row that is being made.
    rows: Vec<usize>,
    block_rows: usize,
    /// Rows that went through the horizontal pass: of the crop, or of the output where that is the
    /// second.
    done: usize,
    vertical_first: bool,
    /// The block after the vertical pass, where that is the first.
    band: Image,
    next: usize,
}

impl Resize {
    /// The most bytes that the view takes on its way: tables, rows of the ring, columns of a
    /// block, rows at the image's end, the band. All grow with how many pixels become one.
    pub fn max_scratch_bytes(geometry: &Geometry) -> u64 {
        const BLOCK: u64 = MAX_ROWS as u64;
        let Geometry { rows, columns, .. } = *geometry;
        // Pixels from one output pixel to the next, and those that a window has at most: both
        // sides of the support, and a pixel for each end that is rounded.
        let step = |axis: AxisRange| axis.input.div_ceil(axis.total.max(1)) as u64;
        let taps = |axis: AxisRange| step(axis).saturating_mul(2 * SUPPORT).saturating_add(2);
        // For each output pixel 4 bytes a weight; for each tap one weight of 16 pixels before
        // it is rounded; where windows begin and their lengths, 4 bytes each, in vectors that
        // may have grown to twice of it.
        let table = |axis: AxisRange| {
            let count = axis.count as u64;
            let weights = count.saturating_mul(4).saturating_add(64);
            taps(axis).saturating_mul(weights).saturating_add(count.saturating_mul(16))
        };
        // Rows of three planes of 2 bytes, and the place of each, 8 bytes in a vector as above.
        // As many as a window has, and up to two blocks, as there are only whole ones.
        let row = 6 * padded(columns.count) as u64 + 16;
        let ring = taps(rows).saturating_add(2 * BLOCK).saturating_mul(row);
        // Byte columns, three a pixel, of the windows of eight output pixels. 128 more are made
        // ahead, all is rounded up to 16, and 16 are for the windows' ends. 2 bytes a row each.
        let across = step(columns).saturating_mul((8 + 2 * SUPPORT) * 3).saturating_add(128 + 32);
        let block = across.saturating_mul(2 * BLOCK);
        // Of each row the bytes that are looked at, and those read beyond them.
        let reach = step(columns).saturating_mul(columns.count as u64);
        let reach = reach.saturating_add(taps(columns)).min(columns.input as u64);
        let bytes = reach.saturating_mul(3).saturating_add(16);
        let tail = bytes.saturating_mul(MAX_ROWS.min(rows.input) as u64);
        let band = match geometry.is_vertical_first() {
            true => bytes.saturating_mul(MAX_ROWS.min(rows.count) as u64),
            false => 0,
        };
        [table(rows), table(columns), ring, block, tail, band]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Whether what a view takes on its way is little enough; to be asked before it is begun.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for an image so long and thin that it would be hundreds of megabytes.
    pub fn check(geometry: &Geometry) -> Result<()> {
        let bytes = Resize::max_scratch_bytes(geometry);
        if bytes <= MOST_BYTES {
            return Ok(());
        }
        let Geometry { rows, columns, .. } = *geometry;
        Err(Error::TooLarge(format!(
            "{} x {} pixels take {} MB to be resized to {} x {}, the limit is {}",
            columns.input,
            rows.input,
            bytes >> 20,
            columns.count,
            rows.count,
            MOST_BYTES >> 20
        )))
    }

    /// What [`Resize::max_scratch_bytes`] bounds.
    #[cfg(test)]
    fn taken(&self) -> usize {
        let scratch = self.ring.bytes() + self.columns.bytes();
        let rows = self.rows.capacity() * size_of::<usize>();
        let pixels = self.tail.capacity() + self.band.pixels_hwc.capacity();
        self.horizontal.bytes() + self.vertical.bytes() + scratch + rows + pixels
    }

    /// Gives back what a crop far larger than others took.
    pub(crate) fn trim(&mut self) {
        self.horizontal.trim();
        self.vertical.trim();
        self.ring.trim();
        self.columns.trim();
        self.band.trim();
        crate::scratch::trim(&mut self.tail);
    }

    /// Begins a view.
    ///
    /// # Panics
    /// When the crop ends beyond all that memory has addresses for.
    pub fn begin(&mut self, level: Level, filter: Filter, geometry: Geometry) {
        let Geometry { top, left, rows, columns, flip } = geometry;
        let ends = [top.checked_add(rows.input), left.checked_add(columns.input)];
        assert!(ends.iter().all(Option::is_some), "a crop lies in an image");
        self.horizontal.build(level, filter, columns, flip);
        self.vertical_first = geometry.is_vertical_first();
        match self.vertical_first {
            true => self.vertical.build_fine(level, filter, rows),
            false => self.vertical.build(level, filter, rows, false),
        }
        self.block_rows =
            block_rows(level, if self.vertical_first { rows.count } else { rows.input });
        self.done = 0;
        self.next = 0;
        (self.geometry, self.level) = (Some(geometry), Some(level));
    }

    /// Writes the next row of the view, three planes of equal padded length,
    /// zeros in the padding.
    ///
    /// # Panics
    /// When no view was begun, or with another `level`; when all its rows were taken; when the
    /// crop does not lie in the image, or the image's fields disagree.
    pub fn next_row(&mut self, level: Level, image: &Image, planes: &mut [i16]) {
        assert_eq!(self.level, Some(level), "a view goes on as it began");
        if self.vertical_first {
            if self.next == self.done {
                self.next_band(level, image);
            }
            let row_len = self.row_len();
            let at = self.next % self.block_rows * row_len;
            let rows = self.ring.get(row_len * self.block_rows);
            band::round(level, &rows[at..at + row_len], planes);
            self.next += 1;
            return;
        }
        let weights = self.vertical.length(self.next);
        let start = self.vertical.start(self.next) - self.vertical.lowest();
        while self.done < start + weights {
            self.next_block(level, image);
        }
        let (row_len, capacity) = (self.row_len(), self.capacity());
        assert_eq!(planes.len(), row_len);
        let ring = self.ring.get(row_len * capacity);
        self.rows.clear();
        // One division, not one for each row.
        let (first, end) = (start % capacity * row_len, capacity * row_len);
        let wrap = |at: usize| if at < end { at } else { at - end };
        self.rows.extend((0..weights).map(|row| wrap(first + row * row_len)));
        if self.vertical.is_fine() {
            let (weights, _) = self.vertical.fine(self.next);
            fine::vertical(level, ring, &self.rows, weights, planes);
        } else {
            vertical(level, ring, &self.rows, self.vertical.weights(self.next), planes);
        }
        self.next += 1;
    }

    /// Puts the next rows of the crop through the horizontal pass.
    fn next_block(&mut self, level: Level, image: &Image) {
        let geometry = self.geometry.expect("a view was begun");
        let (row_len, capacity) = (self.row_len(), self.capacity());
        let Geometry { top, left, .. } = geometry;
        let (first, end) = self.horizontal.bounds();
        let (first_row, end_row) = self.vertical.bounds();
        let block = Block::new(
            image,
            (top + first_row + self.done, top + end_row),
            (left + first, left + end),
            &mut self.tail,
        );
        let ring = self.ring.get(row_len * capacity);
        let out = &mut ring[self.done % capacity * row_len..][..self.block_rows * row_len];
        clear_padding(out, row_len, geometry.columns.count);
        horizontal(level, self.block_rows, &block, &self.horizontal, &mut self.columns, out);
        self.done += self.block_rows;
    }

    /// Makes the next rows of the output, vertically first.
    fn next_band(&mut self, level: Level, image: &Image) {
        let geometry = self.geometry.expect("a view was begun");
        let Geometry { top, left, .. } = geometry;
        let (first, end) = self.horizontal.bounds();
        let (first_row, end_row) = self.vertical.bounds();
        check(image, (top + first_row, top + end_row), (left + first, left + end));
        let rows = self.block_rows.min(geometry.rows.count - self.done);
        self.band.reset(end - first, rows);
        for (row, out) in self.band.pixels_hwc.chunks_exact_mut(3 * (end - first)).enumerate() {
            let (y, (weights, taps)) =
                (self.vertical.start(self.done + row), self.vertical.fine(self.done + row));
            let from = &image.pixels_hwc[3 * ((top + y) * image.width + left + first)..];
            band::vertical(level, from, (taps, 3 * image.width), weights, out);
        }
        let row_len = self.row_len();
        let block = Block::new(&self.band, (0, rows), (0, end - first), &mut self.tail);
        let out = self.ring.get(row_len * self.block_rows);
        clear_padding(out, row_len, geometry.columns.count);
        horizontal(level, self.block_rows, &block, &self.horizontal, &mut self.columns, out);
        self.done += rows;
    }

    /// Elements of a row of the ring.
    fn row_len(&self) -> usize {
        3 * padded(self.horizontal.len())
    }

    /// Rows of the ring: whole blocks, enough that a new one never overwrites
    /// rows that the next output row needs.
    fn capacity(&self) -> usize {
        (self.vertical.taps() + self.block_rows - 1).next_multiple_of(self.block_rows)
    }
}

/// Zeros behind the `width` values of each plane.
fn clear_padding(rows: &mut [i16], row_len: usize, width: usize) {
    if width != padded(width) {
        for plane in rows.chunks_exact_mut(row_len / 3) {
            plane[width..].fill(0);
        }
    }
}

/// A whole image at another size, `(width, height)`, for what is made once. How large it may be,
/// [`Resize::check`] tells.
///
/// # Panics
/// When the image or the size is empty.
pub fn resize_whole(
    level: Level,
    filter: Filter,
    image: &Image,
    (width, height): (usize, usize),
) -> Image {
    let geometry = Geometry::whole((image.width, image.height), (width, height));
    let mut resize = Resize::default();
    resize.begin(level, filter, geometry);
    let (mut planes, mut out) = (vec![0; 3 * padded(width)], Image::new(width, height));
    for row in out.pixels_hwc.chunks_exact_mut(3 * width) {
        resize.next_row(level, image, &mut planes);
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            for (value, plane) in pixel.iter_mut().zip(planes.chunks_exact(padded(width))) {
                *value = plane[x] as u8;
            }
        }
    }
    out
}

/// Rows that go through the horizontal pass together.
fn block_rows(level: Level, crop_rows: usize) -> usize {
    match level.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 if crop_rows > Avx2::LEN => Avx512::LEN,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 | Kind::Avx512 => Avx2::LEN,
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => Neon::LEN,
        Kind::Scalar => MAX_ROWS.min(crop_rows),
    }
}

/// Resizes the block's rows horizontally into the rows of `out`.
fn horizontal(
    level: Level,
    block_rows: usize,
    block: &Block<'_>,
    axis: &Axis,
    columns: &mut Scratch,
    out: &mut [i16],
) {
    let row_len = out.len() / block_rows;
    #[cfg(target_arch = "x86_64")]
    if level != Level::SCALAR {
        let columns = columns.get(vector::scratch_len(axis, block_rows));
        let wide = level.kind() == Kind::Avx512 && block_rows == Avx512::LEN;
        // A function for each: the usual one is compiled as if there were no other.
        let horizontal: unsafe fn(&Block<'_>, &Axis, &mut [i16], &mut [i16], usize) =
            match (wide, axis.is_fine()) {
                (true, false) => horizontal_avx512::<false>,
                (true, true) => horizontal_avx512::<true>,
                (false, false) => horizontal_avx2::<false>,
                (false, true) => horizontal_avx2::<true>,
            };
        // SAFETY: a level of this kind exists only where the CPU was found to have these
        // features (`Level::available`); both kinds have AVX2.
        unsafe { horizontal(block, axis, columns, out, row_len) }
        return;
    }
    #[cfg(target_arch = "aarch64")]
    if level.kind() == Kind::Neon {
        let columns = columns.get(vector::scratch_len(axis, block_rows));
        // SAFETY: every aarch64 CPU has NEON.
        unsafe {
            match axis.is_fine() {
                false => vector::horizontal::<Neon, false>(block, axis, columns, out, row_len),
                true => vector::horizontal::<Neon, true>(block, axis, columns, out, row_len),
            }
        }
        return;
    }
    let _ = (level, columns);
    scalar::horizontal(block, axis, out, row_len);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn horizontal_avx2<const FINE: bool>(
    block: &Block<'_>,
    axis: &Axis,
    columns: &mut [i16],
    out: &mut [i16],
    row_len: usize,
) {
    // SAFETY: this function runs only where AVX2 is.
    unsafe { vector::horizontal::<Avx2, FINE>(block, axis, columns, out, row_len) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn horizontal_avx512<const FINE: bool>(
    block: &Block<'_>,
    axis: &Axis,
    columns: &mut [i16],
    out: &mut [i16],
    row_len: usize,
) {
    // SAFETY: this function runs only where AVX-512 BW is.
    unsafe { vector::horizontal::<Avx512, FINE>(block, axis, columns, out, row_len) }
}

/// `(a * b + 2^14) >> 15`: x86's `pmulhrsw`.
#[inline(always)]
pub(super) fn mulhrs(a: i16, b: i16) -> i16 {
    ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::KEPT_BYTES;

    /// One view of a gray image, by a resize of its own.
    fn resized(level: Level, geometry: Geometry) -> Resize {
        let (height, width) = (geometry.rows.input, geometry.columns.input);
        let (image, mut resize) = (Image::new(width, height), Resize::default());
        let mut planes = vec![0; 3 * padded(geometry.columns.count)];
        resize.begin(level, Filter::Lanczos3, geometry);
        for _ in 0..geometry.rows.count {
            resize.next_row(level, &image, &mut planes);
        }
        resize
    }

    #[test]
    fn a_view_takes_no_more_than_was_told() {
        let sides = [(1, 1), (7, 40), (300, 8), (3000, 8), (40, 224), (2000, 33)];
        for level in Level::available() {
            for (down, across) in sides.iter().flat_map(|down| sides.map(|across| (*down, across)))
            {
                let geometry = Geometry::whole((across.0, down.0), (across.1, down.1));
                let (taken, told) =
                    (resized(level, geometry).taken(), Resize::max_scratch_bytes(&geometry));
                assert!(taken as u64 <= told, "{taken} of {told} bytes, {level:?} {geometry:?}");
            }
        }
    }

    #[test]
    fn an_image_whose_fields_disagree_is_not_read_beyond_its_bytes() {
        // Vertically first, and the other way; 3 * width is 48 in 64 bits.
        let wraps = Image { width: (1 << 63) + 16, height: 4, pixels_hwc: vec![0; 192] };
        let short = Image { width: 16, height: 4, pixels_hwc: vec![0; 144] };
        for (level, image, rows) in Level::available()
            .into_iter()
            .flat_map(|level| [&wraps, &short].map(|image| (level, image)))
            .flat_map(|(level, image)| [1, 4].map(|rows| (level, image, rows)))
        {
            let geometry = Geometry::whole((16, 4), (16, rows));
            let caught = std::panic::catch_unwind(|| {
                let (mut resize, mut planes) = (Resize::default(), vec![0; 3 * padded(16)]);
                resize.begin(level, Filter::Bicubic, geometry);
                resize.next_row(level, image, &mut planes);
            });
            assert!(caught.is_err(), "{level:?} {rows} rows of {} columns", image.width);
        }
    }

    #[test]
    #[should_panic(expected = "a crop lies in an image")]
    fn a_crop_that_ends_behind_all_addresses_is_none() {
        let geometry = Geometry { top: usize::MAX, ..Geometry::whole((16, 4), (16, 1)) };
        Resize::default().begin(Level::SCALAR, Filter::Bicubic, geometry);
    }

    #[test]
    fn rows_are_made_as_the_view_was_begun_or_not_at_all() {
        let (image, mut planes) = (Image::new(40, 40), vec![0; 3 * padded(20)]);
        for begun in Level::available() {
            for level in Level::available() {
                let row = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let mut resize = Resize::default();
                    resize.begin(begun, Filter::Bicubic, Geometry::whole((40, 40), (20, 20)));
                    resize.next_row(level, &image, &mut planes);
                }));
                assert_eq!(row.is_ok(), begun == level, "{begun:?} {level:?}");
            }
        }
    }

    #[test]
    fn the_bytes_of_a_view_beyond_all_memory_are_not_few() {
        let geometry = Geometry::whole((16, 4), (1 << 62, 1 << 62));
        assert!(Resize::check(&geometry).is_err());
    }

    #[test]
    fn what_is_far_larger_than_other_views_take_is_given_back() {
        let mut resize = Resize::default();
        resize.vertical.grow_fine(KEPT_BYTES + 8);
        resize.band.pixels_hwc.reserve(KEPT_BYTES + 1);
        resize.trim();
        assert_eq!(resize.taken(), 0);
    }
}
