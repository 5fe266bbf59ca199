//! Colour jitter, grayscale, blur and solarize on finished U8 views, as the pipeline does them.
//!
//! The pipeline draws; a view that is to be finished here leaves it with nothing but crop, resize
//! and flip (`augment.device = "cuda"`). [`ViewRecords`] holds what was drawn in the pipeline's own
//! form; [`augment`] applies the records of all views.

use bt_pipeline::augment::{Jitter, JitterOp, ViewParams};
use bt_pipeline::kernel::{MAX_FACTOR, MAX_SIGMA, blur, color};
use candle_core::{DType, Result, bail};

use super::{THREADS, blocks, expect, unsigned};
use crate::nn::cuda::{Backend, Launch, Span};

/// U32 elements of a view's record; `WORDS` in `augment.cu`.
pub const WORDS: usize = 80;

/// Blocks of a view in passes over its pixels; `VIEW_BLOCKS` in `augment.cu`.
const VIEW_BLOCKS: usize = 16;

/// Where parts of a record begin.
const OPS: usize = 2;
/// U32 elements of an operation.
const OP: usize = 3;
const THRESHOLD: usize = OPS + 5 * OP;
const RADIUS: usize = THRESHOLD + 1;
const WEIGHTS: usize = RADIUS + 1;
/// The weights, two to a word, find their place.
const _: () = assert!(WEIGHTS + (blur::MAX_RADIUS + 1).div_ceil(2) <= WORDS);

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
    /// What is done to each view: all of its parameters but crop and flip.
    ///
    /// # Errors
    /// A factor, shift or blur out of the pipeline's range.
    pub fn of(views: &[ViewParams]) -> Result<Self> {
        let mut all = Self { words: vec![0; views.len() * WORDS] };
        let mut weights = Vec::new();
        for (params, record) in views.iter().zip(all.words.chunks_exact_mut(WORDS)) {
            Self::write(params, record, &mut weights)?;
        }
        Ok(all)
    }

    fn write(params: &ViewParams, record: &mut [u32], weights: &mut Vec<i16>) -> Result<()> {
        let ops = operations(params)?;
        record[0] = ops.len() as u32;
        let contrast = ops.iter().position(|op| op[0] == CONTRAST);
        record[1] = contrast.unwrap_or(ops.len()) as u32;
        for (op, to) in ops.iter().zip(record[OPS..THRESHOLD].chunks_exact_mut(OP)) {
            to.copy_from_slice(op);
        }
        record[THRESHOLD] = params.solarize.map_or(256, u32::from);
        let sigma = params.blur_sigma.unwrap_or(0.0);
        if !(0.0..=MAX_SIGMA).contains(&sigma) {
            bail!("a blur of {sigma} pixels");
        }
        if sigma > 0.0 {
            blur::weights(sigma, weights);
            record[RADIUS] = weights.len() as u32 - 1;
            for (pair, to) in weights.chunks(2).zip(&mut record[WEIGHTS..]) {
                let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(0)];
                *to = u32::from(low as u16) | u32::from(high as u16) << 16;
            }
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
const EXACT_HUE: u32 = 4;
const GRAYSCALE: u32 = 5;

/// The operations that change something, in order: code, a turn's shift, a blend's factor.
fn operations(params: &ViewParams) -> Result<Vec<[u32; OP]>> {
    let mut ops = Vec::with_capacity(5);
    if let Some(jitter) = &params.jitter {
        for op in jitter.order {
            ops.extend(operation(jitter, op)?);
        }
    }
    if params.grayscale {
        ops.push([GRAYSCALE, 0, 0]);
    }
    Ok(ops)
}

fn operation(jitter: &Jitter, op: JitterOp) -> Result<Option<[u32; OP]>> {
    let (code, factor) = match op {
        JitterOp::Brightness => (BRIGHTNESS, jitter.brightness),
        JitterOp::Contrast => (CONTRAST, jitter.contrast),
        JitterOp::Saturation => (SATURATION, jitter.saturation),
        JitterOp::Hue => {
            if !(-0.5..=0.5).contains(&jitter.hue) {
                bail!("a hue shift of {} turns", jitter.hue);
            }
            let (code, shift) = match jitter.exact_hue {
                true => (EXACT_HUE, color::Sixths::new(jitter.hue).0),
                false => (HUE, color::hue_shift(jitter.hue)),
            };
            return Ok((jitter.hue != 0.0).then_some([code, i32::from(shift) as u32, 0]));
        }
    };
    if !(0.0..=MAX_FACTOR as f32).contains(&factor) {
        bail!("a colour factor of {factor}");
    }
    Ok((factor != 1.0).then_some([code, 0, factor.to_bits()]))
}

/// Does to every view what its record says, in place. `records` holds [`ViewRecords::bytes`],
/// `scratch` [`Views::scratch`] elements of F32.
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
