//! Objectives: from the embeddings of two views to a loss and its gradient in closed form.
//!
//! The step calls [`Objective::evaluate`] between the network's forward and backward pass. Each
//! objective is one file with its formula, paper and equation, and one line in [`OBJECTIVES`]. An
//! objective that wants more than two embeddings says so in [`Objective::needs`]: the
//! [`Learner`](crate::learner::Learner) then keeps a predictor or a momentum teacher for it.
//!
//! # Layout
//!
//! - [`barlow`]: equations 1 and 2 of the paper and their ablations; [`cross_entropy`] is its
//!   soft-max form.
//! - [`infonce`], [`ntxent`], [`cosine`], [`imax`]: the objectives the paper compares with.
//! - [`simsiam`], [`byol`], [`moco`]: those with a predictor, a teacher or a queue.
//! - [`diagnostics`]: whether embeddings collapse, and how much they keep.
//! - `embeddings`, `normalize`, `twins`, `contrastive`, `matmul`, `linalg`, `exp`: what the
//!   objectives share.
//!
//! Every sum has a fixed order and every product fixed blocks: results do not depend on the
//! number of threads.

use std::collections::HashMap;

use anyhow::{Context, bail};
use candle_core::{Device, Result, Tensor};
use schemars::{JsonSchema, schema_for};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checks::{at_least, at_most, not_negative, positive, share};
use crate::nn::Engine;
use crate::nn::cuda::Backend;

pub mod barlow;
pub mod byol;
pub mod cosine;
pub mod cross_entropy;
pub mod diagnostics;
pub mod imax;
pub mod infonce;
pub mod moco;
pub mod ntxent;
pub mod simsiam;

mod contrastive;
mod embeddings;
mod exp;
mod linalg;
pub(crate) mod matmul;
mod normalize;
mod twins;

pub use barlow::{BarlowConfig, LossForm, Normalize, Terms, barlow_twins, cross_correlation};

/// Every objective that `method = ...` can name. A new one adds its file and its line here.
pub const OBJECTIVES: &[Registration] = &[
    barlow::REGISTRATION,
    infonce::REGISTRATION,
    ntxent::REGISTRATION,
    cosine::REGISTRATION,
    imax::REGISTRATION,
    simsiam::REGISTRATION,
    byol::REGISTRATION,
    moco::REGISTRATION,
];

/// A loss over the embeddings of two views, with its gradient.
pub trait Objective: Send {
    /// The name that configuration uses.
    fn name(&self) -> &'static str;

    /// The options in effect, defaults included.
    fn options(&self) -> toml::Table;

    /// The same for embeddings of `dim` dimensions, with those that depend on it.
    fn options_at(&self, _dim: usize) -> toml::Table {
        self.options()
    }

    /// Options that do nothing, whatever their values, and the other option that makes it so.
    fn idle(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// What it wants beside the network's embeddings.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// The loss and its gradients. Nothing that the next call depends on changes here.
    ///
    /// # Errors
    ///
    /// Shapes that differ or are not `[batch, dim]` with at least two samples, or an absent part
    /// that [`Objective::needs`] asked for.
    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput>;

    /// The same loss for batches of `batch` embeddings of `dim` dimensions, computed by a device
    /// that runs kernels; `None` where there is no such form with these options.
    ///
    /// # Errors
    /// When the device cannot allocate.
    fn on_device(
        &self,
        _engine: &Engine,
        _batch: usize,
        _dim: usize,
    ) -> Result<Option<Box<dyn DeviceObjective>>> {
        Ok(None)
    }

    /// Takes what the next step depends on (a queue of keys), after [`Objective::evaluate`]; `seen`
    /// is where the network computes.
    ///
    /// # Errors
    ///
    /// As [`Objective::evaluate`].
    fn advance(&mut self, _seen: &Embeddings) -> Result<()> {
        Ok(())
    }

    /// What a checkpoint needs beside the options. The tensors share memory with the objective:
    /// write them out before the next step.
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Takes out of `state` what [`Objective::state`] gave.
    ///
    /// # Errors
    ///
    /// A tensor of a shape that does not fit the options.
    fn load_state(&mut self, _state: &mut HashMap<String, Tensor>) -> Result<()> {
        Ok(())
    }
}

/// An objective's arithmetic on a device.
pub trait DeviceObjective: Send {
    /// Asks for the loss of `z`, `[2 * batch, dim]` with view a first, and for its gradient in
    /// `grad`. Neither waits nor allocates.
    ///
    /// # Errors
    /// What the device says.
    fn ask_for(&mut self, backend: &dyn Backend, z: &Tensor, grad: &Tensor) -> Result<()>;

