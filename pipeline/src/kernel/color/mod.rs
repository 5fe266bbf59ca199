//! Colour operations on rows, in place: Pillow's results, bit for bit.
//!
//! Each operation ends in whole values 0..=255, as Pillow's does, because what follows is defined
//! on those.

mod hsv;
#[cfg(target_arch = "x86_64")]
mod table;
mod turn;

use super::MAX_FACTOR;
use super::row::{LANES, Rows};
use crate::level::{Level, multiversion};
pub use hsv::hue;
pub use turn::{Sixths, turn_hue};

/// A hue shift in Pillow's units: 255ths of a turn, cut off, modulo 256.
#[inline(always)]
pub fn hue_shift(turns: f32) -> i16 {
    (turns * 255.0) as i16
}

/// The gray of a pixel: Pillow's `(19595 r + 38470 g + 7471 b + 32768) >> 16` (`L24` in its
/// `Convert.c`), the weights of ITU-R 601-2. In 16 bits: the weights are cut into their high and
/// low bytes, and neither sum is more than 65,280.
#[inline(always)]
fn gray_of(r: i16, g: i16, b: i16) -> i16 {
    let (r, g, b) = (r as u16, g as u16, b as u16);
    let high = r * 76 + g * 150 + b * 29;
    let low = r * 139 + g * 70 + b * 47;
    ((high + (low >> 8) + 128) >> 8) as i16
}

/// Pillow's `Image.blend` of two values: `from + factor * (to - from)` in single precision, cut
/// off, within 0..=255.
#[inline(always)]
fn blend(from: i16, to: i16, factor: f32) -> i16 {
    whole(f32::from(from) + factor * f32::from(to - from)).clamp(0, 255)
}

/// `value` without its fraction.
#[inline(always)]
fn whole(value: f32) -> i16 {
    // SAFETY: here values are made of few products of 16-bit numbers, quotients of these by 1 or
    // more, and a factor that was found to be small (`checked`): they are numbers, and far from
    // 2^31.
    (unsafe { value.to_int_unchecked::<i32>() }) as i16
}

/// The factor of a blend.
///
/// # Panics
/// When it is negative, above `MAX_FACTOR`, or no number.
fn checked(factor: f32) -> f32 {
    assert!((0.0..=MAX_FACTOR as f32).contains(&factor), "factor {factor} is out of range");
    factor
}

/// Scales the values by `factor` (0 to `MAX_FACTOR`).
pub fn brightness(level: Level, rows: &mut Rows<'_>, factor: f32) {
    blend_with(level, rows, factor, 0);
}

/// Blends with the gray level `mean`: `mean + factor * (value - mean)`.
pub fn contrast(level: Level, rows: &mut Rows<'_>, factor: f32, mean: u8) {
    blend_with(level, rows, factor, mean);
}

/// Blends with a gray.
fn blend_with(level: Level, rows: &mut Rows<'_>, factor: f32, gray: u8) {
    let (factor, gray) = (checked(factor), i16::from(gray));
    #[cfg(target_arch = "x86_64")]
    if level.has_vbmi() {
        // What becomes of each value, where there are far more than 256 of them: half the time.
        let mut table = std::array::from_fn(|value| value as i16);
        blend_all(level, &mut table, factor, gray);
        // SAFETY: a level says so only where the CPU was found to have AVX-512 VBMI, and the kind's
        // features (`Level::available`).
        unsafe { table::replace(rows.planes, &table) };
        return;
    }
    blend_all(level, rows.planes, factor, gray);
}

multiversion! {
    /// Blends values with a gray.
    fn blend_all(values: &mut [i16], factor: f32, gray: i16) = blend_all_inner
}

#[inline(always)]
fn blend_all_inner(values: &mut [i16], factor: f32, gray: i16) {
    for value in values {
        *value = blend(gray, *value, factor);
    }
}

multiversion! {
    /// Blends each pixel with its own gray: `gray + factor * (value - gray)`.
    pub fn saturation(rows: &mut Rows<'_>, factor: f32) = saturation_inner
}

#[inline(always)]
fn saturation_inner(rows: &mut Rows<'_>, factor: f32) {
    let factor = checked(factor);
    rows.map(|r, g, b| {
        let gray = gray_of(r, g, b);
        (blend(gray, r, factor), blend(gray, g, factor), blend(gray, b, factor))
    });
}

multiversion! {
    /// Replaces each pixel by its gray.
    pub fn grayscale(rows: &mut Rows<'_>) = grayscale_inner
}

#[inline(always)]
fn grayscale_inner(rows: &mut Rows<'_>) {
    // Vectors of their own: that rows' planes lie between each other's looks to the compiler as if
    // they might overlap, and it would go pixel by pixel.
    for [r, g, b] in rows.iter_mut() {
        let (r, g, b) = (r.as_chunks_mut().0, g.as_chunks_mut().0, b.as_chunks_mut().0);
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let mut gray = [0; LANES];
            for (x, gray) in gray.iter_mut().enumerate() {
                *gray = gray_of(r[x], g[x], b[x]);
            }
            (*r, *g, *b) = (gray, gray, gray);
        }
    }
}

multiversion! {
    /// Inverts the values at or above `threshold`.
    pub fn solarize(rows: &mut Rows<'_>, threshold: u8) = solarize_inner
}

#[inline(always)]
fn solarize_inner(rows: &mut Rows<'_>, threshold: u8) {
    let threshold = i16::from(threshold);
    for v in rows.planes.iter_mut() {
        *v = if *v < threshold { *v } else { 255 - *v };
    }
}

multiversion! {
    /// The sum of the gray values of the rows, padding included: it must be 0
    /// where it is not to count.
    pub fn gray_sum(rows: &Rows<'_>) -> u64 = gray_sum_inner
}

#[inline(always)]
fn gray_sum_inner(rows: &Rows<'_>) -> u64 {
    let mut sum = 0;
    for [r, g, b] in rows.iter() {
        let mut row = 0u32;
        for ((r, g), b) in r.iter().zip(g).zip(b) {
            row += gray_of(*r, *g, *b) as u32;
        }
        sum += u64::from(row);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gray_is_pillows_for_every_colour() {
        for (r, g, b) in colours() {
            let [red, green, blue] = [r, g, b].map(|v| v as u32);
            let sum = 19595 * red + 38470 * green + 7471 * blue + 32768;
            assert_eq!(gray_of(r, g, b) as u32, sum >> 16, "{r} {g} {b}");
        }
    }

    #[test]
    fn blends_are_pillows_for_every_pair_and_factors_of_either_kind() {
        for factor in [0.0, 1e-3, 0.3, 0.6, 0.999, 1.001, 1.4, 2.0, 3.7, 7.0f32] {
            for (from, to) in (0..=255).flat_map(|from| (0..=255).map(move |to| (from, to))) {
                let value = from as f32 + factor * ((to - from) as f32);
                let pillow = match (0.0..=1.0).contains(&factor) {
                    true => value as u8,
                    false if value <= 0.0 => 0,
                    false if value >= 255.0 => 255,
                    false => value as u8,
                };
                assert_eq!(blend(from, to, factor), i16::from(pillow), "{from} {to} {factor}");
            }
        }
    }

    /// All of them.
    pub(super) fn colours() -> impl Iterator<Item = (i16, i16, i16)> {
        (0..1 << 24).map(|i: i32| ((i >> 16) as i16, (i >> 8 & 255) as i16, (i & 255) as i16))
    }
}
