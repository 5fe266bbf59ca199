//! What must hold for every view: instruction sets agree byte for byte, crops lie
//! in the image, a flip undoes a flip, layouts hold the same values.

use bt_pipeline::Error;
use bt_pipeline::Image;
use bt_pipeline::Level;
use bt_pipeline::augment::{
    Augmenter, Crop, GaussianBlurPatch, Interpolation, Jitter, JitterOp, Layout, Preset, Size,
    ViewConfig, ViewOut, ViewParams, ViewPatch,
};
use bt_pipeline::jpeg::Region;
use bt_pipeline::rng::Rng;
use half::bf16;
use proptest::prelude::*;

fn noise(width: usize, height: usize, seed: u64) -> Image {
    let mut rng = Rng::keyed(seed, 1, 2, 3);
    let mut image = Image::new(width, height);
    for value in &mut image.pixels_hwc {
        // Extremes are frequent: overshoot and clamping happen there.
        *value = match rng.below(4) {
            0 => 0,
            1 => 255,
            _ => rng.below(256) as u8,
        };
    }
    image
}

fn config(height: usize, width: usize, interpolation: Interpolation) -> ViewConfig {
    let mut config = Preset::BarlowImagenet.views().remove(0);
    let crop = config.random_resized_crop.as_mut().unwrap();
    crop.size = Size::HeightWidth([height, width]);
    crop.interpolation = interpolation;
    config
}

fn everything(rng: &mut Rng, crop: Crop) -> ViewParams {
    let mut order = [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation, JitterOp::Hue];
    rng.shuffle(&mut order);
    let mut between = |low: f64, high: f64| rng.uniform(low, high) as f32;
    let jitter = Jitter {
        order,
        brightness: between(0.0, 3.0),
        contrast: between(0.0, 5.0),
        saturation: between(0.0, 2.0),
        hue: between(-0.5, 0.5),
        exact_hue: between(0.0, 1.0) < 0.2,
    };
    let sigma = between(0.05, 5.0);
    ViewParams {
        crop,
        window: None,
        flip: rng.chance(0.5),
        jitter: rng.chance(0.8).then_some(jitter),
        grayscale: rng.chance(0.2),
        blur_sigma: rng.chance(0.5).then_some(sigma),
        solarize: rng.chance(0.3).then_some(128),
    }
}

fn crop_in(rng: &mut Rng, width: usize, height: usize) -> Crop {
    let part = |rng: &mut Rng, whole: usize| {
        let len = 1 + rng.below(whole as u64) as usize;
        (rng.below((whole - len + 1) as u64) as usize, len)
    };
    let (top, crop_height) = part(rng, height);
    let (left, crop_width) = part(rng, width);
    Crop { top, left, height: crop_height, width: crop_width }
}

fn view_u8(
    augmenter: &mut Augmenter,
    image: &Image,
    config: &ViewConfig,
    params: &ViewParams,
) -> Vec<u8> {
    let (height, width) = config.out_size();
    let mut out = vec![0; height * width * 3];
    augmenter.apply_into(image, config, params, Layout::Nhwc, ViewOut::U8(&mut out)).unwrap();
    out
}

fn sizes() -> impl Strategy<Value = (usize, usize, usize, usize, u64)> {
    (1..90usize, 1..90usize, 1..80usize, 1..80usize, any::<u64>())
}

