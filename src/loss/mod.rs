//! Objectives: from the embeddings of two views to a loss and its gradient in closed form.
//!
//! The step calls [`Objective::evaluate`] between the network's forward and backward pass. Each
//! objective is one file with its formula, paper and equation, and one line in [`OBJECTIVES`].
//!
//! # Layout
//!
//! - [`barlow`]: equations 1 and 2 of the paper and their ablations; [`cross_entropy`] is its
//!   soft-max form.
//! - [`infonce`], [`ntxent`], [`cosine`], [`imax`]: the objectives the paper compares with.
//! - [`diagnostics`]: whether embeddings collapse, and how much they keep.
//! - `embeddings`, `normalize`, `matmul`, `linalg`, `exp`: what the objectives share.
//!
//! Every sum has a fixed order and every product fixed blocks: results do not depend on the
//! number of threads.

use anyhow::{Context, bail};
use candle_core::{Device, Result, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub mod barlow;
pub mod cosine;
pub mod cross_entropy;
pub mod diagnostics;
pub mod imax;
pub mod infonce;
pub mod ntxent;

mod embeddings;
mod exp;
mod linalg;
pub(crate) mod matmul;
mod normalize;

pub use barlow::{BarlowConfig, barlow_twins, cross_correlation};

/// Every objective that `method = ...` can name. A new one adds its file and its line here.
pub const OBJECTIVES: &[Registration] = &[
    barlow::REGISTRATION,
    infonce::REGISTRATION,
    ntxent::REGISTRATION,
    cosine::REGISTRATION,
    imax::REGISTRATION,
];

/// A loss over the embeddings of two views, with its gradient.
pub trait Objective: Send {
    /// The name that configuration uses.
    fn name(&self) -> &'static str;

    /// The options in effect, defaults included.
    fn options(&self) -> toml::Table;

    /// The loss and its gradients at `z_a` and `z_b`, both `[batch, dim]`.
    ///
    /// # Errors
    ///
    /// Shapes that differ or are not `[batch, dim]` with at least two samples.
    fn evaluate(&mut self, z_a: &Tensor, z_b: &Tensor) -> Result<LossOutput>;
}

/// How an objective enters the program.
pub struct Registration {
    /// Its name in configuration.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// Makes it from its options; absent ones take their defaults, unknown ones are errors.
    pub build: fn(toml::Table) -> anyhow::Result<Box<dyn Objective>>,
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
        let (grad_a, grad_b) = (grad.narrow(0, 0, batch)?, grad.narrow(0, batch, batch)?);
        let loss = invariance + redundancy;
        Ok(Self { loss, invariance, redundancy, correlation, grad, grad_a, grad_b })
    }
}

/// Reads an objective's options; the error names the key and lists the known ones.
fn parse<T: DeserializeOwned>(options: toml::Table) -> anyhow::Result<T> {
    Ok(options.try_into()?)
}

/// An objective's options, defaults included, as TOML.
fn to_table(options: &impl Serialize) -> toml::Table {
    // The options are flat structs of numbers and names, which always serialise to a table.
    toml::Table::try_from(options).unwrap_or_default()
}

/// Checks that `value` is finite and greater than zero.
fn positive(name: &str, value: f64) -> anyhow::Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    bail!("{name} must be greater than 0, got {value}")
}

/// Checks that `value` is finite and not negative.
fn not_negative(name: &str, value: f64) -> anyhow::Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    bail!("{name} must not be negative, got {value}")
}

#[cfg(test)]
mod tests;
