//! Cosine similarity with a stop-gradient target: the loss of BYOL (Grill et al., 2020, equation
//! 2, up to a factor) and SimSiam (Chen and He, 2021, equation 1); Zbontar et al., equation 4.
//!
//! ```text
//! loss = -mean_b <a_b, stopgrad(b_b)> / (|a_b| |b_b|)
//! ```
//!
//! `z_a` is the prediction, `z_b` the target, whose gradient is zero.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embeddings::{dot, with_pair};
use super::normalize::{Norm, Normalized};
use super::{Embeddings, LossOutput, Objective, Registration, described, parse};
use crate::nn::storage;

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

/// Both views' predictions.
///
/// # Errors
///
/// When one is missing.
pub(super) fn predictions(seen: &Embeddings) -> Result<[&Tensor; 2]> {
    match &seen.predicted {
        Some((a, Some(b))) => Ok([a, b]),
        _ => bail!("the objective needs a predictor's outputs at both views"),
    }
}

/// 1/2 D(s_a, t_b) + 1/2 D(s_b, t_a), where the sources s are the predictions (else the
/// embeddings) and the targets t are fixed, unless `stop_gradient` is false: then they are the
/// embeddings, and gradients reach them.
pub(super) fn symmetric_cosine(
    seen: &Embeddings,
    predicted: Option<[&Tensor; 2]>,
    targets: [&Tensor; 2],
    stop_gradient: bool,
) -> Result<LossOutput> {
    let config = CosineConfig { stop_gradient };
    let sources = predicted.unwrap_or([&seen.a, &seen.b]);
    let there = cosine(sources[0], targets[1], &config)?;
    let back = cosine(sources[1], targets[0], &config)?;
    combine(&there, &back, predicted.is_some(), stop_gradient)
}

/// Half of each: `there` is from view a's source to view b's target, `back` the other way.
fn combine(
    there: &LossOutput,
    back: &LossOutput,
    predicted: bool,
    stop_gradient: bool,
) -> Result<LossOutput> {
    let (batch, dim) = there.grad_a.dims2()?;
    let zeros = || vec![0f32; 2 * batch * dim];
    let mut at_sources = zeros();
    add_halves(&mut at_sources, [&there.grad_a, &back.grad_a])?;
    let mut at_embeddings = if predicted { zeros() } else { std::mem::take(&mut at_sources) };
    if !stop_gradient {
        add_halves(&mut at_embeddings, [&back.grad_b, &there.grad_b])?;
    }
    let invariance = 0.5 * (there.loss + back.loss);
    let mut out = LossOutput::new(invariance, 0.0, None, at_embeddings, dim)?;
    if predicted {
        let device = there.grad_a.device();
        out.grad_predicted = Some(Tensor::from_vec(at_sources, (2 * batch, dim), device)?);
    }
    Ok(out)
}

/// Adds half of each view's gradient to `to`, `[2 * batch, dim]`.
fn add_halves(to: &mut [f32], [a, b]: [&Tensor; 2]) -> Result<()> {
    let (to_a, to_b) = to.split_at_mut(to.len() / 2);
    for (to, grad) in [(to_a, a), (to_b, b)] {
        let grad = storage::read(grad)?;
        to.iter_mut().zip(&*grad).for_each(|(to, g)| *to += 0.5 * g);
    }
    Ok(())
}