fn long() -> impl Strategy<Value = (usize, usize, usize, usize, u64)> {
    (200..3000usize, 1..40usize, 1..300usize, 1..20usize, any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_instruction_set_gives_the_scalar_bytes((w, h, ow, oh, seed) in sizes()) {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        let image = noise(w, h, seed);
        let filter = [Interpolation::Bicubic, Interpolation::Bilinear][rng.below(2) as usize];
        let config = config(oh, ow, filter);
        // Two views after one another: what the first leaves behind must not
        // show in the second.
        let crops = [crop_in(&mut rng, w, h), crop_in(&mut rng, w, h)];
        let params = crops.map(|crop| everything(&mut rng, crop));
        let of = |level: Level| {
            let mut augmenter = Augmenter::with_level(level);
            params.map(|params| view_u8(&mut augmenter, &image, &config, &params))
        };
        let scalar = of(Level::SCALAR);
        for level in Level::available() {
            prop_assert_eq!(&of(level), &scalar, "{:?}", level);
        }
    }

    // Rows far longer than what the vector resize keeps of them at a time.
    #[test]
    fn long_rows_are_resized_alike((w, h, ow, oh, seed) in long()) {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        let image = noise(w, h, seed);
        let crop = crop_in(&mut rng, w, h);
        for (interpolation, flip) in [
            (Interpolation::Bicubic, false),
            (Interpolation::Bicubic, true),
            (Interpolation::Bilinear, false),
            (Interpolation::Bilinear, true),
        ] {
            let config = config(oh, ow, interpolation);
            let params = ViewParams { flip, ..ViewParams::plain(crop) };
            let of = |level| view_u8(&mut Augmenter::with_level(level), &image, &config, &params);
            let scalar = of(Level::SCALAR);
            for level in Level::available() {
                prop_assert_eq!(&of(level), &scalar, "{:?} {:?} {}", level, interpolation, flip);
            }
        }
    }

    #[test]
    fn layouts_and_types_hold_the_same_values((w, h, ow, oh, seed) in sizes()) {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        let image = noise(w, h, seed);
        let config = config(oh, ow, Interpolation::Bicubic);
        let crop = crop_in(&mut rng, w, h);
        let params = everything(&mut rng, crop);
        for level in Level::available() {
            let mut augmenter = Augmenter::with_level(level);
            let pixels = view_u8(&mut augmenter, &image, &config, &params);
            let (mut nhwc, mut nchw) = (vec![0f32; pixels.len()], vec![0f32; pixels.len()]);
            let mut half = vec![bf16::ZERO; pixels.len()];
            let mut planar = vec![0u8; pixels.len()];
            let mut run = |layout, out: ViewOut<'_>| {
                augmenter.apply_into(&image, &config, &params, layout, out).unwrap();
            };
            run(Layout::Nhwc, ViewOut::F32(&mut nhwc));
            run(Layout::Nchw, ViewOut::F32(&mut nchw));
            run(Layout::Nchw, ViewOut::Bf16(&mut half));
            run(Layout::Nchw, ViewOut::U8(&mut planar));
            for (index, &pixel) in pixels.iter().enumerate() {
                let (place, c) = (index / 3, index % 3);
                let (mean, std) = (config.normalize.mean[c], config.normalize.std[c]);
                let value = nhwc[index];
                prop_assert!((value - (f32::from(pixel) / 255.0 - mean) / std).abs() < 1e-5);
                let at = c * oh * ow + place;
                prop_assert_eq!(nchw[at], value);
                prop_assert_eq!(half[at], bf16::from_f32(value));
                prop_assert_eq!(planar[at], pixel);
            }
        }
    }

    #[test]
    fn flipping_twice_is_no_flip((w, h, ow, oh, seed) in sizes()) {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        let image = noise(w, h, seed);
        let config = config(oh, ow, Interpolation::Bicubic);
        let plain = ViewParams::plain(crop_in(&mut rng, w, h));
        let mut augmenter = Augmenter::new();
        let view = view_u8(&mut augmenter, &image, &config, &plain);
        let flipped = ViewParams { flip: true, ..plain };
        let once = view_u8(&mut augmenter, &image, &config, &flipped);
        let again = ViewParams { flip: true, ..ViewParams::plain(Crop::whole(ow, oh)) };
        let once = Image { width: ow, height: oh, pixels_hwc: once };
        prop_assert_eq!(view_u8(&mut augmenter, &once, &config, &again), view);
    }

    #[test]
    fn a_view_is_the_same_from_the_decoded_region_alone((w, h, ow, oh, seed) in sizes()) {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        let image = noise(w, h, seed);
        let config = config(oh, ow, Interpolation::Bicubic);
        let crop = crop_in(&mut rng, w, h);
        let region: Crop = Region::from(crop).union(crop_in(&mut rng, w, h).into()).into();
        let params = everything(&mut rng, crop);
        let mut part = Image::new(region.width, region.height);
        for y in 0..region.height {
            let row = &image.row(region.top + y)[3 * region.left..][..3 * region.width];
            part.pixels_hwc[3 * region.width * y..][..row.len()].copy_from_slice(row);
        }
        let mut augmenter = Augmenter::new();
        prop_assert_eq!(
            view_u8(&mut augmenter, &part, &config, &params.within(region)),
            view_u8(&mut augmenter, &image, &config, &params)
        );
    }

    #[test]
    fn crops_lie_in_the_image(w in 1..3000usize, h in 1..3000usize, seed in any::<u64>()) {
        for preset in Preset::ALL {
            for (index, view) in preset.views().iter().enumerate() {
                let params = view.draw(&mut Rng::keyed(seed, 0, 0, index as u64), w, h);
                prop_assert!(params.crop.fits(w, h), "{params:?}");
                if let Some(window) = params.window {
                    let (height, width) = view.out_size();
                    prop_assert!(window.top + height <= window.resized_height);
                    prop_assert!(window.left + width <= window.resized_width);
                }
            }
        }
    }
}