    /// Waits for the loss; the gradient is `grad`, as given before.
    ///
    /// # Errors
    /// What the device says.
    fn read(&mut self, backend: &dyn Backend, grad: &Tensor) -> Result<LossOutput>;
}

/// What the networks made of a batch.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// The network's embeddings of view a, `[batch, dim]`.
    pub a: Tensor,
    /// Those of view b.
    pub b: Tensor,
    /// The predictor's outputs at `a`, and at `b` where both views go through it.
    pub predicted: Option<(Tensor, Option<Tensor>)>,
    /// The momentum teacher's embeddings of both views.
    pub teacher: Option<[Tensor; 2]>,
}

impl Embeddings {
    /// The network's embeddings alone (shared memory).
    pub fn of(a: &Tensor, b: &Tensor) -> Self {
        Embeddings { a: a.clone(), b: b.clone(), predicted: None, teacher: None }
    }

    /// The same on the CPU: shared memory, or copies.
    ///
    /// # Errors
    /// What the device says.
    pub fn on_host(&self) -> Result<Self> {
        let host = crate::nn::storage::host;
        let predicted = match &self.predicted {
            None => None,
            Some((a, b)) => Some((host(a)?, b.as_ref().map(host).transpose()?)),
        };
        let teacher = match &self.teacher {
            None => None,
            Some([a, b]) => Some([host(a)?, host(b)?]),
        };
        Ok(Embeddings { a: host(&self.a)?, b: host(&self.b)?, predicted, teacher })
    }
}

/// What an objective wants beside the network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// A trained multi-layer perceptron behind the embeddings.
    pub predictor: Option<PredictorShape>,
    /// A second network that follows the first.
    pub teacher: Option<Momentum>,
}

/// A predictor: linear, BN, ReLU, linear, from and to the embeddings' dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictorShape {
    /// Width of its hidden layer.
    pub hidden: usize,
    /// Whether both views go through it, or only view a.
    pub both: bool,
}

/// How slowly a teacher follows: `teacher = m teacher + (1 - m) network` after each step, where
/// m goes from `base` to `last` along half a cosine (Grill et al., 2020, section 3.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Momentum {
    /// m after the first step.
    pub base: f64,
    /// m at the end of the run.
    pub last: f64,
}

impl Momentum {
    /// m of step number `step` (from 0) of `steps`.
    pub fn at(self, step: u64, steps: u64) -> f64 {
        let done = step as f64 / steps.max(1) as f64;
        let cosine = (std::f64::consts::PI * done.min(1.0)).cos();
        self.last - (self.last - self.base) * 0.5 * (cosine + 1.0)
    }
}

/// How an objective enters the program.
pub struct Registration {
    /// Its name in configuration.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// Its options, for `bt-stream config --explain`: [`described`] of their struct.
    pub described: fn() -> Described,
    /// Makes it from its options; absent ones take their defaults, unknown ones are errors.
    pub build: fn(toml::Table) -> anyhow::Result<Box<dyn Objective>>,
}

/// What there is to say of an objective's options.
pub struct Described {
    /// Their JSON schema.
    pub schema: serde_json::Value,
    /// Their defaults.
    pub defaults: serde_json::Value,
}

/// The options `T`; their comments are the explanation.
pub fn described<T: JsonSchema + Serialize + Default>() -> Described {
    let schema = schema_for!(T).to_value();
    Described { schema, defaults: serde_json::to_value(T::default()).unwrap_or_default() }
}

/// Makes the objective `name` from its options.
///
/// # Errors
///
/// A name that is not registered, an option that does not exist or a value out of range.
///
/// # Examples
///
/// ```
/// let options = toml::toml! { lambda = 0.005 };
/// let objective = bt_stream::loss::build("barlow", options).unwrap();
/// assert_eq!(objective.options()["lambda"].as_float(), Some(0.005));
/// ```
pub fn build(name: &str, options: toml::Table) -> anyhow::Result<Box<dyn Objective>> {
    let Some(registration) = OBJECTIVES.iter().find(|r| r.name == name) else {
        let known: Vec<_> = OBJECTIVES.iter().map(|r| r.name).collect();
        bail!("no objective is called `{name}`; known: {}", known.join(", "));
    };
    (registration.build)(options).with_context(|| format!("options of objective `{name}`"))
}

