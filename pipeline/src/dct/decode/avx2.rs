//! AVX2 with BMI2: each word's bits are put into place by `pdep`, values are made
//! from codes and brought into row-major order 32 at a time.

use std::arch::x86_64::*;

use super::super::segment::Shape;
use super::front::{Work, front, load};
use super::{Blocks, Coded, Head};
use crate::jpeg::ZIGZAG;

/// The lowest bit of each 16-bit lane, and of each byte.
const WIDE_LANES: u64 = 0x0001_0001_0001_0001;
const NARROW_LANES: u64 = 0x0101_0101_0101_0101;

/// Byte shuffles from zig-zag to row-major order: for each half of the block and
/// each 16 positions, where in them its 32 values come from.
const NARROW_ORDER: [[[u8; 32]; 4]; 2] = {
    let mut order = [[[0x80; 32]; 4]; 2];
    let mut position = 8;
    while position < 64 {
        let natural = ZIGZAG[position] as usize;
        order[natural / 32][position / 16][natural % 32] = (position % 16) as u8;
        position += 1;
    }
    order
};

/// The same for positions 0..8 in 16-bit lanes, for rows 0 and 1 and rows 2 and 3.
const WIDE_ORDER: [[u8; 32]; 2] = {
    let mut order = [[0x80; 32]; 2];
    let mut position = 0;
    while position < 8 {
        let natural = ZIGZAG[position] as usize;
        order[natural / 16][natural % 16 * 2] = (position * 2) as u8;
        order[natural / 16][natural % 16 * 2 + 1] = (position * 2 + 1) as u8;
        position += 1;
    }
    order
};

/// See [`super::decode`]. None where the segment is not exactly as long as its
/// blocks.
///
/// # Safety
/// AVX2, BMI1, BMI2, LZCNT and POPCNT must be there. [`super::PAD`] bytes must follow
/// the segment, and `head` must come from it. The shape has at most
/// [`super::MAX_BLOCKS`] blocks, indexes at most 12 bits.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn body(
    coded: Coded<'_>,
    head: &Head,
    shape: &Shape,
    out: &mut Blocks,
) -> Option<()> {
    let work = &mut *out.work;
    // SAFETY: the caller's promise.
    let bits_at = unsafe { front(coded, head, shape, work, &mut out.spans)? };
    let blocks = shape.blocks();
    // SAFETY: the caller's promise; `front` found `bits_at` inside the segment.
    let wide_end = unsafe { wide_bands(coded, bits_at, blocks, work)? };
    // SAFETY: as above.
    let end = unsafe { narrow_bands(coded, wide_end, blocks, work)? };
    for (number, block) in out.blocks.iter_mut().enumerate().take(blocks) {
        // SAFETY: AVX2 is there; both pointers are to 64 values.
        unsafe { values(work, number, block.0.as_mut_ptr()) };
    }
    (end == coded.length).then_some(())
}

/// Puts the bits of positions 1..8 into `wide`, the lanes in use into `wide_to`;
/// gives the byte behind them.
///
/// # Safety
/// As [`body`]; `at` must be inside the segment.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
unsafe fn wide_bands(coded: Coded<'_>, at: usize, blocks: usize, work: &mut Work) -> Option<usize> {
    let (mut bit, limit) = (8 * at, 8 * coded.length);
    for block in 0..blocks {
        if bit > limit {
            return None;
        }
        let mask = u64::from(work.low_masks[block]);
        for half in 0..2 {
            let width = u32::from(work.profiles[block].widths[half]);
            let lanes = _pdep_u64(mask >> (4 * half), WIDE_LANES);
            let to = lanes * ((1 << width) - 1);
            // SAFETY: the bit was in the segment before this block, which takes less
            // than PAD bytes less eight.
            let bits = unsafe { load(coded.data.as_ptr(), bit) };
            work.wide[block][half] = _pdep_u64(bits, to);
            work.wide_to[block][half] = lanes;
            bit += to.count_ones() as usize;
        }
    }
    (bit <= limit).then_some(bit.div_ceil(8))
}

