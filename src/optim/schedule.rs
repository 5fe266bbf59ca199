//! Learning rates per step: linear warm-up, then half a cosine, as the authors' code has it.

use std::f64::consts::PI;

/// The learning rates of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Rate of weights after warm-up.
    pub lr_weights: f64,
    /// Rate of biases and BatchNorm parameters after warm-up.
    pub lr_biases: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub steps: u64,
    /// Where the cosine ends, as a share of the rates.
    pub final_lr: f64,
}

impl Schedule {
    /// The rates (weights, biases) of step `step`, counted from 0.
    pub fn rates(&self, step: u64) -> (f64, f64) {
        let share = warmup_cosine(step, self.warmup_steps, self.steps, self.final_lr);
        (share * self.lr_weights, share * self.lr_biases)
    }
}

/// The share of the base rate at `step`: `step / warmup_steps` during warm-up, so 0 at first;
/// then from 1 to `final_lr` along half a cosine, which would reach it at step `steps`.
pub fn warmup_cosine(step: u64, warmup_steps: u64, steps: u64, final_lr: f64) -> f64 {
    if step < warmup_steps {
        return step as f64 / warmup_steps as f64;
    }
    let decay_steps = steps.saturating_sub(warmup_steps).max(1);
    let done = (step - warmup_steps).min(decay_steps);
    let q = 0.5 * (1.0 + (PI * done as f64 / decay_steps as f64).cos());
    q + final_lr * (1.0 - q)
}

#[cfg(test)]
mod tests {
    use super::super::OptimConfig;
    use super::*;

    #[test]
    fn without_warm_up_the_cosine_goes_from_the_base_rate_to_its_end() {
        let config = OptimConfig {
            warmup_epochs: 0.0,
            final_lr: 0.0,
            scale_lr: false,
            ..Default::default()
        };
        let schedule = config.schedule(128, 10, 100);
        assert_eq!(schedule.rates(0), (0.2, 0.0048));
        assert!((schedule.rates(50).0 - 0.1).abs() < 1e-12);
        assert!(schedule.rates(100).0.abs() < 1e-12 && schedule.rates(1000).0.abs() < 1e-12);
    }

    #[test]
    fn a_warm_up_of_a_part_of_an_epoch_ends_at_the_nearest_step() {
        let steps = |warmup_epochs| {
            OptimConfig { warmup_epochs, ..Default::default() }.schedule(256, 10, 100).warmup_steps
        };
        assert_eq!([0.0, 0.14, 0.26, 1.0, 1.5].map(steps), [0, 1, 3, 10, 15]);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_stays_in_it() {
        assert_eq!(warmup_cosine(5, 10, 5, 0.001), 0.5);
        assert_eq!(warmup_cosine(10, 10, 10, 0.001), 1.0);
        assert_eq!(warmup_cosine(0, 0, 0, 0.001), 1.0);
    }
}
