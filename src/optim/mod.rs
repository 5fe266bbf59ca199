//! Optimizers and the learning-rate schedule: the last part of a step.
//!
//! The trainer asks the [`Schedule`] for the step's two learning rates and hands every parameter,
//! with its gradient, to the [`Optimizer`], which writes the new values in place.
//!
//! # Layout
//!
//! - [`Lars`]: the authors' optimizer. [`Sgd`] and [`AdamW`]: PyTorch's.
//! - [`Schedule`]: warm-up and cosine decay per step.
//! - [`Split`]: a constant rate for the predictor beside the schedule.
//! - `moments`: the tensors that optimizers keep from step to step, and their names on disk.
//! - `on_device`: their steps where parameters are on a device that runs kernels.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checks::{NOT_NEGATIVE, PART};
use crate::nn::Param;

mod adamw;
mod lars;
mod moments;
mod on_device;
mod schedule;
mod sgd;
mod split;

pub use adamw::{AdamW, AdamWConfig};
pub(crate) use on_device::Table;

pub use lars::{Lars, LarsConfig};
pub use schedule::{Schedule, warmup_cosine};
pub use sgd::{Sgd, SgdConfig};
pub use split::Split;

/// Moves parameters against their gradients.
pub trait Optimizer: Send {
    /// One step: overwrites each parameter's value. Parameters of two and more dimensions move
    /// with `lr_weights`, the others with `lr_biases`. Every call takes the same parameters in
    /// the same order; after the first one no memory is allocated.
    ///
    /// # Errors
    ///
    /// Parameters that are not those of the step before, or not those of the loaded state.
    fn step(&mut self, params: &mut [&mut Param], lr_weights: f64, lr_biases: f64) -> Result<()>;

    /// What a checkpoint needs, as `optimizer.KIND.PARAMETER`, in the parameters' own layout;
    /// empty before the first step. The tensors share memory with the optimizer: write them out
    /// before the next step.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Takes what [`Optimizer::state`] gave. That it fits the parameters is checked by the next
    /// step, which is the first to see them.
    ///
    /// # Errors
    ///
    /// A tensor that this optimizer does not have.
    fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()>;
}

/// Which optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Layer-wise adaptive rates, the authors' choice.
    #[default]
    Lars,
    /// SGD with momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    AdamW,
}

impl OptimizerKind {
    /// As configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lars => "lars",
            Self::Sgd => "sgd",
            Self::AdamW => "adamw",
        }
    }
}

/// `[optim]`: optimizer and schedule; the defaults are the authors'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// `lars`, `sgd` or `adamw`.
    pub optimizer: OptimizerKind,
    /// Base learning rate of weights (two and more dimensions). Where it is left out: 0.2 for
    /// LARS, 0.06 for SGD, 0.001 for AdamW.
    pub lr_weights: f64,
    /// Base learning rate of biases and BatchNorm parameters (one dimension). Where it is left
    /// out: 0.0048 for LARS, that of the weights for SGD and AdamW.
    pub lr_biases: f64,
    /// Whether base rates are multiplied by batch / 256.
    pub scale_lr: bool,
    /// Epochs in which the rates grow from 0; may be a fraction.
    pub warmup_epochs: f64,
    /// Where the cosine ends, as a share of the rates after warm-up.
    pub final_lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether SGD and AdamW decay biases and BatchNorm parameters too, as PyTorch does with one
    /// parameter group; LARS never does.
    pub decay_biases: bool,
    /// Momentum of LARS and SGD.
    pub momentum: f64,
    /// Nesterov's form of momentum (SGD).
    pub nesterov: bool,
    /// LARS: a layer's rate is `eta * |weights| / |gradient|` times the learning rate.
    pub eta: f64,
    /// LARS: never raise a layer's rate above the learning rate (solo-learn's option).
    pub clip_lr: bool,
    /// The predictor keeps the rates after warm-up from the first step to the last (SimSiam's
    /// `fix_pred_lr`).
    pub constant_predictor: bool,
    /// AdamW: decay rates of the two moments.
    pub betas: [f64; 2],
    /// AdamW: added to the root of the second moment.
    pub eps: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::Lars,
            lr_weights: 0.2,
            lr_biases: 0.0048,
            scale_lr: true,
            warmup_epochs: 10.0,
            final_lr: 0.001,
            weight_decay: 1e-6,
            decay_biases: true,
            momentum: 0.9,
            nesterov: false,
            eta: 0.001,
            clip_lr: false,
            constant_predictor: false,
            betas: [0.9, 0.999],
            eps: 1e-8,
        }
    }
}

