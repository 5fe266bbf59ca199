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
//! Pillow's by what its own rounding loses, at most one level.

mod axis;
mod scalar;

pub use axis::Filter;
use axis::{Axis, AxisRange};

use super::level::multiversion;
use super::row::Scratch;
use super::{Level, padded};
use crate::Image;

/// Fractional bits of what enters a pass: 255 just fits 16 bits.
const IN_BITS: u32 = 7;

/// Fractional bits of what leaves it, which leaves room for overshoot.
const BITS: u32 = IN_BITS + axis::WEIGHT_BITS - 15;

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

/// The resize of one view. Reused from view to view.
#[derive(Debug, Default)]
pub struct Resize {
    horizontal: Axis,
    vertical: Axis,
    geometry: Option<Geometry>,
    ring: Scratch,
    /// Rows of the crop that went through the horizontal pass.
    done: usize,
    next: usize,
}

impl Resize {
    /// Begins a view.
    pub fn begin(&mut self, filter: Filter, geometry: Geometry) {
        let Geometry { in_y, in_x, out_y, out_x, flip, .. } = geometry;
        let range = |input: usize, (total, first, count): (usize, usize, usize)| AxisRange {
            input,
            total,
            first,
            count,
        };
        self.horizontal.build(filter, range(in_x.1, out_x), flip);
        self.vertical.build(filter, range(in_y.1, out_y), false);
        self.done = self.vertical.start(0);
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
        let geometry = self.geometry.expect("a view was begun");
        let width = geometry.out_x.2;
        let stride = padded(width);
        assert_eq!(planes.len(), 3 * stride);
        let capacity = self.vertical.taps();
        let ring = self.ring.get(3 * stride * capacity);
        let start = self.vertical.start(self.next);
        let weights = self.vertical.weights(self.next);
        while self.done < start + weights.len() {
            let slot = self.done % capacity * 3 * stride;
            let y = geometry.in_y.0 + self.done;
            let crop = &image.row(y)[3 * geometry.in_x.0..][..3 * geometry.in_x.1];
            let row = &mut ring[slot..][..3 * stride];
            for plane in row.chunks_exact_mut(stride) {
                plane[width..].fill(0);
            }
            scalar::horizontal(crop, &self.horizontal, row);
            self.done += 1;
        }
        planes.fill(1 << (BITS - 1));
        for (tap, &weight) in weights.iter().enumerate() {
            let slot = (start + tap) % capacity * 3 * stride;
            accumulate(level, &ring[slot..][..3 * stride], weight, planes);
        }
        finish(level, planes);
        self.next += 1;
    }
}

multiversion! {
    fn accumulate(row: &[i16], weight: i16, sum: &mut [i16]) = accumulate_inner
}

/// `(a * b + 2^14) >> 15`: x86's `pmulhrsw`.
#[inline(always)]
fn mulhrs(a: i16, b: i16) -> i16 {
    ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16
}

#[inline(always)]
fn accumulate_inner(row: &[i16], weight: i16, sum: &mut [i16]) {
    for (to, from) in sum.iter_mut().zip(row) {
        *to += mulhrs(*from, weight);
    }
}

multiversion! {
    fn finish(planes: &mut [i16]) = finish_inner
}

#[inline(always)]
fn finish_inner(planes: &mut [i16]) {
    for v in planes {
        *v = (*v >> BITS).clamp(0, 255);
    }
}
