//! [`Augmenter`]: drawn parameters applied to pixels.
//!
//! Rows flow, some at a time, from the resize through the colour operations into the output; the
//! whole view is set down only where an operation must have seen all
//! of it (contrast needs the mean of the gray image).

use std::ops::Range;

use super::ViewConfig;
use super::crop::Interpolation;
use super::output::{Layout, ViewOut};
use super::params::{Crop, Jitter, JitterOp, ViewParams, Window};
use crate::Level;
use crate::image_rgb::values;
use crate::kernel::blur::Blur;
use crate::kernel::resize::{AxisRange, Filter, Geometry, Resize};
use crate::kernel::store::{Affine, Store, prefetch};
use crate::kernel::{MAX_FACTOR, MAX_SIGMA, Rows, Scratch, color, padded};
use crate::{Error, Image, Result};

/// Applies [`ViewParams`] to images. One for each thread: it owns the buffers
/// that views need on their way and allocates nothing once they have grown.
#[derive(Debug)]
pub struct Augmenter {
    level: Level,
    resize: Resize,
    blur: Blur,
    /// The rows on their way.
    slab: Scratch,
    blurred: Scratch,
    /// All rows of a view, where an operation must have seen all of them.
    rows: Scratch,
}

impl Default for Augmenter {
    fn default() -> Self {
        Self::new()
    }
}

/// One colour operation with its drawn value.
#[derive(Clone, Copy, Debug)]
enum ColorOp {
    Brightness(f32),
    Saturation(f32),
    /// A shift in Pillow's units.
    Hue(i16),
    /// In turns.
    ExactHue(f32),
    Grayscale,
}

/// Colour operations before and after contrast, which needs a whole image.
#[derive(Clone, Copy, Debug, Default)]
struct ColorPlan {
    before: [Option<ColorOp>; 4],
    contrast: Option<f32>,
    after: [Option<ColorOp>; 4],
}

impl ColorPlan {
    fn new(params: &ViewParams) -> Self {
        let mut plan = ColorPlan::default();
        if let Some(jitter) = params.jitter {
            for op in jitter.order {
                plan.add(&jitter, op);
            }
        }
        if params.grayscale {
            plan.push(ColorOp::Grayscale);
        }
        plan
    }

    /// Adds an operation unless it would change nothing.
    fn add(&mut self, jitter: &Jitter, op: JitterOp) {
        match op {
            JitterOp::Contrast if jitter.contrast != 1.0 => self.contrast = Some(jitter.contrast),
            JitterOp::Brightness if jitter.brightness != 1.0 => {
                self.push(ColorOp::Brightness(jitter.brightness));
            }
            JitterOp::Saturation if jitter.saturation != 1.0 => {
                self.push(ColorOp::Saturation(jitter.saturation));
            }
            JitterOp::Hue if jitter.hue != 0.0 => self.push(match jitter.exact_hue {
                true => ColorOp::ExactHue(jitter.hue),
                false => ColorOp::Hue(color::hue_shift(jitter.hue)),
            }),
            _ => {}
        }
    }

    fn push(&mut self, op: ColorOp) {
        let ops = if self.contrast.is_some() { &mut self.after } else { &mut self.before };
        let free = ops.iter_mut().find(|slot| slot.is_none());
        *free.expect("there are at most four operations") = Some(op);
    }
}

/// Values of the rows that go through the operations together, unless one row has more: 8 KiB, which
/// stay in the L1 cache next to what the operations need.
const SLAB: usize = 4096;

/// The rows' destination.
struct Sink<'a, T> {
    out: &'a mut [T],
    layout: Layout,
    affine: Affine,
    width: usize,
    height: usize,
    solarize: Option<u8>,
}

impl<T: Store> Sink<'_, T> {
    /// Rows from `y` on go to their places, which [`Sink::fetch`] has fetched.
    fn put(&mut self, level: Level, y: usize, rows: &mut [i16]) {
        let (height, width) = (self.height, self.width);
        let end = y + rows.len() / (3 * padded(width));
        let mut rows = Rows::new(rows, width);
        if let Some(threshold) = self.solarize {
            color::solarize(level, &mut rows, threshold);
        }
        match self.layout {
            Layout::Nhwc => {
                let out = &mut self.out[3 * width * y..3 * width * end];
                T::interleaved(level, &rows, &self.affine, width, out);
            }
            Layout::Nchw => {
                let (r, rest) = self.out.split_at_mut(height * width);
                let (g, b) = rest.split_at_mut(height * width);
                let out = [r, g, b].map(|plane| &mut plane[width * y..width * end]);
                T::planes(level, &rows, &self.affine, width, out);
            }
        }
    }

    /// Has the CPU fetch the places of rows, as far as there are any. A batch is larger than the
    /// caches, and rows come microseconds apart, in three planes far from each other: no prefetcher
    /// of the CPU sees a pattern in that, and stores that wait for their lines hold up all that
    /// follows.
    fn fetch(&mut self, rows: Range<usize>) {
        let (height, width) = (self.height, self.width);
        let (first, end) = (rows.start.min(height), rows.end.min(height));
        match self.layout {
            Layout::Nhwc => prefetch(&mut self.out[3 * width * first..3 * width * end]),
            Layout::Nchw => {
                for channel in 0..3 {
                    let plane = &mut self.out[channel * height * width..];
                    prefetch(&mut plane[width * first..width * end]);
                }
            }
        }
    }
}

