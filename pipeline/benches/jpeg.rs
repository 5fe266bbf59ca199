//! JPEG bytes to pixels on real photographs: this crate's decoder, with and
//! without a side index and on re-coded images, beside the `image` crate (zune-jpeg) in
//! the same run. One iteration decodes every JPEG
//! of the folder once; divide by their number, or read items/s.
//!
//! ```text
//! cargo bench -p bt-pipeline --bench jpeg
//! ```
//!
//! The folder is `../shared/data/imagenet-sample` or `BT_JPEG_DIR`; without it
//! nothing is measured.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::augment::Crop;
use bt_pipeline::dct::{self, DctDecoder, DctImage};
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, Region, SideIndex};
use bt_pipeline::rng::Rng;
use divan::{Bencher, black_box, counter::ItemsCount};

struct Photo {
    bytes: Vec<u8>,
    index: Option<Vec<u8>>,
    /// The same picture re-coded.
    packed: Vec<u8>,
    /// What two views need.
    union: Region,
}

static PHOTOS: LazyLock<Vec<Photo>> = LazyLock::new(load);

fn main() {
    if PHOTOS.is_empty() {
        println!("skipped: no JPEGs; set BT_JPEG_DIR to a folder of folders of them");
        return;
    }
    let bytes: usize = PHOTOS.iter().map(|photo| photo.bytes.len()).sum();
    let index: usize = PHOTOS.iter().flat_map(|photo| &photo.index).map(Vec::len).sum();
    let share = 100.0 * index as f64 / bytes as f64;
    let packed: usize = PHOTOS.iter().map(|photo| photo.packed.len()).sum();
    let recoded = 100.0 * packed as f64 / bytes as f64;
    println!(
        "{} JPEGs, {bytes} bytes, side indexes {share:.2}%, re-coded {recoded:.2}%",
        PHOTOS.len()
    );
    divan::main();
}

fn load() -> Vec<Photo> {
    let folder = std::env::var_os("BT_JPEG_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/imagenet-sample"),
        PathBuf::from,
    );
    let pattern = folder.join("*/*.JPEG");
    let paths = glob::glob(&pattern.to_string_lossy()).expect("a valid pattern");
    let photos = paths.flatten().enumerate().filter_map(|(number, path)| {
        let bytes = std::fs::read(path).ok()?;
        let jpeg = Jpeg::parse(&bytes).ok()?;
        let mut rng = Rng::keyed(1, 0, number as u64, 0);
        let mut crop = || Region::from(random_crop(&mut rng, &jpeg));
        let union = crop().union(crop());
        let index = SideIndex::build(&bytes).ok()?.map(|index| index.to_bytes());
        let packed = dct::encode(&bytes).ok()?;
        Some(Photo { bytes, index, packed, union })
    });
    photos.collect()
}

/// torchvision's `RandomResizedCrop`: area 0.08 to 1, ratio 3/4 to 4/3.
fn random_crop(rng: &mut Rng, jpeg: &Jpeg<'_>) -> Crop {
    let (width, height) = (jpeg.width(), jpeg.height());
    for _ in 0..10 {
        let area = (width * height) as f64 * rng.uniform(0.08, 1.0);
        let ratio = rng.uniform(0.75f64.ln(), (4.0 / 3.0f64).ln()).exp();
        let w = (area * ratio).sqrt().round() as usize;
        let h = (area / ratio).sqrt().round() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = rng.below((height - h + 1) as u64) as usize;
            let left = rng.below((width - w + 1) as u64) as usize;
            return Crop { left, top, width: w, height: h };
        }
    }
    Crop::whole(width, height)
}

/// Measures a decode of every photo.
fn each(bencher: Bencher, mut decode: impl FnMut(&Photo)) {
    let photos = &*PHOTOS;
    bencher
        .counter(ItemsCount::new(photos.len()))
        .bench_local(|| photos.iter().for_each(&mut decode));
}

fn ours(bencher: Bencher, level: Level, union: bool, indexed: bool) {
    let mut decoder = JpegDecoder::with_level(level);
    let (mut index, mut out) = (SideIndex::default(), Image::default());
    each(bencher, |photo| {
        let jpeg = Jpeg::parse(black_box(&photo.bytes)).expect("parsed before");
        let region = if union { photo.union } else { Region::full(&jpeg) };
        let index = photo.index.as_ref().filter(|_| indexed).map(|bytes| {
            index.read(bytes, &jpeg).expect("just written");
            &index
        });
        decoder.decode_region_into(&jpeg, region, index, &mut out).expect("decoded before");
        black_box(&out);
    });
}

#[divan::bench]
fn whole(bencher: Bencher) {
    ours(bencher, Level::detect(), false, false);
}

#[divan::bench]
fn whole_scalar(bencher: Bencher) {
    ours(bencher, Level::SCALAR, false, false);
}

#[divan::bench]
fn whole_with_index(bencher: Bencher) {
    ours(bencher, Level::detect(), false, true);
}

#[divan::bench]
fn union_of_two_crops(bencher: Bencher) {
    ours(bencher, Level::detect(), true, false);
}

#[divan::bench]
fn union_of_two_crops_with_index(bencher: Bencher) {
    ours(bencher, Level::detect(), true, true);
}

fn recoded(bencher: Bencher, level: Level, union: bool, pixels: bool) {
    let mut decoder = DctDecoder::with_level(level);
    let mut out = Image::default();
    each(bencher, |photo| {
        let image = DctImage::parse(black_box(&photo.packed)).expect("just written");
        let region = if union { photo.union } else { Region::full(image.jpeg()) };
        if pixels {
            decoder.decode_region_into(&image, region, &mut out).expect("just written");
        } else {
            decoder.decode_segments(&image, region).expect("just written");
        }
        black_box(&out);
    });
}

#[divan::bench]
fn recoded_whole(bencher: Bencher) {
    recoded(bencher, Level::detect(), false, true);
}

#[divan::bench]
fn recoded_union_of_two_crops(bencher: Bencher) {
    recoded(bencher, Level::detect(), true, true);
}

/// Coefficients only, on each level of this machine.
#[divan::bench(args = Level::available())]
fn recoded_coefficients_whole(bencher: Bencher, level: &Level) {
    recoded(bencher, *level, false, false);
}

/// Coefficients only, on each level of this machine.
#[divan::bench(args = Level::available())]
fn recoded_coefficients_of_union(bencher: Bencher, level: &Level) {
    recoded(bencher, *level, true, false);
}

#[divan::bench]
fn recode(bencher: Bencher) {
    each(bencher, |photo| {
        black_box(dct::encode(black_box(&photo.bytes)).expect("re-coded before"));
    });
}

#[divan::bench]
fn recoded_back_to_jpeg(bencher: Bencher) {
    each(bencher, |photo| {
        black_box(dct::to_jpeg(black_box(&photo.packed)).expect("just written"));
    });
}

#[divan::bench]
fn image_crate_whole(bencher: Bencher) {
    each(bencher, |photo| {
        let image = image::load_from_memory(black_box(&photo.bytes)).expect("a JPEG");
        black_box(image.into_rgb8());
    });
}

#[divan::bench]
fn build_side_index(bencher: Bencher) {
    each(bencher, |photo| {
        black_box(SideIndex::build(black_box(&photo.bytes)).expect("indexed before"));
    });
}
