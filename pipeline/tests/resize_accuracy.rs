//! How far a resize may lie from exact arithmetic, however many pixels become one: a level, as
//! README's section on views says of Pillow's.

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::kernel::resize::{Filter, resize_whole};
use bt_pipeline::rng::Rng;
use proptest::prelude::*;

const FILTERS: [Filter; 3] = [Filter::Bicubic, Filter::Bilinear, Filter::Lanczos3];

/// `(width, height)` of an image and of what it becomes.
type Sizes = ((usize, usize), (usize, usize));

/// Of one direction: up to 250 pixels become one, as many as 1,000 all in all.
fn side() -> impl Strategy<Value = (usize, usize)> {
    (1..5usize, 1..=250usize, 0..250usize)
        .prop_map(|(to, factor, more)| ((to * factor + more % factor).max(1), to))
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (side(), side()).prop_map(|(across, down)| ((across.0, down.0), (across.1, down.1)))
}

fn filled(size: (usize, usize), mut value: impl FnMut() -> u8) -> Image {
    let mut image = Image::new(size.0, size.1);
    image.pixels_hwc.fill_with(&mut value);
    image
}

fn kernel(filter: Filter, x: f64) -> (f64, f64) {
    let x = x.abs();
    let sinc = |x: f64| {
        if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
    };
    match filter {
        Filter::Bilinear => (1.0, (1.0 - x).max(0.0)),
        Filter::Bicubic if x < 1.0 => (2.0, (1.5 * x - 2.5) * x * x + 1.0),
        Filter::Bicubic if x < 2.0 => (2.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0),
        Filter::Lanczos3 if x < 3.0 => (3.0, sinc(x) * sinc(x / 3.0)),
        Filter::Bicubic => (2.0, 0.0),
        Filter::Lanczos3 => (3.0, 0.0),
    }
}

/// Pillow's pass over one line, in 64 bits, without rounding, clamped as between its passes.
fn line(filter: Filter, from: &[f64], to: usize) -> Vec<f64> {
    let scale = from.len() as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = kernel(filter, 0.0).0 * stretch;
    let one = |x: usize| {
        let center = (x as f64 + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from.len());
        let weight = |at: usize| kernel(filter, (at as f64 - center + 0.5) / stretch).1;
        let sum: f64 = (start..end).map(weight).sum();
        let value: f64 = (start..end).map(|at| weight(at) * from[at]).sum();
        (value / sum).clamp(0.0, 255.0)
    };
    (0..to).map(one).collect()
}

/// The rows (or columns) of `from`, `[height, width]`, through [`line`].
fn reference(filter: Filter, image: &Image, (width, height): (usize, usize)) -> Vec<f64> {
    let mut out = vec![0.0; 3 * width * height];
    let less = |from: usize, to: usize| from as i64 - to as i64;
    let (columns, rows) = (less(image.width, width), less(image.height, height));
    for channel in 0..3 {
        let at =
            |y: usize, x: usize| f64::from(image.pixels_hwc[3 * (y * image.width + x) + channel]);
        let across = |row: Vec<f64>| line(filter, &row, width);
        let plane: Vec<Vec<f64>> = if rows > 0 && rows > 2 * columns {
            let down: Vec<Vec<f64>> = (0..image.width)
                .map(|x| {
                    line(filter, &(0..image.height).map(|y| at(y, x)).collect::<Vec<_>>(), height)
                })
                .collect();
            (0..height).map(|y| across(down.iter().map(|column| column[y]).collect())).collect()
        } else {
            let made: Vec<Vec<f64>> = (0..image.height)
                .map(|y| across((0..image.width).map(|x| at(y, x)).collect()))
                .collect();
            let down: Vec<Vec<f64>> = (0..width)
                .map(|x| line(filter, &made.iter().map(|row| row[x]).collect::<Vec<_>>(), height))
                .collect();
            (0..height).map(|y| down.iter().map(|column| column[y]).collect()).collect()
        };
        for (index, value) in plane.into_iter().flatten().enumerate() {
            out[3 * index + channel] = value;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_flat_image_stays_flat((from, to) in sizes(), value in any::<u8>()) {
        let image = filled(from, || value);
        for filter in FILTERS {
            let scalar = resize_whole(Level::SCALAR, filter, &image, to);
            for level in Level::available() {
                prop_assert!(resize_whole(level, filter, &image, to) == scalar, "{level:?} {filter:?}");
            }
            for &is in &scalar.pixels_hwc {
                prop_assert!(is.abs_diff(value) <= 1, "{filter:?}: {value} became {is}");
            }
        }
    }

    #[test]
    fn a_resize_is_within_a_level_of_exact_arithmetic((from, to) in sizes(), seed in any::<u64>()) {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        // Nearly flat every other time: roundings of equal values go the same way.
        let span = if rng.chance(0.5) { 3 } else { 128 };
        let (low, span) = (rng.below(128), 1 + rng.below(span));
        let image = filled(from, || (low + rng.below(span)) as u8);
        for filter in FILTERS {
            let scalar = resize_whole(Level::SCALAR, filter, &image, to);
            for level in Level::available() {
                prop_assert!(resize_whole(level, filter, &image, to) == scalar, "{level:?} {filter:?}");
            }
            for (is, exact) in scalar.pixels_hwc.iter().zip(reference(filter, &image, to)) {
                let off = (f64::from(*is) - exact.round()).abs();
                prop_assert!(off <= 1.0, "{filter:?}: {exact} became {is}");
            }
        }
    }
}

// What was found: full crops of gray, each two levels off or more.
#[test]
fn large_gray_images_keep_their_value() {
    for (side, value) in [(3000, 9), (6000, 16), (8000, 20)] {
        let image = filled((side, side), || value);
        let is = resize_whole(Level::detect(), Filter::Bicubic, &image, (32, 32));
        assert!(is.pixels_hwc.iter().all(|is| *is == value), "{side} pixels of {value}");
    }
}
