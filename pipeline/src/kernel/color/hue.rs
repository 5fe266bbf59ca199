//! Hue rotation without a division by the chroma.
//!
//! With M and m the largest and smallest channel and C = M - m, the hue in
//! sixths of a turn is h = k + (x - y) / C, where k, x, y depend on which channel
//! is the largest. Turning the hue keeps M and m, and gives each channel
//! m + C * clamp(|h - 3| - 1, 0, 1) (red), m + C * clamp(2 - |h - 2|, 0, 1)
//! (green), m + C * clamp(2 - |h - 4|, 0, 1) (blue). Everything can be kept
//! multiplied by C, in 4 fractional bits, so the exact turn needs no quotient.
//!
//! Pillow turns a hue of 8 bits, cut off, by a shift of 8 bits, cut off, which
//! moves saturated colours by up to 11 levels against the exact turn. This is
//! followed as far as [`LEASH`]: results are those of the exact turn within two
//! levels, and jittered images agree with Pillow's better than the exact turn
//! does (mean difference 0.1 instead of 0.3 levels over whole jitters). A YIQ
//! rotation would be cheaper and keep neither value nor saturation.

use super::{mulhi, multiversion};
use crate::kernel::Row;

multiversion! {
    /// Turns the hue by `shift` turns, -0.5..=0.5.
    pub fn hue(row: &mut Row<'_>, shift: f32) = hue_inner
}

/// How far a channel may be drawn from the exact turn towards Pillow's: 1.75
/// levels, 4 fractional bits.
const LEASH: i16 = 28;

/// A turn of the hue, in both forms.
#[derive(Clone, Copy, Debug)]
pub struct Shift {
    /// Sixths of a turn, 13 fractional bits: `mulhi(C << 7, .)` has 4.
    pub sixths: i16,
    /// Pillow's: 255ths of a turn, cut off, modulo 256.
    pub byte: i16,
}

impl Shift {
    /// Of `turns`, -0.5..=0.5.
    #[inline(always)]
    pub fn new(turns: f32) -> Self {
        let turns = turns.clamp(-0.5, 0.5);
        Shift {
            sixths: (f64::from(turns) * 6.0 * 8192.0).round() as i16,
            byte: (turns * 255.0) as i16,
        }
    }
}

#[inline(always)]
fn hue_inner(row: &mut Row<'_>, shift: f32) {
    let shift = Shift::new(shift);
    for ((r, g), b) in row.r.iter_mut().zip(row.g.iter_mut()).zip(row.b.iter_mut()) {
        (*r, *g, *b) = turn(*r, *g, *b, shift);
    }
}

/// `floor(42.5 * x / chroma)` for |x| <= chroma, 0 when both are 0.
#[inline(always)]
fn quotient(x: i16, chroma: i16) -> i16 {
    let exact = f32::from(x) * 42.5 / f32::from(chroma.max(1));
    // Added to 1.5 * 2^23 a number is rounded to a whole one, found in the low
    // bits. Less a half this is the floor, but for whole numbers, which the
    // 1/1024 keeps whole: other fractions are at least 1/510.
    let shifted = (exact + (1.0 / 1024.0 - 0.5)) + 12_582_912.0;
    shifted.to_bits() as i16
}

#[inline(always)]
fn turn(r: i16, g: i16, b: i16, shift: Shift) -> (i16, i16, i16) {
    let largest = r.max(g).max(b);
    let smallest = r.min(g).min(b);
    let chroma = largest - smallest;
    let is_red = largest == r;
    let is_green = largest == g;
    let part = if is_red {
        g - b
    } else if is_green {
        b - r
    } else {
        r - g
    };
    let base = if is_red {
        0
    } else if is_green {
        2
    } else {
        4
    };
    let unit = chroma << 4;
    // The exact turn: hue * chroma in [0, 6), at most 16 * 8 * 255 = 32640 on
    // the way.
    let hue = ((part + base * chroma) << 4) + mulhi(chroma << 7, shift.sixths);
    let hue = hue + if hue < 0 { 6 * unit } else { 0 };
    let hue = hue - if hue >= 6 * unit { 6 * unit } else { 0 };
    // Pillow's: 255 * hue / 6, cut off, shifted modulo 256.
    let byte = quotient(part, chroma) + 85 * (base >> 1);
    let byte = byte + if byte < 0 { 255 } else { 0 };
    let byte = (byte + shift.byte) & 255;
    // byte * chroma * 6 * 16 / 255
    let product = (byte as u16).wrapping_mul(chroma as u16);
    let pillow = ((u32::from(product) * 24672) >> 16) as i16;
    let away = pillow - hue;
    let away = away - if away > 3 * unit { 6 * unit } else { 0 };
    let away = away + if away < -3 * unit { 6 * unit } else { 0 };
    let hue = hue + away.clamp(-LEASH, LEASH);
    let channel = |x: i16| smallest + ((x.max(0).min(unit) + 8) >> 4);
    (
        channel((hue - 3 * unit).abs() - unit),
        channel(2 * unit - (hue - 2 * unit).abs()),
        channel(2 * unit - (hue - 4 * unit).abs()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HSV in floating point, rounded once.
    fn exact([r, g, b]: [i16; 3], shift: f64) -> [i16; 3] {
        let v = [r, g, b].map(f64::from);
        let largest = v[0].max(v[1]).max(v[2]);
        let chroma = largest - v[0].min(v[1]).min(v[2]);
        if chroma == 0.0 {
            return [r, g, b];
        }
        let h = if v[0] == largest {
            (v[1] - v[2]) / chroma
        } else if v[1] == largest {
            2.0 + (v[2] - v[0]) / chroma
        } else {
            4.0 + (v[0] - v[1]) / chroma
        };
        // `f(n)` of the HSV-to-RGB formula without cases.
        let h = (h + 6.0 * shift).rem_euclid(6.0);
        [5.0, 3.0, 1.0].map(|n| {
            let k = (n + h).rem_euclid(6.0);
            (largest - chroma * k.min(4.0 - k).clamp(0.0, 1.0)).round() as i16
        })
    }

    #[test]
    fn hue_is_within_two_levels_of_floating_point_for_colours_and_shifts_everywhere() {
        let mut colours = Vec::new();
        for r in (0..=255).step_by(15) {
            for g in (0..=255).step_by(15) {
                for b in (0..=255).step_by(5) {
                    colours.push([r, g, b]);
                }
            }
        }
        for shift in [-0.5, -0.31, -0.1, -0.043, 0.0, 0.017, 0.1, 0.25, 0.5] {
            for &colour in &colours {
                let [r, g, b] = colour;
                let (r, g, b) = turn(r, g, b, Shift::new(shift as f32));
                let expected = exact(colour, shift);
                for (got, want) in [r, g, b].into_iter().zip(expected) {
                    assert!(
                        (got - want).abs() <= 2,
                        "{colour:?} {shift}: {r} {g} {b} {expected:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_quotient_is_the_floor_for_every_chroma() {
        for chroma in 1..=255i16 {
            for x in -chroma..=chroma {
                let floor = (42.5 * f64::from(x) / f64::from(chroma)).floor() as i16;
                assert_eq!(quotient(x, chroma), floor, "{x} / {chroma}");
            }
        }
        assert_eq!(quotient(0, 0), 0);
    }
}
