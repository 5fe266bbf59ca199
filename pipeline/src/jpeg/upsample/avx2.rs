//! The triangle filters, 16 samples to 32 at a time.

use std::arch::x86_64::*;

/// Samples of one step; the narrowest row there is a step for.
pub(super) const STEP: usize = 16;

/// 16 bytes widened to 16 bits.
///
/// # Safety
/// AVX2 must be there and `at + 16 <= row.len()`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load(row: &[u8], at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(row.as_ptr().add(at).cast())) }
}

/// `3 * a + b`
#[target_feature(enable = "avx2")]
#[inline]
fn three_to_one(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi16(_mm256_add_epi16(a, a), _mm256_add_epi16(a, b))
}

/// Both outputs of 16 samples, each in 16 bits, to 32 bytes in order.
#[target_feature(enable = "avx2")]
#[inline]
fn interleave(even: __m256i, odd: __m256i) -> __m256i {
    _mm256_or_si256(even, _mm256_slli_epi16::<8>(odd))
}

/// See [`super::h2`].
///
/// # Safety
/// AVX2 must be there; `row.len()` must be `out.len() / 2 + 2`, and at least
/// `STEP + 2`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn h2(row: &[u8], out: &mut [u8]) {
    let width = row.len() - 2;
    let mut x = 0;
    loop {
        // SAFETY: `x + STEP <= width`, so `x + 2 + STEP <= row.len()` and
        // `2 x + 32 <= out.len()`.
        unsafe {
            let this = load(row, x + 1);
            let left = _mm256_add_epi16(load(row, x), _mm256_set1_epi16(1));
            let right = _mm256_add_epi16(load(row, x + 2), _mm256_set1_epi16(2));
            let even = _mm256_srli_epi16::<2>(three_to_one(this, left));
            let odd = _mm256_srli_epi16::<2>(three_to_one(this, right));
            _mm256_storeu_si256(out.as_mut_ptr().add(2 * x).cast(), interleave(even, odd));
        }
        if x + STEP == width {
            return;
        }
        // The last step overlaps the one before rather than being shorter.
        x = (x + STEP).min(width - STEP);
    }
}

/// See [`super::h2v2`].
///
/// # Safety
/// As [`h2`], for both rows.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn h2v2(near: &[u8], far: &[u8], out: &mut [u8]) {
    let width = near.len() - 2;
    let mut x = 0;
    loop {
        // SAFETY: as in `h2`.
        unsafe {
            let sum = |at| three_to_one(load(near, at), load(far, at));
            let this = sum(x + 1);
            let left = _mm256_add_epi16(sum(x), _mm256_set1_epi16(8));
            let right = _mm256_add_epi16(sum(x + 2), _mm256_set1_epi16(7));
            let even = _mm256_srli_epi16::<4>(three_to_one(this, left));
            let odd = _mm256_srli_epi16::<4>(three_to_one(this, right));
            _mm256_storeu_si256(out.as_mut_ptr().add(2 * x).cast(), interleave(even, odd));
        }
        if x + STEP == width {
            return;
        }
        x = (x + STEP).min(width - STEP);
    }
}
