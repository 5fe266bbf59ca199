//! The momentum teacher of BYOL and MoCo: a second network that follows the first.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::micro_batches::Parts;
use crate::loss::Momentum;
use crate::model::TwinNet;
use crate::nn::cuda::Backend;
use crate::nn::cuda::kernels::optim as kernels;
use crate::nn::storage;
use crate::optim::Table;

/// Front of its tensors' names in checkpoints.
pub(super) const PREFIX: &str = "teacher.";
/// Elements that one task updates.
const CHUNK: usize = 1 << 15;

/// A network whose parameters are an exponential average of another's.
pub struct Teacher {
    net: TwinNet,
    parts: Parts,
    momentum: Momentum,
    there: Option<There>,
}

/// What following takes on a device: both networks' parameters, and where the share lies.
struct There {
    own: Table,
    other: Table,
    share: Tensor,
}

impl Teacher {
    /// A copy of `net`.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn of(net: &mut TwinNet, momentum: Momentum, device: &Device) -> Result<Self> {
        let own = TwinNet::new(net.config(), 0, device)?;
        let mut teacher = Self { net: own, parts: Parts::new(1), momentum, there: None };
        teacher.copy(net)?;
        Ok(teacher)
    }

    /// Becomes equal to `net`.
    ///
    /// # Errors
    /// When the networks differ in shape.
    pub fn copy(&mut self, net: &mut TwinNet) -> Result<()> {
        Ok(self.net.load_state_dict(&net.state_dict()?.into_iter().collect())?)
    }

    /// Cuts batches as the network's are.
    pub fn in_micro_batches(&mut self, count: usize) {
        self.parts = Parts::new(count);
    }

    /// Embeddings `[2 * batch, D]`, each view with its own batch statistics, as the network's. Its
    /// running statistics are its own; no gradient comes back, so that its activations are not
    /// kept.
    ///
    /// # Errors
    /// When `images` is of another form.
    pub fn forward(&mut self, images: &Tensor) -> Result<Tensor> {
        if self.parts.whole() {
            return Ok(self.net.forward_only(images, 2)?);
        }
        self.parts.embeddings(images, |part| self.net.forward_only(part, 1))
    }

    /// teacher = m teacher + (1 - m) net, with the momentum m of step number `step` of `steps`.
    ///
    /// # Errors
    /// When the networks differ.
    pub fn follow(&mut self, net: &mut TwinNet, step: u64, steps: u64) -> Result<()> {
        let share = (1.0 - self.momentum.at(step, steps)) as f32;
        if let Some(backend) = net.engine().shared_backend() {
            return self.follow_there(&*backend, net, share);
        }
        for (own, other) in self.net.params().into_iter().zip(net.params()) {
            let other = storage::read(&other.value)?;
            storage::with_mut(&own.value, |own| {
                let pieces = own.par_chunks_mut(CHUNK).zip(other.par_chunks(CHUNK));
                pieces.for_each(|(own, other)| {
                    own.iter_mut().zip(other).for_each(|(t, x)| *t += share * (x - *t));
                });
            })?;
        }
        Ok(())
    }

    /// [`Teacher::follow`] on a device.
    fn follow_there(&mut self, backend: &dyn Backend, net: &mut TwinNet, share: f32) -> Result<()> {
        if self.there.is_none() {
            let own = Table::new(backend, &self.net.params(), &[])?;
            let other = Table::new(backend, &net.params(), &[])?;
            let share = storage::zeros(1, net.engine().device())?;
            self.there = Some(There { own, other, share });
        }
        let Some(There { own, other, share: at }) = &self.there else { return Ok(()) };
        storage::assign(at, &[share])?;
        let at = storage::span(at)?;
        Ok(kernels::follow(backend, own.tensors(), other.tensors(), at)?)
    }

    /// The teacher's network.
    pub fn net(&mut self) -> &mut TwinNet {
        &mut self.net
    }

    /// Its tensors, `teacher.backbone.conv1.weight`, ..; copies.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn state(&mut self) -> Result<Vec<(String, Tensor)>> {
        let all = self.net.state_dict()?.into_iter();
        Ok(all.map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect())
    }

    /// Takes what [`Teacher::state`] gave.
    ///
    /// # Errors
    /// Names the tensor that is missing, unexpected or of another shape.
    pub fn load_state(&mut self, state: HashMap<String, Tensor>) -> Result<()> {
        let inner = |(name, tensor): (String, Tensor)| {
            (name.strip_prefix(PREFIX).unwrap_or(&name).to_owned(), tensor)
        };
        Ok(self.net.load_state_dict(&state.into_iter().map(inner).collect())?)
    }
}
