//! The last pass: finished rows to their place, type and layout in the output.

use half::bf16;

use super::row::Rows;
use crate::level::{Level, multiversion};

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
fn planes<T: Element>(rows: &Rows<'_>, affine: &Affine, width: usize, out: [&mut [T]; 3]) {
    let Affine { scale, offset } = *affine;
    let [r, g, b] = out.map(|plane| plane.chunks_exact_mut(width));
    for (values, ((r, g), b)) in rows.iter().zip(r.zip(g).zip(b)) {
        for (channel, out) in [r, g, b].into_iter().enumerate() {
            for (to, &value) in out.iter_mut().zip(values[channel]) {
                *to = T::of(value, scale[channel], offset[channel]);
            }
        }
    }
}

#[inline(always)]
fn interleaved<T: Element>(rows: &Rows<'_>, affine: &Affine, width: usize, out: &mut [T]) {
    let Affine { scale, offset } = *affine;
    for ([r, g, b], out) in rows.iter().zip(out.chunks_exact_mut(3 * width)) {
        for (to, ((&r, &g), &b)) in out.chunks_exact_mut(3).zip(r.iter().zip(g).zip(b)) {
            to[0] = T::of(r, scale[0], offset[0]);
            to[1] = T::of(g, scale[1], offset[1]);
            to[2] = T::of(b, scale[2], offset[2]);
        }
    }
}

/// An element type with its compiled stores.
pub trait Store: Element {
    /// Rows of `width` pixels to rows of planes.
    fn planes(level: Level, rows: &Rows<'_>, affine: &Affine, width: usize, out: [&mut [Self]; 3]);
    /// Rows of `width` pixels, channels interleaved.
    fn interleaved(level: Level, rows: &Rows<'_>, affine: &Affine, width: usize, out: &mut [Self]);
}

macro_rules! store {
    ($type:ty) => {
        impl Store for $type {
            fn planes(
                level: Level,
                rows: &Rows<'_>,
                affine: &Affine,
                width: usize,
                out: [&mut [Self]; 3],
            ) {
                multiversion! {
                    fn compiled(
                        rows: &Rows<'_>,
                        affine: &Affine,
                        width: usize,
                        out: [&mut [$type]; 3],
                    ) = planes
                }
                compiled(level, rows, affine, width, out);
            }
            fn interleaved(
                level: Level,
                rows: &Rows<'_>,
                affine: &Affine,
                width: usize,
                out: &mut [Self],
            ) {
                multiversion! {
                    fn compiled(
                        rows: &Rows<'_>,
                        affine: &Affine,
                        width: usize,
                        out: &mut [$type],
                    ) = interleaved
                }
                compiled(level, rows, affine, width, out);
            }
        }
    };
}
store!(f32);
store!(bf16);
store!(u8);
