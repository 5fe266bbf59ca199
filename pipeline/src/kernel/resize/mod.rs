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
#[cfg(target_arch = "x86_64")]
mod vector;
mod vertical;

pub use axis::Filter;
use axis::{Axis, AxisRange};

use block::{Block, MAX_ROWS};
use vertical::vertical;

use super::level::Kind;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512, Vector};
use super::{Level, padded};
use crate::scratch::Scratch;
use crate::{Error, Image, Result};

/// Fractional bits of what enters a pass: 255 just fits 16 bits.
const IN_BITS: u32 = 7;

/// Fractional bits of what leaves it, which leaves room for overshoot.
const BITS: u32 = IN_BITS + axis::WEIGHT_BITS - 15;

/// What the tables and rows of a resize may take. A photograph wants less than a megabyte; only
/// millions of pixels in one row or column come near.
const MOST_BYTES: u64 = 256 << 20;

/// What to resize and to what; sizes in pixels. `in_*` lies inside the image.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// The crop's first row and rows.
    pub in_y: (usize, usize),
    /// The crop's first column and columns.
    pub in_x: (usize, usize),
    /// Rows of the whole resized crop; first row and rows that are wanted.
    pub out_y: (usize, usize, usize),
    /// The same for columns.
    pub out_x: (usize, usize, usize),
    /// Mirror left and right.
    pub flip: bool,
}

impl Geometry {
    /// Of a whole image; both sizes are `(width, height)`.
    pub fn whole(from: (usize, usize), to: (usize, usize)) -> Geometry {
        Geometry {
            in_y: (0, from.1),
            in_x: (0, from.0),
            out_y: (to.1, 0, to.1),
            out_x: (to.0, 0, to.0),
            flip: false,
        }
    }
}

/// The resize of one view. Reused from view to view.
#[derive(Debug, Default)]
pub struct Resize {
    horizontal: Axis,
    vertical: Axis,
    geometry: Option<Geometry>,
    /// Rows of the crop, resized horizontally.
    ring: Scratch,
    /// The block on its way through the horizontal pass.
    columns: Scratch,
    tail: Vec<u8>,
    /// Where the ring has the rows of the output row that is being made.
    rows: Vec<usize>,
    block_rows: usize,
    /// Rows that went through the horizontal pass: of the crop, or of the output where that is the second.
    done: usize,
    vertical_first: bool,
    /// The block after the vertical pass, where that is the first.
    band: Image,
    next: usize,
}

