//! A linear classifier and its SGD, by hand: what learns on frozen features, beside the training of
//! the network or after it.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use bt_pipeline::rng::Rng;
use candle_core::{DType, Device, Tensor};

use super::{Accuracy, Features, classify};
use crate::nn::{Linear, Mode, Workspace, storage};

/// Momentum of SGD.
pub const MOMENTUM: f64 = 0.9;

/// A linear classifier with the state of its SGD.
pub struct Head {
    linear: Linear,
    velocity: [Tensor; 2],
    ws: Workspace,
}

impl Head {
    /// Zero weights.
    ///
    /// # Errors
    /// More classes than there are anywhere: a label that is a number of something else.
    pub fn new(dim: usize, classes: usize, device: &Device) -> Result<Self> {
        classify::check_classes(classes)?;
        let linear = Linear::new("probe", dim, classes, true, device)?;
        let velocity = [storage::zeros((classes, dim), device)?, storage::zeros(classes, device)?];
        Ok(Self { linear, velocity, ws: Workspace::new(device)? })
    }

    /// The authors' first weights: normal with standard deviation 0.01.
    pub fn draw(&mut self, seed: u64) -> Result<()> {
        let mut rng = Rng::keyed(seed, u64::MAX, 0, 0x4EAD);
        let weight = self.linear.weight().value.clone();
        Ok(storage::with_mut(&weight, |weight| {
            for w in weight {
                // Irwin and Hall: twelve uniform draws of variance 1/12.
                let normal: f64 = (0..12).map(|_| rng.uniform(-0.5, 0.5)).sum();
                *w = (0.01 * normal) as f32;
            }
        })?)
    }

    /// Cross-entropy's gradients at `features` (mean over the labelled rows); those of the features
    /// go to `d`. Returns the share of right answers.
    pub fn learn(&mut self, features: &Tensor, labels: &[u32], d: Option<&Tensor>) -> Result<f64> {
        let logits = self.linear.forward(features, &mut self.ws)?;
        let classes = logits.dim(1)?;
        let labelled = labels.iter().filter(|label| **label != Features::NO_LABEL).count();
        let scale = 1.0 / labelled.max(1) as f32;
        let (right, finite) = storage::with_mut(&logits, |logits| {
            let mut right = 0;
            let mut finite = true;
            for (row, label) in logits.chunks_exact_mut(classes).zip(labels) {
                match (*label as usize) < classes {
                    true => {
                        right += usize::from(classify::rank(row, *label) == 0);
                        finite &= classify::softmax_minus_target(row, *label as usize).is_finite();
                        row.iter_mut().for_each(|g| *g *= scale);
                    }
                    false => row.fill(0.0),
                }
            }
            (right, finite)
        })?;
        if !finite {
            bail!("the classifier's loss is no number; lower its learning rate");
        }
        self.linear.backward(&logits, d, false)?;
        Ok(right as f64 / labelled.max(1) as f64)
    }

    /// PyTorch's SGD: v = 0.9 v + (g + decay w), w -= lr v.
    pub fn step(&mut self, lr: f64, decay: f64) -> Result<()> {
        let (lr, decay) = (lr as f32, decay as f32);
        for (param, velocity) in self.linear.params().zip(&self.velocity) {
            param.update(|w, g| {
                storage::with_mut(velocity, |v| {
                    for ((w, g), v) in w.iter_mut().zip(g).zip(v) {
                        *v = MOMENTUM as f32 * *v + (g + decay * *w);
                        *w -= lr * *v;
                    }
                })
            })??;
        }
        Ok(())
    }

    /// How often it is right about stored features.
    pub fn accuracy(&mut self, test: &Features, device: &Device) -> Result<Accuracy> {
        let x = Tensor::from_slice(test.values(), (test.len(), test.dim()), device)?;
        self.ws.mode = Mode::Evaluation;
        let out = self.linear.forward(&x, &mut self.ws)?;
        let logits = storage::host_copy(&out)?;
        self.ws.release(out);
        self.ws.mode = Mode::Training;
        let classes = logits.dim(1)?;
        let logits = storage::read(&logits)?;
        let of = |(row, label): (&[f32], &u32)| classify::rank(row, *label);
        let ranks: Vec<usize> = logits.chunks_exact(classes).zip(test.labels()).map(of).collect();
        Ok(classify::accuracy(&ranks))
    }

