//! InfoNCE as the paper writes it (Zbontar et al., ICML 2021, equation 3; van den Oord et al.,
//! 2018): with unit embeddings, S = a b^T / t, and the mean over the batch,
//!
//! ```text
//! loss = mean_b [ -S_bb + log sum_{b' != b} exp(S_bb') ]
//! ```
//!
//! The negatives of a sample are the other samples' second views.

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contrastive::softmax_rows;
use super::embeddings::with_pair;
use super::matmul::{Mat, matmul, matmul_into};
use super::normalize::{Norm, Normalized};
use super::{Embeddings, LossOutput, Objective, Registration, described, parse, positive};

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