impl Resize {
    /// The most bytes that the view takes on its way: tables, rows of the ring, columns of a
    /// block, rows at the image's end, the band. All grow with how many pixels become one.
    pub fn bytes(geometry: &Geometry) -> u64 {
        const ROWS: u64 = MAX_ROWS as u64;
        let Geometry { in_y, in_x, out_y, out_x, .. } = *geometry;
        // A window of the widest filter, and the way to the next.
        let steps = |input: usize, total: usize| input.div_ceil(total.max(1)) as u64;
        let (down, across) = (steps(in_y.1, out_y.0), steps(in_x.1, out_x.0));
        let taps = |step: u64| step.saturating_mul(6).saturating_add(2);
        let table = |step: u64, count: usize| {
            let windows = 16 * count as u64;
            taps(step).saturating_mul(4 * count as u64 + 64).saturating_add(windows)
        };
        let (row, place) = (6 * padded(out_x.2) as u64, 16);
        let ring = taps(down).saturating_add(2 * ROWS).saturating_mul(row + place);
        let columns = across.saturating_mul((8 + 6) * 3).saturating_add(160);
        let reach = across.saturating_mul(out_x.2 as u64).saturating_add(taps(across));
        let bytes = reach.min(in_x.1 as u64).saturating_mul(3).saturating_add(16);
        let tail = bytes.saturating_mul(MAX_ROWS.min(in_y.1) as u64);
        let band = match is_vertical_first((in_x.1, in_y.1), (out_x.0, out_y.0)) {
            true => bytes.saturating_mul(MAX_ROWS.min(out_y.2) as u64),
            false => 0,
        };
        let columns = columns.saturating_mul(2 * ROWS);
        [table(down, out_y.2), table(across, out_x.2), ring, columns, tail, band]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Whether what a view takes on its way is little enough; to be asked before it is begun.
    ///
    /// # Errors
    /// [`Error::Decode`] for an image so long and thin that it would be hundreds of megabytes.
    pub fn check(geometry: &Geometry) -> Result<()> {
        let bytes = Resize::bytes(geometry);
        if bytes <= MOST_BYTES {
            return Ok(());
        }
        let Geometry { in_y, in_x, out_y, out_x, .. } = *geometry;
        Err(Error::Decode(format!(
            "{} x {} pixels take {} MB to be resized to {} x {}, the limit is {}",
            in_x.1,
            in_y.1,
            bytes >> 20,
            out_x.2,
            out_y.2,
            MOST_BYTES >> 20
        )))
    }

    /// What [`Resize::bytes`] bounds.
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
    pub fn begin(&mut self, level: Level, filter: Filter, geometry: Geometry) {
        let Geometry { in_y, in_x, out_y, out_x, flip, .. } = geometry;
        let range = |input: usize, (total, first, count): (usize, usize, usize)| AxisRange {
            input,
            total,
            first,
            count,
        };
        self.horizontal.build(level, filter, range(in_x.1, out_x), flip);
        self.vertical_first = is_vertical_first((in_x.1, in_y.1), (out_x.0, out_y.0));
        match self.vertical_first {
            true => self.vertical.build_fine(level, filter, range(in_y.1, out_y)),
            false => self.vertical.build(level, filter, range(in_y.1, out_y), false),
        }
        self.block_rows = block_rows(level, if self.vertical_first { out_y.2 } else { in_y.1 });
        self.done = 0;
        self.next = 0;
        self.geometry = Some(geometry);
    }

    /// Writes the next row of the view, three planes of equal padded length,
    /// zeros in the padding.
    ///
    /// # Panics
    /// When no view was begun, when all its rows were taken, or when the crop
    /// does not lie in the image.
    pub fn next_row(&mut self, level: Level, image: &Image, planes: &mut [i16]) {
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
        let (top, left) = (geometry.in_y.0, geometry.in_x.0);
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
        clear_padding(out, row_len, geometry.out_x.2);
        horizontal(level, self.block_rows, &block, &self.horizontal, &mut self.columns, out);
        self.done += self.block_rows;
    }

    /// Makes the next rows of the output, vertically first.
    fn next_band(&mut self, level: Level, image: &Image) {
        let geometry = self.geometry.expect("a view was begun");
        let (top, left) = (geometry.in_y.0, geometry.in_x.0);
        let (first, end) = self.horizontal.bounds();
        let rows = self.block_rows.min(geometry.out_y.2 - self.done);
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
        clear_padding(out, row_len, geometry.out_x.2);
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

/// Whether Pillow resizes `(width, height)` vertically first (`ImagingResampleInner`).
fn is_vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let less = |from: usize, to: usize| from as i64 - to as i64;
    let (columns, rows) = (less(from.0, to.0), less(from.1, to.1));
    rows > 0 && rows > 2 * columns
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
        let (height, width) = (geometry.in_y.1, geometry.in_x.1);
        let (image, mut resize) = (Image::new(width, height), Resize::default());
        let mut planes = vec![0; 3 * padded(geometry.out_x.2)];
        resize.begin(level, Filter::Lanczos3, geometry);
        for _ in 0..geometry.out_y.2 {
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
                let geometry = Geometry {
                    in_y: (0, down.0),
                    in_x: (0, across.0),
                    out_y: (down.1, 0, down.1),
                    out_x: (across.1, 0, across.1),
                    flip: false,
                };
                let (taken, told) = (resized(level, geometry).taken(), Resize::bytes(&geometry));
                assert!(taken as u64 <= told, "{taken} of {told} bytes, {level:?} {geometry:?}");
            }
        }
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
