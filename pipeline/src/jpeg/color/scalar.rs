//! The specification of the colour conversion.

use super::{CB_TO_B, CB_TO_G, CR_TO_G, CR_TO_R};

/// See [`super::ycc_row`].
pub(super) fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    for (((pixel, &y), &cb), &cr) in rgb.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let r = y + ((CR_TO_R * cr + HALF) >> 16);
        let g = y + ((-CB_TO_G * cb - CR_TO_G * cr + HALF) >> 16);
        let b = y + ((CB_TO_B * cb + HALF) >> 16);
        pixel.copy_from_slice(&[r, g, b].map(|level| level.clamp(0, 255) as u8));
    }
}
