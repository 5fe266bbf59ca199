//! AVX-512: the bit positions of all words by prefix sums, four blocks (wide) or
//! one (narrow) to a vector; then `pdep`; then values, brought into row-major order
//! by two permutations.

use std::arch::x86_64::*;

use super::super::segment::Shape;
use super::front::{Work, front};
use super::{Blocks, Coded, Head};
use crate::jpeg::ZIGZAG;

/// Where row-major values 0..32 and 32..64 stand in zig-zag order.
const ORDER: [[u16; 32]; 2] = {
    let mut order = [[0; 32]; 2];
    let mut position = 0;
    while position < 64 {
        let natural = ZIGZAG[position] as usize;
        order[natural / 32][natural % 32] = position as u16;
        position += 1;
    }
    order
};

/// Spreads four blocks' pairs of widths: byte 2 k of the vector is the width of
/// lane k, and odd bytes are 0.
const WIDE_SPREAD: [i8; 64] = {
    let mut spread = [-1; 64];
    let mut lane = 0;
    while lane < 32 {
        // Within each quarter of the vector, a block; all quarters hold all widths.
        spread[2 * lane] = (lane / 4) as i8;
        lane += 1;
    }
    spread
};

/// Spreads a profile's widths of bands 2 to 8 over the bytes of their words.
const NARROW_SPREAD: [i8; 64] = {
    let mut spread = [-1; 64];
    let mut at = 8;
    while at < 64 {
        spread[at] = (at / 8 + 1) as i8;
        at += 1;
    }
    spread
};

/// 2^width - 1 for the widths of narrow bands.
const ONES: [i8; 16] = [0, 1, 3, 7, 15, 31, 63, 127, 0, 0, 0, 0, 0, 0, 0, 0];

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn constant(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The sums of the first 1, 2, .. 8 words.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn sums(x: __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    let x = _mm512_add_epi64(x, _mm512_alignr_epi64::<7>(x, zero));
    let x = _mm512_add_epi64(x, _mm512_alignr_epi64::<6>(x, zero));
    _mm512_add_epi64(x, _mm512_alignr_epi64::<4>(x, zero))
}

/// See [`super::decode`]. None where the segment is not exactly as long as its
/// blocks.
///
/// # Safety
/// As [`super::avx2::body`], and AVX-512 F, BW, VL and DQ must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi1,bmi2,lzcnt,popcnt")]
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
    let wide_end = wide_positions(8 * bits_at as u64, blocks, work);
    let end = narrow_positions(wide_end, blocks, work);
    if end != 8 * coded.length as u64 {
        return None;
    }
    // SAFETY: positions grow from `bits_at` to `end`, so all are in the segment, which
    // PAD bytes follow.
    unsafe { gather(coded, blocks, work) };
    for (number, block) in out.blocks.iter_mut().enumerate().take(blocks) {
        values(work, number, &mut block.0);
    }
    Some(())
}

/// Fills `wide_to` and `wide_bit`; gives the bit behind the wide bands, on a whole byte.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi2")]
#[inline]
fn wide_positions(start: u64, blocks: usize, work: &mut Work) -> u64 {
    let last = _mm512_set1_epi64(7);
    let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi16(1));
    let spread = constant(&WIDE_SPREAD);
    let mut at = _mm512_set1_epi64(start as i64);
    work.low_masks[blocks..blocks + 4].fill(0);
    for block in (0..blocks).step_by(4) {
        let m = &work.low_masks[block..block + 4];
        let lanes = _mm512_movm_epi16(u32::from_le_bytes([m[0], m[1], m[2], m[3]]));
        let w = &work.wide_widths[block..block + 4];
        let all =
            u64::from(w[0]) | u64::from(w[1]) << 16 | u64::from(w[2]) << 32 | u64::from(w[3]) << 48;
        let widths = _mm512_shuffle_epi8(_mm512_set1_epi64(all as i64), spread);
        let widths = _mm512_and_si512(lanes, widths);
        let to = _mm512_sub_epi16(_mm512_sllv_epi16(one, widths), one);
        let taken = _mm512_sad_epu8(widths, zero);
        let ends = sums(taken);
        let bits = _mm512_add_epi64(at, _mm512_sub_epi64(ends, taken));
        at = _mm512_permutexvar_epi64(last, _mm512_add_epi64(at, ends));
        // SAFETY: `wide_to` and `wide_bit` have 64 bytes for each four blocks, and
        // room for four blocks more than a segment has.
        unsafe {
            _mm512_storeu_si512(work.wide_to[block..].as_mut_ptr().cast(), to);
            _mm512_storeu_si512(work.wide_bit[block..].as_mut_ptr().cast(), bits);
        }
    }
    whole_bytes(at)
}

