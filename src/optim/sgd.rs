//! SGD with momentum, as `torch.optim.SGD` (dampening 0):
//!
//! ```text
//! d  = g + weight_decay w
//! m  = momentum m + d
//! w -= lr m                           Nesterov: lr (d + momentum m)
//! ```

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::Optimizer;
use super::moments::{Moments, update1};
use crate::nn::cuda::kernels::optim as kernels;
use crate::nn::{Param, ParamClass};

/// Options of [`Sgd`].
#[derive(Clone, Debug, PartialEq)]
pub struct SgdConfig {
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether parameters of one dimension decay too.
    pub decay_biases: bool,
    /// Momentum.
    pub momentum: f64,
    /// Nesterov's form.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { weight_decay: 0.0, decay_biases: true, momentum: 0.9, nesterov: false }
    }
}

/// Stochastic gradient descent with momentum.
pub struct Sgd {
    config: SgdConfig,
    moments: Moments<1>,
}

impl Sgd {
    /// Without momentum yet.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, moments: Moments::new(["momentum"]) }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, params: &mut [&mut Param], lr_weights: f64, lr_biases: f64) -> Result<()> {
        self.moments.bind(params)?;
        if let Some(device) = self.moments.on_device() {
            return device.step(kernels::sgd_rates(lr_weights, lr_biases), |b, tensors, rates| {
                kernels::sgd_step(b, tensors, &self.config, rates)
            });
        }
        let SgdConfig { weight_decay, decay_biases, momentum, nesterov } = self.config;
        let momentum = momentum as f32;
        // w -= lr (of_update d + of_moment m)
        let (of_update, of_moment) = if nesterov { (1.0, momentum) } else { (0.0, 1.0) };
        for (index, param) in params.iter_mut().enumerate() {
            let weight = param.class() == ParamClass::Weight;
            let lr = if weight { lr_weights } else { lr_biases } as f32;
            let decay = if weight || decay_biases { weight_decay as f32 } else { 0.0 };
            let ([moment], _) = self.moments.of(index);
            update1(param, moment, |w, g, m| {
                let d = g + decay * *w;
                *m = momentum * *m + d;
                *w -= lr * (of_update * d + of_moment * *m);
            })?;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        self.moments.state()
    }

    fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        self.moments.load(state)
    }
}
