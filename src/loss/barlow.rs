//! Barlow Twins (Zbontar et al., ICML 2021), equations 1 and 2, with the paper's ablations.
//!
//! ```text
//! C_ij = sum_b a_bi b_bj / n                                   a, b: normalised embeddings
//! loss = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2
//! dloss/da = (1/n) [2 lambda b C^T + b diag(2 (C_ii - 1) - 2 lambda C_ii)]
//! ```
//!
//! and likewise for b with C transposed. With K_a = a a^T and K_b = b b^T, both n x n,
//!
//! ```text
//! sum_ij C_ij^2 = <K_a, K_b> / n^2        b C^T = K_b a / n        a C = K_a b / n
//! ```
//!
//! so while the batch is smaller than the dimension C is never formed: at batch 256 and
//! dimension 8192 this is 24 times less arithmetic. With larger batches C (then the smaller
//! matrix) is formed once.

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cross_entropy::log_sum_exp_terms;
use super::embeddings::with_pair;
use super::matmul::matmul;
use super::normalize::Norm;
use super::twins::Twins;
use super::{
    CorrelationStats, DeviceObjective, Embeddings, LossOutput, Needs, Objective, PredictorShape,
    Registration, described, hidden_width, not_negative, parse, positive,
};
use crate::nn::cuda::Backend;
use crate::nn::cuda::kernels::loss as kernels;
use crate::nn::{Engine, storage};

/// `method = "barlow"`.
pub const REGISTRATION: Registration = Registration {
    name: "barlow",
    summary: "Barlow Twins: cross-correlation of the views towards the identity (eq. 1, 2)",
    described: described::<BarlowConfig>,
    build: |options| {
        let config: BarlowConfig = parse(options)?;
        config.validate()?;
        Ok(Box::new(Barlow { config }))
    },
};

/// Which terms of equation 1 count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    /// Both.
    #[default]
    Both,
    /// The diagonal alone.
    Invariance,
    /// The off-diagonal elements alone.
    Redundancy,
}

/// What makes C out of the centred embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Each dimension to unit variance over the batch: the paper's cross-correlation.
    #[default]
    Batch,
    /// Each sample to unit length; C is then a sum over the batch, not a mean.
    Feature,
    /// Nothing: the cross-covariance.
    None,
}

/// What is made of C.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossForm {
    /// Squared differences from the identity (equation 1).
    #[default]
    Squared,
    /// The paper's cross-entropy with temperature; see [`super::cross_entropy`].
    CrossEntropy,
}

/// Options of Barlow Twins; the defaults are the authors'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BarlowConfig {
    /// Weight of the redundancy term.
    pub lambda: f64,
    /// Factor on the whole loss (solo-learn's `scale_loss`).
    pub scale: f64,
    /// Added to each dimension's variance, as by the authors' batch normalisation; equation 2
    /// itself has 0.
    pub eps: f64,
    /// Which terms count: `both`, or `invariance` or `redundancy` alone.
    pub terms: Terms,
    /// What is normalised: each dimension over the `batch`, each sample's embedding (`feature`), or
    /// nothing (`none`).
    pub normalize: Normalize,
    /// Squares or cross-entropy.
    pub loss: LossForm,
    /// Temperature of the cross-entropy form.
    pub temperature: f64,
    /// View b's embeddings are a fixed target (the paper's asymmetry ablation).
    pub stop_gradient: bool,
    /// Hidden width of a predictor behind view a's embeddings; 0 for none (the same ablation).
    pub predictor: usize,
}

impl Default for BarlowConfig {
    fn default() -> Self {
        Self {
            lambda: 0.0051,
            scale: 1.0,
            eps: 1e-5,
            terms: Terms::Both,
            normalize: Normalize::Batch,
            loss: LossForm::Squared,
            temperature: 0.1,
            stop_gradient: false,
            predictor: 0,
        }
    }
}

