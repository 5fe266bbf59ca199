//! A stem's 7 x 7 convolution of stride 2 on another shape, which tensor cores take better.

use candle_core::{DType, Result, bail};

use super::{THREADS, aligned, blocks, expect, launch, unsigned};
use crate::nn::cpu::conv::ConvShape;
use crate::nn::cuda::{Backend, Span};

/// Channels of the images that are folded: three, and zeros.
const CHANNELS: usize = 8;

/// The convolution that does on folded images, with a folded weight, what one of `shape` does with
/// a weight of `channels` input channels; `None` where it is not a stem's.
pub fn folded(shape: ConvShape, channels: usize) -> Option<ConvShape> {
    let ConvShape { n, h, w, c, o, kernel, stride, pad } = shape;
    let is_stem = (kernel, stride, pad, c, channels) == (7, 2, 3, CHANNELS, 3);
    let even = h.is_multiple_of(2) && w.is_multiple_of(2);
    let (h, w) = (h / 2 + 3, w / 2 + 3);
    (is_stem && even).then_some(ConvShape { n, h, w, c: 16, o, kernel: 4, stride: 1, pad: 0 })
}

/// Folds the images of a convolution of `shape`.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn images(b: &dyn Backend, shape: ConvShape, from: Span, to: Span) -> Result<()> {
    let Some(fold) = folded(shape, 3) else { bail!("no stem: {shape:?}") };
    expect("a stem's images", from, shape.input_len(), DType::BF16)?;
    expect("folded images", to, fold.input_len(), DType::BF16)?;
    if !aligned(&[from, to]) {
        bail!("images lie on boundaries of 16 bytes, not {from:?} and {to:?}");
    }
    let pixels = to.len / 4;
    let args = [from.into(), to.into(), unsigned(shape.h)?, unsigned(shape.w)?, unsigned(pixels)?];
    launch(b, "fold_images", blocks(pixels, THREADS as usize)?, &args)
}

/// Folds a weight of `outputs` channels, `[outputs, 7, 7, 3]` in F32.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn weight(b: &dyn Backend, outputs: usize, from: Span, to: Span) -> Result<()> {
    expect("a stem's weight", from, outputs * 7 * 7 * 3, DType::F32)?;
    expect("a folded weight", to, outputs * 4 * 4 * 16, DType::BF16)?;
    let args = [from.into(), to.into(), unsigned(to.len)?];
    launch(b, "fold_weight", blocks(to.len, THREADS as usize)?, &args)
}

/// The weight's gradient of a folded weight's.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn weight_grad(b: &dyn Backend, outputs: usize, from: Span, to: Span) -> Result<()> {
    expect("a folded weight's gradient", from, outputs * 4 * 4 * 16, DType::BF16)?;
    expect("a stem's gradient", to, outputs * 7 * 7 * 3, DType::F32)?;
    let args = [from.into(), to.into(), unsigned(to.len)?];
    launch(b, "unfold_weight", blocks(to.len, THREADS as usize)?, &args)
}
