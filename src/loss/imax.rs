//! IMAX (Becker and Hinton, 1992; Zbontar et al., ICML 2021, equation 5):
//!
//! ```text
//! loss = log det(cov(a - b) + r I) - log det(cov(a + b) + r I)
//! ```
//!
//! with covariances over n - 1. The ridge r keeps the determinants finite where a direction has
//! no variance, as most have when the batch is smaller than the dimension. With X centred,
//! S = X^T X / (n - 1) and K = X X^T / (n - 1),
//!
//! ```text
//! dlog det(S + r I)/dX = 2/(n - 1) X (S + r I)^-1 = 2/(n - 1) (K + r I)^-1 X
//! log det(S + r I) = log det(K + r I) + (dim - n) log r
//! ```
//!
//! so the smaller of the two matrices is factored, in f64: with the paper's dimensions S has
//! thousands of eigenvalues next to r.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embeddings::{Pair, with_pair};
use super::linalg::cholesky_inverse;
use super::matmul::{Mat, matmul};
use super::{Embeddings, LossOutput, Objective, Registration, described, not_negative, parse};

/// `method = "imax"`.
pub const REGISTRATION: Registration = Registration {
    name: "imax",
    summary: "IMAX: log-determinants of the covariances of difference and sum (eq. 5)",
    described: described::<ImaxConfig>,
    build: |options| {
        let config: ImaxConfig = parse(options)?;
        not_negative("ridge", config.ridge)?;
        Ok(Box::new(Imax { config }))
    },
};

/// Options of IMAX.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImaxConfig {
    /// Added to both covariances' diagonals, in squared units of the embeddings.
    pub ridge: f64,
}

impl Default for ImaxConfig {
    fn default() -> Self {
        Self { ridge: 1e-3 }
    }
}

struct Imax {
    config: ImaxConfig,
}

impl Objective for Imax {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        imax(&seen.a, &seen.b, &self.config)
    }
}

/// Equation 5 with its gradients.
///
/// # Errors
///
/// Shapes that differ, or are not `[batch, dim]` with at least two samples; a covariance that is
/// singular, which a ridge cures.
pub fn imax(z_a: &Tensor, z_b: &Tensor, config: &ImaxConfig) -> Result<LossOutput> {
    with_pair(z_a, z_b, |pair| {
        let difference = log_det_covariance(&combined(pair, -1.0), pair.dim, config.ridge)?;
        let sum = log_det_covariance(&combined(pair, 1.0), pair.dim, config.ridge)?;
        // The loss is f(a - b) - g(a + b); each gradient already sums to zero over the batch.
        let mut grad = vec![0f32; 2 * pair.a.len()];
        let (grad_a, grad_b) = grad.split_at_mut(pair.a.len());
        let inputs = difference.1.par_iter().zip(&sum.1);
        grad_a.par_iter_mut().zip(grad_b).zip(inputs).for_each(|((a, b), (&d, &s))| {
            *a = (d - s) as f32;
            *b = (-d - s) as f32;
        });
        LossOutput::new(difference.0, -sum.0, None, grad, pair.dim)
    })
}

/// a + sign b, each column centred.
fn combined(pair: Pair<'_>, sign: f64) -> Vec<f64> {
    let (n, dim) = (pair.batch as f64, pair.dim);
    let mean = super::embeddings::column_fold2(pair.a, pair.b, dim, |_, a, b| {
        f64::from(a) + sign * f64::from(b)
    });
    let mut x = vec![0.0; pair.a.len()];
    let rows = pair.a.par_chunks(dim).zip(pair.b.par_chunks(dim));
    x.par_chunks_mut(dim).zip(rows).for_each(|(x, (a, b))| {
        for (j, x) in x.iter_mut().enumerate() {
            *x = f64::from(a[j]) + sign * f64::from(b[j]) - mean[j] / n;
        }
    });
    x
}

/// log det(cov + ridge I) of the centred rows of `x`, and its gradient with respect to `x`.
fn log_det_covariance(x: &[f64], dim: usize, ridge: f64) -> Result<(f64, Vec<f64>)> {
    let batch = x.len() / dim;
    let rows = Mat::new(x, batch, dim);
    let by_sample = ridge > 0.0 && batch < dim;
    let size = if by_sample { batch } else { dim };
    let mut m = if by_sample { matmul(rows, rows.t()) } else { matmul(rows.t(), rows) };
    let scale = 1.0 / (batch - 1) as f64;
    m.par_iter_mut().for_each(|m| *m *= scale);
    for i in 0..size {
        m[i * size + i] += ridge;
    }
    // Embeddings that are not finite make a loss that is none, as with every objective; it is no
    // want of a ridge.
    if (0..size).any(|i| !m[i * size + i].is_finite()) {
        return Ok((f64::NAN, vec![0.0; x.len()]));
    }
    // As many centred samples as dimensions leave one without variance; rounding could give it
    // some.
    let singular = ridge == 0.0 && batch <= dim;
    let log_det = if singular { None } else { cholesky_inverse(&mut m, size) };
    let Some(log_det) = log_det else {
        // With a ridge the matrix is positive definite but for rounding, which is larger than the
        // ridge where embeddings have grown beyond all measure: a loss that is none, too.
        if ridge > 0.0 {
            return Ok((f64::NAN, vec![0.0; x.len()]));
        }
        bail!(
            "imax: a covariance of {batch} samples in {dim} dimensions is singular; \
             set its `ridge` above 0"
        );
    };
    let inverse = Mat::new(&m, size, size);
    let mut grad = if by_sample { matmul(inverse, rows) } else { matmul(rows, inverse) };
    grad.par_iter_mut().for_each(|g| *g *= 2.0 * scale);
    let missing = if by_sample { (dim - batch) as f64 * ridge.ln() } else { 0.0 };
    Ok((log_det + missing, grad))
}
