//! Optimizers on a device: every parameter in a few launches, the rates of a step from a small
//! buffer.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::nn::cuda::kernels::optim::{OptimTensor, RATES, Tensors};
use crate::nn::cuda::{Backend, Span};
use crate::nn::{Engine, Param, ParamClass, storage};

/// A table of parameters on the device, with the memory that it lies in.
pub(crate) struct Table {
    tensors: Tensors,
    _memory: Tensor,
}

impl Table {
    /// The table of `params` and, one list for each kind, the tensors that an optimizer keeps of
    /// them.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(backend: &dyn Backend, params: &[&mut Param], kept: &[Vec<Tensor>]) -> Result<Self> {
        let list = params.iter().enumerate().map(|(index, param)| {
            let moment = |kind: usize| {
                kept.get(kind).map(|tensors| storage::span(&tensors[index])).transpose()
            };
            Ok(OptimTensor {
                value: storage::span(&param.value)?,
                grad: Some(storage::span(&param.grad)?),
                moments: [moment(0)?, moment(1)?],
                half: param.half.as_ref().map(storage::span).transpose()?,
                is_weight: param.class() == ParamClass::Weight,
            })
        });
        let list = list.collect::<Result<Vec<_>>>()?;
        let Some(device) = params.first().map(|param| param.value.device()) else {
            candle_core::bail!("no parameters");
        };
        // As floats, so that it begins where 16 bytes may be read at a time.
        let memory = storage::zeros(Tensors::table_bytes(&list).div_ceil(4), device)?;
        let tensors = Tensors::new(backend, &list, storage::span(&memory)?)?;
        Ok(Self { tensors, _memory: memory })
    }

    /// What kernels take.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }
}

/// An optimizer's table and the buffer of a step's rates.
pub(super) struct OnDevice {
    backend: Arc<dyn Backend>,
    table: Table,
    rates: Tensor,
}

impl OnDevice {
    /// For `params` where they are on a device that runs kernels.
    pub fn of(params: &[&mut Param], kept: &[Vec<Tensor>]) -> Result<Option<Self>> {
        let Some(first) = params.first() else { return Ok(None) };
        let device = first.value.device();
        let Some(backend) = Engine::of(device)?.shared_backend() else { return Ok(None) };
        let table = Table::new(&*backend, params, kept)?;
        Ok(Some(Self { table, rates: storage::zeros(RATES, device)?, backend }))
    }

    /// Writes the step's rates, then has `step` ask for it.
    pub fn step(
        &self,
        rates: [f32; RATES],
        step: impl FnOnce(&dyn Backend, &Tensors, Span) -> Result<()>,
    ) -> Result<()> {
        storage::assign(&self.rates, &rates)?;
        step(&*self.backend, self.table.tensors(), storage::span(&self.rates)?)
    }
}
