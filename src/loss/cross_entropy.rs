//! The cross-entropy form of Barlow Twins (Zbontar et al., ICML 2021, the loss ablations):
//!
//! ```text
//! loss = -log sum_i exp(C_ii / t) + lambda log sum_{i != j} exp(max(C_ij, 0) / t)
//! ```
//!
//! Unlike the squares it needs each element of C, but only one tile of C at a time: with
//! E_ij = exp(C_ij / t) where C_ij > 0 and i != j, else 0, and S the second sum,
//! dloss/dC = lambda / (t S) E off the diagonal, so that S may be divided out at the end.

use rayon::prelude::*;

use super::barlow::{BarlowConfig, Terms};
use super::embeddings::column_fold;
use super::exp::{exp, positive_exps};
use super::matmul::{Mat, matmul_serial};
use super::twins::{BarlowTerms, Twins};
use crate::nn::cpu::micro::Isa;

/// Rows of a tile of C (dimensions of view a).
const TILE_ROWS: usize = 256;
/// Columns of a tile (dimensions of view b): with the rows, 512 KB, which stays in the L2 cache.
const TILE_COLS: usize = 512;
/// exp(C / t) is taken without a shift while C / t cannot exceed this (e^60 = 1e26 in f32).
const UNSHIFTED_BELOW: f64 = 60.0;

/// The terms and the gradient `[2, batch, dim]` with respect to the normalised embeddings.
pub(crate) fn log_sum_exp_terms(twins: &Twins, config: &BarlowConfig) -> (BarlowTerms, Vec<f32>) {
    let t = config.temperature;
    let len = twins.a.hat.len();
    let mut grad = vec![0f32; 2 * len];
    let (grad_a, grad_b) = grad.split_at_mut(len);

    let (invariance, on_diagonal) = if config.terms == Terms::Redundancy {
        (0.0, vec![0.0; twins.diagonal.len()])
    } else {
        let max = twins.diagonal.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = twins.diagonal.iter().map(|c| ((c - max) / t).exp()).collect();
        let sum: f64 = exps.iter().sum();
        let grad = exps.iter().map(|e| -config.scale * e / (sum * t)).collect();
        (-config.scale * (max / t + sum.ln()), grad)
    };

    let weight = config.scale * config.lambda;
    let (redundancy, products_weight) =
        if config.terms == Terms::Invariance || twins.diagonal.len() < 2 {
            (0.0, 0.0)
        } else {
            let shift = if largest_possible(twins) / t < UNSHIFTED_BELOW {
                0.0
            } else {
                Tiles::new(twins, t, 0.0).largest()
            };
            let sum = Tiles::new(twins, t, shift).run(grad_a, grad_b);
            (weight * (shift / t + sum.ln()), weight * twins.c_scale / (t * sum))
        };
    twins.combine(grad_a, &twins.b.hat, products_weight, &on_diagonal);
    twins.combine(grad_b, &twins.a.hat, products_weight, &on_diagonal);
    (BarlowTerms { invariance, redundancy, off_diagonal_squares: None }, grad)
}

/// A bound on |C_ij| by Cauchy-Schwarz.
fn largest_possible(twins: &Twins) -> f64 {
    let norm = |hat: &[f32], dim| {
        let squares = column_fold(hat, dim, |_, x| f64::from(x) * f64::from(x));
        squares.into_iter().fold(0.0, f64::max).sqrt()
    };
    twins.c_scale * norm(&twins.a.hat, twins.a.dim) * norm(&twins.b.hat, twins.b.dim)
}

/// One pass over C in tiles: a band of rows at a time, its tiles in parallel.
struct Tiles<'a> {
    twins: &'a Twins,
    /// C / t from the unscaled product.
    to_exponent: f32,
    /// Subtracted in the exponent.
    shift: f32,
    columns: Vec<ColumnBand>,
}

/// A band of columns of C with its share of the results.
struct ColumnBand {
    from: usize,
    count: usize,
    tile: Vec<f32>,
    /// b_band E^T: this band's part of the gradient for the current rows, `[batch, rows]`.
    to_a: Vec<f32>,
    /// a E, `[batch, count]`, over all bands of rows so far.
    to_b: Vec<f32>,
    sum: f64,
}