    /// Takes what [`Head::state`] gave, and leaves other tensors.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for (name, own) in self.state() {
            let given = state.get(&name).with_context(|| format!("tensor `{name}` is missing"))?;
            let (want, got) = (own.dims(), given.dims());
            ensure!(got == want, "tensor `{name}`: expected {want:?}, got {got:?}");
            let given = given.to_dtype(DType::F32)?.contiguous()?;
            let given = storage::read(&given)?;
            storage::with_mut(&own, |own| own.copy_from_slice(&given))?;
        }
        Ok(())
    }

    /// Its weight, `[classes, features]`, and then its bias, `[classes]`; shared memory.
    pub fn values(&mut self) -> Vec<Tensor> {
        self.linear.params().map(|param| param.value.clone()).collect()
    }

    /// Weights and velocities by name; shared memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let params = std::iter::once(self.linear.weight()).chain(&self.linear.bias);
        let mut all: Vec<_> = params.map(|p| (p.name.clone(), p.value.clone())).collect();
        for (name, velocity) in ["velocity.weight", "velocity.bias"].iter().zip(&self.velocity) {
            all.push(((*name).to_owned(), velocity.clone()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::storage::read;

    #[test]
    fn steps_are_those_of_sgd_with_momentum_and_decay() {
        let mut head = Head::new(1, 2, &Device::Cpu).unwrap();
        let set = |tensor: &Tensor, values: [f32; 2]| {
            storage::with_mut(tensor, |t| t.copy_from_slice(&values)).unwrap();
        };
        for (param, value) in head.linear.params().zip([[2.0, -1.0], [0.5, 3.0]]) {
            set(&param.value, value);
            set(&param.grad, [0.25, -0.5]);
        }
        let (lr, decay) = (0.5, 0.1);
        (0..2).for_each(|_| head.step(lr, decay).unwrap());
        for (param, start) in head.linear.params().zip([[2.0, -1.0], [0.5, 3.0]]) {
            for ((w, start), g) in read(&param.value).unwrap().iter().zip(start).zip([0.25, -0.5]) {
                let v = g + decay * start;
                let after = start - lr * v;
                let after = after - lr * (0.9 * v + g + decay * after);
                assert!((f64::from(*w) - after).abs() < 1e-6, "{}: {w} {after}", param.name);
            }
        }
    }

    #[test]
    fn first_weights_have_the_authors_spread_and_are_the_seeds() {
        let drawn = |seed| {
            let mut head = Head::new(512, 20, &Device::Cpu).unwrap();
            head.draw(seed).unwrap();
            let [weight, bias] = head.values().try_into().unwrap();
            assert!(read(&bias).unwrap().iter().all(|b| *b == 0.0));
            read(&weight).unwrap().to_vec()
        };
        let weights = drawn(1);
        let mean = |of: &dyn Fn(f64) -> f64| {
            weights.iter().map(|w| of(f64::from(*w))).sum::<f64>() / weights.len() as f64
        };
        let (average, deviation) = (mean(&|w| w), mean(&|w| w * w).sqrt());
        // 10,240 draws: three standard errors are 3e-4 and 2e-4.
        assert!(average.abs() < 3e-4 && (deviation - 0.01).abs() < 2e-4, "{average} {deviation}");
        assert!(weights == drawn(1) && weights != drawn(2));
    }

    #[test]
    fn the_heads_gradients_are_the_derivatives_of_the_cross_entropy() {
        let mut head = Head::new(3, 4, &Device::Cpu).unwrap();
        head.draw(3).unwrap();
        let values: Vec<f32> = (0..15).map(|i| ((i * 7) % 11) as f32 * 0.2 - 1.0).collect();
        let x = Tensor::from_vec(values, (5, 3), &Device::Cpu).unwrap();
        let labels = [0, 3, Features::NO_LABEL, 1, 2];
        let loss = |head: &mut Head, x: &Tensor| -> f64 {
            let logits = head.linear.forward(x, &mut head.ws).unwrap();
            let logits = logits.to_vec2::<f32>().unwrap();
            let rows = logits.into_iter().zip(labels).filter(|(_, l)| *l != Features::NO_LABEL);
            let each =
                rows.map(|(mut row, l)| classify::softmax_minus_target(&mut row, l as usize));
            each.sum::<f64>() / 4.0
        };
        let d = storage::zeros((5, 3), &Device::Cpu).unwrap();
        head.learn(&x, &labels, Some(&d)).unwrap();
        let grads: Vec<Vec<f32>> =
            head.linear.params().map(|p| read(&p.grad).unwrap().to_vec()).collect();
        let targets: Vec<Tensor> = head.linear.params().map(|p| p.value.clone()).collect();
        let inputs = read(&d).unwrap().to_vec();
        for (target, grad) in targets.iter().zip(&grads).chain([(&x, &inputs)]) {
            for (i, g) in grad.iter().enumerate() {
                let mut at = |by: f32| {
                    storage::with_mut(target, |t| t[i] += by).unwrap();
                    let value = loss(&mut head, &x);
                    storage::with_mut(target, |t| t[i] -= by).unwrap();
                    value
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((slope - f64::from(*g)).abs() < 1e-3, "{i}: {slope} {g}");
            }
        }
    }
}
