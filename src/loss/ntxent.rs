//! NT-Xent (Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, equation 1):
//! the 2n unit embeddings z of both views, S = z z^T / t, p(i) the other view of i's sample,
//!
//! ```text
//! loss = mean_i [ -S_ip(i) + log sum_{j != i} exp(S_ij) ]
//! ```
//!
//! Unlike equation 3 of Barlow Twins the sum holds the positive, and negatives of both views.

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contrastive::softmax_rows;
use super::embeddings::with_pair;
use super::matmul::{Mat, gram, matmul};
use super::normalize::{Norm, Normalized};
use super::{Embeddings, LossOutput, Objective, Registration, described, parse, positive};

/// `method = "ntxent"`.
pub const REGISTRATION: Registration = Registration {
    name: "ntxent",
    summary: "NT-Xent: SimCLR's contrastive loss over both views of all samples",
    described: described::<NtXentConfig>,
    build: |options| {
        let config: NtXentConfig = parse(options)?;
        positive("temperature", config.temperature)?;
        Ok(Box::new(NtXent { config }))
    },
};

/// Options of NT-Xent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NtXentConfig {
    /// Temperature.
    pub temperature: f64,
}

impl Default for NtXentConfig {
    fn default() -> Self {
        Self { temperature: 0.1 }
    }
}

struct NtXent {
    config: NtXentConfig,
}

impl Objective for NtXent {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        ntxent(&seen.a, &seen.b, &self.config)
    }
}

/// SimCLR's loss with its gradients.
///
/// # Errors
///
/// Shapes that differ, or are not `[batch, dim]` with at least two samples.
pub fn ntxent(z_a: &Tensor, z_b: &Tensor, config: &NtXentConfig) -> Result<LossOutput> {
    with_pair(z_a, z_b, |pair| {
        let (n, dim) = (pair.batch, pair.dim);
        let z = Normalized::new(&[pair.a, pair.b].concat(), dim, Norm::Unit);
        let z_mat = Mat::new(&z.hat, 2 * n, dim);
        let mut s = gram(z_mat);
        let rows = softmax_rows(&mut s, 2 * n, config.temperature, |i| ((i + n) % (2 * n), i));
        add_transpose(&mut s, 2 * n);
        let mut grad = matmul(Mat::new(&s, 2 * n, 2 * n), z_mat);
        z.backward(&mut grad);
        LossOutput::new(rows.attraction, rows.repulsion, None, grad, dim)
    })
}

/// s += s^T: each similarity stands in two places.
fn add_transpose(s: &mut [f32], n: usize) {
    for i in 0..n {
        for j in 0..i {
            let sum = s[i * n + j] + s[j * n + i];
            s[i * n + j] = sum;
            s[j * n + i] = sum;
        }
        s[i * n + i] *= 2.0;
    }
}
