//! Rows of blocks with AVX2, and with AVX-512 where four are neighbours.

use std::arch::x86_64::{__m256i, __m512i};

use super::Block;
use super::vector::idct;

/// See [`super::idct_row`].
///
/// # Safety
/// AVX2 must be there, and `out` as long as [`super::idct_row`] demands.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn idct_row(
    blocks: &[Block],
    spans: &[u8],
    numbers: &[u8],
    quant: &Block,
    out: &mut [u8],
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { pairs(blocks, spans, numbers, quant, out.as_mut_ptr(), stride) }
}

/// See [`super::idct_row`].
///
/// # Safety
/// AVX2, AVX-512 F and BW must be there, and `out` as long as [`super::idct_row`]
/// demands.
#[target_feature(enable = "avx2,avx512f,avx512bw")]
pub(super) unsafe fn idct_row_wide(
    blocks: &[Block],
    spans: &[u8],
    numbers: &[u8],
    quant: &Block,
    out: &mut [u8],
    stride: usize,
) {
    let mut to = out.as_mut_ptr();
    let (fours, rest) = numbers.as_chunks::<4>();
    // SAFETY: `out` has eight rows of 32 columns for each four blocks; what is left of
    // it is as long as `pairs` demands.
    unsafe {
        for four in fours {
            idct::<__m512i>(blocks, spans, four, quant, to, stride);
            to = to.add(32);
        }
        pairs(blocks, spans, rest, quant, to, stride);
    }
}

/// # Safety
/// AVX2 must be there, and eight rows of 8 columns for each block, `stride` apart,
/// writable at `to`.
#[target_feature(enable = "avx2")]
unsafe fn pairs(
    blocks: &[Block],
    spans: &[u8],
    numbers: &[u8],
    quant: &Block,
    mut to: *mut u8,
    stride: usize,
) {
    for pair in numbers.chunks(2) {
        // SAFETY: the caller's promise; a block alone goes through a buffer of its own.
        unsafe {
            if let &[number] = pair {
                let mut alone = [0u8; 128];
                let twice = [number, number];
                idct::<__m256i>(blocks, spans, &twice, quant, alone.as_mut_ptr(), 16);
                for y in 0..8 {
                    to.add(y * stride).copy_from_nonoverlapping(alone.as_ptr().add(y * 16), 8);
                }
            } else {
                idct::<__m256i>(blocks, spans, pair, quant, to, stride);
                to = to.add(16);
            }
        }
    }
}
