//! Two blocks at once: the left one in the low, the right one in the high lane.

use std::arch::x86_64::*;

use super::{Block, CONST_BITS, EVEN, ODD, PASS1_BITS, PASS2_BIAS};

/// Blocks whose last coefficient is below this zig-zag position have nothing
/// in rows and columns 4..8.
const SPAN_OF_QUARTER: u8 = 10;

/// Two 16-bit weights for `_mm256_madd_epi16`.
#[target_feature(enable = "avx2")]
#[inline]
fn weights(first: i32, second: i32) -> __m256i {
    _mm256_set1_epi32((first & 0xFFFF) | second << 16)
}

/// `a * w.0 + b * w.1`, the low and the high half of each lane.
#[derive(Clone, Copy)]
struct Wide(__m256i, __m256i);

impl Wide {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn zip(a: __m256i, b: __m256i) -> Wide {
        Wide(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn dot(self, first: i32, second: i32) -> Wide {
        let w = weights(first, second);
        Wide(_mm256_madd_epi16(self.0, w), _mm256_madd_epi16(self.1, w))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(self, other: Wide) -> Wide {
        Wide(_mm256_add_epi32(self.0, other.0), _mm256_add_epi32(self.1, other.1))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn sub(self, other: Wide) -> Wide {
        Wide(_mm256_sub_epi32(self.0, other.0), _mm256_sub_epi32(self.1, other.1))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn shift_and_pack<const SHIFT: i32>(self) -> __m256i {
        let low = _mm256_srai_epi32::<SHIFT>(self.0);
        _mm256_packs_epi32(low, _mm256_srai_epi32::<SHIFT>(self.1))
    }
}

/// One dimension over the vectors' index; HALF: inputs 4..8 are zero.
#[target_feature(enable = "avx2")]
#[inline]
fn transform<const SHIFT: i32, const HALF: bool>(x: [__m256i; 8], round: i32) -> [__m256i; 8] {
    const ONE: i32 = 1 << CONST_BITS;
    let rounding = Wide(_mm256_set1_epi32(round), _mm256_set1_epi32(round));
    let zero = _mm256_setzero_si256();
    let (even0, even1, rotated);
    if HALF {
        let sum = Wide::zip(x[0], zero).dot(ONE, 0);
        even0 = if round == 0 { sum } else { sum.add(rounding) };
        even1 = even0;
        rotated = Wide::zip(x[2], zero);
    } else {
        let both = Wide::zip(x[0], x[4]);
        let (sum, difference) = (both.dot(ONE, ONE), both.dot(ONE, -ONE));
        even0 = if round == 0 { sum } else { sum.add(rounding) };
        even1 = if round == 0 { difference } else { difference.add(rounding) };
        rotated = Wide::zip(x[2], x[6]);
    }
    let rotated1 = rotated.dot(EVEN[0][0], EVEN[0][1]);
    let rotated0 = rotated.dot(EVEN[1][0], EVEN[1][1]);
    let even = [even0.add(rotated0), even1.add(rotated1), even1.sub(rotated1), even0.sub(rotated0)];
    let low = Wide::zip(x[1], x[3]);
    let high = Wide::zip(x[5], x[7]);
    let mut out = [zero; 8];
    for i in 0..4 {
        let mut odd = low.dot(ODD[i][0], ODD[i][1]);
        if !HALF {
            odd = odd.add(high.dot(ODD[i][2], ODD[i][3]));
        }
        out[i] = even[i].add(odd).shift_and_pack::<SHIFT>();
        out[7 - i] = even[i].sub(odd).shift_and_pack::<SHIFT>();
    }
    out
}

/// Transposes the 8 x 8 values of each lane.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let (a, b) = (Wide::zip(r[0], r[4]), Wide::zip(r[1], r[5]));
    let (c, d) = (Wide::zip(r[2], r[6]), Wide::zip(r[3], r[7]));
    let (e, f) = (Wide::zip(a.0, c.0), Wide::zip(a.1, c.1));
    let (g, h) = (Wide::zip(b.0, d.0), Wide::zip(b.1, d.1));
    let (p, q) = (Wide::zip(e.0, g.0), Wide::zip(e.1, g.1));
    let (s, t) = (Wide::zip(f.0, h.0), Wide::zip(f.1, h.1));
    [p.0, p.1, q.0, q.1, s.0, s.1, t.0, t.1]
}

/// Columns of 16-bit values to rows of saturated bytes: element i holds, in
/// each lane, rows 2 i and 2 i + 1.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose_to_bytes(c: [__m256i; 8]) -> [__m256i; 4] {
    let a = _mm256_packus_epi16(c[0], c[2]);
    let b = _mm256_packus_epi16(c[1], c[3]);
    let d = _mm256_packus_epi16(c[4], c[6]);
    let e = _mm256_packus_epi16(c[5], c[7]);
    let (c01, c23) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
    let (c45, c67) = (_mm256_unpacklo_epi8(d, e), _mm256_unpackhi_epi8(d, e));
    let (low, high) = (Wide::zip(c01, c23), Wide::zip(c45, c67));
    [
        _mm256_unpacklo_epi32(low.0, high.0),
        _mm256_unpackhi_epi32(low.0, high.0),
        _mm256_unpacklo_epi32(low.1, high.1),
        _mm256_unpackhi_epi32(low.1, high.1),
    ]
}

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
    let mut to = out.as_mut_ptr();
    for pair in numbers.chunks(2) {
        let (left, right) = (usize::from(pair[0]), usize::from(pair[pair.len() - 1]));
        let span = spans[left].max(spans[right]);
        let (left, right) = (&blocks[left], &blocks[right]);
        if pair.len() == 1 {
            let mut alone = [0u8; 128];
            // SAFETY: eight rows of 16 bytes; and `out` has eight columns left.
            unsafe {
                idct_pair(left, left, quant, span, alone.as_mut_ptr(), 16);
                for y in 0..8 {
                    to.add(y * stride).copy_from_nonoverlapping(alone.as_ptr().add(y * 16), 8);
                }
            }
            return;
        }
        // SAFETY: `out` has eight rows of 16 columns for each pair.
        unsafe {
            idct_pair(left, right, quant, span, to, stride);
            to = to.add(16);
        }
    }
}

/// # Safety
/// As [`both_passes`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn idct_pair(
    left: &Block,
    right: &Block,
    quant: &Block,
    span: u8,
    to: *mut u8,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if span <= 1 {
            flat_pair(left.0[0], right.0[0], quant.0[0], to, stride);
        } else if span <= SPAN_OF_QUARTER {
            both_passes::<true>(left, right, quant, to, stride);
        } else {
            both_passes::<false>(left, right, quant, to, stride);
        }
    }
}