impl<'a> Tiles<'a> {
    fn new(twins: &'a Twins, t: f64, shift: f64) -> Self {
        let (batch, dim) = (twins.a.batch, twins.a.dim);
        let rows = TILE_ROWS.min(dim);
        let columns = (0..dim)
            .step_by(TILE_COLS)
            .map(|from| {
                let count = TILE_COLS.min(dim - from);
                ColumnBand {
                    from,
                    count,
                    tile: vec![0.0; rows * count],
                    to_a: vec![0.0; batch * rows],
                    to_b: vec![0.0; batch * count],
                    sum: 0.0,
                }
            })
            .collect();
        let to_exponent = (twins.c_scale / t) as f32;
        Self { twins, to_exponent, shift: (shift / t) as f32, columns }
    }

    /// The largest C_ij off the diagonal, at least 0.
    fn largest(mut self) -> f64 {
        let (twins, dim) = (self.twins, self.twins.a.dim);
        let mut largest = 0f32;
        for from in (0..dim).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(dim - from);
            let band_max = |band: &mut ColumnBand| {
                band.product(twins, from, rows);
                let tile = band.tile[..rows * band.count].chunks_exact(band.count);
                let off_diagonal = tile.enumerate().flat_map(|(i, row)| {
                    let skip = (from + i).wrapping_sub(band.from);
                    row.iter().enumerate().filter(move |(j, _)| *j != skip).map(|(_, &c)| c)
                });
                off_diagonal.fold(0f32, f32::max)
            };
            largest = self.columns.par_iter_mut().map(band_max).reduce(|| largest, f32::max);
        }
        f64::from(largest) * twins.c_scale
    }

    /// Writes b E^T and a E; returns the sum of exp((max(C, 0) - shift) / t) off the diagonal.
    fn run(mut self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        let (twins, dim) = (self.twins, self.twins.a.dim);
        let (isa, to_exponent, shift) = (Isa::best(), self.to_exponent, self.shift);
        for from in (0..dim).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(dim - from);
            self.columns.par_iter_mut().for_each(|band| {
                band.product(twins, from, rows);
                band.exponentiate(isa, from, rows, to_exponent, shift);
                band.accumulate(twins, from, rows);
            });
            let bands = &self.columns;
            to_a.par_chunks_mut(dim).enumerate().for_each(|(sample, out)| {
                for band in bands {
                    let part = &band.to_a[sample * rows..][..rows];
                    out[from..from + rows].iter_mut().zip(part).for_each(|(o, p)| *o += p);
                }
            });
        }
        to_b.par_chunks_mut(dim).enumerate().for_each(|(sample, out)| {
            for band in &self.columns {
                let part = &band.to_b[sample * band.count..][..band.count];
                out[band.from..band.from + band.count].copy_from_slice(part);
            }
        });
        self.columns.iter().map(|band| band.sum).sum()
    }
}

impl ColumnBand {
    /// tile = a_rows^T b_band, unscaled.
    fn product(&mut self, twins: &Twins, from: usize, rows: usize) {
        let a = twins.a_mat().columns(from, rows);
        let b = twins.b_mat().columns(self.from, self.count);
        matmul_serial(a.t(), b, &mut self.tile, self.count, false);
    }

    /// tile = E; adds to the sum.
    fn exponentiate(&mut self, isa: Isa, from: usize, rows: usize, to_exponent: f32, shift: f32) {
        for (i, row) in self.tile[..rows * self.count].chunks_exact_mut(self.count).enumerate() {
            if let Some(c_ii) = (from + i).checked_sub(self.from).and_then(|j| row.get_mut(j)) {
                // Counts as exp(0 - shift) in the loop; taken away here.
                *c_ii = 0.0;
                self.sum -= f64::from(exp(-shift));
            }
            self.sum += positive_exps(isa, row, to_exponent, shift);
        }
    }

    /// to_a = b_band E^T, to_b += a_rows E.
    fn accumulate(&mut self, twins: &Twins, from: usize, rows: usize) {
        let a = twins.a_mat().columns(from, rows);
        let b = twins.b_mat().columns(self.from, self.count);
        let e = Mat::new(&self.tile[..rows * self.count], rows, self.count);
        matmul_serial(b, e.t(), &mut self.to_a, rows, false);
        matmul_serial(a, e, &mut self.to_b, self.count, true);
    }
}