impl Augmenter {
    /// An augmenter that uses the best instructions of this CPU.
    pub fn new() -> Self {
        Self::with_level(Level::detect())
    }

    /// An augmenter that uses one instruction set. All give the same bytes; this
    /// is for tests and benchmarks.
    pub fn with_level(level: Level) -> Self {
        Augmenter {
            level,
            resize: Resize::default(),
            blur: Blur::default(),
            slab: Scratch::default(),
            blurred: Scratch::default(),
            rows: Scratch::default(),
        }
    }

    /// Makes one view of `image` into `out`, `config.out_size()` elements times 3
    /// in `layout`. Float outputs are normalised as `config.normalize` says.
    ///
    /// # Errors
    /// [`Error::Usage`] when the view has no size or `out` another length, when the image's
    /// fields disagree, the crop does not lie in it or a parameter is out of range.
    /// [`Error::TooLarge`] when the image is so long and thin that its resize would take hundreds
    /// of megabytes.
    pub fn apply_into(
        &mut self,
        image: &Image,
        config: &ViewConfig,
        params: &ViewParams,
        layout: Layout,
        out: ViewOut<'_>,
    ) -> Result<()> {
        let (height, width) = config.size()?.height_width();
        check(image, params, height, width, out.len())?;
        Resize::check(&geometry(params, height, width))?;
        let affine = Affine::normalize(config.normalize.mean, config.normalize.std);
        let filter = match config.interpolation() {
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Bilinear => Filter::Bilinear,
        };
        let solarize = params.solarize;
        macro_rules! run {
            ($out:expr) => {
                self.run(
                    image,
                    params,
                    filter,
                    Sink { out: $out, layout, affine, width, height, solarize },
                )
            };
        }
        match out {
            ViewOut::F32(out) => run!(out),
            ViewOut::Bf16(out) => run!(out),
            ViewOut::U8(out) => run!(out),
        }
        Ok(())
    }

    /// Gives back what a crop far larger than others took. The other buffers are as large as the
    /// view.
    pub(crate) fn trim(&mut self) {
        self.resize.trim();
    }

    fn run<T: Store>(
        &mut self,
        image: &Image,
        params: &ViewParams,
        filter: Filter,
        mut sink: Sink<'_, T>,
    ) {
        let (height, width) = (sink.height, sink.width);
        let plan = ColorPlan::new(params);
        self.resize.begin(self.level, filter, geometry(params, height, width));
        let sigma = params.blur_sigma.unwrap_or(0.0);
        let blurs = sigma > 0.0 && self.blur.begin(sigma, width, height);
        let row_len = 3 * padded(width);
        let slab_rows = (SLAB / row_len).max(1);
        sink.fetch(0..slab_rows);
        let mean = plan.contrast.map(|factor| (factor, self.set_down(image, &plan, width, height)));
        for y in (0..height).step_by(slab_rows) {
            let count = slab_rows.min(height - y);
            let slab = if let Some((factor, mean)) = mean {
                let slab = &mut self.rows.get(row_len * height)[row_len * y..][..row_len * count];
                color::contrast(self.level, &mut Rows::new(slab, width), factor, mean);
                slab
            } else {
                let slab = self.slab.get(row_len * count);
                for row in slab.chunks_exact_mut(row_len) {
                    self.resize.next_row(self.level, image, row);
                }
                recolor(self.level, &mut Rows::new(slab, width), &plan.before);
                slab
            };
            recolor(self.level, &mut Rows::new(slab, width), &plan.after);
            if blurs {
                for row in slab.chunks_exact(row_len) {
                    self.blur.push(self.level, row);
                    drain_blur(self.level, &mut self.blur, &mut self.blurred, &mut sink);
                }
            } else {
                sink.put(self.level, y, slab);
                sink.fetch(y + slab_rows..y + 2 * slab_rows);
            }
        }
    }