/// Two blocks that have only a DC coefficient.
///
/// # Safety
/// As [`both_passes`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn flat_pair(left: i16, right: i16, step: i16, out: *mut u8, stride: usize) {
    // Both passes reduce to shifts; saturation is where `both_passes` has it.
    let dc = _mm_set_epi16(right, right, right, right, left, left, left, left);
    let dc = _mm_mullo_epi16(dc, _mm_set1_epi16(step));
    let four = _mm_adds_epi16(_mm_adds_epi16(dc, dc), _mm_adds_epi16(dc, dc));
    let level = _mm_srai_epi16::<{ PASS1_BITS as i32 + 3 }>(_mm_adds_epi16(
        four,
        _mm_set1_epi16(PASS2_BIAS),
    ));
    let bytes = _mm_packus_epi16(level, level);
    // Four bytes of each block, to eight.
    let row = _mm_unpacklo_epi32(bytes, bytes);
    for y in 0..8 {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(out.add(y * stride).cast(), row) };
    }
}

/// # Safety
/// AVX2 must be there, and eight rows of 16 bytes, `stride` apart, writable at
/// `out`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn both_passes<const HALF: bool>(
    left: &Block,
    right: &Block,
    quant: &Block,
    out: *mut u8,
    stride: usize,
) {
    const SHIFT1: u32 = CONST_BITS - PASS1_BITS;
    const SHIFT2: u32 = CONST_BITS + PASS1_BITS + 3;
    let mut rows = [_mm256_setzero_si256(); 8];
    for (y, row) in rows.iter_mut().enumerate().take(if HALF { 4 } else { 8 }) {
        // SAFETY: y < 8, and a block holds eight rows of eight values.
        unsafe {
            let load = |block: &Block| _mm_load_si128(block.0.as_ptr().add(y * 8).cast());
            let steps = _mm256_broadcastsi128_si256(load(quant));
            *row = _mm256_mullo_epi16(_mm256_set_m128i(load(right), load(left)), steps);
        }
    }
    let work = transform::<{ SHIFT1 as i32 }, HALF>(rows, 1 << (SHIFT1 - 1));
    let mut columns = transpose(work);
    columns[0] = _mm256_adds_epi16(columns[0], _mm256_set1_epi16(PASS2_BIAS));
    let work = transform::<{ SHIFT2 as i32 }, HALF>(columns, 0);
    for (pair, lanes) in transpose_to_bytes(work).into_iter().enumerate() {
        // From (left 0, left 1 | right 0, right 1) to (left 0, right 0 | left 1, right 1).
        let rows = _mm256_permute4x64_epi64::<0b11_01_10_00>(lanes);
        // SAFETY: the caller's promise.
        unsafe {
            let at = out.add(2 * pair * stride);
            _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(rows));
            _mm_storeu_si128(at.add(stride).cast(), _mm256_extracti128_si256::<1>(rows));
        }
    }
}
