//! Colour operations on one row, in place: Pillow's 8-bit results within a level.
//!
//! Pillow blends in floating point and cuts the fraction off; here factors are
//! fixed-point, as many bits as a 16-bit multiplication leaves. Each operation
//! ends in whole values 0..=255, as Pillow's does, because what follows is
//! defined on those.

mod factor;
mod hue;

use super::level::multiversion;
use super::row::Row;
pub use factor::Factor;
pub use hue::{Shift, hue};

/// 65536 times the weights of ITU-R 601-2, as Pillow rounds them
/// (`L24` in its `Convert.c`).
const GRAY: [u16; 3] = [19595, 38470, 7471];

/// The high half of a signed 16-bit product.
#[inline(always)]
fn mulhi(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b)) >> 16) as i16
}

/// The gray of a pixel: Pillow's `(19595 r + 38470 g + 7471 b + 32768) >> 16`,
/// with each product cut to 8 fractional bits.
#[inline(always)]
fn gray_of(r: i16, g: i16, b: i16) -> i16 {
    let part =
        |v: i16, weight: u16| ((u32::from((v as u16) << 8) * u32::from(weight)) >> 16) as u16;
    // 129: one half, and what the three cuts lose on average.
    let sum = part(r, GRAY[0]) + part(g, GRAY[1]) + part(b, GRAY[2]) + 129;
    (sum >> 8) as i16
}

multiversion! {
    /// Scales the values by `factor` (0 to `MAX_FACTOR`).
    pub fn brightness(row: &mut Row<'_>, factor: f32) = brightness_inner
}

#[inline(always)]
fn brightness_inner(row: &mut Row<'_>, factor: f32) {
    let factor = Factor::new(factor);
    for plane in [&mut *row.r, &mut *row.g, &mut *row.b] {
        for v in plane {
            *v = (mulhi(*v << 7, factor.value) >> factor.shift).min(255);
        }
    }
}

multiversion! {
    /// Blends with the gray level `mean`: `mean + factor * (value - mean)`.
    pub fn contrast(row: &mut Row<'_>, factor: f32, mean: u8) = contrast_inner
}

#[inline(always)]
fn contrast_inner(row: &mut Row<'_>, factor: f32, mean: u8) {
    let fixed = Factor::new(factor);
    // Rounded up: the products are rounded down, and a value equal to the mean
    // must stay what it is.
    let unit = f32::from(1i16 << fixed.shift);
    let offset = (f32::from(mean) * (1.0 - factor) * unit).ceil() as i16;
    for plane in [&mut *row.r, &mut *row.g, &mut *row.b] {
        for v in plane {
            *v = ((mulhi(*v << 7, fixed.value) + offset) >> fixed.shift).clamp(0, 255);
        }
    }
}

multiversion! {
    /// Blends each pixel with its own gray: `gray + factor * (value - gray)`.
    pub fn saturation(row: &mut Row<'_>, factor: f32) = saturation_inner
}

#[inline(always)]
fn saturation_inner(row: &mut Row<'_>, factor: f32) {
    let factor = Factor::new(factor);
    for ((r, g), b) in row.r.iter_mut().zip(row.g.iter_mut()).zip(row.b.iter_mut()) {
        let gray = gray_of(*r, *g, *b);
        // The 1 makes up for the product being rounded down.
        let base = (gray << factor.shift) + 1;
        let blend = |v: i16| {
            let scaled = mulhi((v - gray) << 7, factor.value);
            ((base + scaled) >> factor.shift).clamp(0, 255)
        };
        (*r, *g, *b) = (blend(*r), blend(*g), blend(*b));
    }
}

multiversion! {
    /// Replaces each pixel by its gray.
    pub fn grayscale(row: &mut Row<'_>) = grayscale_inner
}

#[inline(always)]
fn grayscale_inner(row: &mut Row<'_>) {
    for ((r, g), b) in row.r.iter_mut().zip(row.g.iter_mut()).zip(row.b.iter_mut()) {
        let gray = gray_of(*r, *g, *b);
        (*r, *g, *b) = (gray, gray, gray);
    }
}

multiversion! {
    /// Inverts the values at or above `threshold`.
    pub fn solarize(row: &mut Row<'_>, threshold: u8) = solarize_inner
}

#[inline(always)]
fn solarize_inner(row: &mut Row<'_>, threshold: u8) {
    let threshold = i16::from(threshold);
    for plane in [&mut *row.r, &mut *row.g, &mut *row.b] {
        for v in plane {
            *v = if *v < threshold { *v } else { 255 - *v };
        }
    }
}

multiversion! {
    /// The sum of the gray values of the row, padding included: it must be 0
    /// where it is not to count.
    pub fn gray_sum(row: &Row<'_>) -> u64 = gray_sum_inner
}

#[inline(always)]
fn gray_sum_inner(row: &Row<'_>) -> u64 {
    let mut sum = 0u32;
    for ((r, g), b) in row.r.iter().zip(row.g.iter()).zip(row.b.iter()) {
        sum += gray_of(*r, *g, *b) as u32;
    }
    u64::from(sum)
}
