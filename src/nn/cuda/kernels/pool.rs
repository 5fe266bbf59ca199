//! Max pool and global average pool.

use candle_core::{DType, Result, bail};

use super::{THREADS, Tiling, aligned, blocks, expect, launch, unsigned};
use crate::nn::cpu::pool::PoolShape;
use crate::nn::cuda::{Arg, Backend, Span};

/// The maximum of each window; `winner` (U8, as long as `y`) gets the window's tap that has it, the
/// first among equals.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn max_pool(
    b: &dyn Backend,
    s: &PoolShape,
    x: Span,
    y: Span,
    winner: Option<Span>,
) -> Result<()> {
    let out = check(s, x, y, winner)?;
    let vector = vector(s.c, x, y, winner);
    let mut args = vec![x.into(), y.into(), winner.into(), unsigned(y.len / vector)?];
    args.extend(sizes(s, out)?);
    let kernel = format!("max_pool_v{vector}_{}", x.suffix()?);
    launch(b, &kernel, blocks(y.len / vector, THREADS as usize)?, &args)
}

/// Overwrites `dx`: each output's gradient goes to its window's winner.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn max_pool_backward(
    b: &dyn Backend,
    s: &PoolShape,
    dy: Span,
    winner: Span,
    dx: Span,
) -> Result<()> {
    let out = check(s, dx, dy, Some(winner))?;
    let vector = vector(s.c, dx, dy, Some(winner));
    let mut args = vec![dy.into(), winner.into(), dx.into(), unsigned(dx.len / vector)?];
    args.extend(sizes(s, out)?);
    let kernel = format!("max_pool_grad_v{vector}_{}", dx.suffix()?);
    launch(b, &kernel, blocks(dx.len / vector, THREADS as usize)?, &args)
}

/// Output height and width.
fn check(s: &PoolShape, x: Span, y: Span, winner: Option<Span>) -> Result<(usize, usize)> {
    let window = (1..=16).contains(&s.kernel) && s.stride > 0 && s.pad <= s.kernel / 2;
    if !window || s.c == 0 || s.h.min(s.w) + 2 * s.pad < s.kernel {
        bail!("max pool: {s:?} is no pool");
    }
    let (oh, ow) = s.out();
    let len = s.n * oh * ow * s.c;
    expect("max pool's input", x, s.n * s.h * s.w * s.c, x.dtype)?;
    expect("max pool's output", y, len, x.dtype)?;
    winner.map_or(Ok(()), |winner| expect("max pool's winners", winner, len, DType::U8))?;
    Ok((oh, ow))
}

fn vector(channels: usize, x: Span, y: Span, winner: Option<Span>) -> usize {
    let wide = channels.is_multiple_of(8) && aligned(&[x, y, winner.unwrap_or(x)]);
    if wide { 8 } else { 1 }
}

fn sizes(s: &PoolShape, (oh, ow): (usize, usize)) -> Result<Vec<Arg>> {
    [s.h, s.w, oh, ow, s.c, s.kernel, s.stride, s.pad].into_iter().map(unsigned).collect()
}

/// `y[image][channel]`, the mean over the `pixels` of `x[image]`; `y` is of `x`'s type or F32.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn global_average(
    b: &dyn Backend,
    n: usize,
    pixels: usize,
    channels: usize,
    x: Span,
    y: Span,
) -> Result<()> {
    check_average(n, pixels, channels, x, y)?;
    let tiling = Tiling::new(channels, &[x, y])?;
    let kernel = format!("average_v{}_{}_{}", tiling.vector, x.suffix()?, y.suffix()?);
    let args = [x.into(), y.into(), unsigned(pixels)?, unsigned(channels)?];
    tiling.launch(b, &kernel, [1, n], &args)
}

/// `dx[image][pixel][channel] = dy[image][channel] / pixels`; `dy` is of `dx`'s type or F32.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn global_average_backward(
    b: &dyn Backend,
    n: usize,
    pixels: usize,
    channels: usize,
    dy: Span,
    dx: Span,
) -> Result<()> {
    check_average(n, pixels, channels, dx, dy)?;
    let vector = if channels.is_multiple_of(8) && aligned(&[dy, dx]) { 8 } else { 1 };
    let kernel = format!("average_grad_v{vector}_{}_{}", dx.suffix()?, dy.suffix()?);
    let count = dx.len / vector;
    let args =
        [dy.into(), dx.into(), unsigned(pixels)?, unsigned(channels)?, Arg::U64(count as u64)];
    launch(b, &kernel, blocks(count, THREADS as usize)?, &args)
}

fn check_average(n: usize, pixels: usize, channels: usize, x: Span, y: Span) -> Result<()> {
    if pixels == 0 || channels == 0 {
        bail!("average pool: {pixels} pixels of {channels} channels");
    }
    expect("average pool's input", x, n * pixels * channels, x.dtype)?;
    let of = if y.dtype == DType::F32 { DType::F32 } else { x.dtype };
    expect("average pool's output", y, n * channels, of)
}
