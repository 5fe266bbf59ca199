//! A constant rate for some parameters beside a schedule for the rest.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::Optimizer;
use crate::nn::Param;

/// Two optimizers of one kind: parameters whose names begin with `prefix` always move with `rates`
/// (of weights, of biases), the others as [`Optimizer::step`] is told.
pub struct Split {
    rest: Box<dyn Optimizer>,
    constant: Box<dyn Optimizer>,
    prefix: &'static str,
    rates: (f64, f64),
}

impl Split {
    /// `constant` takes the parameters whose names begin with `prefix`.
    pub fn new(
        rest: Box<dyn Optimizer>,
        constant: Box<dyn Optimizer>,
        prefix: &'static str,
        rates: (f64, f64),
    ) -> Self {
        Self { rest, constant, prefix, rates }
    }
}

impl Optimizer for Split {
    fn step(&mut self, params: &mut [&mut Param], lr_weights: f64, lr_biases: f64) -> Result<()> {
        let (mut constant, mut rest): (Vec<&mut Param>, Vec<&mut Param>) =
            params.iter_mut().map(|p| &mut **p).partition(|p| p.name.starts_with(self.prefix));
        self.constant.step(&mut constant, self.rates.0, self.rates.1)?;
        self.rest.step(&mut rest, lr_weights, lr_biases)
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = self.rest.state();
        for (name, tensor) in self.constant.state() {
            // A count of steps is one.
            if state.iter().all(|(known, _)| *known != name) {
                state.push((name, tensor));
            }
        }
        state
    }

    fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        // `optimizer.KIND.PARAMETER`; what belongs to all of them, a count of steps, goes to both.
        let of_constant =
            |name: &str| name.splitn(3, '.').nth(2).map(|p| p.starts_with(self.prefix));
        let part = |wanted: bool| -> HashMap<String, Tensor> {
            let fits = |name: &str| of_constant(name).is_none_or(|constant| constant == wanted);
            state.iter().filter(|(n, _)| fits(n)).map(|(n, t)| (n.clone(), t.clone())).collect()
        };
        let (constant, rest) = (part(true), part(false));
        self.constant.load_state(&constant)?;
        self.rest.load_state(&rest)
    }
}
