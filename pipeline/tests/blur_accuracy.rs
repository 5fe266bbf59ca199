//! How far a blur may lie from a Gaussian without an end, on images made to show where the kernel
//! is cut off.

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::augment::{
    Augmenter, Crop, Layout, Preset, Size, ViewConfig, ViewOut, ViewParams,
};
use bt_pipeline::kernel::blur;

/// Levels: half of one is the rounding's, one the kernel's end.
const BOUND: f64 = 1.5;

/// One pass over a line with edge pixels repeated, in 64 bits.
fn line(sigma: f64, from: &[f64]) -> Vec<f64> {
    let radius = (6.0 * sigma).ceil() as isize;
    let weight = |distance: isize| (-0.5 * (distance as f64 / sigma).powi(2)).exp();
    let total: f64 = (-radius..=radius).map(weight).sum();
    let last = from.len() as isize - 1;
    let at = |x: isize| from[x.clamp(0, last) as usize];
    let one = |x: isize| (-radius..=radius).map(|d| weight(d) * at(x + d)).sum::<f64>() / total;
    (0..=last).map(one).collect()
}

/// The exact blur of a square gray image.
fn exact(sigma: f64, side: usize, gray: &[u8]) -> Vec<f64> {
    let across: Vec<Vec<f64>> = gray
        .chunks(side)
        .map(|row| line(sigma, &row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()))
        .collect();
    let columns: Vec<Vec<f64>> = (0..side)
        .map(|x| line(sigma, &across.iter().map(|row| row[x]).collect::<Vec<_>>()))
        .collect();
    (0..side * side).map(|i| columns[i % side][i / side]).collect()
}

fn blurred(sigma: f32, side: usize, gray: &[u8], level: Level) -> Vec<u8> {
    let pixels = gray.iter().flat_map(|&v| [v; 3]).collect();
    let input = Image { width: side, height: side, pixels_hwc: pixels };
    let mut config: ViewConfig = Preset::BarlowImagenet.views().remove(0);
    config.random_resized_crop.as_mut().unwrap().size = Size::Square(side);
    let mut params = ViewParams::plain(Crop::whole(side, side));
    params.blur_sigma = Some(sigma);
    let mut view = vec![0; side * side * 3];
    Augmenter::with_level(level)
        .apply_into(&input, &config, &params, Layout::Nhwc, ViewOut::U8(&mut view))
        .unwrap();
    view.chunks(3).map(|pixel| pixel[0]).collect()
}

#[test]
fn what_the_kernel_leaves_out_is_less_than_a_level() {
    let mut sigma = 0.3f32;
    while sigma < 6.0 {
        let mut weights = Vec::new();
        blur::weights(sigma, &mut weights);
        let radius = weights.len() - 1;
        let side = 4 * radius + 5;
        let middle = side / 2;
        // All that the kernel sees of the middle is black, all that it does not is white; and
        // checks.
        let square = |x: usize| x.abs_diff(middle) <= radius;
        let patterns: [&dyn Fn(usize, usize) -> bool; 3] =
            [&|x, y| square(x) && square(y), &|x, _| square(x), &|x, y| {
                (x / radius + y / (radius + 1)) % 2 == 0
            }];
        for (number, black) in patterns.iter().enumerate() {
            let gray: Vec<u8> =
                (0..side * side).map(|i| if black(i % side, i / side) { 0 } else { 255 }).collect();
            let expected = exact(f64::from(sigma), side, &gray);
            for level in Level::available() {
                let got = blurred(sigma, side, &gray, level);
                let off = got.iter().zip(&expected).map(|(&g, e)| (f64::from(g) - e).abs());
                let worst = off.fold(0.0, f64::max);
                assert!(worst <= BOUND, "{level:?}, sigma {sigma}, pattern {number}: {worst:.2}");
            }
        }
        sigma += 0.07;
    }
}
