//! Colour conversion of 32 pixels at a time.

use std::arch::x86_64::*;

use super::{CB_TO_B, CB_TO_G, CR_TO_G, CR_TO_R};

/// Pixels of one step; the narrowest row there is a step for.
pub(super) const STEP: usize = 32;

/// See [`super::ycc_row`].
///
/// # Safety
/// AVX2 must be there; the rows must have equal lengths of at least [`STEP`],
/// and `rgb` three times that.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    let width = y.len();
    let mut x = 0;
    loop {
        // SAFETY: `x + STEP <= width` here and below.
        unsafe {
            let at = |row: &[u8]| _mm256_loadu_si256(row.as_ptr().add(x).cast());
            let (r, g, b) = convert(at(y), at(cb), at(cr));
            store_interleaved(r, g, b, rgb.as_mut_ptr().add(3 * x));
        }
        if x + STEP == width {
            return;
        }
        // The last step overlaps the one before rather than being shorter.
        x = (x + STEP).min(width - STEP);
    }
}

/// 32 pixels of Y, Cb, Cr to R, G, B.
#[target_feature(enable = "avx2")]
#[inline]
fn convert(y: __m256i, cb: __m256i, cr: __m256i) -> (__m256i, __m256i, __m256i) {
    let zero = _mm256_setzero_si256();
    let low = convert16(
        _mm256_unpacklo_epi8(y, zero),
        _mm256_unpacklo_epi8(cb, zero),
        _mm256_unpacklo_epi8(cr, zero),
    );
    let high = convert16(
        _mm256_unpackhi_epi8(y, zero),
        _mm256_unpackhi_epi8(cb, zero),
        _mm256_unpackhi_epi8(cr, zero),
    );
    (
        _mm256_packus_epi16(low.0, high.0),
        _mm256_packus_epi16(low.1, high.1),
        _mm256_packus_epi16(low.2, high.2),
    )
}

/// 16 pixels in 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn convert16(y: __m256i, cb: __m256i, cr: __m256i) -> (__m256i, __m256i, __m256i) {
    let center = _mm256_set1_epi16(128);
    let (cb, cr) = (_mm256_sub_epi16(cb, center), _mm256_sub_epi16(cr, center));
    let (cb2, cr2) = (_mm256_add_epi16(cb, cb), _mm256_add_epi16(cr, cr));
    // The weights' fractions: 1.402 = 1 + 0.402, 1.772 = 2 - 0.228.
    let r = _mm256_add_epi16(rounded(cr2, CR_TO_R - 65536), cr);
    let b = _mm256_add_epi16(rounded(cb2, CB_TO_B - 131072), cb2);
    // -0.71414 = 0.28586 - 1, which fits 16 bits.
    let weights = _mm256_set1_epi32((-CB_TO_G & 0xFFFF) | (65536 - CR_TO_G) << 16);
    let half = _mm256_set1_epi32(1 << 15);
    let sum =
        |pair| _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(pair, weights), half));
    let g = _mm256_sub_epi16(
        _mm256_packs_epi32(sum(_mm256_unpacklo_epi16(cb, cr)), sum(_mm256_unpackhi_epi16(cb, cr))),
        cr,
    );
    (_mm256_add_epi16(y, r), _mm256_add_epi16(y, g), _mm256_add_epi16(y, b))
}

/// `(doubled / 2 * weight + 2^15) >> 16`: floor(floor(2 x w / 2^16) + 1) / 2).
#[target_feature(enable = "avx2")]
#[inline]
fn rounded(doubled: __m256i, weight: i32) -> __m256i {
    let product = _mm256_mulhi_epi16(doubled, _mm256_set1_epi16(weight as i16));
    _mm256_srai_epi16::<1>(_mm256_add_epi16(product, _mm256_set1_epi16(1)))
}

/// Where each byte of a channel goes: pixel i of channel c lies at byte
/// 3 i + c, so at (3 i + c) % 16 of one of three vectors.
const fn places(channel: usize) -> [i8; 16] {
    let mut table = [0; 16];
    let mut pixel = 0;
    while pixel < 16 {
        table[(3 * pixel + channel) % 16] = pixel as i8;
        pixel += 1;
    }
    table
}

/// Which bytes of vector `vector` belong to `channel`.
const fn owned(vector: usize, channel: usize) -> [i8; 16] {
    let mut table = [0; 16];
    let mut at = 0;
    while at < 16 {
        if (16 * vector + at) % 3 == channel {
            table[at] = -1;
        }
        at += 1;
    }
    table
}

const PLACES: [[i8; 16]; 3] = [places(0), places(1), places(2)];
const OWNED: [[[i8; 16]; 3]; 3] = [
    [owned(0, 0), owned(0, 1), owned(0, 2)],
    [owned(1, 0), owned(1, 1), owned(1, 2)],
    [owned(2, 0), owned(2, 1), owned(2, 2)],
];

/// Writes 32 pixels, 96 bytes.
///
/// # Safety
/// AVX2 must be there and 96 bytes writable at `to`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store_interleaved(r: __m256i, g: __m256i, b: __m256i, to: *mut u8) {
    // SAFETY: the tables have 16 bytes each.
    let table =
        |t: &[i8; 16]| unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(t.as_ptr().cast())) };
    let r = _mm256_shuffle_epi8(r, table(&PLACES[0]));
    let g = _mm256_shuffle_epi8(g, table(&PLACES[1]));
    let b = _mm256_shuffle_epi8(b, table(&PLACES[2]));
    for (vector, owned) in OWNED.iter().enumerate() {
        let rg = _mm256_blendv_epi8(r, g, table(&owned[1]));
        let rgb = _mm256_blendv_epi8(rg, b, table(&owned[2]));
        // SAFETY: the low lane fills bytes 0..48, the high lane 48..96.
        unsafe {
            let at = to.add(16 * vector);
            _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(rgb));
            _mm_storeu_si128(at.add(48).cast(), _mm256_extracti128_si256::<1>(rgb));
        }
    }
}