/// Fills `narrow_to` and `narrow_bit`; gives the bit behind the narrow bands, on a
/// whole byte.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi2")]
#[inline]
fn narrow_positions(start: u64, blocks: usize, work: &mut Work) -> u64 {
    let last = _mm512_set1_epi64(7);
    let zero = _mm512_setzero_si512();
    let spread = constant(&NARROW_SPREAD);
    // SAFETY: 16 bytes.
    let ones = unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(ONES.as_ptr().cast())) };
    let mut at = _mm512_set1_epi64(start as i64);
    for block in 0..blocks {
        // SAFETY: a profile has 16 bytes, aligned to 16.
        let profile = unsafe { _mm_load_si128(std::ptr::from_ref(work.profiles[block]).cast()) };
        let all = _mm512_broadcast_i32x4(profile);
        let widths = _mm512_maskz_shuffle_epi8(work.masks[block], all, spread);
        let taken = _mm512_sad_epu8(widths, zero);
        let ends = sums(taken);
        let bits = _mm512_add_epi64(at, _mm512_sub_epi64(ends, taken));
        at = _mm512_permutexvar_epi64(last, _mm512_add_epi64(at, ends));
        // SAFETY: a block has 64 bytes in each.
        unsafe {
            let to = _mm512_shuffle_epi8(ones, widths);
            _mm512_storeu_si512(work.narrow_to[block].as_mut_ptr().cast(), to);
            _mm512_storeu_si512(work.narrow_bit[block].as_mut_ptr().cast(), bits);
        }
    }
    whole_bytes(at)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn whole_bytes(bit: __m512i) -> u64 {
    (_mm_cvtsi128_si64(_mm512_castsi512_si128(bit)) as u64).next_multiple_of(8)
}

/// Puts the words' bits into place.
///
/// # Safety
/// All positions must be in the segment.
#[target_feature(enable = "bmi2")]
#[inline]
unsafe fn gather(coded: Coded<'_>, blocks: usize, work: &mut Work) {
    let data = coded.data.as_ptr();
    // SAFETY: the caller's promise, and PAD bytes behind the segment.
    let word = |bit: u64, to: u64| unsafe {
        let bits = data.add((bit >> 3) as usize).cast::<u64>().read_unaligned() >> (bit & 7);
        _pdep_u64(bits, to)
    };
    for block in 0..blocks {
        let (bit, to) = (&work.narrow_bit[block], &work.narrow_to[block]);
        let out = &mut work.narrow[block];
        out[1] = word(bit[1], to[1]);
        out[2] = word(bit[2], to[2]);
        out[3] = word(bit[3], to[3]);
        // Most blocks end within the first three words.
        if work.masks[block] >> 32 != 0 {
            out[4] = word(bit[4], to[4]);
            out[5] = word(bit[5], to[5]);
            out[6] = word(bit[6], to[6]);
            out[7] = word(bit[7], to[7]);
        }
        let (bit, to) = (&work.wide_bit[block], &work.wide_to[block]);
        work.wide[block] = [word(bit[0], to[0]), word(bit[1], to[1])];
    }
}

/// Makes a block's values from its codes. What `narrow` holds where the mask is
/// not set does not matter.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn values(work: &Work, block: usize, to: &mut [i16; 64]) {
    let mask = work.masks[block];
    let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi8(1));
    // SAFETY: 64 and 16 bytes.
    let (code, wide) = unsafe {
        (
            _mm512_loadu_si512(work.narrow[block].as_ptr().cast()),
            _mm_loadu_si128(work.wide[block].as_ptr().cast()),
        )
    };
    let less_one = _mm512_and_si512(_mm512_srli_epi16::<1>(code), _mm512_set1_epi8(127));
    let magnitude = _mm512_maskz_add_epi8(mask, less_one, one);
    let negative = _mm512_test_epi8_mask(code, one);
    let value = _mm512_mask_sub_epi8(magnitude, negative, zero, magnitude);
    let low = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(value));
    let high = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64::<1>(value));
    let one = _mm_set1_epi16(1);
    let magnitude = _mm_maskz_add_epi16(mask as u8, _mm_srli_epi16::<1>(wide), one);
    let negative = _mm_test_epi16_mask(wide, one);
    let wide = _mm_mask_sub_epi16(magnitude, negative, _mm_setzero_si128(), magnitude);
    let wide = _mm_insert_epi16::<0>(wide, i32::from(work.dc[block]));
    let low = _mm512_inserti32x4::<0>(low, wide);
    // SAFETY: 32 values each.
    unsafe {
        let order = |half: usize| _mm512_loadu_si512(ORDER[half].as_ptr().cast());
        let first = _mm512_permutex2var_epi16(low, order(0), high);
        let second = _mm512_permutex2var_epi16(low, order(1), high);
        _mm512_storeu_si512(to.as_mut_ptr().cast(), first);
        _mm512_storeu_si512(to.as_mut_ptr().add(32).cast(), second);
    }
}