#[test]
fn drawn_crops_have_torchvisions_areas_and_ratios() {
    let view = Preset::BarlowImagenet.views().remove(0);
    let (mut area, mut log_ratio, draws) = (0.0, 0.0, 20_000);
    for sample in 0..draws {
        let crop = view.draw(&mut Rng::keyed(3, 0, sample, 0), 500, 375).crop;
        area += (crop.width * crop.height) as f64 / (500.0 * 375.0);
        log_ratio += (crop.width as f64 / crop.height as f64).ln();
    }
    // From 20,000 draws of torchvision 0.29's `RandomResizedCrop.get_params`:
    // 0.4311 and 0.0319, standard errors 0.0015 and 0.0012.
    let (area, log_ratio) = (area / draws as f64, log_ratio / draws as f64);
    assert!((area - 0.4311).abs() < 0.01, "mean area {area}");
    assert!((log_ratio - 0.0319).abs() < 0.006, "mean log ratio {log_ratio}");
}

#[test]
fn a_patch_can_be_written_without_a_file() {
    let blur = GaussianBlurPatch { p: Some(0.25), ..Default::default() };
    let patch = ViewPatch { gaussian_blur: Some(blur), ..Default::default() };
    let view = patch.apply(&Preset::BarlowImagenet.views()[0]).unwrap();
    assert_eq!((view.gaussian_blur.p, view.gaussian_blur.sigma), (0.25, [0.1, 2.0]));
}

#[test]
fn a_wrong_crop_or_output_is_refused() {
    let image = noise(20, 10, 0);
    let config = config(8, 8, Interpolation::Bicubic);
    let mut augmenter = Augmenter::new();
    let mut run = |crop: Crop, len: usize| {
        let (mut out, params) = (vec![0u8; len], ViewParams::plain(crop));
        augmenter.apply_into(&image, &config, &params, Layout::Nhwc, ViewOut::U8(&mut out))
    };
    assert!(run(Crop::whole(20, 10), 8 * 8 * 3).is_ok());
    assert!(matches!(run(Crop::whole(20, 10), 8 * 8 * 3 - 1), Err(Error::Usage(_))));
    assert!(matches!(run(Crop::whole(20, 11), 8 * 8 * 3), Err(Error::Usage(_))));
    assert!(matches!(
        run(Crop { top: 0, left: usize::MAX, height: 1, width: 2 }, 8 * 8 * 3),
        Err(Error::Usage(_))
    ));
    assert!(matches!(
        run(Crop { top: 0, left: 0, height: 0, width: 2 }, 8 * 8 * 3),
        Err(Error::Usage(_))
    ));
}

