//! Numbers that are not finite, found before they reach the weights.
//!
//! A NaN in one batch shows in the loss, or in a gradient when the backward pass
//! overflows. Neither has touched the weights when it is seen; what the forward
//! pass has moved by then are BatchNorm's running statistics, of which a copy is
//! kept from step to step. So a step can be taken back whole.

use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

use super::Learner;
use crate::nn::{BatchNorm, Param, storage};

/// Elements that one thread looks at.
const CHUNK: usize = 1 << 16;

/// The running statistics before a step.
#[derive(Default)]
pub(super) struct Statistics {
    norms: Vec<(Vec<f32>, Vec<f32>, i64)>,
}

impl Learner {
    /// Every BatchNorm layer of the networks and the predictor.
    fn norms(&mut self) -> Vec<&mut BatchNorm> {
        let mut all = self.net.norms_mut();
        all.extend(self.predictor.iter_mut().flat_map(|predictor| predictor.norms_mut()));
        all.extend(self.teacher.iter_mut().flat_map(|teacher| teacher.net().norms_mut()));
        all
    }

    /// Keeps what [`Learner::forward`] will move, for [`Learner::take_back`].
    ///
    /// # Errors
    /// When the statistics cannot be read.
    pub fn remember(&mut self) -> Result<()> {
        let mut kept = std::mem::take(&mut self.before);
        let norms = self.norms();
        kept.norms.resize_with(norms.len(), Default::default);
        for (norm, (mean, var, count)) in norms.into_iter().zip(&mut kept.norms) {
            mean.clear();
            mean.extend_from_slice(&storage::read(&norm.running_mean)?);
            var.clear();
            var.extend_from_slice(&storage::read(&norm.running_var)?);
            *count = norm.num_batches_tracked;
        }
        self.before = kept;
        Ok(())
    }

    /// Undoes the forward pass since [`Learner::remember`]: the learner is as it
    /// was before the step, as long as the optimizer has not moved it.
    ///
    /// # Errors
    /// When the statistics cannot be written.
    pub fn take_back(&mut self) -> Result<()> {
        let kept = std::mem::take(&mut self.before);
        for (norm, (mean, var, count)) in self.norms().into_iter().zip(&kept.norms) {
            storage::with_mut(&norm.running_mean, |to| to.copy_from_slice(mean))?;
            storage::with_mut(&norm.running_var, |to| to.copy_from_slice(var))?;
            norm.num_batches_tracked = *count;
        }
        self.before = kept;
        Ok(())
    }

    /// The first parameter whose gradient is not finite. Reads every gradient once,
    /// on all threads.
    ///
    /// # Errors
    /// When a gradient cannot be read.
    pub fn bad_gradient(&mut self) -> Result<Option<String>> {
        first_bad(self.params(), |param| &param.grad)
    }

    /// The first parameter whose value is not finite.
    ///
    /// # Errors
    /// When a value cannot be read.
    pub fn bad_weight(&mut self) -> Result<Option<String>> {
        first_bad(self.params(), |param| &param.value)
    }
}

fn first_bad(params: Vec<&mut Param>, of: fn(&Param) -> &Tensor) -> Result<Option<String>> {
    for param in params {
        if storage::read(of(param))?.par_chunks(CHUNK).any(has_not_finite) {
            return Ok(Some(param.name.clone()));
        }
    }
    Ok(None)
}

/// Whether an exponent is all ones: infinity or NaN. Without a branch in the loop,
/// so that it becomes vector code.
fn has_not_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7F80_0000;
    values.iter().fold(false, |found, value| found | (value.to_bits() & EXPONENT == EXPONENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinity_and_nan_are_found_and_nothing_else() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 99] {
                let mut values = [1.5f32; 100];
                assert!(!has_not_finite(&values));
                values[at] = bad;
                assert!(has_not_finite(&values), "{bad} at {at}");
            }
        }
        assert!(!has_not_finite(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0, -0.0, 1e-45]));
    }
}