    /// Resizes all rows, applies what comes before contrast, keeps them and
    /// returns the mean of their gray, as Pillow rounds it.
    fn set_down(&mut self, image: &Image, plan: &ColorPlan, width: usize, height: usize) -> u8 {
        let row_len = 3 * padded(width);
        let slab_rows = (SLAB / row_len).max(1);
        let mut sum = 0;
        for slab in self.rows.get(row_len * height).chunks_mut(row_len * slab_rows) {
            for row in slab.chunks_exact_mut(row_len) {
                self.resize.next_row(self.level, image, row);
            }
            let mut slab = Rows::new(slab, width);
            // The padding is black and stays so: no operation before contrast
            // makes black into something else.
            recolor(self.level, &mut slab, &plan.before);
            sum += color::gray_sum(self.level, &slab);
        }
        let pixels = (width * height) as f64;
        (sum as f64 / pixels + 0.5) as u8
    }
}

/// Rows that the blur has finished go to their places.
fn drain_blur<T: Store>(
    level: Level,
    blur: &mut Blur,
    blurred: &mut Scratch,
    sink: &mut Sink<'_, T>,
) {
    /// Rows between the one that is written and the one that is fetched.
    const AHEAD: usize = 2;
    let blurred = blurred.get(3 * padded(sink.width));
    while let Some(y) = blur.take(level, blurred) {
        sink.put(level, y, blurred);
        sink.fetch(y + AHEAD..y + AHEAD + 1);
    }
}

fn recolor(level: Level, rows: &mut Rows<'_>, ops: &[Option<ColorOp>]) {
    for op in ops.iter().flatten() {
        match *op {
            ColorOp::Brightness(factor) => color::brightness(level, rows, factor),
            ColorOp::Saturation(factor) => color::saturation(level, rows, factor),
            ColorOp::Hue(shift) => color::hue(level, rows, shift),
            ColorOp::ExactHue(turns) => color::turn_hue(level, rows, turns),
            ColorOp::Grayscale => color::grayscale(level, rows),
        }
    }
}

fn geometry(params: &ViewParams, height: usize, width: usize) -> Geometry {
    let own = Window { resized_height: height, resized_width: width, top: 0, left: 0 };
    let window = params.window.unwrap_or(own);
    let Crop { top, left, height: crop_height, width: crop_width } = params.crop;
    let axis = |input, total, first, count| AxisRange { input, total, first, count };
    Geometry {
        top,
        left,
        rows: axis(crop_height, window.resized_height, window.top, height),
        columns: axis(crop_width, window.resized_width, window.left, width),
        flip: params.flip,
    }
}

fn check(
    image: &Image,
    params: &ViewParams,
    height: usize,
    width: usize,
    out: usize,
) -> Result<()> {
    let fail = |message: String| Err(Error::Usage(message));
    if out == 0 || values(width, height) != Some(out) {
        return fail(format!("a {height} x {width} view with 3 channels has no {out} values"));
    }
    if !image.is_whole() {
        let (bytes, Image { width, height, .. }) = (image.pixels_hwc.len(), image);
        return fail(format!(
            "an image of {width} x {height} with 3 channels has no {bytes} bytes"
        ));
    }
    if !params.crop.fits(image.width, image.height) {
        return fail(format!(
            "crop {:?} does not lie in an image of {} x {}",
            params.crop, image.width, image.height
        ));
    }
    if let Some(w) = params.window {
        // The resized crop has no limit of its own: only the window of it is ever made, and a
        // thin image's longer side is as large as its ratio says.
        let inside = |total: usize, first: usize, count: usize| {
            first.checked_add(count).is_some_and(|end| end <= total)
        };
        if !inside(w.resized_height, w.top, height) || !inside(w.resized_width, w.left, width) {
            return fail(format!("{w:?} does not hold a view of {height} x {width}"));
        }
    }
    let factor = |f: f32| (0.0..=MAX_FACTOR as f32).contains(&f);
    let jitter_ok = params.jitter.is_none_or(|j| {
        factor(j.brightness) && factor(j.contrast) && factor(j.saturation) && j.hue.abs() <= 0.5
    });
    let sigma_ok = params.blur_sigma.is_none_or(|sigma| (0.0..=MAX_SIGMA).contains(&sigma));
    if !jitter_ok || !sigma_ok {
        return fail(format!("out of range: {:?}, sigma {:?}", params.jitter, params.blur_sigma));
    }
    Ok(())
}
