//! [`Lanes`] in the 128 bits of NEON: one block.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one condition for all, stated once")]

use std::arch::aarch64::*;

use super::Lanes;

// SAFETY (all below): every aarch64 CPU has NEON; for pointers the trait's condition.

/// The same bits as 32-bit elements.
#[inline(always)]
fn wide(v: int16x8_t) -> int32x4_t {
    unsafe { vreinterpretq_s32_s16(v) }
}

#[inline(always)]
fn of_wide(v: int32x4_t) -> int16x8_t {
    unsafe { vreinterpretq_s16_s32(v) }
}

#[inline(always)]
fn bytes(v: int16x8_t) -> uint8x16_t {
    unsafe { vreinterpretq_u8_s16(v) }
}

#[inline(always)]
fn of_bytes(v: uint8x16_t) -> int16x8_t {
    unsafe { vreinterpretq_s16_u8(v) }
}

impl Lanes for int16x8_t {
    const BLOCKS: usize = 1;

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        unsafe { of_bytes(vld1q_u8(from)) }
    }
    #[inline(always)]
    unsafe fn load(rows: [*const i16; 4]) -> Self {
        unsafe { vld1q_s16(rows[0]) }
    }
    #[inline(always)]
    unsafe fn repeat16(values: [*const i16; 4]) -> Self {
        unsafe { vdupq_n_s16(*values[0]) }
    }
    #[inline(always)]
    unsafe fn set16(value: i16) -> Self {
        unsafe { vdupq_n_s16(value) }
    }
    #[inline(always)]
    unsafe fn set32(value: i32) -> Self {
        unsafe { of_wide(vdupq_n_s32(value)) }
    }
    #[inline(always)]
    unsafe fn zip8(self, other: Self) -> [Self; 2] {
        unsafe {
            let (a, b) = (bytes(self), bytes(other));
            [of_bytes(vzip1q_u8(a, b)), of_bytes(vzip2q_u8(a, b))]
        }
    }
    #[inline(always)]
    unsafe fn zip16(self, other: Self) -> [Self; 2] {
        unsafe { [vzip1q_s16(self, other), vzip2q_s16(self, other)] }
    }
    #[inline(always)]
    unsafe fn zip32(self, other: Self) -> [Self; 2] {
        unsafe {
            let (a, b) = (wide(self), wide(other));
            [of_wide(vzip1q_s32(a, b)), of_wide(vzip2q_s32(a, b))]
        }
    }
    /// As they are: the products of both are added where they are made.
    #[inline(always)]
    unsafe fn pair(self, other: Self) -> [Self; 2] {
        [self, other]
    }
    #[inline(always)]
    unsafe fn dot([a, b]: [Self; 2], first: i32, second: i32) -> [Self; 2] {
        unsafe {
            let (first, second) = (first as i16, second as i16);
            let low = vmull_n_s16(vget_low_s16(a), first);
            let high = vmull_high_n_s16(a, first);
            [
                of_wide(vmlal_n_s16(low, vget_low_s16(b), second)),
                of_wide(vmlal_high_n_s16(high, b, second)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn mul16(self, other: Self) -> Self {
        unsafe { vmulq_s16(self, other) }
    }
    #[inline(always)]
    unsafe fn mulhi16(self, other: Self) -> Self {
        unsafe {
            let low = vshrn_n_s32::<16>(vmull_s16(vget_low_s16(self), vget_low_s16(other)));
            vshrn_high_n_s32::<16>(low, vmull_high_s16(self, other))
        }
    }
    #[inline(always)]
    unsafe fn sub16(self, other: Self) -> Self {
        unsafe { vsubq_s16(self, other) }
    }
    #[inline(always)]
    unsafe fn adds16(self, other: Self) -> Self {
        unsafe { vqaddq_s16(self, other) }
    }
    #[inline(always)]
    unsafe fn add32(self, other: Self) -> Self {
        unsafe { of_wide(vaddq_s32(wide(self), wide(other))) }
    }
    #[inline(always)]
    unsafe fn sub32(self, other: Self) -> Self {
        unsafe { of_wide(vsubq_s32(wide(self), wide(other))) }
    }
    #[inline(always)]
    unsafe fn shift16<const N: u32>(self) -> Self {
        unsafe { vshlq_s16(self, vdupq_n_s16(-(N as i16))) }
    }
    #[inline(always)]
    unsafe fn shift32<const N: u32>(self) -> Self {
        unsafe { of_wide(vshlq_s32(wide(self), vdupq_n_s32(-(N as i32)))) }
    }
    #[inline(always)]
    unsafe fn pack32(self, other: Self) -> Self {
        unsafe { vqmovn_high_s32(vqmovn_s32(wide(self)), wide(other)) }
    }
    #[inline(always)]
    unsafe fn pack16(self, other: Self) -> Self {
        unsafe { of_bytes(vqmovun_high_s16(vqmovun_s16(self), other)) }
    }
    #[inline(always)]
    unsafe fn store_rows(self, to: *mut u8, stride: usize) {
        unsafe {
            vst1_u8(to, vget_low_u8(bytes(self)));
            vst1_u8(to.add(stride), vget_high_u8(bytes(self)));
        }
    }
}
