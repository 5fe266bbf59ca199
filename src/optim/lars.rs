//! LARS (You et al., "Large Batch Training of Convolutional Networks", 2017), as the authors of
//! Barlow Twins wrote it: for each weight w with gradient g,
//!
//! ```text
//! d  = g + weight_decay w
//! d *= eta |w| / |d|                  (1 where a norm is zero)
//! m  = momentum m + d
//! w -= lr m
//! ```
//!
//! Parameters of one dimension go without decay and without the second line.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::Optimizer;
use super::moments::{Moments, update1};
use crate::nn::cuda::kernels::optim as kernels;
use crate::nn::{Param, ParamClass, storage};

/// Options of [`Lars`].
#[derive(Clone, Debug, PartialEq)]
pub struct LarsConfig {
    /// Weight decay of weights.
    pub weight_decay: f64,
    /// Momentum.
    pub momentum: f64,
    /// Trust coefficient.
    pub eta: f64,
    /// Caps `eta |w| / |d|` at the learning rate and divides by it, so that the effective rate is
    /// the smaller of both (solo-learn's option).
    pub clip_lr: bool,
}

impl Default for LarsConfig {
    fn default() -> Self {
        Self { weight_decay: 1e-6, momentum: 0.9, eta: 0.001, clip_lr: false }
    }
}

/// Layer-wise adaptive rate scaling with momentum.
pub struct Lars {
    config: LarsConfig,
    moments: Moments<1>,
}

impl Lars {
    /// Without momentum yet.
    pub fn new(config: LarsConfig) -> Self {
        Self { config, moments: Moments::new(["momentum"]) }
    }

    fn trust(&self, weight_norm: f64, update_norm: f64, lr: f64) -> f64 {
        if weight_norm <= 0.0 || update_norm <= 0.0 {
            return 1.0;
        }
        let trust = self.config.eta * weight_norm / update_norm;
        if self.config.clip_lr { (trust / lr).min(1.0) } else { trust }
    }
}

impl Optimizer for Lars {
    fn step(&mut self, params: &mut [&mut Param], lr_weights: f64, lr_biases: f64) -> Result<()> {
        self.moments.bind(params)?;
        if let Some(device) = self.moments.on_device() {
            return device.step(kernels::lars_rates(lr_weights, lr_biases), |b, tensors, rates| {
                kernels::lars_step(b, tensors, &self.config, rates)
            });
        }
        for (index, param) in params.iter_mut().enumerate() {
            let (lr, decay, trust) = match param.class() {
                ParamClass::Vector => (lr_biases, 0.0, 1.0),
                ParamClass::Weight => {
                    let decay = self.config.weight_decay as f32;
                    let (value, grad) = (storage::read(&param.value)?, storage::read(&param.grad)?);
                    let (_, mut sums) = self.moments.of(index);
                    let [weight_norm, update_norm] =
                        sums.squares(&value, &grad, decay).map(f64::sqrt);
                    (lr_weights, decay, self.trust(weight_norm, update_norm, lr_weights) as f32)
                }
            };
            let (momentum, lr) = (self.config.momentum as f32, lr as f32);
            let ([moment], _) = self.moments.of(index);
            update1(param, moment, |w, g, m| {
                *m = momentum * *m + trust * (g + decay * *w);
                *w -= lr * *m;
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
