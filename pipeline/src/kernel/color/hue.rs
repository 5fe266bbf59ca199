//! Hue rotation in HSV without a division.
//!
//! With M and m the largest and smallest channel and C = M - m, the hue in
//! sixths of a turn is h = k + (x - y) / C, where k, x, y depend on which channel
//! is the largest. Turning the hue keeps M and m, and gives each channel
//! m + C * clamp(|h - 3| - 1, 0, 1) (red), m + C * clamp(2 - |h - 2|, 0, 1)
//! (green), m + C * clamp(2 - |h - 4|, 0, 1) (blue). Everything can be kept
//! multiplied by C, so the quotient is never needed: exact up to the shift's 4
//! fractional bits, where a YIQ rotation would not keep value and saturation.

use super::{mulhi, multiversion};
use crate::kernel::Row;

multiversion! {
    /// Turns the hue by `shift` turns, -0.5..=0.5.
    pub fn hue(row: &mut Row<'_>, shift: f32) = hue_inner
}

#[inline(always)]
fn hue_inner(row: &mut Row<'_>, shift: f32) {
    // Sixths of a turn, 13 fractional bits: mulhi(C << 7, .) has 4.
    let sixths = (f64::from(shift.clamp(-0.5, 0.5)) * 6.0 * 8192.0).round() as i16;
    for ((r, g), b) in row.r.iter_mut().zip(row.g.iter_mut()).zip(row.b.iter_mut()) {
        (*r, *g, *b) = turn(*r, *g, *b, sixths);
    }
}

#[inline(always)]
fn turn(r: i16, g: i16, b: i16, sixths: i16) -> (i16, i16, i16) {
    let largest = r.max(g).max(b);
    let smallest = r.min(g).min(b);
    let chroma = largest - smallest;
    // h * C in [-C, 5C].
    let in_blue = (r - g) + 4 * chroma;
    let in_green = (b - r) + 2 * chroma;
    let in_red = g - b;
    let hue = if largest == g { in_green } else { in_blue };
    let hue = if largest == r { in_red } else { hue };
    // From here on 4 fractional bits: at most 16 * 8 * 255 = 32640.
    let unit = chroma << 4;
    let hue = (hue << 4) + mulhi(chroma << 7, sixths);
    let hue = hue + if hue < 0 { 6 * unit } else { 0 };
    let hue = hue - if hue >= 6 * unit { 6 * unit } else { 0 };
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
    fn hue_is_within_one_level_of_floating_point_for_colours_and_shifts_everywhere() {
        let mut colours = Vec::new();
        for r in (0..=255).step_by(15) {
            for g in (0..=255).step_by(15) {
                for b in (0..=255).step_by(5) {
                    colours.push([r, g, b]);
                }
            }
        }
        for shift in [-0.5, -0.31, -0.1, -0.043, 0.0, 0.017, 0.1, 0.25, 0.5] {
            let sixths = (shift * 6.0 * 8192.0f64).round() as i16;
            for &colour in &colours {
                let [r, g, b] = colour;
                let (r, g, b) = turn(r, g, b, sixths);
                let expected = exact(colour, shift);
                for (got, want) in [r, g, b].into_iter().zip(expected) {
                    assert!(
                        (got - want).abs() <= 1,
                        "{colour:?} {shift}: {r} {g} {b} {expected:?}"
                    );
                }
            }
        }
    }
}
