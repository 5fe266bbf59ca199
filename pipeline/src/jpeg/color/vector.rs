//! Colour conversion of as many pixels at a time as a vector has bytes: 16 with NEON, 32 with
//! AVX2, 64 with AVX-512.

use super::super::lanes::Lanes;
use super::{CB_TO_B, CB_TO_G, CR_TO_G, CR_TO_R};

/// `STEP` pixels at a time, which `store` interleaves.
///
/// # Safety
/// The CPU has `V`'s instructions and those of `store`, which writes `3 * STEP`
/// bytes; the rows have equal lengths of at least `STEP`, `rgb` three times that.
#[inline(always)]
pub(super) unsafe fn steps<V: Lanes, const STEP: usize>(
    y: &[u8],
    cb: &[u8],
    cr: &[u8],
    rgb: &mut [u8],
    store: impl Fn([V; 3], *mut u8),
) {
    let width = y.len();
    let mut x = 0;
    loop {
        // SAFETY: `x + STEP <= width` here and below.
        unsafe {
            let at = |row: &[u8]| V::load_bytes(row.as_ptr().add(x));
            store(convert(at(y), at(cb), at(cr)), rgb.as_mut_ptr().add(3 * x));
        }
        if x + STEP == width {
            return;
        }
        // The last step overlaps the one before rather than being shorter.
        x = (x + STEP).min(width - STEP);
    }
}

/// Y, Cb, Cr to R, G, B.
///
/// # Safety
/// The CPU has `V`'s instructions, here and below.
#[inline(always)]
unsafe fn convert<V: Lanes>(y: V, cb: V, cr: V) -> [V; 3] {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        let zero = V::set16(0);
        let ([y0, y1], [cb0, cb1], [cr0, cr1]) = (y.zip8(zero), cb.zip8(zero), cr.zip8(zero));
        let ([r0, g0, b0], [r1, g1, b1]) = (convert16(y0, cb0, cr0), convert16(y1, cb1, cr1));
        [r0.pack16(r1), g0.pack16(g1), b0.pack16(b1)]
    }
}

/// The same in 16 bits, before saturation to bytes: sums stay far below what saturates there.
///
/// # Safety
/// See [`convert`].
#[inline(always)]
unsafe fn convert16<V: Lanes>(y: V, cb: V, cr: V) -> [V; 3] {
    // SAFETY: see `convert`.
    unsafe {
        let center = V::set16(128);
        let (cb, cr) = (cb.sub16(center), cr.sub16(center));
        let (cb2, cr2) = (cb.adds16(cb), cr.adds16(cr));
        // The weights' fractions: 1.402 = 1 + 0.402, 1.772 = 2 - 0.228.
        let r = rounded(cr2, CR_TO_R - 65536).adds16(cr);
        let b = rounded(cb2, CB_TO_B - 131072).adds16(cb2);
        // -0.71414 = 0.28586 - 1, which fits 16 bits.
        let half = V::set32(1 << 15);
        let [low, high] = V::dot(cb.pair(cr), -CB_TO_G, 65536 - CR_TO_G)
            .map(|sum| sum.add32(half).shift32::<16>());
        let g = low.pack32(high).sub16(cr);
        [y.adds16(r), y.adds16(g), y.adds16(b)]
    }
}

/// `(doubled / 2 * weight + 2^15) >> 16`: floor(floor(2 x w / 2^16) + 1) / 2).
///
/// # Safety
/// See [`convert`].
#[inline(always)]
unsafe fn rounded<V: Lanes>(doubled: V, weight: i32) -> V {
    // SAFETY: see `convert`.
    unsafe { doubled.mulhi16(V::set16(weight as i16)).adds16(V::set16(1)).shift16::<1>() }
}
