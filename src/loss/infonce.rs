//! InfoNCE as the paper writes it (Zbontar et al., ICML 2021, equation 3; van den Oord et al.,
//! 2018): with unit embeddings, S = a b^T / t, and the mean over the batch,
//!
//! ```text
//! loss = mean_b [ -S_bb + log sum_{b' != b} exp(S_bb') ]
//! ```
//!
//! The negatives of a sample are the other samples' second views.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embeddings::with_pair;
use super::matmul::{Mat, matmul, matmul_into};
use super::normalize::{Norm, Normalized};
use super::{
    Embeddings, LossOutput, Objective, Registration, described, exp::shifted_exps, parse, positive,
};

/// `method = "infonce"`.
pub const REGISTRATION: Registration = Registration {
    name: "infonce",
    summary: "InfoNCE: each sample's views together, apart from the other samples' (eq. 3)",
    described: described::<InfoNceConfig>,
    build: |options| {
        let config: InfoNceConfig = parse(options)?;
        positive("temperature", config.temperature)?;
        Ok(Box::new(InfoNce { config }))
    },
};

/// Options of InfoNCE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InfoNceConfig {
    /// Temperature.
    pub temperature: f64,
}

impl Default for InfoNceConfig {
    fn default() -> Self {
        Self { temperature: 0.1 }
    }
}

struct InfoNce {
    config: InfoNceConfig,
}

impl Objective for InfoNce {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        infonce(&seen.a, &seen.b, &self.config)
    }
}

/// Equation 3 with its gradients.
///
/// # Errors
///
/// Shapes that differ, or are not `[batch, dim]` with at least two samples.
pub fn infonce(z_a: &Tensor, z_b: &Tensor, config: &InfoNceConfig) -> Result<LossOutput> {
    with_pair(z_a, z_b, |pair| {
        let (n, dim) = (pair.batch, pair.dim);
        let a = Normalized::new(pair.a, dim, Norm::Unit);
        let b = Normalized::new(pair.b, dim, Norm::Unit);
        let (a_mat, b_mat) = (Mat::new(&a.hat, n, dim), Mat::new(&b.hat, n, dim));
        let mut s = matmul(a_mat, b_mat.t());
        let rows = softmax_rows(&mut s, n, config.temperature, |i| (i, i));

        let mut grad = vec![0f32; 2 * n * dim];
        let (grad_a, grad_b) = grad.split_at_mut(n * dim);
        let s = Mat::new(&s, n, n);
        matmul_into(s, b_mat, grad_a);
        matmul_into(s.t(), a_mat, grad_b);
        a.backward(grad_a);
        b.backward(grad_b);
        LossOutput::new(rows.attraction, rows.repulsion, None, grad, dim)
    })
}

/// The two parts of a contrastive loss, each the mean over the rows.
pub(crate) struct ContrastiveTerms {
    /// Minus the positives' scaled similarity.
    pub attraction: f64,
    /// The logarithm of the sum over the others.
    pub repulsion: f64,
}

/// Replaces similarities (rows of `columns`) by the gradient of
/// mean_i [ -s_ip / t + log sum_{j != skip} exp(s_ij / t) ] with respect to them;
/// `positive_and_skip(i)` gives p and the column that is left out.
pub(crate) fn softmax_rows(
    s: &mut [f32],
    columns: usize,
    temperature: f64,
    positive_and_skip: impl Fn(usize) -> (usize, usize) + Sync,
) -> ContrastiveTerms {
    let count = (s.len() / columns) as f64;
    let inverse_t = 1.0 / temperature;
    let rows: Vec<(f64, f64)> = s
        .par_chunks_mut(columns)
        .enumerate()
        .map(|(i, row)| {
            let (positive, skip) = positive_and_skip(i);
            let similarity = f64::from(row[positive]) * inverse_t;
            row[skip] = f32::NEG_INFINITY;
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // The positive's share is kept apart: what the others have beside it, which is what is to
            // be learnt, would be lost in a sum with it.
            let own = match positive == skip {
                true => 0.0,
                false => (similarity - f64::from(max) * inverse_t).exp(),
            };
            row[positive] = f32::NEG_INFINITY;
            let others = shifted_exps(row, max, inverse_t as f32);
            let sum = own + others;
            let to_grad = (inverse_t / (sum * count)) as f32;
            row.iter_mut().for_each(|e| *e *= to_grad);
            row[skip] = 0.0;
            let pull = if positive == skip { 1.0 } else { others / sum };
            row[positive] = -(pull * inverse_t / count) as f32;
            (similarity, f64::from(max) * inverse_t + sum.ln())
        })
        .collect();
    ContrastiveTerms {
        attraction: -rows.iter().map(|r| r.0).sum::<f64>() / count,
        repulsion: rows.iter().map(|r| r.1).sum::<f64>() / count,
    }
}
