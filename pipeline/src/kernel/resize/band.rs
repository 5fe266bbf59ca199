//! The vertical pass as the first one: rows of an image, weighted, to rows of 8 bits.
//!
//! In single precision: what is rounded here goes through another filter, which would
//! carry on a level that small weights had lost.

use super::IN_BITS;
use crate::kernel::level::multiversion;

/// Bytes whose sums are kept in registers together.
const TOGETHER: usize = 64;

multiversion! {
    /// Sums rows, `stride` bytes from one to the next, with their weights, and rounds to
    /// 0..=255.
    ///
    /// # Panics
    /// When `from` is too short.
    pub(super) fn vertical(from: &[u8], stride: usize, weights: &[f32], out: &mut [u8])
        = vertical_inner
}

#[inline(always)]
fn vertical_inner(from: &[u8], stride: usize, weights: &[f32], out: &mut [u8]) {
    let (whole, rest) = out.as_chunks_mut::<TOGETHER>();
    let begun = whole.len() * TOGETHER;
    for (index, out) in whole.iter_mut().enumerate() {
        let mut sums = [0.5f32; TOGETHER];
        for (row, weight) in weights.iter().enumerate() {
            let values = &from[row * stride + index * TOGETHER..][..TOGETHER];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += f32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum as u8;
        }
    }
    for (index, out) in rest.iter_mut().enumerate() {
        let mut sum = 0.5f32;
        for (row, weight) in weights.iter().enumerate() {
            sum += f32::from(from[row * stride + begun + index]) * weight;
        }
        *out = sum as u8;
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
