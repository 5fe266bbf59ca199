//! The plain path: what one writes with the crates at hand. `image` decodes all of the picture,
//! `fast_image_resize` crops and resizes, each operation is a loop over `f32` or 8-bit pixels.
//! One thread; the same draws as the loader's.

use bt_pipeline::Result;
use bt_pipeline::augment::{Jitter, JitterOp, Normalize, ViewConfig, ViewParams};
use bt_pipeline::dct::to_jpeg;
use bt_pipeline::measure::cpu_seconds;
use bt_pipeline::rng::Rng;
use bt_pipeline::shard::{Format, ReadScratch, ShardSet, raw_parse};
use fast_image_resize as fir;
use image::RgbImage;

/// CPU microseconds an image: read and decode, augment.
pub fn measure(set: &ShardSet, views: &[ViewConfig], images: u64) -> Result<[f64; 2]> {
    let (mut scratch, mut resizer) = (ReadScratch::new(), fir::Resizer::new());
    let (height, width) = views[0].out_size();
    let mut out = vec![0f32; views.len() * 3 * height * width];
    let mut seconds = [0.0; 2];
    // Groups of images between two looks at the clock, whose steps are coarse.
    let mut decoded = Vec::new();
    let mut sample = 0;
    while sample < images {
        let group = sample..images.min(sample + set.len().min(128) as u64);
        // Re-coded images as the JPEGs they were, made off the clock.
        let mut jpegs = Vec::new();
        for nth in group.clone() {
            let read = set.read((nth % set.len() as u64) as usize, &mut scratch)?;
            jpegs.push((read.format == Format::Dct).then(|| to_jpeg(read.image)).transpose()?);
        }
        let start = cpu_seconds();
        decoded.clear();
        for (nth, jpeg) in group.zip(&jpegs) {
            let read = set.read((nth % set.len() as u64) as usize, &mut scratch)?;
            decoded.push(match (read.format, raw_parse(read.image)) {
                (Format::Raw, Some((w, h, pixels))) => {
                    RgbImage::from_raw(w, h, pixels.to_vec()).expect("as many pixels as it says")
                }
                _ => image::load_from_memory(jpeg.as_deref().unwrap_or(read.image))
                    .expect("a known format")
                    .into_rgb8(),
            });
        }
        let middle = cpu_seconds();
        for (image, nth) in decoded.iter().zip(sample..) {
            for (index, (view, out)) in
                views.iter().zip(out.chunks_mut(3 * height * width)).enumerate()
            {
                let mut rng = Rng::keyed(0, 0, nth, index as u64);
                let size = (image.width() as usize, image.height() as usize);
                let params = view.draw(&mut rng, size.0, size.1);
                make_view(&mut resizer, image, view, &params, out);
            }
        }
        seconds[0] += middle - start;
        seconds[1] += cpu_seconds() - middle;
        sample += decoded.len() as u64;
    }
    Ok(seconds.map(|s| s * 1e6 / images as f64))
}

fn make_view(
    resizer: &mut fir::Resizer,
    image: &RgbImage,
    view: &ViewConfig,
    params: &ViewParams,
    out: &mut [f32],
) {
    let (height, width) = view.out_size();
    let c = params.crop;
    let crop = image::imageops::crop_imm(
        image,
        c.left as u32,
        c.top as u32,
        c.width as u32,
        c.height as u32,
    );
    let crop = crop.to_image();
    let source = fir::images::TypedImageRef::<fir::pixels::U8x3>::from_buffer(
        crop.width(),
        crop.height(),
        crop.as_raw(),
    )
    .expect("a whole crop");
    let mut pixels = vec![0u8; 3 * width * height];
    let mut resized =
        fir::images::TypedImage::from_buffer(width as u32, height as u32, &mut pixels)
            .expect("as many pixels");
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::CatmullRom));
    resizer.resize_typed(&source, &mut resized, &options).expect("sizes above 0");
    let mut image = RgbImage::from_raw(width as u32, height as u32, pixels).expect("as many");
    if params.flip {
        image::imageops::flip_horizontal_in_place(&mut image);
    }
    if let Some(jitter) = &params.jitter {
        jitter.order.into_iter().for_each(|op| recolor(&mut image, jitter, op));
    }
    if params.grayscale {
        image.pixels_mut().for_each(|p| p.0 = [gray(p.0) as u8; 3]);
    }
    if let Some(sigma) = params.blur_sigma {
        image = image::imageops::fast_blur(&image, sigma);
    }
    if let Some(threshold) = params.solarize {
        for p in image.pixels_mut() {
            p.0 = p.0.map(|v| if v < threshold { v } else { 255 - v });
        }
    }
    store(&image, view.normalize, out);
}

fn store(image: &RgbImage, normalize: Normalize, out: &mut [f32]) {
    let pixels = image.pixels().len();
    for (i, p) in image.pixels().enumerate() {
        for c in 0..3 {
            let value = f32::from(p.0[c]) / 255.0;
            out[c * pixels + i] = (value - normalize.mean[c]) / normalize.std[c];
        }
    }
}

fn gray([r, g, b]: [u8; 3]) -> f32 {
    (0.299 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b)).round()
}

fn blend(value: u8, with: f32, factor: f32) -> u8 {
    (with + factor * (f32::from(value) - with)).clamp(0.0, 255.0) as u8
}

fn recolor(image: &mut RgbImage, jitter: &Jitter, op: JitterOp) {
    match op {
        JitterOp::Brightness => {
            image.pixels_mut().for_each(|p| p.0 = p.0.map(|v| blend(v, 0.0, jitter.brightness)));
        }
        JitterOp::Contrast => {
            let sum: f64 = image.pixels().map(|p| f64::from(gray(p.0))).sum();
            let mean = (sum / image.pixels().len() as f64).round() as f32;
            image.pixels_mut().for_each(|p| p.0 = p.0.map(|v| blend(v, mean, jitter.contrast)));
        }
        JitterOp::Saturation => {
            for p in image.pixels_mut() {
                let gray = gray(p.0);
                p.0 = p.0.map(|v| blend(v, gray, jitter.saturation));
            }
        }
        JitterOp::Hue => image.pixels_mut().for_each(|p| p.0 = turn(p.0, jitter.hue)),
    }
}

/// Through HSV and back.
fn turn(rgb: [u8; 3], shift: f32) -> [u8; 3] {
    let [r, g, b] = rgb.map(f32::from);
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = most - least;
    if chroma == 0.0 {
        return rgb;
    }
    let hue = if most == r {
        (g - b) / chroma
    } else if most == g {
        2.0 + (b - r) / chroma
    } else {
        4.0 + (r - g) / chroma
    };
    let hue = (hue + 6.0 * shift).rem_euclid(6.0);
    [5.0, 3.0, 1.0].map(|n| {
        let k = (n + hue).rem_euclid(6.0);
        (most - chroma * k.min(4.0 - k).clamp(0.0, 1.0)).round() as u8
    })
}