impl OptimConfig {
    /// Adds the rates that a configuration's `[optim]` leaves out and that are not LARS's: the
    /// authors' pair is theirs alone, other optimizers have one rate unless two are asked for.
    pub fn complete(optim: &mut toml::Table) {
        let rate = match optim.get("optimizer").and_then(toml::Value::as_str) {
            Some("sgd") => 0.06,
            Some("adamw") => 1e-3,
            _ => return,
        };
        let weights = optim.entry("lr_weights").or_insert(rate.into()).clone();
        optim.entry("lr_biases").or_insert(weights);
    }

    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// The first option that is out of range.
    pub fn validate(&self) -> anyhow::Result<()> {
        let not_negative = [
            ("lr_weights", self.lr_weights),
            ("lr_biases", self.lr_biases),
            ("warmup_epochs", self.warmup_epochs),
            ("final_lr", self.final_lr),
            ("weight_decay", self.weight_decay),
            ("eta", self.eta),
            ("eps", self.eps),
        ];
        for (name, value) in not_negative {
            NOT_NEGATIVE.check(&format!("optim.{name}"), value)?;
        }
        let below_one =
            [("momentum", self.momentum), ("betas", self.betas[0]), ("betas", self.betas[1])];
        for (name, value) in below_one {
            PART.check(&format!("optim.{name}"), value)?;
        }
        Ok(())
    }

    /// The optimizer, without state.
    ///
    /// # Errors
    ///
    /// An option out of range.
    pub fn build(&self) -> anyhow::Result<Box<dyn Optimizer>> {
        self.validate()?;
        let Self { weight_decay, decay_biases, momentum, nesterov, eta, clip_lr, .. } = *self;
        let (betas, eps) = (self.betas, self.eps);
        Ok(match self.optimizer {
            OptimizerKind::Lars => {
                Box::new(Lars::new(LarsConfig { weight_decay, momentum, eta, clip_lr }))
            }
            OptimizerKind::Sgd => {
                Box::new(Sgd::new(SgdConfig { weight_decay, decay_biases, momentum, nesterov }))
            }
            OptimizerKind::AdamW => {
                Box::new(AdamW::new(AdamWConfig { weight_decay, decay_biases, betas, eps }))
            }
        })
    }

    /// The optimizer of a run whose steps take `batch_size` images, without state.
    ///
    /// # Errors
    ///
    /// An option out of range.
    pub fn for_run(&self, batch_size: usize) -> anyhow::Result<Box<dyn Optimizer>> {
        if !self.constant_predictor {
            return self.build();
        }
        let Schedule { lr_weights, lr_biases, .. } = self.schedule(batch_size, 1, 1);
        let rates = (lr_weights, lr_biases);
        Ok(Box::new(Split::new(self.build()?, self.build()?, "predictor.", rates)))
    }

    /// The schedule of a run of `steps` steps, `steps_per_epoch` to the epoch.
    pub fn schedule(&self, batch_size: usize, steps_per_epoch: u64, steps: u64) -> Schedule {
        let factor = if self.scale_lr { batch_size as f64 / 256.0 } else { 1.0 };
        Schedule {
            lr_weights: self.lr_weights * factor,
            lr_biases: self.lr_biases * factor,
            warmup_steps: (self.warmup_epochs * steps_per_epoch as f64).round() as u64,
            steps,
            final_lr: self.final_lr,
        }
    }
}

#[cfg(test)]
mod tests;
