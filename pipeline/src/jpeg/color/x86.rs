//! Rows with AVX2 and AVX-512, and how three vectors become interleaved bytes there.

use std::arch::x86_64::*;

use super::vector::steps;

/// A row with AVX2, 32 pixels at a time; see [`super::ycc_row`].
///
/// # Safety
/// AVX2 must be there; the rows must have equal lengths of at least 32, and `rgb`
/// three times that.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { steps::<__m256i, 32>(y, cb, cr, rgb, |[r, g, b], to| store32(r, g, b, to)) }
}

/// A row with AVX-512, 64 pixels at a time; see [`super::ycc_row`].
///
/// # Safety
/// AVX-512 F and BW must be there; the rows must have equal lengths of at least 64,
/// and `rgb` three times that.
#[target_feature(enable = "avx2,avx512f,avx512bw")]
pub(super) unsafe fn ycc_row_wide(y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { steps::<__m512i, 64>(y, cb, cr, rgb, |[r, g, b], to| store64(r, g, b, to)) }
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
unsafe fn store32(r: __m256i, g: __m256i, b: __m256i, to: *mut u8) {
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

/// [`OWNED`] for all lanes as a mask.
const fn mask(vector: usize, channel: usize) -> u64 {
    let (mut mask, mut at) = (0, 0);
    while at < 64 {
        if OWNED[vector][channel][at % 16] != 0 {
            mask |= 1 << at;
        }
        at += 1;
    }
    mask
}

const MASKS: [[u64; 2]; 3] =
    [[mask(0, 1), mask(0, 2)], [mask(1, 1), mask(1, 2)], [mask(2, 1), mask(2, 2)]];

/// Writes 64 pixels, 192 bytes.
///
/// # Safety
/// AVX-512 F and BW must be there and 192 bytes writable at `to`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn store64(r: __m512i, g: __m512i, b: __m512i, to: *mut u8) {
    // SAFETY: the tables have 16 bytes each.
    let table =
        |t: &[i8; 16]| unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(t.as_ptr().cast())) };
    let r = _mm512_shuffle_epi8(r, table(&PLACES[0]));
    let g = _mm512_shuffle_epi8(g, table(&PLACES[1]));
    let b = _mm512_shuffle_epi8(b, table(&PLACES[2]));
    // Lane l of vector v holds bytes 48 l + 16 v on.
    let [v0, v1, v2] = MASKS
        .map(|[green, blue]| _mm512_mask_blend_epi8(blue, _mm512_mask_blend_epi8(green, r, g), b));
    // Lanes in units of 64 bits; of the first vector 0 to 7, of the second 8 to 15.
    let order = |a: i64, b: i64, c: i64, d: i64| {
        _mm512_set_epi64(2 * d + 1, 2 * d, 2 * c + 1, 2 * c, 2 * b + 1, 2 * b, 2 * a + 1, 2 * a)
    };
    let first = _mm512_permutex2var_epi64(v0, order(0, 4, 0, 1), v1);
    let first = _mm512_permutex2var_epi64(first, order(0, 1, 4, 3), v2);
    let second = _mm512_permutex2var_epi64(v0, order(5, 0, 2, 6), v1);
    let second = _mm512_permutex2var_epi64(second, order(0, 5, 2, 3), v2);
    let third = _mm512_permutex2var_epi64(v0, order(0, 3, 7, 0), v1);
    let third = _mm512_permutex2var_epi64(third, order(6, 1, 2, 7), v2);
    // SAFETY: the caller's promise.
    unsafe {
        _mm512_storeu_si512(to.cast(), first);
        _mm512_storeu_si512(to.add(64).cast(), second);
        _mm512_storeu_si512(to.add(128).cast(), third);
    }
}