/// A 1 x 600 image whose shorter side becomes 256 is 153,600 rows, of which the view's are made.
#[test]
fn an_image_or_a_view_whose_numbers_do_not_fit_is_refused_not_read_beyond() {
    let of = |image: &Image, config: &ViewConfig, params: &ViewParams, out: &mut [u8]| {
        Augmenter::new().apply_into(image, config, params, Layout::Nhwc, ViewOut::U8(out))
    };
    let crop = Crop { top: 0, left: 0, height: 3, width: 16 };
    let params = ViewParams::plain(crop);
    // Three times this width is 48, in 64 bits, and four rows of it are the bytes that are there.
    let wraps = Image { width: (1 << 63) + 16, height: 4, pixels_hwc: vec![0; 192] };
    let short = Image { width: 16, height: 4, pixels_hwc: vec![0; 191] };
    let view = config(1, 16, Interpolation::Bicubic);
    for image in [wraps, short] {
        let result = of(&image, &view, &params, &mut [0; 48]);
        assert!(matches!(result, Err(Error::Usage(_))), "{result:?}");
    }
    let fits = Image::new(16, 4);
    of(&fits, &view, &params, &mut [0; 48]).unwrap();
    let empty = config(0, 4, Interpolation::Bicubic);
    let huge = config(1 << 62, 4, Interpolation::Bicubic);
    let mut bare = view;
    bare.random_resized_crop = None;
    for view in [empty, huge, bare] {
        let result = of(&fits, &view, &params, &mut []);
        assert!(matches!(result, Err(Error::Usage(_))), "{result:?}");
    }
}

#[test]
fn a_thin_image_is_resized_as_far_as_its_ratio_goes() {
    let side = 600;
    let mut tall = Image::new(1, side);
    for (y, pixel) in tall.pixels_hwc.chunks_exact_mut(3).enumerate() {
        pixel.fill((y * 37 % 256) as u8);
    }
    let wide = Image { width: side, height: 1, pixels_hwc: tall.pixels_hwc.clone() };
    let config = ViewConfig::eval(256, 224);
    // Keys' cubic with a = -1/2, by its definition.
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
        x if x < 2.0 => -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0,
        _ => 0.0,
    };
    let expected = |nth: usize| {
        let center = ((side * 256 - 224) / 2 + nth) as f64 + 0.5;
        let center = center / 256.0 - 0.5;
        let pixels = tall.pixels_hwc.chunks_exact(3).enumerate();
        pixels.map(|(y, pixel)| f64::from(pixel[0]) * cubic(y as f64 - center)).sum::<f64>()
    };
    for level in Level::available() {
        let mut augmenter = Augmenter::with_level(level);
        for image in [&tall, &wide] {
            let params = config.draw(&mut Rng::keyed(0, 0, 0, 0), image.width, image.height);
            let view = view_u8(&mut augmenter, image, &config, &params);
            for (at, pixel) in view.chunks_exact(3).enumerate() {
                let nth = if image.width == 1 { at / 224 } else { at % 224 };
                let want = expected(nth).clamp(0.0, 255.0);
                assert!((f64::from(pixel[0]) - want).abs() <= 1.0, "{at}: {pixel:?}, not {want}");
            }
        }
    }
    // A window beyond any image is arithmetic alone, too.
    let window = bt_pipeline::augment::Window {
        resized_height: usize::MAX,
        resized_width: 224,
        top: usize::MAX - 224,
        left: 0,
    };
    let params = ViewParams { window: Some(window), ..ViewParams::plain(Crop::whole(1, side)) };
    let view = view_u8(&mut Augmenter::new(), &tall, &config, &params);
    assert!(view.chunks_exact(3).all(|pixel| pixel == &view[..3]) && view[0] > 100);
}

#[test]
fn an_image_whose_resize_would_take_gigabytes_is_refused_as_data() {
    let image = Image::new(1, 50_000_000);
    let mut config = ViewConfig::eval(8, 8);
    config.resize.as_mut().unwrap().size = Size::HeightWidth([8, 8]);
    let params = config.draw(&mut Rng::keyed(0, 0, 0, 0), image.width, image.height);
    let mut out = [0; 8 * 8 * 3];
    let made =
        Augmenter::new().apply_into(&image, &config, &params, Layout::Nhwc, ViewOut::U8(&mut out));
    let Err(Error::TooLarge(cause)) = made else { panic!("{made:?}") };
    assert!(cause.contains("1 x 50000000"), "{cause}");
    // The same image, made larger instead, is a matter of a few pixels.
    let config = ViewConfig::eval(8, 8);
    let params = config.draw(&mut Rng::keyed(0, 0, 0, 0), image.width, image.height);
    Augmenter::new()
        .apply_into(&image, &config, &params, Layout::Nhwc, ViewOut::U8(&mut out))
        .unwrap();
}
