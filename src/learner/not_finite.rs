//! Numbers that are not finite, found before they reach the weights.
//!
//! A NaN in one batch shows in the loss, or in a gradient when the backward pass
//! overflows. Neither has touched the weights when it is seen; what the forward
//! pass has moved by then are BatchNorm's running statistics, of which a copy is
//! kept from step to step. So a step can be taken back whole.

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::Learner;
use crate::nn::cuda::Backend;
use crate::nn::cuda::kernels::optim as kernels;
use crate::nn::{BatchNorm, Param, storage};
use crate::optim::Table;

/// The running statistics of every BatchNorm layer, and what they were before a step, where the
/// network is.
#[derive(Default)]
pub(super) struct Statistics {
    /// All of them, and the copy; `None` without such layers.
    values: Option<(Tensor, Tensor)>,
    /// How many batches each layer had seen; none where there is nothing to take back.
    pub counts: Vec<i64>,
}

/// The search for gradients that are not finite, on a device.
pub(super) struct Search {
    pub table: Table,
    /// Number of the first parameter.
    pub found: Tensor,
}

impl Search {
    /// Asks for it.
    pub fn ask_for(&self, backend: &dyn Backend) -> Result<()> {
        Ok(kernels::finite_check(backend, self.table.tensors(), storage::span(&self.found)?)?)
    }

    /// Waits for it: the number of a parameter, or one that no parameter has.
    pub fn read(&self, backend: &dyn Backend) -> Result<usize> {
        let mut number = [0; 4];
        backend.read(storage::span(&self.found)?, &mut number)?;
        Ok(u32::from_ne_bytes(number) as usize)
    }
}

impl Learner {
    /// Every BatchNorm layer of the networks and the predictor.
    pub(super) fn norms(&mut self) -> Vec<&mut BatchNorm> {
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
        let counts = self.norms().iter().map(|norm| norm.num_batches_tracked).collect();
        self.before.counts = counts;
        match &self.before.values {
            Some((now, before)) => Ok(storage::copy(now, before)?),
            None => Ok(()),
        }
    }

    /// Undoes the forward pass since [`Learner::remember`]: the learner is as it
    /// was before the step, as long as the optimizer has not moved it. Without
    /// [`Learner::remember`] since the last [`Learner::follow`] it does nothing.
    ///
    /// # Errors
    /// When the statistics cannot be written.
    pub fn take_back(&mut self) -> Result<()> {
        let counts = std::mem::take(&mut self.before.counts);
        if counts.is_empty() {
            return Ok(());
        }
        for (norm, count) in self.norms().into_iter().zip(&counts) {
            norm.num_batches_tracked = *count;
        }
        self.before.counts = counts;
        match &self.before.values {
            Some((now, before)) => Ok(storage::copy(before, now)?),
            None => Ok(()),
        }
    }

    /// The first parameter whose gradient is not finite. Reads every gradient once,
    /// on all threads.
    ///
    /// # Errors
    /// When a gradient cannot be read.
    pub fn bad_gradient(&mut self) -> Result<Option<String>> {
        if let Some(backend) = self.net.engine().shared_backend() {
            return self.bad_gradient_there(&*backend);
        }
        let gradients = |param: &mut Param| (param.name.clone(), param.grad.clone());
        Ok(storage::first_not_finite(self.params().into_iter().map(gradients))?)
    }

    /// [`Learner::bad_gradient`] on a device.
    fn bad_gradient_there(&mut self, backend: &dyn Backend) -> Result<Option<String>> {
        if self.search.is_none() {
            let table = Table::new(backend, &self.params(), &[])?;
            let found = storage::zeros_of(&[1], DType::U32, self.net.engine().device())?;
            self.search = Some(Search { table, found });
        }
        let Some(search) = &self.search else { return Ok(None) };
        search.ask_for(backend)?;
        let number = search.read(backend)?;
        Ok(self.params().get(number).map(|param| param.name.clone()))
    }
}

impl Statistics {
    /// Those of `norms`, which they become parts of; nothing is kept yet.
    pub fn of(mut norms: Vec<&mut BatchNorm>) -> Result<Self> {
        let all = BatchNorm::lay_together(&mut norms)?;
        let with_copy = |all: Tensor| -> Result<_> {
            let copy = storage::zeros(all.shape(), all.device())?;
            Ok((all, copy))
        };
        Ok(Self { values: all.map(with_copy).transpose()?, counts: Vec::new() })
    }
}