impl BarlowConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// The first option that is out of range.
    pub fn validate(&self) -> anyhow::Result<()> {
        not_negative("lambda", self.lambda)?;
        positive("scale", self.scale)?;
        not_negative("eps", self.eps)?;
        positive("temperature", self.temperature)?;
        if self.predictor > 0 { hidden_width("predictor", self.predictor) } else { Ok(()) }
    }

    /// Weights of the two terms, `(invariance, redundancy)`.
    pub(crate) fn term_weights(&self) -> (f64, f64) {
        let invariance = if self.terms == Terms::Redundancy { 0.0 } else { self.scale };
        let redundancy = match self.terms {
            Terms::Invariance => 0.0,
            Terms::Both | Terms::Redundancy => self.scale * self.lambda,
        };
        (invariance, redundancy)
    }

    pub(super) fn norm(&self) -> Norm {
        match self.normalize {
            Normalize::Batch => Norm::Batch { eps: self.eps },
            Normalize::Feature => Norm::CentredUnit,
            Normalize::None => Norm::Centred,
        }
    }
}

/// Whether sums over C and products with it go by the Gram matrices.
///
/// Multiplications: 4 n^2 d through the Gram matrices, 3 n d^2 through C. The margin also keeps the
/// subtraction of the diagonal well conditioned where the diagonal's entries are alike: C's rank is
/// below n, so that the sum off the diagonal is at least a third of the diagonal's. Where one
/// dimension alone is alive nothing is off the diagonal, and what the subtraction leaves is
/// rounding: about 1e-7 of the diagonal's sum, in gradients too.
pub(crate) fn prefer_gram(batch: usize, dim: usize) -> bool {
    4 * batch <= 3 * dim
}

struct Barlow {
    config: BarlowConfig,
}

impl Objective for Barlow {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn idle(&self) -> Vec<(&'static str, &'static str)> {
        let config = &self.config;
        let rules = [
            (config.loss == LossForm::Squared, ("temperature", "loss.loss is `squared`")),
            (config.terms == Terms::Invariance, ("lambda", "loss.terms is `invariance`")),
            (config.normalize != Normalize::Batch, ("eps", "loss.normalize is not `batch`")),
        ];
        rules.into_iter().filter(|(idle, _)| *idle).map(|(_, option)| option).collect()
    }

    fn needs(&self) -> Needs {
        let hidden = self.config.predictor;
        let predictor = (hidden > 0).then_some(PredictorShape { hidden, both: false });
        Needs { predictor, ..Needs::default() }
    }

    fn on_device(
        &self,
        engine: &Engine,
        batch: usize,
        dim: usize,
    ) -> Result<Option<Box<dyn DeviceObjective>>> {
        OnDevice::of(&self.config, engine, batch, dim)
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        let from = match (&seen.predicted, self.config.predictor) {
            (Some((predicted, _)), 1..) => predicted,
            (None, 1..) => bail!("barlow: the predictor's outputs are missing"),
            _ => &seen.a,
        };
        let mut out = barlow_twins(from, &seen.b, &self.config)?;
        if self.config.stop_gradient {
            storage::with_mut(&out.grad_b, |grad| grad.fill(0.0))?;
        }
        if self.config.predictor > 0 {
            out.grad_predicted = Some(out.grad_a.force_contiguous()?);
            storage::with_mut(&out.grad_a, |grad| grad.fill(0.0))?;
        }
        Ok(out)
    }
}

/// The squared loss over batch-normalised embeddings, by a device's kernels.
struct OnDevice {
    config: BarlowConfig,
    batch: usize,
    dim: usize,
    figures: Tensor,
    scratch: Tensor,
}

