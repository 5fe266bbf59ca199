//! The triangle filters, 8 samples to 16 at a time.

use std::arch::aarch64::*;

/// Samples of one step; the narrowest row there is a step for.
pub(super) const STEP: usize = 8;

/// See [`super::h2`].
///
/// # Safety
/// `row.len()` must be `out.len() / 2 + 2`, and at least `STEP + 2`.
pub(super) unsafe fn h2(row: &[u8], out: &mut [u8]) {
    let width = row.len() - 2;
    let mut x = 0;
    loop {
        // SAFETY: every aarch64 CPU has NEON. `x + STEP <= width`, so
        // `x + 2 + STEP <= row.len()` and `2 x + 16 <= out.len()`.
        unsafe {
            let load = |at: usize| vld1_u8(row.as_ptr().add(at));
            let this = vmull_u8(load(x + 1), vdup_n_u8(3));
            let left = vaddw_u8(vaddq_u16(this, vdupq_n_u16(1)), load(x));
            let right = vaddw_u8(this, load(x + 2));
            let (even, odd) = (vshrn_n_u16::<2>(left), vrshrn_n_u16::<2>(right));
            vst2_u8(out.as_mut_ptr().add(2 * x), uint8x8x2_t(even, odd));
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
pub(super) unsafe fn h2v2(near: &[u8], far: &[u8], out: &mut [u8]) {
    let width = near.len() - 2;
    let mut x = 0;
    loop {
        // SAFETY: as in `h2`.
        unsafe {
            let load = |row: &[u8], at: usize| vld1_u8(row.as_ptr().add(at));
            let three = vdup_n_u8(3);
            let sum = |at: usize| vaddw_u8(vmull_u8(load(near, at), three), load(far, at));
            let this = vmulq_n_u16(sum(x + 1), 3);
            let left = vaddq_u16(this, sum(x));
            let right = vaddq_u16(vaddq_u16(this, vdupq_n_u16(7)), sum(x + 2));
            let (even, odd) = (vrshrn_n_u16::<4>(left), vshrn_n_u16::<4>(right));
            vst2_u8(out.as_mut_ptr().add(2 * x), uint8x8x2_t(even, odd));
        }
        if x + STEP == width {
            return;
        }
        x = (x + STEP).min(width - STEP);
    }
}
