//! The hue turned in 8-bit HSV, as Pillow's conversions do it.
//!
//! With M and m the largest and smallest channel and C = M - m, Pillow's hue is h / 6 turns, where
//! h is the number of a sixth plus or minus x = (M - middle channel) / C, in single precision; hue
//! and saturation C / M are then cut to whole 255ths. Cutting asks for the very same rounding where
//! 42.5 h is whole but for it: h is computed as Pillow's float, and with the factors below every
//! colour's hue is found to be Pillow's, whose next steps are in double precision (the tests go
//! through all of them).
//!
//! Back again, with H = 6 hue in 0..=1530, a channel is M - M s K / 65025, rounded, where K is 0 in
//! the two sixths where it is the largest, 255 where it is the smallest, and goes from one to the
//! other between. M s K is a whole number below 2^24, so that single precision rounds it as Pillow
//! does.
//!
//! Against a turn in floating point ([`super::turn_hue`]) saturated colours end up to 11 levels
//! away: the paper's code turns hues this way, torchvision's for tensors the other.

use super::{multiversion, whole};
use crate::kernel::Rows;

multiversion! {
    /// Turns the hue by `shift` 255ths of a turn, modulo 256 ([`super::hue_shift`]).
    pub fn hue(rows: &mut Rows<'_>, shift: i16) = hue_inner
}

#[inline(always)]
fn hue_inner(rows: &mut Rows<'_>, shift: i16) {
    rows.map(|r, g, b| turn(r, g, b, shift));
}

/// The number after 42.5: 255ths of a turn in a sixth.
const BLUE: f32 = f32::from_bits(42.5f32.to_bits() + 1);

/// Pillow's hue and saturation, and the largest channel.
#[inline(always)]
fn hsv(r: i16, g: i16, b: i16) -> (i16, i16, i16) {
    let largest = r.max(g).max(b);
    let smallest = r.min(g).min(b);
    let middle = r + g + b - largest - smallest;
    let chroma = f32::from(largest - smallest);
    // Which sixth, and whether the hue falls in it: the quotient of the smallest channel is one.
    let (base, falls) = if largest == r {
        (0i16, smallest == b)
    } else if largest == g {
        (2, smallest == r)
    } else {
        (4, smallest == g)
    };
    let away = largest - middle;
    let end = base + if falls { 1 } else { -1 };
    let turned = f32::from(if falls { -away } else { away }) / chroma.max(1.0);
    let sixths = f32::from(end) + turned;
    // In 255ths, 42.5 a sixth. Of blue's sixths, from 3 to 5, only the difference to 4 keeps its
    // last bits.
    let blue = base == 4;
    let (from, scale) = if blue { (4.0, BLUE) } else { (0.0, 42.5) };
    let part = whole(((sixths - from) * scale).floor());
    let hue = part + if blue { 170 } else { (part >> 8) & 255 };
    let saturation = 255.0 * chroma / f32::from(largest).max(1.0);
    (hue, whole(saturation), largest)
}

#[inline(always)]
fn turn(r: i16, g: i16, b: i16, shift: i16) -> (i16, i16, i16) {
    let (hue, saturation, value) = hsv(r, g, b);
    rgb((hue + shift) & 255, saturation, value)
}

#[inline(always)]
fn rgb(hue: i16, saturation: i16, value: i16) -> (i16, i16, i16) {
    let at = 6 * hue;
    let clamp = |k: i16| k.clamp(0, 255);
    let k_r = clamp((at - 255).min(1275 - at));
    let k_g = clamp((255 - at).max(at - 765));
    let k_b = clamp((765 - at).max(at - 1275));
    // One of them is 0, another 255, and only the third wants more than 16 bits.
    let k = k_r + k_g + k_b - 255;
    let away = f32::from(value) * f32::from(saturation) * f32::from(k);
    let between = whole(f32::from(value) + 0.5 - away * (1.0 / 65025.0));
    // value (255 - saturation) / 255, rounded: exact below 65,536.
    let product = value as u16 * (255 - saturation) as u16 + 128;
    let least = ((product + (product >> 8)) >> 8) as i16;
    let channel = |k: i16| {
        let other = if k == 255 { least } else { between };
        if k == 0 { value } else { other }
    };
    (channel(k_r), channel(k_g), channel(k_b))
}

#[cfg(test)]
mod tests {
    use super::super::tests::colours;
    use super::*;

    /// `rgb2hsv_row` of Pillow's `Convert.c`, in its types.
    fn pillow_hsv(r: i16, g: i16, b: i16) -> (i16, i16, i16) {
        let (largest, smallest) = (r.max(g).max(b), r.min(g).min(b));
        if largest == smallest {
            return (0, 0, largest);
        }
        let chroma = f32::from(largest - smallest);
        let part = |v: i16| f32::from(largest - v) / chroma;
        let (rc, gc, bc) = (part(r), part(g), part(b));
        let h = if r == largest {
            bc - gc
        } else if g == largest {
            (2.0 + f64::from(rc) - f64::from(bc)) as f32
        } else {
            (4.0 + f64::from(gc) - f64::from(rc)) as f32
        };
        let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
        let s = chroma / f32::from(largest);
        ((f64::from(h) * 255.0) as i16, (f64::from(s) * 255.0) as i16, largest)
    }

    /// A pixel of its `hsv2rgb`.
    fn pillow_rgb((h, s, v): (i16, i16, i16)) -> (i16, i16, i16) {
        if s == 0 {
            return (v, v, v);
        }
        let sixths = f64::from(h) * 6.0 / 255.0;
        let i = sixths.floor();
        let f = f64::from((sixths - i) as f32);
        let (v64, fs) = (f64::from(v), (f64::from(s) / 255.0) as f32);
        let p = (v64 * (1.0 - f64::from(fs))).round() as i16;
        let q = (v64 * (1.0 - f64::from(fs * f as f32))).round() as i16;
        let t = (v64 * (1.0 - f64::from(fs) * (1.0 - f))).round() as i16;
        match i as i16 % 6 {
            0 => (v, t, p),
            1 => (q, v, p),
            2 => (p, v, t),
            3 => (p, q, v),
            4 => (t, p, v),
            _ => (v, p, q),
        }
    }

    #[test]
    fn every_colour_has_pillows_hue_and_saturation() {
        for (r, g, b) in colours() {
            let (found, pillow) = (hsv(r, g, b), pillow_hsv(r, g, b));
            // Without saturation the hue is nothing.
            let same = found == pillow || (pillow.1 == 0 && found.1 == 0 && found.2 == pillow.2);
            assert!(same, "{r} {g} {b}: {found:?}, {pillow:?}");
        }
    }

    #[test]
    fn every_turned_colour_is_pillows() {
        for shift in [0, 1, -1, 25, -25, 127, -127] {
            for (r, g, b) in colours().step_by(5) {
                let (h, s, v) = pillow_hsv(r, g, b);
                let pillow = pillow_rgb(((h + shift) & 255, s, v));
                assert_eq!(turn(r, g, b, shift), pillow, "{r} {g} {b} by {shift}");
            }
        }
    }

    #[test]
    fn every_hue_saturation_and_value_come_back_as_pillows() {
        for (h, s, v) in colours() {
            assert_eq!(rgb(h, s, v), pillow_rgb((h, s, v)), "{h} {s} {v}");
        }
    }
}
