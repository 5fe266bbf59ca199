//! Cosine similarity with a stop-gradient target: the loss of BYOL (Grill et al., 2020, equation
//! 2, up to a factor) and SimSiam (Chen and He, 2021, equation 1); Zbontar et al., equation 4.
//!
//! ```text
//! loss = -mean_b <a_b, stopgrad(b_b)> / (|a_b| |b_b|)
//! ```
//!
//! `z_a` is the prediction, `z_b` the target, whose gradient is zero.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embeddings::{dot, with_pair};
use super::normalize::{Norm, Normalized};
use super::{Embeddings, LossOutput, Objective, Registration, described, parse};

/// `method = "cosine"`.
pub const REGISTRATION: Registration = Registration {
    name: "cosine",
    summary: "cosine similarity to the other view as a fixed target (eq. 4)",
    described: described::<CosineConfig>,
    build: |options| {
        let config: CosineConfig = parse(options)?;
        Ok(Box::new(Cosine { config }))
    },
};

/// Options of the cosine objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CosineConfig {
    /// Whether the second view is a fixed target; without it, embeddings collapse.
    pub stop_gradient: bool,
}

impl Default for CosineConfig {
    fn default() -> Self {
        Self { stop_gradient: true }
    }
}

struct Cosine {
    config: CosineConfig,
}

impl Objective for Cosine {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        cosine(&seen.a, &seen.b, &self.config)
    }
}

/// Equation 4, as a mean, with its gradients.
///
/// # Errors
///
/// Shapes that differ, or are not `[batch, dim]` with at least two samples.
pub fn cosine(z_a: &Tensor, z_b: &Tensor, config: &CosineConfig) -> Result<LossOutput> {
    with_pair(z_a, z_b, |pair| {
        let dim = pair.dim;
        let n = pair.batch as f64;
        let a = Normalized::new(pair.a, dim, Norm::Unit);
        let b = Normalized::new(pair.b, dim, Norm::Unit);
        let rows = a.hat.par_chunks(dim).zip(b.hat.par_chunks(dim));
        let similarities: Vec<f64> = rows.map(|(a, b)| dot(a, b)).collect();
        let invariance = -similarities.iter().sum::<f64>() / n;

        let mut grad = vec![0f32; 2 * pair.a.len()];
        let (grad_a, grad_b) = grad.split_at_mut(pair.a.len());
        let towards = |grad: &mut [f32], other: &[f32]| {
            grad.par_iter_mut().zip(other).for_each(|(g, &x)| *g = x * (-1.0 / n) as f32);
        };
        towards(grad_a, &b.hat);
        a.backward(grad_a);
        if !config.stop_gradient {
            towards(grad_b, &a.hat);
            b.backward(grad_b);
        }
        LossOutput::new(invariance, 0.0, None, grad, dim)
    })
}
