//! The online linear probe: a linear classifier that learns the labels beside the training, from
//! the features that the step computes anyway. Its gradient ends at the features: what is learnt
//! without labels stays so, bit for bit.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};

use super::Features;
use super::head::Head;

/// Softmax regression by SGD with momentum 0.9 and a constant rate.
pub struct OnlineProbe {
    head: Head,
    lr: f64,
}

impl OnlineProbe {
    /// A probe for features of `dim` dimensions, with zero weights.
    ///
    /// # Errors
    /// A learning rate that is not positive, or fewer than two classes.
    pub fn new(dim: usize, classes: usize, lr: f64, device: &Device) -> Result<Self> {
        crate::checks::positive("eval.online_lr", lr)?;
        ensure!(classes > 1, "eval.online_probe needs labels of at least two classes");
        Ok(Self { head: Head::new(dim, classes, device)?, lr })
    }

    /// One step on both views' features, `[2 * labels, dim]`; returns the share of right answers
    /// before it, or nothing where no sample has a label.
    ///
    /// # Errors
    /// Features of another shape.
    pub fn step(&mut self, features: &Tensor, labels: &[u32]) -> Result<Option<f64>> {
        let both = [labels, labels].concat();
        if labels.iter().all(|label| *label == Features::NO_LABEL) {
            return Ok(None);
        }
        let right = self.head.learn(features, &both, None)?;
        self.head.step(self.lr, 0.0)?;
        Ok(Some(right))
    }

    /// What a checkpoint needs; shared memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.head.state()
    }

    /// Takes what [`OnlineProbe::state`] gave; an empty state leaves the probe fresh.
    ///
    /// # Errors
    /// Tensors that do not fit.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        if state.is_empty() {
            return Ok(());
        }
        self.head.load_state(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two views of eight samples in two classes that one dimension tells apart.
    fn batch() -> (Tensor, Vec<u32>) {
        let labels: Vec<u32> = (0..8).map(|i| i % 2).collect();
        let values: Vec<f32> = (0..16)
            .flat_map(|i| [if i % 2 == 0 { -1.0 } else { 1.0 }, 0.1 * i as f32, 1.0])
            .collect();
        (Tensor::from_vec(values, (16, 3), &Device::Cpu).unwrap(), labels)
    }

    #[test]
    fn it_learns_what_is_linear_and_leaves_the_features_alone() {
        let (features, labels) = batch();
        let before = features.to_vec2::<f32>().unwrap();
        let mut probe = OnlineProbe::new(3, 2, 0.3, &Device::Cpu).unwrap();
        let first = probe.step(&features, &labels).unwrap().unwrap();
        for _ in 0..30 {
            probe.step(&features, &labels).unwrap();
        }
        assert!(first <= 0.5);
        assert_eq!(probe.step(&features, &labels).unwrap(), Some(1.0));
        assert_eq!(features.to_vec2::<f32>().unwrap(), before);
    }

    #[test]
    fn it_goes_on_from_a_checkpoint_and_skips_samples_without_labels() {
        let (features, mut labels) = batch();
        let mut one = OnlineProbe::new(3, 2, 0.3, &Device::Cpu).unwrap();
        one.step(&features, &labels).unwrap();
        let mut other = OnlineProbe::new(3, 2, 0.3, &Device::Cpu).unwrap();
        other
            .load_state(
                &one.state().into_iter().map(|(n, t)| (n, t.force_contiguous().unwrap())).collect(),
            )
            .unwrap();
        labels[3] = Features::NO_LABEL;
        for probe in [&mut one, &mut other] {
            assert!(probe.step(&features, &labels).unwrap().is_some());
        }
        let values = |probe: &OnlineProbe| {
            let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            probe.state().into_iter().map(|(_, t)| flat(t)).collect::<Vec<_>>()
        };
        assert_eq!(values(&one), values(&other));
        let none = vec![Features::NO_LABEL; 8];
        assert_eq!(one.step(&features, &none).unwrap(), None);
    }
}
