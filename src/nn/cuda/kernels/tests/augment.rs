//! Views finished on the device against the pipeline's, byte for byte.

use bt_pipeline::Image;
use bt_pipeline::augment::{
    Augmenter, Crop, Jitter, JitterOp, Layout, Preset, ViewOut, ViewParams,
};
use bt_pipeline::rng::Rng;
use candle_core::DType;

use super::Memory;
use crate::nn::cuda::Backend;
use crate::nn::cuda::emulate::Emulator;
use crate::nn::cuda::kernels::augment::*;

fn image(width: usize, height: usize, seed: u64) -> Image {
    let mut rng = Rng::keyed(seed, 0, 0, 0);
    // Smooth colours with edges and noise.
    let pixels_hwc = (0..width * height * 3).map(|i| {
        let (x, y) = (i / 3 % width, i / 3 / width);
        let wave = ((x * (i % 3 + 1)) as f64 * 0.11).sin() + ((y as f64) * 0.07).cos();
        let edge = if (x / 9 + y / 7) % 2 == 0 { 60.0 } else { -30.0 };
        (128.0 + 60.0 * wave + edge + rng.uniform(-20.0, 20.0)).clamp(0.0, 255.0) as u8
    });
    Image { width, height, pixels_hwc: pixels_hwc.collect() }
}

/// `params` on the CPU, and on the device after what the CPU leaves undone.
fn compare(device: &Emulator, (width, height): (usize, usize), drawn: &[ViewParams]) {
    let mut config = Preset::BarlowCifar.views()[0].clone();
    let size = bt_pipeline::augment::Size::HeightWidth([height, width]);
    config.random_resized_crop.as_mut().unwrap().size = size;
    let mut augmenter = Augmenter::new();
    let (mut want, mut start) = (Vec::new(), Vec::new());
    for (number, params) in drawn.iter().enumerate() {
        let image = image(width + 13, height + 9, number as u64);
        let mut view = |params: &ViewParams, all: &mut Vec<u8>| {
            let mut out = vec![0; width * height * 3];
            let to = ViewOut::U8(&mut out);
            augmenter.apply_into(&image, &config, params, Layout::Nhwc, to).unwrap();
            all.extend(out);
        };
        let crop = Crop { top: 2, left: 5, height: height + 3, width: width + 4 };
        view(&ViewParams { crop, window: None, ..*params }, &mut want);
        view(&ViewParams { crop, window: None, ..*params }.geometry(), &mut start);
    }
    let floats: Vec<f32> = start.iter().map(|v| f32::from(*v)).collect();
    let pixels = Memory::of(&floats, DType::U8);
    let views = Views { count: drawn.len(), height, width };
    let words = Memory::unwritten(drawn.len() * WORDS, DType::U32);
    let scratch = Memory::unwritten(views.scratch(), DType::F32);
    device.write(ViewRecords::of(drawn).unwrap().bytes(), words.span()).unwrap();
    device
        .without_waiting(|| augment(device, views, pixels.span(), words.span(), scratch.span()))
        .unwrap();
    for (i, (got, want)) in pixels.floats().iter().zip(&want).enumerate() {
        let params = &drawn[i / (width * height * 3)];
        assert_eq!(*got, f32::from(*want), "value {i} of {width} x {height}: {params:?}");
    }
}

/// One operation at a time, at its extremes, then everything in random order.
fn parameters() -> Vec<ViewParams> {
    let plain = ViewParams::plain(Crop::whole(1, 1));
    let still = Jitter {
        order: [JitterOp::Hue, JitterOp::Contrast, JitterOp::Brightness, JitterOp::Saturation],
        brightness: 1.0,
        contrast: 1.0,
        saturation: 1.0,
        hue: 0.0,
        exact_hue: false,
    };
    let jitter = |jitter: Jitter| ViewParams { jitter: Some(jitter), ..plain };
    let mut all = vec![plain, jitter(still)];
    for factor in [0.0, 0.6, 1.4, 2.5, 7.0] {
        all.push(jitter(Jitter { brightness: factor, ..still }));
        all.push(jitter(Jitter { contrast: factor, ..still }));
        all.push(jitter(Jitter { saturation: factor, ..still }));
    }
    for hue in [-0.5, -0.1, 0.03, 0.1, 0.5] {
        all.push(jitter(Jitter { hue, ..still }));
        all.push(jitter(Jitter { hue, exact_hue: true, ..still }));
    }
    all.push(ViewParams { grayscale: true, ..plain });
    all.push(ViewParams { solarize: Some(128), ..plain });
    all.push(ViewParams { solarize: Some(0), ..plain });
    for sigma in [0.05, 0.1, 0.7, 2.0, 9.0] {
        all.push(ViewParams { blur_sigma: Some(sigma), solarize: Some(100), ..plain });
    }
    let mut rng = Rng::keyed(3, 0, 0, 0);
    for _ in 0..12 {
        let mut order = still.order;
        rng.shuffle(&mut order);
        let mut between = |low: f64, high: f64| rng.uniform(low, high) as f32;
        all.push(ViewParams {
            jitter: Some(Jitter {
                order,
                brightness: between(0.6, 1.4),
                contrast: between(0.6, 1.4),
                saturation: between(0.8, 1.2),
                hue: between(-0.1, 0.1),
                exact_hue: between(0.0, 1.0) < 0.3,
            }),
            grayscale: between(0.0, 1.0) < 0.2,
            blur_sigma: (between(0.0, 1.0) < 0.5).then(|| between(0.1, 2.0)),
            solarize: (between(0.0, 1.0) < 0.3).then_some(128),
            flip: between(0.0, 1.0) < 0.5,
            ..plain
        });
    }
    all
}

#[test]
fn views_finished_on_the_device_are_the_pipelines() {
    let Some(device) = Emulator::open() else { return };
    for size in [(32, 32), (37, 21), (5, 3), (1, 1)] {
        compare(&device, size, &parameters());
        device.turn_around();
    }
}

#[test]
fn parameters_out_of_range_are_errors() {
    let all = parameters();
    let refused = |params: ViewParams| ViewRecords::of(&[all[0], params]).is_err();
    assert!(!refused(all[1]));
    let jitter = |change: fn(&mut Jitter)| {
        let mut jitter = all[1].jitter.unwrap();
        change(&mut jitter);
        ViewParams { jitter: Some(jitter), ..all[0] }
    };
    assert!(refused(jitter(|j| j.hue = 0.6)));
    assert!(refused(jitter(|j| j.contrast = -0.1)));
    assert!(refused(jitter(|j| j.brightness = f32::NAN)));
    assert!(refused(ViewParams { blur_sigma: Some(33.0), ..all[0] }));
}
