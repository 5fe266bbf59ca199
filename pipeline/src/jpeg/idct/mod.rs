//! Dequantisation and inverse DCT of neighbouring blocks, two or four at once.
//!
//! The arithmetic is libjpeg's `islow` (C. Loeffler, A. Ligtenberg, G.
//! Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications",
//! ICASSP 1989) with 13-bit constants, written as plain sums of products. It
//! gives libjpeg's integers, for any block an encoder can write. Between the
//! two passes values are saturated to 16 bits, which such blocks never need.

mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::level::{Kind, Level};

/// 64 coefficients or quantisation steps, row-major: two cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block(pub [i16; 64]);

/// Fractional bits of the constants.
const CONST_BITS: u32 = 13;
/// Fractional bits kept between the passes.
const PASS1_BITS: u32 = 2;

/// The constants of the paper, times 2^13, as libjpeg rounds them.
const FIX_0_298631336: i32 = 2446;
const FIX_0_390180644: i32 = 3196;
const FIX_0_541196100: i32 = 4433;
const FIX_0_765366865: i32 = 6270;
const FIX_0_899976223: i32 = 7373;
const FIX_1_175875602: i32 = 9633;
const FIX_1_501321110: i32 = 12299;
const FIX_1_847759065: i32 = 15137;
const FIX_1_961570560: i32 = 16069;
const FIX_2_053119869: i32 = 16819;
const FIX_2_562915447: i32 = 20995;
const FIX_3_072711026: i32 = 25172;

/// Weights of inputs (2, 6) in the even part's two rotations.
const EVEN: [[i32; 2]; 2] = [
    [FIX_0_541196100, FIX_0_541196100 - FIX_1_847759065],
    [FIX_0_541196100 + FIX_0_765366865, FIX_0_541196100],
];

/// Weights of inputs (1, 3, 5, 7) in the odd part of outputs 0, 1, 2, 3
/// (`tmp3`, `tmp2`, `tmp1`, `tmp0` of jidctint.c, multiplied out).
const ODD: [[i32; 4]; 4] = {
    const Z5: i32 = FIX_1_175875602;
    const Z3: i32 = Z5 - FIX_1_961570560;
    const Z4: i32 = Z5 - FIX_0_390180644;
    const Z1: i32 = -FIX_0_899976223;
    const Z2: i32 = -FIX_2_562915447;
    [
        [FIX_1_501321110 + Z1 + Z4, Z5, Z4, Z1 + Z5],
        [Z5, FIX_3_072711026 + Z2 + Z3, Z2 + Z5, Z3],
        [Z4, Z2 + Z5, FIX_2_053119869 + Z2 + Z4, Z5],
        [Z1 + Z5, Z3, Z5, FIX_0_298631336 + Z1 + Z3],
    ]
};

/// What the second pass adds to input 0: rounding and the level shift of 128,
/// in the 5 bits that are dropped after the constants' 13.
const PASS2_BIAS: i16 = (128 << (PASS1_BITS + 3)) + (1 << (PASS1_BITS + 2));

