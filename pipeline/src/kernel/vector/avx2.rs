//! [`Vector`] in 256 bits.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one condition for all, stated once")]

use std::arch::x86_64::*;

use super::Vector;

/// A vector of 16 elements.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(__m256i);

impl Vector for Avx2 {
    const LEN: usize = 16;

    #[inline(always)]
    unsafe fn load_pairs(rows: &[&[u8]], row: usize, at: usize) -> Self {
        // SAFETY: the caller's rows have 16 bytes from `at` on.
        unsafe {
            let low = _mm_loadu_si128(rows[row].as_ptr().add(at).cast());
            let high = _mm_loadu_si128(rows[row + 8].as_ptr().add(at).cast());
            Avx2(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1))
        }
    }

    // SAFETY (all below): the trait's callers know that the CPU has AVX2, and
    // that pointers have 32 (`store_lane`, `load_bytes`, `store_bytes`: 16, `splat_pair`: 4) bytes
    // behind them.
    #[inline(always)]
    unsafe fn load(from: *const i16) -> Self {
        Avx2(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        Avx2(unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        unsafe {
            let lanes = _mm256_packus_epi16(self.0, self.0);
            let bytes = _mm256_permute4x64_epi64::<0b10_00>(lanes);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
        }
    }
    #[inline(always)]
    unsafe fn pair_products(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_madd_epi16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn splat32(value: i32) -> Self {
        Avx2(unsafe { _mm256_set1_epi32(value) })
    }
    #[inline(always)]
    unsafe fn add32(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_add_epi32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn shl32<const N: u32>(self) -> Self {
        Avx2(unsafe { _mm256_sll_epi32(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn sar32<const N: u32>(self) -> Self {
        Avx2(unsafe { _mm256_sra_epi32(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn narrow(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_packs_epi32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i16) {
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_lane(self, lane: usize, to: *mut i16) {
        unsafe {
            match lane {
                0 => _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(self.0)),
                _ => _mm_storeu_si128(to.cast(), _mm256_extracti128_si256(self.0, 1)),
            }
        }
    }
    #[inline(always)]
    unsafe fn splat(value: i16) -> Self {
        Avx2(unsafe { _mm256_set1_epi16(value) })
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const [i16; 2]) -> Self {
        Avx2(unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_add_epi16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mulhrs(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_mulhrs_epi16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn clamp(self, most: Self) -> Self {
        unsafe {
            let positive = _mm256_max_epi16(self.0, _mm256_setzero_si256());
            Avx2(_mm256_min_epi16(positive, most.0))
        }
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(self) -> Self {
        Avx2(unsafe { _mm256_sll_epi16(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(self) -> Self {
        Avx2(unsafe { _mm256_srl_epi16(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_and_si256(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn zip16(self, other: Self) -> [Self; 2] {
        unsafe {
            [
                Avx2(_mm256_unpacklo_epi16(self.0, other.0)),
                Avx2(_mm256_unpackhi_epi16(self.0, other.0)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zip32(self, other: Self) -> [Self; 2] {
        unsafe {
            [
                Avx2(_mm256_unpacklo_epi32(self.0, other.0)),
                Avx2(_mm256_unpackhi_epi32(self.0, other.0)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zip64(self, other: Self) -> [Self; 2] {
        unsafe {
            [
                Avx2(_mm256_unpacklo_epi64(self.0, other.0)),
                Avx2(_mm256_unpackhi_epi64(self.0, other.0)),
            ]
        }
    }
}
