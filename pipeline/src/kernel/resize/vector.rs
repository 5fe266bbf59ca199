//! The horizontal pass on vectors of 16-bit integers, one lane for each row.
//!
//! Interleaved pixels leave no good vector along a row: neighbouring outputs
//! draw from windows that start anywhere. Down a column all rows share window
//! and weights. So a block of rows is transposed, each byte column becoming a
//! vector, just ahead of the windows and in a buffer that stays in the L1 cache;
//! an output column is a sum of vector times weight; eight finished columns are
//! transposed back. Transposing costs less than the shuffles of the
//! direct way (about 4 cycles per output pixel and row on AVX2, against 2 here).

use std::ops::Range;

use super::axis::{Axis, Weights};
use super::block::{Block, MAX_ROWS};
use super::{BITS, IN_BITS, fine};
use crate::kernel::vector::{Vector, transpose};

/// Resizes a block of rows; the vector twin of `scalar::horizontal`. `FINE` is what
/// [`Axis::is_fine`] says.
///
/// `scratch` is for byte columns. Row r of the block goes to `out[r * row_len..]`,
/// three planes of equal padded length; columns up to the next multiple of 8 after
/// the last one are set to 0.
///
/// # Safety
/// The CPU has `V`'s instructions.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
pub(super) unsafe fn horizontal<V: Vector, const FINE: bool>(
    block: &Block<'_>,
    axis: &Axis,
    scratch: &mut [i16],
    out: &mut [i16],
    row_len: usize,
) {
    assert!(out.len() >= V::LEN * row_len);
    assert!(row_len / 3 >= axis.len().next_multiple_of(8));
    let mut columns = Columns { columns: scratch, first: 0, end: 0 };
    let mut ready = Ready([[[0; MAX_ROWS]; 8]; 3]);
    let groups = axis.len().div_ceil(8);
    for group in 0..groups {
        // Windows go to the right, so that byte columns are made in order.
        let x = 8 * if axis.descends() { groups - 1 - group } else { group };
        let group = x..(x + 8).min(axis.len());
        if group.len() < 8 {
            ready = Ready([[[0; MAX_ROWS]; 8]; 3]);
        }
        let (left, end) = reach(axis, &group);
        // SAFETY: the CPU has the instructions, as the caller knows.
        let windows = unsafe { columns.reach::<V>(block, left, end) };
        for (index, x) in group.enumerate() {
            let window = &windows[(3 * (axis.start(x) - axis.lowest()) - left) * V::LEN..];
            // SAFETY: as above.
            unsafe {
                if FINE {
                    fine_column::<V>(axis, x, window, index, &mut ready);
                } else {
                    column::<V>(axis.all_weights(x), window, index, &mut ready);
                }
            }
        }
        for (channel, ready) in ready.0.iter().enumerate() {
            let plane = channel * (row_len / 3) + x;
            // SAFETY: as above.
            unsafe { transpose_out::<V>(ready, &mut out[plane..], row_len) };
        }
    }
}

/// The byte columns that a group of neighbouring output pixels looks at, those that
/// only weights of zero meet among them.
#[inline(always)]
fn reach(axis: &Axis, group: &Range<usize>) -> (usize, usize) {
    let (mut left, mut right) = (axis.start(group.start), axis.start(group.end - 1));
    if axis.descends() {
        (left, right) = (right, left);
    }
    (3 * (left - axis.lowest()), 3 * (right + axis.taps() - axis.lowest()))
}

/// Elements of scratch for `axis` and blocks of `rows` rows: few enough for the L1
/// cache where windows are not large.
pub(super) fn scratch_len(axis: &Axis, rows: usize) -> usize {
    let groups = (0..axis.len()).step_by(8).map(|x| x..(x + 8).min(axis.len()));
    let widest = groups.map(|group| reach(axis, &group)).map(|(left, end)| end - left).max();
    (widest.unwrap_or(0) + 128).next_multiple_of(16) * rows
}

/// The byte columns of a block around the current windows, each a vector.
struct Columns<'a> {
    /// Column `first` and those after it.
    columns: &'a mut [i16],
    first: usize,
    /// Columns before this one are made.
    end: usize,
}

impl Columns<'_> {
    /// Columns `from..to`; `from` does not decrease from call to call. Beyond the
    /// block's own columns they hold anything.
    #[inline(always)]
    unsafe fn reach<V: Vector>(&mut self, block: &Block<'_>, from: usize, to: usize) -> &[i16] {
        // What is made goes up to 15 columns further. When there is no room, the columns
        // before `from` go; windows overlap, so that the rest follows on.
        if to + 15 - self.first > self.columns.len() / V::LEN {
            let kept = from - self.first..self.end - self.first;
            self.columns.copy_within(kept.start * V::LEN..kept.end * V::LEN, 0);
            self.first = from;
        }
        while self.end < to.min(block.bytes) {
            let columns = &mut self.columns[(self.end - self.first) * V::LEN..];
            prefetch(block, self.end);
            // SAFETY: the CPU has the instructions, as the caller knows.
            unsafe { transpose_in::<V>(block, self.end, columns) };
            self.end += 16;
        }
        &self.columns[(from - self.first) * V::LEN..(to - self.first) * V::LEN]
    }
}