impl OnDevice {
    fn of(
        config: &BarlowConfig,
        engine: &Engine,
        batch: usize,
        dim: usize,
    ) -> Result<Option<Box<dyn DeviceObjective>>> {
        if !kernels::barlow_supports(config) {
            return Ok(None);
        }
        let device = engine.device();
        let figures = storage::zeros_of(&[kernels::FIGURES], DType::F64, device)?;
        let scratch = storage::zeros(kernels::barlow_scratch(batch, dim), device)?;
        Ok(Some(Box::new(Self { config: config.clone(), batch, dim, figures, scratch })))
    }
}

impl DeviceObjective for OnDevice {
    fn ask_for(&mut self, backend: &dyn Backend, z: &Tensor, grad: &Tensor) -> Result<()> {
        let call = kernels::BarlowCall {
            batch: self.batch,
            dim: self.dim,
            z: storage::span(z)?,
            grad: storage::span(grad)?,
            figures: storage::span(&self.figures)?,
            scratch: storage::span(&self.scratch)?,
            config: &self.config,
        };
        kernels::barlow(backend, &call)
    }

    fn read(&mut self, backend: &dyn Backend, grad: &Tensor) -> Result<LossOutput> {
        let mut found = [0f64; kernels::FIGURES];
        backend.read(storage::span(&self.figures)?, bytemuck::cast_slice_mut(&mut found))?;
        let [invariance, redundancy, on_diag_mean, squares] = found;
        let squares = (self.config.terms != Terms::Invariance).then_some(squares);
        let stats = CorrelationStats::new(on_diag_mean, squares, self.dim);
        LossOutput::with_grad(invariance, redundancy, Some(stats), grad.clone())
    }
}

/// The loss of equation 1 (or the symmetric ablation that `config` asks for) at the embeddings
/// `z_a` and `z_b`, both `[batch, dim]`, with its gradients.
///
/// C itself is not formed where that is slower; see [`cross_correlation`].
///
/// # Errors
///
/// Shapes that differ, or are not `[batch, dim]` with at least two samples.
pub fn barlow_twins(z_a: &Tensor, z_b: &Tensor, config: &BarlowConfig) -> Result<LossOutput> {
    with_pair(z_a, z_b, |pair| {
        let twins = Twins::new(pair, config);
        let (terms, mut grad) = match config.loss {
            LossForm::Squared => twins.squared(config),
            LossForm::CrossEntropy => log_sum_exp_terms(&twins, config),
        };
        let (grad_a, grad_b) = grad.split_at_mut(pair.a.len());
        twins.a.backward(grad_a);
        twins.b.backward(grad_b);
        let on_diag_mean = twins.diagonal.iter().sum::<f64>() / pair.dim as f64;
        let stats = CorrelationStats::new(on_diag_mean, terms.off_diagonal_squares, pair.dim);
        LossOutput::new(terms.invariance, terms.redundancy, Some(stats), grad, pair.dim)
    })
}

/// C `[dim, dim]` of equation 2, of embeddings `[batch, dim]`; `eps` as in [`BarlowConfig`].
///
/// # Errors
///
/// Shapes as in [`barlow_twins`].
pub fn cross_correlation(z_a: &Tensor, z_b: &Tensor, eps: f64) -> Result<Tensor> {
    with_pair(z_a, z_b, |pair| {
        let twins = Twins::new(pair, &BarlowConfig { eps, ..Default::default() });
        let mut c = matmul(twins.a_mat().t(), twins.b_mat());
        let scale = twins.c_scale as f32;
        c.par_iter_mut().for_each(|c| *c *= scale);
        Tensor::from_vec(c, (pair.dim, pair.dim), &Device::Cpu)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dimension_that_collapsed_gives_finite_values() {
        let z = Tensor::ones((8, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        for eps in [0.0, 1e-5] {
            let out = barlow_twins(&z, &z, &BarlowConfig { eps, ..Default::default() }).unwrap();
            assert_eq!(out.loss, 4.0);
            let grad: Vec<f32> = out.grad.flatten_all().unwrap().to_vec1().unwrap();
            assert!(grad.iter().all(|&g| g == 0.0));
        }
    }
}
