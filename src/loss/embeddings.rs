//! Borrowing embeddings from candle tensors, and sums over their columns.
//!
//! Everything the objectives compute starts from two row-major `[batch, dim]` f32 slices.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::nn::storage;

/// Columns that one task sums: 4 KB of each row, and accumulators that stay in the L1 cache.
const COLUMN_CHUNK: usize = 512;

/// The embeddings of both views: row-major `[batch, dim]`.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub batch: usize,
    pub dim: usize,
}

/// Lends both tensors' elements as slices, without copying when they are contiguous f32 on the
/// CPU (views of one `[2 * batch, dim]` tensor are).
///
/// # Errors
///
/// Tensors that are not `[batch, dim]` of the same shape with at least two rows and one column.
pub(crate) fn with_pair<R>(
    z_a: &Tensor,
    z_b: &Tensor,
    f: impl FnOnce(Pair<'_>) -> Result<R>,
) -> Result<R> {
    let (batch, dim) = z_a.dims2()?;
    if z_b.dims() != z_a.dims() {
        bail!("embeddings of the two views differ in shape: {:?} and {:?}", z_a.dims(), z_b.dims());
    }
    if batch < 2 || dim == 0 {
        bail!("an objective needs at least 2 samples and 1 dimension, got [{batch}, {dim}]");
    }
    with_slice(z_a, |a| with_slice(z_b, |b| f(Pair { a, b, batch, dim })))
}

/// Lends one tensor's elements in row-major order as f32.
pub(crate) fn with_slice<R>(z: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let z = storage::host(z)?;
    f(&storage::read(&z)?)
}

/// For each column, the fold of `f` over its elements from the first row to the last, in f64.
/// `z` is row-major with `dim` columns; the order of each sum is fixed.
pub(crate) fn column_fold(z: &[f32], dim: usize, f: impl Fn(usize, f32) -> f64 + Sync) -> Vec<f64> {
    column_fold2(z, z, dim, |j, x, _| f(j, x))
}

/// [`column_fold`] over two matrices of one shape: `f(column, x, y)` summed over the rows.
pub(crate) fn column_fold2(
    x: &[f32],
    y: &[f32],
    dim: usize,
    f: impl Fn(usize, f32, f32) -> f64 + Sync,
) -> Vec<f64> {
    let mut sums = vec![0.0; dim];
    sums.par_chunks_mut(COLUMN_CHUNK).enumerate().for_each(|(c, sums)| {
        let from = c * COLUMN_CHUNK;
        for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact(dim)) {
            let (x, y) = (&x[from..from + sums.len()], &y[from..from + sums.len()]);
            for (j, (sum, (&x, &y))) in sums.iter_mut().zip(x.iter().zip(y)).enumerate() {
                *sum += f(from + j, x, y);
            }
        }
    });
    sums
}

/// The dot product of two rows, in f64, in a fixed order that vectorises.
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let tail: f64 =
        xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    for (x, y) in xs.zip(ys) {
        for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += f64::from(x) * f64::from(y);
        }
    }
    lanes.iter().sum::<f64>() + tail
}
