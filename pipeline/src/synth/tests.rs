//! The data set as a whole: it is frozen, balanced, and hard for pixels.

use super::*;

fn small(images: u64, split: u64) -> Spec {
    Spec { images, side: 32, split, ..Spec::default() }
}

#[test]
fn the_pixels_of_a_seed_are_frozen() {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for sample in small(36, 0).samples().unwrap() {
        hash.update(&sample.image.pixels_hwc);
    }
    assert_eq!(hash.digest(), FROZEN, "results of earlier runs can no longer be compared");
}
const FROZEN: u64 = 15_910_918_719_634_456_149;

#[test]
fn a_sample_depends_on_seed_split_and_index_alone() {
    let spec = small(30, 0);
    let all: Vec<SynthSample> = spec.samples().unwrap().collect();
    assert_eq!(draw(&spec, 17), (all[17].image.clone(), all[17].label));
    assert_ne!(draw(&small(30, 1), 17).0, all[17].image);
    assert_ne!(draw(&Spec { seed: 1, ..spec }, 17).0, all[17].image);
}

#[test]
fn every_prefix_has_as_many_of_each_class() {
    for classes in [2, 5, 12] {
        let spec = Spec { classes, ..small(60, 0) };
        let names = spec.class_names();
        let mut counts = vec![0; classes];
        for sample in spec.samples().unwrap() {
            counts[sample.label as usize] += 1;
        }
        assert_eq!(counts, vec![60 / classes; classes]);
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), classes, "{names:?}");
    }
}

#[test]
fn impossible_specifications_are_refused_in_words() {
    for spec in [
        Spec { classes: 1, ..Spec::default() },
        Spec { classes: 13, ..Spec::default() },
        Spec { side: 8, ..Spec::default() },
    ] {
        assert!(matches!(spec.samples().map(|_| ()), Err(Error::Usage(_))), "{spec:?}");
    }
}

#[test]
fn a_png_gives_the_pixels_back() {
    let (image, _) = draw(&small(1, 0), 0);
    let decoded = image::load_from_memory(&encode_png(&image).unwrap()).unwrap().to_rgb8();
    assert_eq!(decoded.into_raw(), image.pixels_hwc);
}

/// Label of the nearest training image in pixel space, right how often?
#[test]
fn raw_pixels_say_little_about_the_class() {
    let train: Vec<_> = small(720, 0).samples().unwrap().collect();
    let test: Vec<_> = small(120, 1).samples().unwrap().collect();
    let distance = |a: &Image, b: &Image| -> u64 {
        let pairs = a.pixels_hwc.iter().zip(&b.pixels_hwc);
        pairs.map(|(x, y)| u64::from(x.abs_diff(*y)).pow(2)).sum()
    };
    let right = test
        .iter()
        .filter(|query| {
            let nearest = train.iter().min_by_key(|near| distance(&near.image, &query.image));
            nearest.unwrap().label == query.label
        })
        .count();
    // Chance is 10 of 120.
    assert!(right < 36, "raw pixels get {right} of 120");
}

#[test]
fn an_image_whose_fields_disagree_is_no_png() {
    let whole = Image::new(4, 3);
    assert!(encode_png(&whole).is_ok());
    for (width, height) in [(4, 4), (4, 2), ((1 << 63) + 4, 3), ((1 << 32) + 4, 3), (0, 0)] {
        let image = Image { width, height, ..whole.clone() };
        assert!(matches!(encode_png(&image), Err(Error::Usage(_))), "{width} x {height}");
    }
    assert!(encode_png(&Image::default()).is_err());
}
