//! Colours with a chosen luma: any hue may stand on any other, and still be
//! told from it when a view is turned to gray.

use crate::rng::Rng;

/// Red, green, blue in 0..=1.
pub type Rgb = [f32; 3];

/// Rec. 601 luma, the one that Pillow's grayscale uses.
pub fn luma(c: Rgb) -> f32 {
    0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]
}

/// `a` at 0, `b` at 1.
pub fn lerp(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

/// A colour of random hue and saturation with the luma `target` (0..=1).
pub fn with_luma(rng: &mut Rng, target: f32) -> Rgb {
    let hue = rng.unit() as f32 * 6.0;
    let saturation = rng.uniform(0.15, 0.8) as f32;
    let wheel = [hue_ramp(hue + 2.0), hue_ramp(hue), hue_ramp(hue - 2.0)];
    let pure = wheel.map(|v| 1.0 - saturation + saturation * v);
    let own = luma(pure);
    if target <= own {
        pure.map(|v| v * target / own)
    } else {
        lerp(pure, [1.0; 3], (target - own) / (1.0 - own).max(1e-3))
    }
}

/// The green channel along the hue circle of length 6: up, two on, down, two off.
fn hue_ramp(hue: f32) -> f32 {
    let h = hue - 6.0 * (hue / 6.0).floor();
    (2.0 - (h - 2.0).abs()).clamp(0.0, 1.0)
}

/// Lumas of a ground and a figure at least `gap` apart, either on top.
pub fn two_lumas(rng: &mut Rng, gap: f32) -> (f32, f32) {
    let low = rng.uniform(0.08, 0.90 - f64::from(gap)) as f32;
    let high = rng.uniform(f64::from(low + gap), 0.95) as f32;
    if rng.chance(0.5) { (low, high) } else { (high, low) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_has_the_luma_that_was_asked_for() {
        let mut rng = Rng::keyed(1, 0, 0, 0);
        for _ in 0..1000 {
            let target = rng.uniform(0.05, 0.95) as f32;
            let colour = with_luma(&mut rng, target);
            assert!((luma(colour) - target).abs() < 2e-3, "{colour:?} for {target}");
            assert!(colour.iter().all(|v| (-1e-4..=1.0001).contains(v)), "{colour:?}");
        }
    }
}