/// Eight output columns of three channels, before they become rows.
#[repr(align(64))]
struct Ready([[[i16; MAX_ROWS]; 8]; 3]);

/// Asks for a cache line of each row, a quarter of the rows at a time: so many rows side
/// by side are more than the processor foresees.
#[inline(always)]
fn prefetch(block: &Block<'_>, at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const ROWS: usize = MAX_ROWS / 4;
        let first = at / 16 % 4 * ROWS;
        for row in &block.rows[first..first + ROWS] {
            let line = row.as_ptr().wrapping_add(at + AHEAD);
            // SAFETY: a hint, which may lie anywhere; every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
    }
    // A vector of NEON has no more rows than the processor foresees.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, at);
}

/// Bytes from what is transposed to what is asked for.
const AHEAD: usize = 128;

/// Bytes `at..at + 16` of every row to vectors, [`IN_BITS`] fractional bits.
#[inline(always)]
unsafe fn transpose_in<V: Vector>(block: &Block<'_>, at: usize, columns: &mut [i16]) {
    assert!(at < block.bytes);
    let columns = &mut columns[..16 * V::LEN];
    // SAFETY: every row has 15 bytes after `bytes` (`Block::new`), and the slice above
    // has room for 16 vectors.
    unsafe {
        let mask = V::splat(0xFF << IN_BITS);
        let pairs = std::array::from_fn(|row| V::load_pairs(&block.rows, row, at));
        for (index, pair) in transpose::<V>(pairs).into_iter().enumerate() {
            let to = columns.as_mut_ptr().add(2 * index * V::LEN);
            // The low byte is the left one.
            pair.shl::<{ IN_BITS }>().and(mask).store(to);
            pair.shr::<{ 8 - IN_BITS }>().and(mask).store(to.add(V::LEN));
        }
    }
}

/// One output column into `ready[..][index]`.
#[inline(always)]
unsafe fn column<V: Vector>(weights: Weights<'_>, window: &[i16], index: usize, ready: &mut Ready) {
    assert!(window.len() >= 3 * weights.len() * V::LEN);
    // SAFETY: `window` holds three vectors for each weight; `ready` has `MAX_ROWS`
    // elements for each column, at least `LEN`.
    unsafe {
        let mut from = window.as_ptr();
        let mut sums = [V::splat(0); 3];
        for pair in weights.iter() {
            let weight = V::splat_pair(pair);
            for (channel, sum) in sums.iter_mut().enumerate() {
                let values = V::load(from.add(channel * V::LEN));
                *sum = sum.add(values.mulhrs(weight));
            }
            from = from.add(3 * V::LEN);
        }
        let most = V::splat(255 << BITS);
        for (sum, ready) in sums.into_iter().zip(&mut ready.0) {
            sum.clamp(most).shl::<{ IN_BITS - BITS }>().store(ready[index].as_mut_ptr());
        }
    }
}

/// [`column`] of fine weights.
#[inline(always)]
unsafe fn fine_column<V: Vector>(
    axis: &Axis,
    x: usize,
    window: &[i16],
    index: usize,
    ready: &mut Ready,
) {
    for (channel, ready) in ready.0.iter_mut().enumerate() {
        // SAFETY: the CPU has the instructions, as the caller knows; `ready` has `MAX_ROWS`
        // elements for each column, at least `LEN`.
        unsafe {
            fine::column::<V>(axis.fine(x), window, channel).store(ready[index].as_mut_ptr());
        }
    }
}

/// Eight columns of one channel to eight elements of each row.
#[inline(always)]
unsafe fn transpose_out<V: Vector>(ready: &[[i16; MAX_ROWS]; 8], out: &mut [i16], row_len: usize) {
    assert!(out.len() >= (V::LEN - 1) * row_len + 8);
    // SAFETY: `ready` holds `LEN` elements for each column; the last row's eight
    // elements lie in `out`, as just checked.
    unsafe {
        let columns = std::array::from_fn(|index| V::load(ready[index].as_ptr()));
        for (row, values) in transpose::<V>(columns).into_iter().enumerate() {
            for lane in 0..V::LEN / 8 {
                values.store_lane(lane, out.as_mut_ptr().add((8 * lane + row) * row_len));
            }
        }
    }
}
