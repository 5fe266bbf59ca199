//! [`Vector`] in the 128 bits of NEON.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one condition for all, stated once")]

use std::arch::aarch64::*;

use super::Vector;

/// A vector of 8 elements.
#[derive(Clone, Copy, Debug)]
pub struct Neon(int16x8_t);

impl Neon {
    /// The same bits as 32-bit elements.
    #[inline(always)]
    fn wide(self) -> int32x4_t {
        unsafe { vreinterpretq_s32_s16(self.0) }
    }

    #[inline(always)]
    fn of_wide(wide: int32x4_t) -> Self {
        Neon(unsafe { vreinterpretq_s16_s32(wide) })
    }
}

// SAFETY (all above and below): every aarch64 CPU has NEON; the trait's callers know that pointers
// have 16 (`load_bytes`, `store_bytes`: 8, `splat_pair`: 4) bytes behind them.
impl Vector for Neon {
    const LEN: usize = 8;

    #[inline(always)]
    unsafe fn load_pairs(rows: &[&[u8]], row: usize, at: usize) -> Self {
        // SAFETY: the caller's rows have 16 bytes from `at` on.
        Neon(unsafe { vreinterpretq_s16_u8(vld1q_u8(rows[row].as_ptr().add(at))) })
    }
    #[inline(always)]
    unsafe fn load(from: *const i16) -> Self {
        Neon(unsafe { vld1q_s16(from) })
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        Neon(unsafe { vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from))) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i16) {
        unsafe { vst1q_s16(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        unsafe { vst1_u8(to, vqmovun_s16(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_lane(self, _: usize, to: *mut i16) {
        unsafe { vst1q_s16(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: i16) -> Self {
        Neon(unsafe { vdupq_n_s16(value) })
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const [i16; 2]) -> Self {
        Neon::of_wide(unsafe { vdupq_n_s32(from.cast::<i32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Neon(unsafe { vaddq_s16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mulhrs(self, other: Self) -> Self {
        Neon(unsafe { vqrdmulhq_s16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn pair_products(self, other: Self) -> Self {
        unsafe {
            let low = vmull_s16(vget_low_s16(self.0), vget_low_s16(other.0));
            Neon::of_wide(vpaddq_s32(low, vmull_high_s16(self.0, other.0)))
        }
    }
    #[inline(always)]
    unsafe fn splat32(value: i32) -> Self {
        Neon::of_wide(unsafe { vdupq_n_s32(value) })
    }
    #[inline(always)]
    unsafe fn add32(self, other: Self) -> Self {
        Neon::of_wide(unsafe { vaddq_s32(self.wide(), other.wide()) })
    }
    #[inline(always)]
    unsafe fn shl32<const N: u32>(self) -> Self {
        Neon::of_wide(unsafe { vshlq_s32(self.wide(), vdupq_n_s32(N as i32)) })
    }
    #[inline(always)]
    unsafe fn sar32<const N: u32>(self) -> Self {
        Neon::of_wide(unsafe { vshlq_s32(self.wide(), vdupq_n_s32(-(N as i32))) })
    }
    #[inline(always)]
    unsafe fn narrow(self, other: Self) -> Self {
        Neon(unsafe { vqmovn_high_s32(vqmovn_s32(self.wide()), other.wide()) })
    }
    #[inline(always)]
    unsafe fn clamp(self, most: Self) -> Self {
        Neon(unsafe { vminq_s16(vmaxq_s16(self.0, vdupq_n_s16(0)), most.0) })
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(self) -> Self {
        Neon(unsafe { vshlq_s16(self.0, vdupq_n_s16(N as i16)) })
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(self) -> Self {
        let shifted = unsafe { vshlq_u16(vreinterpretq_u16_s16(self.0), vdupq_n_s16(-(N as i16))) };
        Neon(unsafe { vreinterpretq_s16_u16(shifted) })
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        Neon(unsafe { vandq_s16(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn zip16(self, other: Self) -> [Self; 2] {
        unsafe { [Neon(vzip1q_s16(self.0, other.0)), Neon(vzip2q_s16(self.0, other.0))] }
    }
    #[inline(always)]
    unsafe fn zip32(self, other: Self) -> [Self; 2] {
        let (a, b) = (self.wide(), other.wide());
        unsafe { [Neon::of_wide(vzip1q_s32(a, b)), Neon::of_wide(vzip2q_s32(a, b))] }
    }
    #[inline(always)]
    unsafe fn zip64(self, other: Self) -> [Self; 2] {
        unsafe {
            let (a, b) = (vreinterpretq_s64_s16(self.0), vreinterpretq_s64_s16(other.0));
            [vzip1q_s64(a, b), vzip2q_s64(a, b)].map(|zipped| Neon(vreinterpretq_s16_s64(zipped)))
        }
    }
}
