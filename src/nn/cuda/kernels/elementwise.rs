//! Passes over every element, sums of columns, images.

use candle_core::{DType, Result, bail};

use super::{
    Part, THREADS, Tiling, aligned, blocks, expect, expect_scratch, launch, reduction, unsigned,
};
use crate::nn::cuda::{Arg, Backend, Span};

/// A kernel over `len` elements, by eights where the spans allow it.
fn each(b: &dyn Backend, name: &str, spans: &[Span], args: &[Arg]) -> Result<()> {
    let len = spans[0].len;
    if len == 0 {
        return Ok(());
    }
    let vector = if aligned(spans) { 8 } else { 1 };
    let mut suffix = spans[0].suffix()?.to_owned();
    if spans.iter().any(|span| span.dtype != spans[0].dtype) {
        suffix = format!("{suffix}_{}", spans[1].suffix()?);
    }
    let args = [args, &[Arg::U64(len as u64)]].concat();
    launch(b, &format!("{name}_v{vector}_{suffix}"), blocks(len, THREADS as usize * vector)?, &args)
}

/// y = max(x, 0); NaN stays NaN. `y` may be `x`.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn relu(b: &dyn Backend, x: Span, y: Span) -> Result<()> {
    expect("relu", y, x.len, x.dtype)?;
    each(b, "relu", &[x, y], &[x.into(), y.into()])
}

/// d = 0 wherever y, a ReLU's output, is not positive.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn relu_backward(b: &dyn Backend, y: Span, d: Span) -> Result<()> {
    expect("relu's gradient", d, y.len, y.dtype)?;
    each(b, "relu_grad", &[y, d], &[y.into(), d.into()])
}

/// Copies between F32 and BF16, rounding to nearest even, or within one type.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn cast(b: &dyn Backend, from: Span, to: Span) -> Result<()> {
    expect("cast", to, from.len, to.dtype)?;
    if from.dtype == to.dtype {
        return b.copy(from, to);
    }
    each(b, "cast", &[from, to], &[from.into(), to.into()])
}

/// y\[row\] += bias, `[columns]`, F32.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn add_bias(b: &dyn Backend, y: Span, bias: Span, rows: usize, columns: usize) -> Result<()> {
    expect("bias", bias, columns, DType::F32)?;
    expect("what a bias is added to", y, rows * columns, y.dtype)?;
    if y.len == 0 {
        return Ok(());
    }
    let vector = if columns.is_multiple_of(8) && aligned(&[y, bias]) { 8 } else { 1 };
    let args = [y.into(), bias.into(), unsigned(columns)?, Arg::U64(y.len as u64)];
    let kernel = format!("add_bias_v{vector}_{}", y.suffix()?);
    launch(b, &kernel, blocks(y.len, THREADS as usize * vector)?, &args)
}

/// F32 elements of scratch for [`column_sums`].
pub fn column_sums_scratch(rows: usize, columns: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { reduction(rows, columns, 1).parts * columns }
}

/// `out[column]`, F32: the sum over rows of `d`, `[rows, columns]`.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn column_sums(
    b: &dyn Backend,
    d: Span,
    out: Span,
    rows: usize,
    columns: usize,
    scratch: Span,
) -> Result<()> {
    if rows == 0 || columns == 0 {
        bail!("column sums of [{rows}, {columns}]");
    }
    expect("column sums", d, rows * columns, d.dtype)?;
    expect("column sums' result", out, columns, DType::F32)?;
    expect_scratch("column sums", scratch, column_sums_scratch(rows, columns))?;
    let tiling = Tiling::new(columns, &[d, scratch])?;
    let Part { rows_per_part, parts } = reduction(rows, columns, 1);
    let kernel = format!("column_sums_v{}_{}", tiling.vector, d.suffix()?);
    let args =
        [d.into(), scratch.into(), unsigned(rows)?, unsigned(columns)?, unsigned(rows_per_part)?];
    tiling.launch(b, &kernel, [parts, 1], &args)?;
    let args = [scratch.into(), out.into(), unsigned(columns)?, unsigned(parts)?];
    launch(b, "column_sums_finish", blocks(columns, THREADS as usize)?, &args)
}

/// `out[pixel]`: (value / 255 - mean) / std of the pixel's three bytes, then zeros up to
/// `channels`.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn normalize_images(
    b: &dyn Backend,
    pixels: Span,
    out: Span,
    channels: usize,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<()> {
    if channels < 3 {
        bail!("images of {channels} channels");
    }
    let count = pixels.len / 3;
    expect("pixels", pixels, count * 3, DType::U8)?;
    expect("normalised images", out, count * channels, out.dtype)?;
    if count == 0 {
        return Ok(());
    }
    // As the pipeline has them (`kernel/store`).
    let scale = std.map(|std| (1.0 / (255.0 * f64::from(std))) as f32);
    let offset = [0, 1, 2].map(|c| (-f64::from(mean[c]) / f64::from(std[c])) as f32);
    let mut args = vec![
        pixels.into(),
        out.into(),
        unsigned(channels)?,
        Arg::U64(count as u64),
        Arg::U32(u32::from(aligned(&[out]))),
    ];
    args.extend(scale.into_iter().chain(offset).map(Arg::F32));
    let kernel = format!("normalize_images_{}", out.suffix()?);
    launch(b, &kernel, blocks(count, THREADS as usize)?, &args)
}

/// Rows of `from_channels`, F32, to rows of `to_channels` with zeros at their ends.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn pad_channels(
    b: &dyn Backend,
    from: Span,
    from_channels: usize,
    to: Span,
    to_channels: usize,
) -> Result<()> {
    if from_channels == 0 || from_channels > to_channels || from.dtype != DType::F32 {
        bail!("{from_channels} channels of {:?} padded to {to_channels}", from.dtype);
    }
    let kernel = format!("pad_channels_{}", to.suffix()?);
    resize_channels(b, &kernel, from, from_channels, to, to_channels)
}

/// The first `to_channels` of rows of `from_channels`, to F32.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn unpad_channels(
    b: &dyn Backend,
    from: Span,
    from_channels: usize,
    to: Span,
    to_channels: usize,
) -> Result<()> {
    if to_channels == 0 || from_channels < to_channels || to.dtype != DType::F32 {
        bail!("{from_channels} channels cut to {to_channels} of {:?}", to.dtype);
    }
    let kernel = format!("cut_channels_{}", from.suffix()?);
    resize_channels(b, &kernel, from, from_channels, to, to_channels)
}

fn resize_channels(
    b: &dyn Backend,
    kernel: &str,
    from: Span,
    from_channels: usize,
    to: Span,
    to_channels: usize,
) -> Result<()> {
    let rows = from.len / from_channels;
    expect("channels", from, rows * from_channels, from.dtype)?;
    expect("resized channels", to, rows * to_channels, to.dtype)?;
    if rows == 0 {
        return Ok(());
    }
    let args = [
        from.into(),
        to.into(),
        unsigned(from_channels)?,
        unsigned(to_channels)?,
        Arg::U64(to.len as u64),
    ];
    launch(b, kernel, blocks(to.len, THREADS as usize)?, &args)
}
