//! [`Vector`] in 512 bits.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one condition for all, stated once")]

use std::arch::x86_64::*;

use super::Vector;

/// A vector of 32 elements.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(__m512i);

impl Vector for Avx512 {
    const LEN: usize = 32;

    #[inline(always)]
    unsafe fn load_pairs(rows: &[&[u8]], row: usize, at: usize) -> Self {
        // SAFETY: the caller's rows have 16 bytes from `at` on.
        unsafe {
            let lane = |l: usize| _mm_loadu_si128(rows[row + 8 * l].as_ptr().add(at).cast());
            let v = _mm512_castsi128_si512(lane(0));
            let v = _mm512_inserti32x4::<1>(v, lane(1));
            let v = _mm512_inserti32x4::<2>(v, lane(2));
            Avx512(_mm512_inserti32x4::<3>(v, lane(3)))
        }
    }

    // SAFETY (all below): the trait's callers know that the CPU has AVX-512 BW, and
    // that pointers have 64 (`load_bytes`, `store_bytes`: 32, `store_lane`: 16, `splat_pair`: 4)
    // bytes behind them.
    #[inline(always)]
    unsafe fn load(from: *const i16) -> Self {
        Avx512(unsafe { _mm512_loadu_si512(from.cast()) })
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        Avx512(unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        unsafe {
            let positive = _mm512_max_epi16(self.0, _mm512_setzero_si512());
            _mm256_storeu_si256(to.cast(), _mm512_cvtusepi16_epi8(positive));
        }
    }
    #[inline(always)]
    unsafe fn pair_products(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_madd_epi16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn splat32(value: i32) -> Self {
        Avx512(unsafe { _mm512_set1_epi32(value) })
    }
    #[inline(always)]
    unsafe fn add32(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_add_epi32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn shl32<const N: u32>(self) -> Self {
        Avx512(unsafe { _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn sar32<const N: u32>(self) -> Self {
        Avx512(unsafe { _mm512_sra_epi32(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn narrow(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_packs_epi32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i16) {
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_lane(self, lane: usize, to: *mut i16) {
        unsafe {
            match lane {
                0 => _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(self.0)),
                1 => _mm_storeu_si128(to.cast(), _mm512_extracti32x4_epi32(self.0, 1)),
                2 => _mm_storeu_si128(to.cast(), _mm512_extracti32x4_epi32(self.0, 2)),
                _ => _mm_storeu_si128(to.cast(), _mm512_extracti32x4_epi32(self.0, 3)),
            }
        }
    }
    #[inline(always)]
    unsafe fn splat(value: i16) -> Self {
        Avx512(unsafe { _mm512_set1_epi16(value) })
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const [i16; 2]) -> Self {
        Avx512(unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_add_epi16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mulhrs(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_mulhrs_epi16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn clamp(self, most: Self) -> Self {
        unsafe {
            let positive = _mm512_max_epi16(self.0, _mm512_setzero_si512());
            Avx512(_mm512_min_epi16(positive, most.0))
        }
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(self) -> Self {
        Avx512(unsafe { _mm512_sll_epi16(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(self) -> Self {
        Avx512(unsafe { _mm512_srl_epi16(self.0, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_and_si512(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn zip16(self, other: Self) -> [Self; 2] {
        unsafe {
            [
                Avx512(_mm512_unpacklo_epi16(self.0, other.0)),
                Avx512(_mm512_unpackhi_epi16(self.0, other.0)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zip32(self, other: Self) -> [Self; 2] {
        unsafe {
            [
                Avx512(_mm512_unpacklo_epi32(self.0, other.0)),
                Avx512(_mm512_unpackhi_epi32(self.0, other.0)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn zip64(self, other: Self) -> [Self; 2] {
        unsafe {
            [
                Avx512(_mm512_unpacklo_epi64(self.0, other.0)),
                Avx512(_mm512_unpackhi_epi64(self.0, other.0)),
            ]
        }
    }
}
