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
use super::embeddings::{Pair, column_fold2, with_pair};
use super::matmul::{Mat, matmul, matmul_into};
use super::normalize::{Norm, Normalized};
use super::{
    CorrelationStats, DeviceObjective, Embeddings, LossOutput, Needs, Objective, PredictorShape,
    Registration, described, not_negative, parse, positive,
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
pub enum Shape {
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
    /// Which terms count.
    pub terms: Terms,
    /// What is normalised.
    pub normalize: Normalize,
    /// Squares or cross-entropy.
    pub loss: Shape,
    /// Temperature of the cross-entropy form.
    pub temperature: f64,
    /// View b's embeddings are a fixed target (the paper's asymmetry ablation).
    pub stop_gradient: bool,
    /// Hidden width of a predictor behind view a's embeddings; 0 for none (likewise).
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
            loss: Shape::Squared,
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
        positive("temperature", self.temperature)
    }

    fn norm(&self) -> Norm {
        match self.normalize {
            Normalize::Batch => Norm::Batch { eps: self.eps },
            Normalize::Feature => Norm::CentredUnit,
            Normalize::None => Norm::Centred,
        }
    }
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
            (config.loss == Shape::Squared, ("temperature", "loss.loss is `squared`")),
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
        let count = (self.dim * (self.dim - 1)).max(1) as f64;
        let off_diag_rms =
            (self.config.terms != Terms::Invariance).then(|| (squares / count).sqrt());
        let stats = CorrelationStats { on_diag_mean, off_diag_rms };
        LossOutput::with_grad(invariance, redundancy, Some(stats), grad.clone())
    }
}

/// The loss of equation 1 (or the symmetric ablation that `config` asks for) at the embeddings `z_a` and
/// `z_b`, both `[batch, dim]`, with its gradients.
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
            Shape::Squared => twins.squared(config),
            Shape::CrossEntropy => log_sum_exp_terms(&twins, config),
        };
        let (grad_a, grad_b) = grad.split_at_mut(pair.a.len());
        twins.a.backward(grad_a);
        twins.b.backward(grad_b);
        let stats = CorrelationStats {
            on_diag_mean: twins.diagonal.iter().sum::<f64>() / pair.dim as f64,
            off_diag_rms: terms.off_diagonal_squares.map(|sum| {
                let count = (pair.dim * (pair.dim - 1)).max(1);
                (sum / count as f64).sqrt()
            }),
        };
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

/// Both views' normalised embeddings and the diagonal of C = c_scale a^T b.
pub(crate) struct Twins {
    pub a: Normalized,
    pub b: Normalized,
    /// The factor that makes a mean of the sum: 1/n, except with feature normalisation.
    pub c_scale: f64,
    /// C_ii.
    pub diagonal: Vec<f64>,
}

/// The loss's terms, and what was learnt about C on the way.
pub(crate) struct BarlowTerms {
    pub invariance: f64,
    pub redundancy: f64,
    pub off_diagonal_squares: Option<f64>,
}

impl Twins {
    fn new(pair: Pair<'_>, config: &BarlowConfig) -> Self {
        let a = Normalized::new(pair.a, pair.dim, config.norm());
        let b = Normalized::new(pair.b, pair.dim, config.norm());
        let c_scale = match config.normalize {
            Normalize::Feature => 1.0,
            Normalize::Batch | Normalize::None => 1.0 / pair.batch as f64,
        };
        let diagonal =
            column_fold2(&a.hat, &b.hat, pair.dim, |_, a, b| f64::from(a) * f64::from(b))
                .into_iter()
                .map(|sum| sum * c_scale)
                .collect();
        Self { a, b, c_scale, diagonal }
    }

