//! Rows with NEON, which stores three vectors interleaved by itself.

use std::arch::aarch64::*;

use super::vector::steps;

/// A row, 16 pixels at a time; see [`super::ycc_row`].
///
/// # Safety
/// The rows must have equal lengths of at least 16, and `rgb` three times that.
pub(super) unsafe fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    let store = |rgb: [int16x8_t; 3], to: *mut u8| {
        // SAFETY: every aarch64 CPU has NEON; `steps` gives room for 48 bytes.
        unsafe {
            let [r, g, b] = rgb.map(|channel| vreinterpretq_u8_s16(channel));
            vst3q_u8(to, uint8x16x3_t(r, g, b));
        }
    };
    // SAFETY: every aarch64 CPU has NEON; the caller's promise.
    unsafe { steps::<int16x8_t, 16>(y, cb, cr, rgb, store) }
}
