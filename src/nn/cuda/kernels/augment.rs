//! Colour jitter, grayscale, blur and solarize on finished U8 views, as the pipeline does them.
//!
//! The pipeline draws; a view that is to be finished here leaves it with nothing but crop, resize and
//! flip. [`ViewRecords::set`] turns what was drawn into a record, in the pipeline's own fixed-point
//! form; [`augment`] applies the records of all views. The loader does not hand over what it drew yet, so
//! that only tests call this so far.

use bt_pipeline::augment::{Jitter, JitterOp, ViewParams};
use candle_core::{DType, Result, bail};

use super::{THREADS, blocks, expect, unsigned};
use crate::nn::cuda::{Backend, Launch, Span};

/// U32 elements of a view's record; `WORDS` in `augment.cu`.
pub const WORDS: usize = 80;

/// Blocks of a view in passes over its pixels; `VIEW_BLOCKS` in `augment.cu`.
const VIEW_BLOCKS: usize = 16;

/// Where parts of a record begin.
const OPS: usize = 2;
const THRESHOLD: usize = OPS + 5 * 4;
const RADIUS: usize = THRESHOLD + 1;
const WEIGHTS: usize = RADIUS + 1;
/// Most weights that a record holds, two to a word: the pipeline's largest radius and the centre.
const MOST_WEIGHTS: usize = 97;

