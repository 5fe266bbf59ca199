//! The vertical pass as the first one: rows of an image, weighted, to rows of 8 bits.
//!
//! With Pillow's 22 bits in the weights, as two numbers of 16, where the other passes have 14: what
//! is rounded here goes through another filter, which would carry on, and enlarge, a level that was
//! lost.

use super::IN_BITS;
use super::axis::{FINE_BITS, FinePair};
use crate::kernel::vector::{Vector, vectorized};
use crate::level::multiversion;

vectorized! {
    /// Sums `rows.0` rows, `rows.1` bytes from one to the next, with their weights, two rows a
    /// pair, and rounds to 0..=255.
    ///
    /// # Panics
    /// When `from` or `weights` is too short.
    pub(super) fn vertical(from: &[u8], rows: (usize, usize), weights: &[FinePair], out: &mut [u8])
        = vector, scalar
}

const HALF: i32 = 1 << (FINE_BITS - 1);

fn scalar(from: &[u8], rows: (usize, usize), weights: &[FinePair], out: &mut [u8]) {
    for (at, out) in out.iter_mut().enumerate() {
        let products = (0..rows.0).map(|row| {
            let FinePair { high, low } = weights[row / 2];
            let weight = 256 * i32::from(high[row % 2]) + i32::from(low[row % 2]);
            i32::from(from[row * rows.1 + at]) * weight
        });
        *out = ((HALF + products.sum::<i32>()) >> FINE_BITS).clamp(0, 255) as u8;
    }
}

/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn vector<V: Vector>(
    from: &[u8],
    rows: (usize, usize),
    weights: &[FinePair],
    out: &mut [u8],
) {
    let (taps, stride) = rows;
    if out.len() < V::LEN {
        return scalar(from, rows, weights, out);
    }
    assert!(taps > 0 && weights.len() == taps.div_ceil(2));
    // Of an image whose fields anybody may set: a product that wraps would be small.
    let reach = (taps - 1).checked_mul(stride).and_then(|last| last.checked_add(out.len()));
    assert!(reach.is_some_and(|reach| reach <= from.len()));
    let last = out.len() - V::LEN;
    let mut at = 0;
    loop {
        // SAFETY: `at + LEN` lies within `out` and, as just checked, within each row.
        unsafe {
            let (mut sums, mut high) = ([V::splat32(HALF); 2], [V::splat32(0); 2]);
            for (pair, weights) in weights.iter().enumerate() {
                // Behind an odd last row it comes again, with a weight of zero.
                let (row, next) = (2 * pair, (2 * pair + 1).min(taps - 1));
                let one = V::load_bytes(from.as_ptr().add(row * stride + at));
                let other = V::load_bytes(from.as_ptr().add(next * stride + at));
                let (above, below) = (V::splat_pair(&weights.high), V::splat_pair(&weights.low));
                for (half, values) in one.zip16(other).into_iter().enumerate() {
                    high[half] = high[half].add32(values.pair_products(above));
                    sums[half] = sums[half].add32(values.pair_products(below));
                }
            }
            for (sum, high) in sums.iter_mut().zip(high) {
                *sum = sum.add32(high.shl32::<8>()).sar32::<FINE_BITS>();
            }
            sums[0].narrow(sums[1]).store_bytes(out.as_mut_ptr().add(at));
        }
        if at == last {
            break;
        }
        // The last ones overlap those before.
        at = (at + V::LEN).min(last);
    }
}

multiversion! {
    /// Rounds what leaves the horizontal pass, [`IN_BITS`] fractional bits, to whole values.
    ///
    /// # Panics
    /// When lengths differ.
    pub(super) fn round(row: &[i16], out: &mut [i16]) = round_inner
}

#[inline(always)]
fn round_inner(row: &[i16], out: &mut [i16]) {
    assert_eq!(row.len(), out.len());
    for (out, value) in out.iter_mut().zip(row) {
        *out = (*value + (1 << (IN_BITS - 1))) >> IN_BITS;
    }
}
