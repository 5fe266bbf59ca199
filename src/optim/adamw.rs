//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019), as
//! `torch.optim.AdamW`: at step t, counted from 1,
//!
//! ```text
//! w *= 1 - lr weight_decay
//! m  = b1 m + (1 - b1) g
//! v  = b2 v + (1 - b2) g^2
//! w -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
//! ```

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, bail};

use super::Optimizer;
use super::moments::{Moments, update2};
use crate::nn::cuda::kernels::optim as kernels;
use crate::nn::{Param, ParamClass};

/// The number of steps done, in a checkpoint: an i64.
const STEP: &str = "optimizer.step";

/// Options of [`AdamW`].
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether parameters of one dimension decay too.
    pub decay_biases: bool,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { weight_decay: 0.01, decay_biases: true, betas: [0.9, 0.999], eps: 1e-8 }
    }
}

/// Adam with decoupled weight decay.
pub struct AdamW {
    config: AdamWConfig,
    moments: Moments<2>,
    steps: i64,
}

impl AdamW {
    /// Without moments yet.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: Moments::new(["exp_avg", "exp_avg_sq"]), steps: 0 }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &mut [&mut Param], lr_weights: f64, lr_biases: f64) -> Result<()> {
        self.moments.bind(params)?;
        self.steps += 1;
        if let Some(device) = self.moments.on_device() {
            let rates = kernels::adamw_rates(&self.config, self.steps, lr_weights, lr_biases);
            return device.step(rates, |b, tensors, rates| {
                kernels::adamw_step(b, tensors, &self.config, rates)
            });
        }
        let AdamWConfig { weight_decay, decay_biases, betas: [b1, b2], eps } = self.config;
        let t = self.steps as f64;
        let (correction1, correction2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));
        let (keep1, take1) = (b1 as f32, (1.0 - b1) as f32);
        let (keep2, take2) = (b2 as f32, (1.0 - b2) as f32);
        let (root, eps) = ((1.0 / correction2.sqrt()) as f32, eps as f32);
        for (index, param) in params.iter_mut().enumerate() {
            let weight = param.class() == ParamClass::Weight;
            let lr = if weight { lr_weights } else { lr_biases };
            let decay = if weight || decay_biases { weight_decay } else { 0.0 };
            let shrink = (1.0 - lr * decay) as f32;
            let rate = (lr / correction1) as f32;
            let (moments, _) = self.moments.of(index);
            update2(param, moments, |w, g, m, v| {
                *m = keep1 * *m + take1 * g;
                *v = keep2 * *v + take2 * g * g;
                *w = shrink * *w - rate * (*m / (v.sqrt() * root + eps));
            })?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = self.moments.state();
        if let (false, Ok(steps)) = (state.is_empty(), Tensor::new(self.steps, &Device::Cpu)) {
            state.push((STEP.to_owned(), steps));
        }
        state
    }

    fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.steps = match state.get(STEP) {
            Some(steps) => steps.to_scalar::<i64>()?,
            None if state.is_empty() => 0,
            None => bail!("the optimizer state lacks `{STEP}`: it is not AdamW's"),
        };
        self.moments.load(state.iter().filter(|(name, _)| *name != STEP))
    }
}