/// Views of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Views {
    /// How many.
    pub count: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Views {
    fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// U8 elements of all views.
    pub fn len(&self) -> usize {
        self.count * self.pixels() * 3
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// F32 elements of scratch for [`augment`].
    pub fn scratch(&self) -> usize {
        // 16-bit values of all views, and sums.
        self.len().div_ceil(2).next_multiple_of(4) + self.count * VIEW_BLOCKS
    }
}

/// Records of views on the host, to be written to the device before [`augment`].
#[derive(Clone, Debug)]
pub struct ViewRecords {
    words: Vec<u32>,
}

impl ViewRecords {
    /// Records that change nothing.
    pub fn new(views: usize) -> Self {
        let mut all = Self { words: vec![0; views * WORDS] };
        all.words.chunks_exact_mut(WORDS).for_each(|record| record[THRESHOLD] = 256);
        all
    }

    /// What is done to view number `view`: all of `params` but crop and flip.
    ///
    /// # Errors
    /// A factor, shift or blur out of the pipeline's range, or no such view.
    pub fn set(&mut self, view: usize, params: &ViewParams) -> Result<()> {
        let Some(record) = self.words.chunks_exact_mut(WORDS).nth(view) else {
            bail!("there is no view {view}");
        };
        record.fill(0);
        let ops = operations(params)?;
        record[0] = ops.len() as u32;
        let contrast = ops.iter().position(|op| op[0] == CONTRAST);
        record[1] = contrast.unwrap_or(ops.len()) as u32;
        for (op, to) in ops.iter().zip(record[OPS..THRESHOLD].chunks_exact_mut(4)) {
            to.copy_from_slice(op);
        }
        record[THRESHOLD] = params.solarize.map_or(256, u32::from);
        let weights = params.blur_sigma.map_or(Ok(Vec::new()), blur_weights)?;
        record[RADIUS] = weights.len().saturating_sub(1) as u32;
        for (pair, to) in weights.chunks(2).zip(&mut record[WEIGHTS..]) {
            *to = u32::from(pair[0]) | u32::from(pair.get(1).copied().unwrap_or(0)) << 16;
        }
        Ok(())
    }

    /// What [`augment`] reads, as U32.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

/// Operations' codes in `augment.cu`.
const BRIGHTNESS: u32 = 0;
const CONTRAST: u32 = 1;
const SATURATION: u32 = 2;
const HUE: u32 = 3;
const GRAYSCALE: u32 = 4;

/// The operations that change something, in order: code, two whole numbers, a factor.
fn operations(params: &ViewParams) -> Result<Vec<[u32; 4]>> {
    let mut ops = Vec::with_capacity(5);
    if let Some(jitter) = &params.jitter {
        for op in jitter.order {
            ops.extend(operation(jitter, op)?);
        }
    }
    if params.grayscale {
        ops.push([GRAYSCALE, 0, 0, 0]);
    }
    Ok(ops)
}

fn operation(jitter: &Jitter, op: JitterOp) -> Result<Option<[u32; 4]>> {
    let (code, factor) = match op {
        JitterOp::Brightness => (BRIGHTNESS, jitter.brightness),
        JitterOp::Contrast => (CONTRAST, jitter.contrast),
        JitterOp::Saturation => (SATURATION, jitter.saturation),
        JitterOp::Hue => {
            if !(-0.5..=0.5).contains(&jitter.hue) {
                bail!("a hue shift of {} turns", jitter.hue);
            }
            // Sixths of a turn with 13 fractional bits; Pillow's 255ths, cut off.
            let sixths = (f64::from(jitter.hue) * 6.0 * 8192.0).round() as i32;
            let byte = (jitter.hue * 255.0) as i32;
            let turns = jitter.hue != 0.0;
            return Ok(turns.then_some([HUE, sixths as u32, byte as u32, 0]));
        }
    };
    if !(0.0..=7.0).contains(&factor) {
        bail!("a colour factor of {factor}");
    }
    // The pipeline's fixed point (`kernel/color/factor`): as many bits as 16 leave.
    let shift = match factor {
        ..1.9999 => 5,
        ..3.9998 => 4,
        _ => 3,
    };
    let scaled = (f64::from(factor) * f64::from(1u32 << (shift + 9))).ceil().min(32767.0);
    Ok((factor != 1.0).then_some([code, scaled as u32, shift, factor.to_bits()]))
}

/// Weights of distance 0, 1, .., 15 fractional bits, as the pipeline has them (`kernel/blur`); empty
/// when the blur would change nothing.
fn blur_weights(sigma: f32) -> Result<Vec<u16>> {
    if !(0.0..=32.0).contains(&sigma) {
        bail!("a blur of {sigma} pixels");
    }
    if sigma == 0.0 {
        return Ok(Vec::new());
    }
    let radius = ((2.8 * sigma - 0.5).ceil().max(1.0) as usize).min(MOST_WEIGHTS - 1);
    let exact = |distance: usize| (-0.5 * (distance as f64 / f64::from(sigma)).powi(2)).exp();
    let total: f64 = 1.0 + 2.0 * (1..=radius).map(exact).sum::<f64>();
    let weights = (1..=radius).map(|distance| (exact(distance) / total * 32768.0 + 0.5) as u16);
    let mut all = vec![0];
    all.extend(weights.take_while(|weight| *weight != 0));
    // What is left belongs to the centre, so that a flat area stays flat.
    let beside: i32 = all.iter().map(|weight| 2 * i32::from(*weight)).sum();
    all[0] = (32768 - beside).min(32767) as u16;
    Ok(if all.len() > 1 { all } else { Vec::new() })
}

/// Does to every view what its record says, in place. `records` holds [`ViewRecords::bytes`], `scratch`
/// [`Views::scratch`] elements of F32.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn augment(
    b: &dyn Backend,
    views: Views,
    pixels: Span,
    records: Span,
    scratch: Span,
) -> Result<()> {
    expect("views", pixels, views.len(), DType::U8)?;
    expect("views' records", records, views.count * WORDS, DType::U32)?;
    super::expect_scratch("views", scratch, views.scratch())?;
    if views.is_empty() {
        return Ok(());
    }
    let sums = scratch.part(scratch.len - views.count * VIEW_BLOCKS, views.count * VIEW_BLOCKS);
    let launch = |kernel: &str, across: u32, args: &[_]| {
        let Ok(count) = u16::try_from(views.count) else {
            bail!("{} views are more than a grid holds", views.count);
        };
        let (grid, block) = ([across, u32::from(count), 1], [THREADS, 1, 1]);
        b.launch(&Launch { kernel, grid, block, shared_bytes: 0, args })
    };
    let (area, len) = (unsigned(views.pixels())?, views.pixels() * 3);
    let across = blocks(views.pixels(), THREADS as usize)?.min(VIEW_BLOCKS as u32);
    let args = [pixels.into(), records.into(), sums.into(), area];
    // Every sum is written, also by blocks that have no pixels.
    launch("augment_gray", VIEW_BLOCKS as u32, &args)?;
    launch("augment_color", across, &args)?;
    let (width, each) = (unsigned(views.width)?, unsigned(len)?);
    let across = blocks(len, THREADS as usize)?;
    let args = [pixels.into(), records.into(), scratch.into(), width, each];
    launch("augment_blur_rows", across, &args)?;
    let args = [scratch.into(), records.into(), pixels.into(), width, each];
    launch("augment_blur_columns", across, &args)
}
