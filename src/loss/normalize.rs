//! Normalisation of embeddings before they are compared, and its backward pass.

use rayon::prelude::*;

use super::embeddings::{column_fold, column_fold2, dot};

/// Norms below this count as this, as in PyTorch's `normalize`.
const MIN_NORM: f64 = 1e-12;

/// What is done to a `[batch, dim]` matrix of embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Norm {
    /// Each column centred and scaled to unit variance: batch normalisation without affine
    /// parameters, biased variance, `eps` added to it (equation 2 has eps = 0).
    Batch {
        /// Added to the variance.
        eps: f64,
    },
    /// Each column centred, then each row scaled to unit length.
    CentredUnit,
    /// Each column centred.
    Centred,
    /// Each row scaled to unit length.
    Unit,
}

/// Normalised embeddings, with what the backward pass needs.
pub(crate) struct Normalized {
    /// Row-major `[batch, dim]`.
    pub hat: Vec<f32>,
    pub batch: usize,
    pub dim: usize,
    norm: Norm,
    /// What each column (`Batch`) or each row (`Unit`, `CentredUnit`) was multiplied by.
    scale: Vec<f32>,
}

impl Normalized {
    /// Normalises the row-major `z` of `dim` columns.
    pub fn new(z: &[f32], dim: usize, norm: Norm) -> Self {
        let batch = z.len() / dim;
        let mut this = Self { hat: vec![0.0; z.len()], batch, dim, norm, scale: Vec::new() };
        match norm {
            Norm::Batch { eps } => this.standardise_columns(z, eps),
            Norm::CentredUnit => {
                this.centre_columns(z);
                this.scale_rows();
            }
            Norm::Centred => this.centre_columns(z),
            Norm::Unit => {
                this.hat.copy_from_slice(z);
                this.scale_rows();
            }
        }
        this
    }

    fn centre_columns(&mut self, z: &[f32]) {
        let mean = column_means(z, self.dim);
        self.hat.par_chunks_mut(self.dim).zip(z.par_chunks(self.dim)).for_each(|(hat, z)| {
            for (hat, (&z, &mean)) in hat.iter_mut().zip(z.iter().zip(&mean)) {
                *hat = (f64::from(z) - mean) as f32;
            }
        });
    }

    fn standardise_columns(&mut self, z: &[f32], eps: f64) {
        let n = self.batch as f64;
        let mean = column_means(z, self.dim);
        let scale: Vec<f64> = column_fold(z, self.dim, |j, z| (f64::from(z) - mean[j]).powi(2))
            .into_iter()
            .map(|sum| 1.0 / (sum / n + eps).sqrt())
            // A constant column with eps = 0 has no direction: it becomes zero, not infinite.
            .map(|s| if s.is_finite() { s } else { 0.0 })
            .collect();
        self.hat.par_chunks_mut(self.dim).zip(z.par_chunks(self.dim)).for_each(|(hat, z)| {
            for (hat, (&z, (&mean, &s))) in
                hat.iter_mut().zip(z.iter().zip(mean.iter().zip(&scale)))
            {
                *hat = ((f64::from(z) - mean) * s) as f32;
            }
        });
        self.scale = scale.into_iter().map(|s| s as f32).collect();
    }

    fn scale_rows(&mut self) {
        self.scale = self
            .hat
            .par_chunks_mut(self.dim)
            .map(|row| {
                let scale = (1.0 / dot(row, row).sqrt().max(MIN_NORM)) as f32;
                row.iter_mut().for_each(|x| *x *= scale);
                scale
            })
            .collect();
    }

    /// Turns the gradient with respect to `hat` into the one with respect to the input, in place.
    pub fn backward(&self, grad: &mut [f32]) {
        match self.norm {
            Norm::Batch { .. } => self.backward_standardise(grad),
            Norm::CentredUnit => {
                self.backward_scale_rows(grad);
                self.backward_centre(grad);
            }
            Norm::Centred => self.backward_centre(grad),
            Norm::Unit => self.backward_scale_rows(grad),
        }
    }

    /// g_z = s (g - mean(g) - hat mean(g hat)), per column.
    fn backward_standardise(&self, grad: &mut [f32]) {
        let n = self.batch as f64;
        let to_mean = |sums: Vec<f64>| sums.into_iter().map(|s| (s / n) as f32).collect::<Vec<_>>();
        let mean = to_mean(column_fold(grad, self.dim, |_, g| f64::from(g)));
        let along =
            to_mean(column_fold2(grad, &self.hat, self.dim, |_, g, h| f64::from(g) * f64::from(h)));
        grad.par_chunks_mut(self.dim).zip(self.hat.par_chunks(self.dim)).for_each(|(grad, hat)| {
            let columns = mean.iter().zip(&along).zip(&self.scale);
            for ((g, &h), ((&mean, &along), &scale)) in grad.iter_mut().zip(hat).zip(columns) {
                *g = scale * (*g - mean - h * along);
            }
        });
    }

    /// g_z = g - mean(g), per column.
    fn backward_centre(&self, grad: &mut [f32]) {
        let mean = column_means(grad, self.dim);
        grad.par_chunks_mut(self.dim).for_each(|row| {
            for (g, &mean) in row.iter_mut().zip(&mean) {
                *g = (f64::from(*g) - mean) as f32;
            }
        });
    }

    /// g_z = s (g - hat <g, hat>), per row.
    fn backward_scale_rows(&self, grad: &mut [f32]) {
        let rows = self.hat.par_chunks(self.dim).zip(&self.scale);
        grad.par_chunks_mut(self.dim).zip(rows).for_each(|(grad, (hat, &scale))| {
            let along = dot(grad, hat) as f32;
            for (g, &h) in grad.iter_mut().zip(hat) {
                *g = scale * (*g - h * along);
            }
        });
    }
}

/// The mean of each column.
pub(crate) fn column_means(z: &[f32], dim: usize) -> Vec<f64> {
    let n = (z.len() / dim) as f64;
    column_fold(z, dim, |_, z| f64::from(z)).into_iter().map(|s| s / n).collect()
}