/// Transforms neighbouring blocks: the samples of `blocks[numbers[i]]` go to
/// columns 8 i to 8 i + 8 of `out`, whose rows are `stride` apart. `spans` says
/// for each block that its coefficients from that zig-zag position on are zero.
///
/// # Panics
/// When a number is out of range, or `out` is shorter than seven rows and the
/// columns of the blocks.
#[inline]
pub(crate) fn idct_row(
    level: Level,
    blocks: &[Block],
    spans: &[u8],
    numbers: &[u8],
    quant: &Block,
    out: &mut [u8],
    stride: usize,
) {
    let columns = numbers.len() * 8;
    assert!(stride >= columns && out.len() >= 7 * stride + columns);
    match level.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of this kind exists only where AVX2, AVX-512 F and BW were found;
        // the assertion above is the length condition.
        Kind::Avx512 if numbers.len() >= 4 => unsafe {
            x86::idct_row_wide(blocks, spans, numbers, quant, out, stride);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of these kinds exists only where AVX2 was found; as above.
        Kind::Avx2 | Kind::Avx512 => unsafe {
            x86::idct_row(blocks, spans, numbers, quant, out, stride);
        },
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => {
            for (x, number) in numbers.iter().enumerate() {
                let (number, to) = (std::slice::from_ref(number), out[8 * x..].as_mut_ptr());
                // SAFETY: every aarch64 CPU has NEON; as above.
                unsafe {
                    vector::idct::<std::arch::aarch64::int16x8_t>(
                        blocks, spans, number, quant, to, stride,
                    );
                }
            }
        }
        Kind::Scalar => {
            for (x, &number) in numbers.iter().enumerate() {
                scalar::idct(&blocks[usize::from(number)], quant, &mut out[8 * x..], stride);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::ZIGZAG;
    use super::*;
    use crate::rng::Rng;

    fn random_block(rng: &mut Rng, span: usize, magnitude: u64) -> Block {
        let mut block = Block([0; 64]);
        for &natural in &ZIGZAG[..span] {
            let value = rng.below(2 * magnitude + 1) as i64 - magnitude as i64;
            block.0[usize::from(natural)] = value as i16;
        }
        block
    }

    #[test]
    fn every_path_equals_scalar_even_where_values_overflow() {
        let mut rng = Rng::keyed(2, 0, 0, 0);
        for case in 0..20_000 {
            let span = if case % 2 == 0 { 1 + rng.below(64) } else { 1 + rng.below(12) } as usize;
            let magnitude = [3, 50, 1023, 32767][case % 4];
            let quant = random_block(&mut rng, 64, [16, 255][case % 2]);
            let count = 1 + case % 7;
            let blocks: Vec<Block> =
                (0..count).map(|_| random_block(&mut rng, span, magnitude)).collect();
            let numbers: Vec<u8> = (0..count as u8).rev().collect();
            let (stride, columns) = (8 * count + 3, 8 * count);
            let mut expected = vec![0; 7 * stride + columns];
            for (x, &number) in numbers.iter().enumerate() {
                scalar::idct(&blocks[usize::from(number)], &quant, &mut expected[8 * x..], stride);
            }
            for level in Level::available() {
                let mut out = vec![0; 7 * stride + columns];
                let spans = vec![span as u8; count];
                idct_row(level, &blocks, &spans, &numbers, &quant, &mut out, stride);
                assert_eq!(out, expected, "{level:?}, span {span}, magnitude {magnitude}");
            }
        }
    }

    #[test]
    fn the_transform_is_within_one_level_of_the_exact_one() {
        let mut rng = Rng::keyed(3, 0, 0, 0);
        let quant = Block([1; 64]);
        for _ in 0..300 {
            let block = random_block(&mut rng, 64, 60);
            let mut out = vec![0; 64];
            scalar::idct(&block, &quant, &mut out, 8);
            for (at, &got) in out.iter().enumerate() {
                let exact = exact_sample(&block, at % 8, at / 8);
                assert!((f64::from(got) - exact).abs() < 1.0, "{got} {exact}");
            }
        }
    }

    /// T.81, A.3.3.
    fn exact_sample(block: &Block, x: usize, y: usize) -> f64 {
        let scale = |k: usize| if k == 0 { 0.5f64.sqrt() } else { 1.0 };
        let wave = |k: usize, at: usize| {
            ((2 * at + 1) as f64 * k as f64 * std::f64::consts::PI / 16.0).cos()
        };
        let mut sum = 0.0;
        for v in 0..8 {
            for u in 0..8 {
                let coefficient = f64::from(block.0[v * 8 + u]);
                sum += scale(u) * scale(v) * coefficient * wave(u, x) * wave(v, y);
            }
        }
        (sum / 4.0 + 128.0).clamp(0.0, 255.0)
    }
}