/// What an objective returns.
#[derive(Debug)]
pub struct LossOutput {
    /// The loss: `invariance + redundancy`.
    pub loss: f64,
    /// The part that pulls the two views of a sample together, as it stands in the loss.
    pub invariance: f64,
    /// The part that keeps embeddings apart (Barlow Twins: lambda times the off-diagonal sum).
    pub redundancy: f64,
    /// The cross-correlation's figures, of objectives that compute it.
    pub correlation: Option<CorrelationStats>,
    /// Gradient with respect to both views' embeddings, `[2 * batch, dim]`, view a's rows first.
    pub grad: Tensor,
    /// The rows of `grad` that belong to view a, `[batch, dim]` (shared memory).
    pub grad_a: Tensor,
    /// The rows of `grad` that belong to view b.
    pub grad_b: Tensor,
    /// Gradient with respect to the predictor's outputs, view a's rows first; for objectives with
    /// a predictor. `grad` then holds only what does not pass through it.
    pub grad_predicted: Option<Tensor>,
}

/// Two figures of the cross-correlation matrix C.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CorrelationStats {
    /// Mean of the diagonal; 1 when the views agree.
    pub on_diag_mean: f64,
    /// Root of the mean square of the off-diagonal elements; 0 when nothing is redundant.
    /// Absent where the objective never computes them.
    pub off_diag_rms: Option<f64>,
}

impl CorrelationStats {
    /// From the diagonal's mean and the sum of squares off it, of C `[dim, dim]`.
    fn new(on_diag_mean: f64, off_diag_squares: Option<f64>, dim: usize) -> Self {
        let count = (dim * (dim - 1)).max(1) as f64;
        Self { on_diag_mean, off_diag_rms: off_diag_squares.map(|sum| (sum / count).sqrt()) }
    }
}

impl LossOutput {
    /// Wraps the gradient `[2 * batch, dim]`, which must be row-major with view a first.
    fn new(
        invariance: f64,
        redundancy: f64,
        correlation: Option<CorrelationStats>,
        grad: Vec<f32>,
        dim: usize,
    ) -> Result<Self> {
        let batch = grad.len() / (2 * dim);
        let grad = Tensor::from_vec(grad, (2 * batch, dim), &Device::Cpu)?;
        Self::with_grad(invariance, redundancy, correlation, grad)
    }

    /// As [`LossOutput::new`], with the gradient as a tensor.
    fn with_grad(
        invariance: f64,
        redundancy: f64,
        correlation: Option<CorrelationStats>,
        grad: Tensor,
    ) -> Result<Self> {
        let batch = grad.dim(0)? / 2;
        let (grad_a, grad_b) = (grad.narrow(0, 0, batch)?, grad.narrow(0, batch, batch)?);
        let loss = invariance + redundancy;
        let grad_predicted = None;
        Ok(Self { loss, invariance, redundancy, correlation, grad, grad_a, grad_b, grad_predicted })
    }
}

/// Reads an objective's options; the error names the key and lists the known ones.
fn parse<T: DeserializeOwned>(options: toml::Table) -> anyhow::Result<T> {
    let options = options.try_into();
    options.map_err(|error| anyhow::anyhow!("{}", crate::print::unbroken(&error.to_string())))
}

/// An objective's options, defaults included, as TOML.
fn to_table(options: &impl Serialize) -> toml::Table {
    // The options are flat structs of numbers and names, which always serialise to a table.
    toml::Table::try_from(options).unwrap_or_default()
}

/// [`Objective::idle`] of one that may have a predictor: without it the width of the hidden layer.
fn idle_predictor(predictor: bool) -> Vec<(&'static str, &'static str)> {
    let width = ("predictor_hidden", "loss.predictor is false");
    if predictor { Vec::new() } else { vec![width] }
}

/// Checks the width of a predictor's hidden layer, which is no wider than a network's.
fn hidden_width(name: &str, value: usize) -> anyhow::Result<()> {
    let key = format!("`loss.{name}`");
    at_least(&key, value, 1)?;
    at_most(&key, value, crate::model::MOST_WIDTH)
}

#[cfg(test)]
pub(crate) mod tests;
