//! One row of component samples to interleaved RGB.
//!
//! YCbCr follows jdcolor.c of libjpeg: 16-bit fixed point, rounded to nearest,
//! clamped. The vector path computes the same integers.

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::level::{Kind, Level};

/// 1.402, 1.772, 0.71414 and 0.34414 times 2^16, as libjpeg rounds them.
const CR_TO_R: i32 = 91881;
const CB_TO_B: i32 = 116130;
const CR_TO_G: i32 = 46802;
const CB_TO_G: i32 = 22554;

/// Converts `rgb.len() / 3` pixels of Y, Cb, Cr.
///
/// # Panics
/// When a component row is shorter than that.
pub(crate) fn ycc_row(level: Level, y: &[u8], cb: &[u8], cr: &[u8], rgb: &mut [u8]) {
    let width = rgb.len() / 3;
    let (y, cb, cr) = (&y[..width], &cb[..width], &cr[..width]);
    match level.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of this kind exists only where AVX2, AVX-512 F and BW were found;
        // the rows were cut to equal lengths above.
        Kind::Avx512 if width >= 64 => unsafe {
            x86::ycc_row_wide(y, cb, cr, rgb);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of these kinds exists only where AVX2 was found; as above.
        Kind::Avx2 | Kind::Avx512 if width >= 32 => unsafe { x86::ycc_row(y, cb, cr, rgb) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 CPU has NEON; as above.
        Kind::Neon if width >= 16 => unsafe { neon::ycc_row(y, cb, cr, rgb) },
        _ => scalar::ycc_row(y, cb, cr, rgb),
    }
}

/// Interleaves `rgb.len() / 3` pixels of three planes.
///
/// # Panics
/// When a component row is shorter than that.
pub(crate) fn rgb_row(r: &[u8], g: &[u8], b: &[u8], rgb: &mut [u8]) {
    let width = rgb.len() / 3;
    let (r, g, b) = (&r[..width], &g[..width], &b[..width]);
    for (((pixel, &r), &g), &b) in rgb.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
        pixel.copy_from_slice(&[r, g, b]);
    }
}

/// Repeats each of `rgb.len() / 3` gray samples.
///
/// # Panics
/// When the row is shorter than that.
pub(crate) fn gray_row(gray: &[u8], rgb: &mut [u8]) {
    let gray = &gray[..rgb.len() / 3];
    for (pixel, &level) in rgb.chunks_exact_mut(3).zip(gray) {
        pixel.fill(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_equals_scalar_for_all_chroma_and_awkward_widths() {
        let samples = 1 << 16;
        let cb: Vec<u8> = (0..samples).map(|i| i as u8).collect();
        let cr: Vec<u8> = (0..samples).map(|i| (i >> 8) as u8).collect();
        for luma in [0, 1, 77, 128, 254, 255] {
            let y: Vec<u8> = (0..samples).map(|i| (luma + i / 7919) as u8).collect();
            for width in (1..200).chain([samples]) {
                let mut expected = vec![0; width * 3];
                scalar::ycc_row(&y[..width], &cb[..width], &cr[..width], &mut expected);
                for level in Level::available() {
                    let mut rgb = vec![0; width * 3];
                    ycc_row(level, &y, &cb, &cr, &mut rgb);
                    assert!(rgb == expected, "{level:?}, width {width}");
                }
            }
        }
    }
}