/// Puts the bits of positions 8..64 into `narrow`, the lanes in use into
/// `narrow_to`; gives the byte behind them.
///
/// # Safety
/// As [`wide_bands`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
unsafe fn narrow_bands(
    coded: Coded<'_>,
    at: usize,
    blocks: usize,
    work: &mut Work,
) -> Option<usize> {
    let (mut bit, limit) = (8 * at, 8 * coded.length);
    for block in 0..blocks {
        if bit > limit {
            return None;
        }
        let mask = work.masks[block];
        let widths = &work.profiles[block].widths;
        let (narrow, narrow_to) = (&mut work.narrow[block], &mut work.narrow_to[block]);
        // Most blocks end within the first three words; the rest is one branch.
        let words = if mask >> 32 == 0 { 4 } else { 8 };
        for word in 1..words {
            let width = u32::from(widths[word + 1]);
            let lanes = _pdep_u64(mask >> (8 * word), NARROW_LANES);
            let to = lanes * ((1 << width) - 1);
            // SAFETY: as in `wide_bands`.
            let bits = unsafe { load(coded.data.as_ptr(), bit) };
            narrow[word] = _pdep_u64(bits, to);
            narrow_to[word] = lanes;
            bit += to.count_ones() as usize;
        }
        narrow[words..].fill(0);
        narrow_to[words..].fill(0);
    }
    (bit <= limit).then_some(bit.div_ceil(8))
}

/// Makes a block's values from its codes.
///
/// # Safety
/// AVX2 must be there, and `to` must be aligned to 32 bytes and writable for 64
/// values.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn values(work: &mut Work, block: usize, to: *mut i16) {
    let codes = work.narrow[block].as_mut_ptr().cast::<u8>();
    let lanes = work.narrow_to[block].as_ptr().cast::<u8>();
    let (one, high) = (_mm256_set1_epi8(1), _mm256_set1_epi8(-128));
    for half in 0..2 {
        // SAFETY: both arrays have 64 bytes a block, aligned to 64.
        unsafe {
            let at = codes.add(32 * half).cast::<__m256i>();
            let code = _mm256_load_si256(at);
            let lane = _mm256_load_si256(lanes.add(32 * half).cast());
            let less_one = _mm256_and_si256(_mm256_srli_epi16::<1>(code), _mm256_set1_epi8(127));
            let sign = _mm256_and_si256(_mm256_slli_epi16::<7>(code), high);
            let value =
                _mm256_sign_epi8(_mm256_add_epi8(less_one, lane), _mm256_or_si256(sign, one));
            _mm256_store_si256(at, value);
        }
    }
    // SAFETY: as above.
    let quarters: [__m256i; 4] = std::array::from_fn(|q| unsafe {
        _mm256_broadcastsi128_si256(_mm_load_si128(codes.add(16 * q).cast()))
    });
    let wide = wide_values(work, block);
    for (half, order) in NARROW_ORDER.iter().enumerate() {
        let part = |q: usize| {
            // SAFETY: 32 bytes.
            let from = unsafe { _mm256_loadu_si256(order[q].as_ptr().cast()) };
            _mm256_shuffle_epi8(quarters[q], from)
        };
        let bytes =
            _mm256_or_si256(_mm256_or_si256(part(0), part(1)), _mm256_or_si256(part(2), part(3)));
        let mut first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
        let mut second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(bytes));
        // SAFETY: 32 bytes each; `to` has 64 values.
        unsafe {
            if half == 0 {
                let from = |rows: usize| _mm256_loadu_si256(WIDE_ORDER[rows].as_ptr().cast());
                first = _mm256_or_si256(first, _mm256_shuffle_epi8(wide, from(0)));
                second = _mm256_or_si256(second, _mm256_shuffle_epi8(wide, from(1)));
            }
            _mm256_store_si256(to.add(32 * half).cast(), first);
            _mm256_store_si256(to.add(32 * half + 16).cast(), second);
        }
    }
}

/// Values of positions 0..8, in both lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn wide_values(work: &Work, block: usize) -> __m256i {
    let one = _mm_set1_epi16(1);
    // SAFETY: two words of eight bytes each.
    let (code, lane) = unsafe {
        (
            _mm_loadu_si128(work.wide[block].as_ptr().cast()),
            _mm_loadu_si128(work.wide_to[block].as_ptr().cast()),
        )
    };
    let magnitude = _mm_add_epi16(_mm_srli_epi16::<1>(code), lane);
    let value = _mm_sign_epi16(magnitude, _mm_or_si128(_mm_slli_epi16::<15>(code), one));
    let value = _mm_insert_epi16::<0>(value, i32::from(work.dc[block]));
    _mm256_broadcastsi128_si256(value)
}
