//! Microseconds of each stage of a view, on a drawn photograph-like image.
//!
//! `cargo bench -p bt-pipeline --bench augment`. One ImageNet-sized image
//! (468 x 401), the crop of mean area; the plain way (fast_image_resize and
//! straightforward loops) stands beside it.

use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::augment::{
    Augmenter, Crop, Jitter, JitterOp, Layout, Preset, ViewConfig, ViewOut, ViewParams,
};
use bt_pipeline::rng::Rng;
use divan::Bencher;

fn main() {
    divan::main();
}

/// Smooth shapes with texture on them, as no resize or blur minds the content.
fn photograph(width: usize, height: usize) -> Image {
    let mut rng = Rng::keyed(1, 0, 0, 0);
    let mut image = Image::new(width, height);
    for (i, value) in image.pixels_hwc.iter_mut().enumerate() {
        let (x, y, c) = ((i / 3 % width) as f64, (i / 3 / width) as f64, (i % 3) as f64);
        let wave = (x / 37.0 + c).sin() + (y / 23.0 - c * 0.7).cos();
        *value = (128.0 + 50.0 * wave + 20.0 * (rng.unit() - 0.5)) as u8;
    }
    image
}

fn plain() -> ViewParams {
    ViewParams::plain(Crop { top: 50, left: 70, height: 318, width: 318 })
}

fn jitter(only: Option<JitterOp>) -> Option<Jitter> {
    let is = |op: JitterOp| only.is_none_or(|only| only == op);
    let pick = |op: JitterOp, value: f32, neutral: f32| if is(op) { value } else { neutral };
    Some(Jitter {
        order: [JitterOp::Saturation, JitterOp::Contrast, JitterOp::Hue, JitterOp::Brightness],
        brightness: pick(JitterOp::Brightness, 1.2, 1.0),
        contrast: pick(JitterOp::Contrast, 0.8, 1.0),
        saturation: pick(JitterOp::Saturation, 1.1, 1.0),
        hue: pick(JitterOp::Hue, 0.04, 0.0),
        exact_hue: false,
    })
}

fn bench(bencher: Bencher<'_, '_>, level: Level, params: ViewParams, layout: Layout) {
    let config: ViewConfig = Preset::BarlowImagenet.views().remove(0);
    let image = photograph(468, 401);
    let mut augmenter = Augmenter::with_level(level);
    let mut out = vec![0f32; 224 * 224 * 3];
    bencher.bench_local(|| {
        augmenter.apply_into(&image, &config, &params, layout, ViewOut::F32(&mut out)).unwrap();
    });
}

#[divan::bench(args = Level::available())]
fn crop_resize_store_nchw(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, plain(), Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn crop_resize_store_nhwc(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, plain(), Layout::Nhwc);
}

#[divan::bench(args = Level::available())]
fn and_brightness(bencher: Bencher<'_, '_>, level: Level) {
    let jitter = jitter(Some(JitterOp::Brightness));
    bench(bencher, level, ViewParams { jitter, ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_contrast(bencher: Bencher<'_, '_>, level: Level) {
    let jitter = jitter(Some(JitterOp::Contrast));
    bench(bencher, level, ViewParams { jitter, ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_saturation(bencher: Bencher<'_, '_>, level: Level) {
    let jitter = jitter(Some(JitterOp::Saturation));
    bench(bencher, level, ViewParams { jitter, ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_hue(bencher: Bencher<'_, '_>, level: Level) {
    let jitter = jitter(Some(JitterOp::Hue));
    bench(bencher, level, ViewParams { jitter, ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_all_jitter(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, ViewParams { jitter: jitter(None), ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_grayscale(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, ViewParams { grayscale: true, ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_solarize(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, ViewParams { solarize: Some(128), ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_blur_sigma_1(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, ViewParams { blur_sigma: Some(1.0), ..plain() }, Layout::Nchw);
}

#[divan::bench(args = Level::available())]
fn and_blur_sigma_2(bencher: Bencher<'_, '_>, level: Level) {
    bench(bencher, level, ViewParams { blur_sigma: Some(2.0), ..plain() }, Layout::Nchw);
}

/// Both views of a preset with drawn parameters; one iteration is 32 images.
fn both_views(bencher: Bencher<'_, '_>, preset: Preset, width: usize, height: usize) {
    let views = preset.views();
    let image = photograph(width, height);
    let mut augmenter = Augmenter::new();
    let (h, w) = views[0].out_size();
    let mut out = vec![0f32; 2 * h * w * 3];
    bencher.bench_local(|| {
        for sample in 0..32 {
            for (index, (view, out)) in views.iter().zip(out.chunks_mut(h * w * 3)).enumerate() {
                let params = view.draw(&mut Rng::keyed(0, 0, sample, index as u64), width, height);
                augmenter
                    .apply_into(&image, view, &params, Layout::Nchw, ViewOut::F32(out))
                    .unwrap();
            }
        }
    });
}

#[divan::bench]
fn both_views_of_32_imagenet_images(bencher: Bencher<'_, '_>) {
    both_views(bencher, Preset::BarlowImagenet, 468, 401);
}

#[divan::bench]
fn both_views_of_32_cifar_images(bencher: Bencher<'_, '_>) {
    both_views(bencher, Preset::BarlowCifar, 32, 32);
}
