//! The last pass: a finished row to its place, type and layout in the output.

use half::bf16;

use super::row::Row;
use crate::level::multiversion;

/// `value * scale + offset` for each channel: `(value / 255 - mean) / std`.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// 1 / (255 std).
    pub scale: [f32; 3],
    /// -mean / std.
    pub offset: [f32; 3],
}

impl Affine {
    /// From the mean and standard deviation of values in 0..=1.
    pub fn normalize(mean: [f32; 3], std: [f32; 3]) -> Self {
        let each = |f: &dyn Fn(f64, f64) -> f64| {
            std::array::from_fn(|c| f(f64::from(mean[c]), f64::from(std[c])) as f32)
        };
        Affine {
            scale: each(&|_, std| 1.0 / (255.0 * std)),
            offset: each(&|mean, std| -mean / std),
        }
    }
}

/// An element that views are made of.
pub trait Element: Copy {
    /// A pixel's value, 0..=255, as this type. A multiplication and an addition,
    /// not fused, so that every instruction set gives the same bits.
    fn of(value: i16, scale: f32, offset: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn of(value: i16, scale: f32, offset: f32) -> Self {
        f32::from(value) * scale + offset
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn of(value: i16, scale: f32, offset: f32) -> Self {
        let bits = (f32::from(value) * scale + offset).to_bits();
        // Finite, so nearest-even rounding is an addition.
        bf16::from_bits(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16)
    }
}

impl Element for u8 {
    #[inline(always)]
    fn of(value: i16, _: f32, _: f32) -> Self {
        value as u8
    }
}

/// Has the CPU fetch the lines of `out`, which are to be written soon. Changes nothing.
pub fn prefetch<T>(out: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let start = out.as_ptr().cast::<i8>();
        for at in (0..size_of_val(out)).step_by(64) {
            // SAFETY: a hint, for an address within the slice.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(start.add(at)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = out;
}

#[inline(always)]
fn plane<T: Element>(values: &[i16], scale: f32, offset: f32, out: &mut [T]) {
    for (to, &value) in out.iter_mut().zip(values) {
        *to = T::of(value, scale, offset);
    }
}

#[inline(always)]
fn interleaved<T: Element>(row: &Row<'_>, affine: &Affine, out: &mut [T]) {
    let Affine { scale, offset } = *affine;
    let pixels = row.r.iter().zip(row.g.iter()).zip(row.b.iter());
    for (to, ((&r, &g), &b)) in out.chunks_exact_mut(3).zip(pixels) {
        to[0] = T::of(r, scale[0], offset[0]);
        to[1] = T::of(g, scale[1], offset[1]);
        to[2] = T::of(b, scale[2], offset[2]);
    }
}

multiversion! {
    fn plane_f32(values: &[i16], scale: f32, offset: f32, out: &mut [f32]) = plane
}
multiversion! {
    fn plane_bf16(values: &[i16], scale: f32, offset: f32, out: &mut [bf16]) = plane
}
multiversion! {
    fn plane_u8(values: &[i16], scale: f32, offset: f32, out: &mut [u8]) = plane
}
multiversion! {
    fn interleaved_f32(row: &Row<'_>, affine: &Affine, out: &mut [f32]) = interleaved
}
multiversion! {
    fn interleaved_bf16(row: &Row<'_>, affine: &Affine, out: &mut [bf16]) = interleaved
}
multiversion! {
    fn interleaved_u8(row: &Row<'_>, affine: &Affine, out: &mut [u8]) = interleaved
}

/// An element type with its compiled stores.
pub trait Store: Element {
    /// One row of one plane.
    fn plane(level: crate::Level, values: &[i16], scale: f32, offset: f32, out: &mut [Self]);
    /// One row, channels interleaved.
    fn interleaved(level: crate::Level, row: &Row<'_>, affine: &Affine, out: &mut [Self]);
}

macro_rules! store {
    ($type:ty, $plane:ident, $interleaved:ident) => {
        impl Store for $type {
            fn plane(
                level: crate::Level,
                values: &[i16],
                scale: f32,
                offset: f32,
                out: &mut [Self],
            ) {
                $plane(level, values, scale, offset, out)
            }
            fn interleaved(level: crate::Level, row: &Row<'_>, affine: &Affine, out: &mut [Self]) {
                $interleaved(level, row, affine, out)
            }
        }
    };
}
store!(f32, plane_f32, interleaved_f32);
store!(bf16, plane_bf16, interleaved_bf16);
store!(u8, plane_u8, interleaved_u8);