    pub fn a_mat(&self) -> Mat<'_, f32> {
        Mat::new(&self.a.hat, self.a.batch, self.a.dim)
    }

    pub fn b_mat(&self) -> Mat<'_, f32> {
        Mat::new(&self.b.hat, self.b.batch, self.b.dim)
    }

    /// Equation 1: the terms and the gradient with respect to the normalised embeddings.
    fn squared(&self, config: &BarlowConfig) -> (BarlowTerms, Vec<f32>) {
        let mut grad = vec![0.0; 2 * self.a.hat.len()];
        let (grad_a, grad_b) = grad.split_at_mut(self.a.hat.len());
        let invariance_weight = if config.terms == Terms::Redundancy { 0.0 } else { config.scale };
        let redundancy_weight = match config.terms {
            Terms::Invariance => 0.0,
            Terms::Both | Terms::Redundancy => config.scale * config.lambda,
        };
        let squares =
            (config.terms != Terms::Invariance).then(|| self.squares_and_products(grad_a, grad_b));
        // d loss / d C_ii, less what the products with all of C already hold.
        let on_diagonal: Vec<f64> = self
            .diagonal
            .iter()
            .map(|&c| 2.0 * invariance_weight * (c - 1.0) - 2.0 * redundancy_weight * c)
            .collect();
        let along_products = 2.0 * redundancy_weight * self.c_scale * self.c_scale;
        self.combine(grad_a, &self.b.hat, along_products, &on_diagonal);
        self.combine(grad_b, &self.a.hat, along_products, &on_diagonal);
        let invariance: f64 = self.diagonal.iter().map(|c| (1.0 - c) * (1.0 - c)).sum();
        let terms = BarlowTerms {
            invariance: invariance_weight * invariance,
            redundancy: redundancy_weight * squares.unwrap_or(0.0),
            off_diagonal_squares: squares,
        };
        (terms, grad)
    }

    /// `grad = products_weight * grad + c_scale * other * on_diagonal` (by column).
    pub fn combine(
        &self,
        grad: &mut [f32],
        other: &[f32],
        products_weight: f64,
        on_diagonal: &[f64],
    ) {
        let products_weight = products_weight as f32;
        let columns: Vec<f32> = on_diagonal.iter().map(|d| (d * self.c_scale) as f32).collect();
        let dim = columns.len();
        grad.par_chunks_mut(dim).zip(other.par_chunks(dim)).for_each(|(grad, other)| {
            for (g, (&x, &d)) in grad.iter_mut().zip(other.iter().zip(&columns)) {
                *g = products_weight * *g + x * d;
            }
        });
    }

    /// Writes b (a^T b)^T and a (a^T b) into `to_a` and `to_b`; returns the sum of C_ij^2 off the
    /// diagonal.
    fn squares_and_products(&self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        // Multiplications: 4 n^2 d through the Gram matrices, 3 n d^2 through C. The margin also
        // keeps the subtraction of the diagonal well conditioned where the diagonal's entries are
        // alike: C's rank is below n, so that the sum off the diagonal is at least a third of the
        // diagonal's. Where one dimension alone is alive nothing is off the diagonal, and what the
        // subtraction leaves is rounding: about 1e-7 of the diagonal's sum, in gradients too.
        if 4 * self.a.batch <= 3 * self.a.dim {
            self.through_gram(to_a, to_b)
        } else {
            self.through_c(to_a, to_b)
        }
    }

    fn through_gram(&self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        let (a, b) = (self.a_mat(), self.b_mat());
        let (k_a, k_b) = (matmul(a, a.t()), matmul(b, b.t()));
        let n = self.a.batch;
        matmul_into(Mat::new(&k_b, n, n), a, to_a);
        matmul_into(Mat::new(&k_a, n, n), b, to_b);
        let squares = ordered_sum(n, |i| {
            let (k_a, k_b) = (&k_a[i * n..][..n], &k_b[i * n..][..n]);
            k_a.iter().zip(k_b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        });
        let diagonal: f64 = self.diagonal.iter().map(|c| c * c).sum();
        (squares * self.c_scale * self.c_scale - diagonal).max(0.0)
    }

    fn through_c(&self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        let (a, b, dim) = (self.a_mat(), self.b_mat(), self.a.dim);
        let c = matmul(a.t(), b);
        let c_mat = Mat::new(&c, dim, dim);
        matmul_into(b, c_mat.t(), to_a);
        matmul_into(a, c_mat, to_b);
        let squares = ordered_sum(dim, |i| {
            let row = &c[i * dim..][..dim];
            let square =
                |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            square(&row[..i]) + square(&row[i + 1..])
        });
        squares * self.c_scale * self.c_scale
    }
}

/// The sum of `f(0) .. f(count)`: terms in parallel, added in order.
fn ordered_sum(count: usize, f: impl Fn(usize) -> f64 + Sync + Send) -> f64 {
    let terms: Vec<f64> = (0..count).into_par_iter().map(f).collect();
    terms.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{pair_of, relative};

    #[test]
    fn both_ways_round_c_agree() {
        for (batch, dim) in [(20, 30), (64, 300), (7, 9)] {
            let (z_a, z_b) = pair_of(batch, dim, 5);
            with_pair(&z_a, &z_b, |pair| {
                let twins = Twins::new(pair, &BarlowConfig::default());
                let mut products = vec![vec![0f32; batch * dim]; 4];
                let [gram_a, gram_b, c_a, c_b] = &mut products[..] else { unreachable!() };
                let gram = twins.through_gram(gram_a, gram_b);
                let c = twins.through_c(c_a, c_b);
                assert!((gram / c - 1.0).abs() < 1e-5, "{gram} {c}");
                assert!(relative(gram_a, c_a) < 1e-5 && relative(gram_b, c_b) < 1e-5);
                Ok(())
            })
            .unwrap();
        }
    }

    #[test]
    fn one_live_dimension_has_next_to_nothing_off_the_diagonal() {
        let (batch, dim) = (12, 64);
        let values = |z: Tensor| z.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (z_a, z_b) = pair_of(batch, dim, 5);
        let [a, b] = [z_a, z_b].map(|z| {
            let mut alone = vec![0.25f32; batch * dim];
            for (to, from) in alone.chunks_mut(dim).zip(values(z).chunks(dim)) {
                to[3] = from[3];
            }
            Tensor::from_vec(alone, (batch, dim), &Device::Cpu).unwrap()
        });
        with_pair(&a, &b, |pair| {
            let twins = Twins::new(pair, &BarlowConfig::default());
            let diagonal = twins.diagonal[3] * twins.diagonal[3];
            assert!(diagonal > 1e-3, "{diagonal}");
            let mut products = vec![vec![0f32; batch * dim]; 4];
            let [gram_a, gram_b, c_a, c_b] = &mut products[..] else { unreachable!() };
            let gram = twins.through_gram(gram_a, gram_b);
            assert!((0.0..1e-6 * diagonal).contains(&gram), "{gram} beside {diagonal}");
            assert_eq!(twins.through_c(c_a, c_b), 0.0);
            assert!(relative(gram_a, c_a) < 1e-6 && relative(gram_b, c_b) < 1e-6);
            Ok(())
        })
        .unwrap();
        let out = barlow_twins(&a, &b, &BarlowConfig::default()).unwrap();
        assert!(out.loss.is_finite() && values(out.grad).iter().all(|g| g.is_finite()));
    }

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
