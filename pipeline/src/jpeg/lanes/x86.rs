//! [`Lanes`] in 256 and 512 bits.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one condition for all, stated once")]

use std::arch::x86_64::*;

use super::Lanes;

/// The methods that are one intrinsic each.
macro_rules! intrinsics {
    ($($name:ident = $intrinsic:ident;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: the trait's condition.
            unsafe { $intrinsic(self, other) }
        })*
    };
    (zip $($name:ident = $low:ident, $high:ident;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, other: Self) -> [Self; 2] {
            // SAFETY: the trait's condition.
            unsafe { [$low(self, other), $high(self, other)] }
        })*
    };
}

impl Lanes for __m256i {
    const BLOCKS: usize = 2;

    // SAFETY (all below): the trait's condition.
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load(rows: [*const i16; 4]) -> Self {
        unsafe { _mm256_set_m128i(_mm_load_si128(rows[1].cast()), _mm_load_si128(rows[0].cast())) }
    }
    #[inline(always)]
    unsafe fn repeat16(values: [*const i16; 4]) -> Self {
        unsafe { _mm256_set_m128i(_mm_set1_epi16(*values[1]), _mm_set1_epi16(*values[0])) }
    }
    #[inline(always)]
    unsafe fn set16(value: i16) -> Self {
        unsafe { _mm256_set1_epi16(value) }
    }
    #[inline(always)]
    unsafe fn set32(value: i32) -> Self {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn shift16<const N: u32>(self) -> Self {
        unsafe { _mm256_sra_epi16(self, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    unsafe fn shift32<const N: u32>(self) -> Self {
        unsafe { _mm256_sra_epi32(self, _mm_cvtsi32_si128(N as i32)) }
    }
    intrinsics! {
        zip
        zip8 = _mm256_unpacklo_epi8, _mm256_unpackhi_epi8;
        zip16 = _mm256_unpacklo_epi16, _mm256_unpackhi_epi16;
        zip32 = _mm256_unpacklo_epi32, _mm256_unpackhi_epi32;
        // Neighbours, whose products `pmaddwd` adds.
        pair = _mm256_unpacklo_epi16, _mm256_unpackhi_epi16;
    }
    #[inline(always)]
    unsafe fn dot(pair: [Self; 2], first: i32, second: i32) -> [Self; 2] {
        unsafe {
            let weights = Self::set32((first & 0xFFFF) | second << 16);
            pair.map(|half| _mm256_madd_epi16(half, weights))
        }
    }
    intrinsics! {
        mul16 = _mm256_mullo_epi16;
        mulhi16 = _mm256_mulhi_epi16;
        sub16 = _mm256_sub_epi16;
        adds16 = _mm256_adds_epi16;
        add32 = _mm256_add_epi32;
        sub32 = _mm256_sub_epi32;
        pack32 = _mm256_packs_epi32;
        pack16 = _mm256_packus_epi16;
    }
    #[inline(always)]
    unsafe fn store_rows(self, to: *mut u8, stride: usize) {
        unsafe {
            let rows = _mm256_permute4x64_epi64::<0b11_01_10_00>(self);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(rows));
            _mm_storeu_si128(to.add(stride).cast(), _mm256_extracti128_si256::<1>(rows));
        }
    }
}

impl Lanes for __m512i {
    const BLOCKS: usize = 4;

    // SAFETY (all below): the trait's condition.
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load(rows: [*const i16; 4]) -> Self {
        unsafe {
            let low = <__m256i as Lanes>::load([rows[0], rows[1], rows[0], rows[1]]);
            let high = <__m256i as Lanes>::load([rows[2], rows[3], rows[2], rows[3]]);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn repeat16(values: [*const i16; 4]) -> Self {
        unsafe {
            let low = <__m256i as Lanes>::repeat16([values[0], values[1], values[0], values[1]]);
            let high = <__m256i as Lanes>::repeat16([values[2], values[3], values[2], values[3]]);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
    #[inline(always)]
    unsafe fn set16(value: i16) -> Self {
        unsafe { _mm512_set1_epi16(value) }
    }
    #[inline(always)]
    unsafe fn set32(value: i32) -> Self {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn shift16<const N: u32>(self) -> Self {
        unsafe { _mm512_srai_epi16::<N>(self) }
    }
    #[inline(always)]
    unsafe fn shift32<const N: u32>(self) -> Self {
        unsafe { _mm512_srai_epi32::<N>(self) }
    }
    intrinsics! {
        zip
        zip8 = _mm512_unpacklo_epi8, _mm512_unpackhi_epi8;
        zip16 = _mm512_unpacklo_epi16, _mm512_unpackhi_epi16;
        zip32 = _mm512_unpacklo_epi32, _mm512_unpackhi_epi32;
        // Neighbours, whose products `pmaddwd` adds.
        pair = _mm512_unpacklo_epi16, _mm512_unpackhi_epi16;
    }
    #[inline(always)]
    unsafe fn dot(pair: [Self; 2], first: i32, second: i32) -> [Self; 2] {
        unsafe {
            let weights = Self::set32((first & 0xFFFF) | second << 16);
            pair.map(|half| _mm512_madd_epi16(half, weights))
        }
    }
    intrinsics! {
        mul16 = _mm512_mullo_epi16;
        mulhi16 = _mm512_mulhi_epi16;
        sub16 = _mm512_sub_epi16;
        adds16 = _mm512_adds_epi16;
        add32 = _mm512_add_epi32;
        sub32 = _mm512_sub_epi32;
        pack32 = _mm512_packs_epi32;
        pack16 = _mm512_packus_epi16;
    }
    #[inline(always)]
    unsafe fn store_rows(self, to: *mut u8, stride: usize) {
        unsafe {
            let order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
            let rows = _mm512_permutexvar_epi64(order, self);
            _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(rows));
            _mm256_storeu_si256(to.add(stride).cast(), _mm512_extracti64x4_epi64::<1>(rows));
        }
    }
}
