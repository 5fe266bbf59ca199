//! The hue turned exactly, without a division by the chroma.
//!
//! With M and m the largest and smallest channel and C = M - m, the hue in
//! sixths of a turn is h = k + (x - y) / C, where k, x, y depend on which channel
//! is the largest. Turning the hue keeps M and m, and gives each channel
//! m + C * clamp(|h - 3| - 1, 0, 1) (red), m + C * clamp(2 - |h - 2|, 0, 1)
//! (green), m + C * clamp(2 - |h - 4|, 0, 1) (blue). Everything can be kept
//! multiplied by C, in 4 fractional bits, so the turn needs no quotient. A YIQ
//! rotation would be cheaper and keep neither value nor saturation.

use super::multiversion;
use crate::kernel::Rows;

multiversion! {
    /// Turns the hue by `shift` turns, -0.5..=0.5; a level from the turn in floating point at most.
    pub fn turn_hue(rows: &mut Rows<'_>, shift: f32) = turn_hue_inner
}

/// A turn of the hue in sixths, 13 fractional bits: the high half of its product with `C << 7` has
/// 4.
#[derive(Clone, Copy, Debug)]
pub struct Sixths(pub i16);

impl Sixths {
    /// Of `turns`, -0.5..=0.5.
    #[inline(always)]
    pub fn new(turns: f32) -> Self {
        Sixths((f64::from(turns.clamp(-0.5, 0.5)) * 6.0 * 8192.0).round() as i16)
    }
}

#[inline(always)]
fn turn_hue_inner(rows: &mut Rows<'_>, shift: f32) {
    let shift = Sixths::new(shift);
    rows.map(|r, g, b| turn(r, g, b, shift));
}

#[inline(always)]
fn turn(r: i16, g: i16, b: i16, shift: Sixths) -> (i16, i16, i16) {
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
    // hue * chroma in [0, 6), at most 16 * 8 * 255 = 32640 on the way.
    let turned = ((i32::from(chroma << 7) * i32::from(shift.0)) >> 16) as i16;
    let hue = ((part + base * chroma) << 4) + turned;
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
    fn hue_is_within_a_level_of_floating_point_for_colours_and_shifts_everywhere() {
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
                let (r, g, b) = turn(r, g, b, Sixths::new(shift as f32));
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
