//! The horizontal pass on vectors of 16-bit integers, one lane for each row.
//!
//! Interleaved pixels leave no good vector along a row: neighbouring outputs
//! draw from windows that start anywhere. Down a column all rows share window
//! and weights. So a block of rows is transposed, each byte column becoming a
//! vector; an output column is a sum of vector times weight; eight finished
//! columns are transposed back. Transposing costs less than the shuffles of the
//! direct way (about 4 cycles per output pixel and row on AVX2, against 2 here).

use super::axis::Axis;
use super::block::{Block, MAX_ROWS};
use super::{BITS, IN_BITS};
use crate::kernel::vector::{Vector, transpose};

/// Resizes a block of rows; the vector twin of `scalar::horizontal`.
///
/// `columns` is scratch. Row r of the block goes to `out[r * row_len..]`, three
/// planes of equal padded length; columns up to the next multiple of 8 after the
/// last one are set to 0.
///
/// # Safety
/// The CPU has `V`'s instructions.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
pub(super) unsafe fn horizontal<V: Vector>(
    block: &Block<'_>,
    axis: &Axis,
    columns: &mut [i16],
    out: &mut [i16],
    row_len: usize,
) {
    assert!(columns.len() >= columns_len(block.bytes, axis.taps(), V::LEN));
    assert!(out.len() >= V::LEN * row_len);
    assert!(row_len / 3 >= axis.len().next_multiple_of(8));
    // SAFETY: the CPU has the instructions, as the caller knows; lengths were
    // checked above.
    unsafe {
        transpose_in::<V>(block, columns);
        let mut ready = Ready([[[0; MAX_ROWS]; 8]; 3]);
        for x in (0..axis.len()).step_by(8) {
            let count = (axis.len() - x).min(8);
            if count < 8 {
                ready = Ready([[[0; MAX_ROWS]; 8]; 3]);
            }
            for index in 0..count {
                column::<V>(axis, x + index, columns, index, &mut ready);
            }
            for (channel, ready) in ready.0.iter().enumerate() {
                let plane = channel * (row_len / 3) + x;
                transpose_out::<V>(ready, &mut out[plane..], row_len);
            }
        }
    }
}

/// Elements of scratch for rows of `bytes` bytes. Beyond the block's own columns
/// there are some that only weights of zero touch.
pub(super) fn columns_len(bytes: usize, taps: usize, rows: usize) -> usize {
    (bytes.next_multiple_of(16) + 3 * taps) * rows
}

/// Eight output columns of three channels, before they become rows.
#[repr(align(64))]
struct Ready([[[i16; MAX_ROWS]; 8]; 3]);

/// Byte j of every row to `columns[j * LEN..]`, [`IN_BITS`] fractional bits.
#[inline(always)]
unsafe fn transpose_in<V: Vector>(block: &Block<'_>, columns: &mut [i16]) {
    // SAFETY: every row has 15 bytes after `bytes` (`Block::new`), and `columns`
    // has room for `bytes` rounded up to 16 (checked by `horizontal`).
    unsafe {
        let mask = V::splat(0xFF << IN_BITS);
        for at in (0..block.bytes).step_by(16) {
            let pairs = std::array::from_fn(|row| V::load_pairs(&block.rows, row, at));
            for (index, pair) in transpose::<V>(pairs).into_iter().enumerate() {
                let to = columns.as_mut_ptr().add((at + 2 * index) * V::LEN);
                // The low byte is the left one.
                pair.shl::<{ IN_BITS }>().and(mask).store(to);
                pair.shr::<{ 8 - IN_BITS }>().and(mask).store(to.add(V::LEN));
            }
        }
    }
}

/// Output column `x` into `ready[..][index]`.
#[inline(always)]
unsafe fn column<V: Vector>(
    axis: &Axis,
    x: usize,
    columns: &[i16],
    index: usize,
    ready: &mut Ready,
) {
    let weights = axis.pairs(x);
    let at = 3 * (axis.start(x) - axis.lowest()) * V::LEN;
    let columns = &columns[at..at + 3 * weights.len() * V::LEN];
    // SAFETY: the slice above holds three vectors for each weight; `ready` has
    // `MAX_ROWS` elements for each column, at least `LEN`.
    unsafe {
        let mut from = columns.as_ptr();
        let mut sums = [V::splat(0); 3];
        for pair in weights {
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
