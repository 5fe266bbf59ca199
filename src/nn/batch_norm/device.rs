//! BatchNorm on a device: what its kernels are given.

use candle_core::{DType, Result, Tensor};

use super::{BatchNorm, EPS, MOMENTUM, Saved};
use crate::nn::cuda::kernels::norm::{self as kernels, Mask, NormParams, NormShape};
use crate::nn::cuda::{Backend, Span};
use crate::nn::{Workspace, no_forward, storage};

impl BatchNorm {
    /// `input` as the kernels see it, and their scratch.
    pub(super) fn device_shape(
        &mut self,
        input: &Tensor,
        groups: usize,
    ) -> Result<(NormShape, Span)> {
        let channels = self.weight.len();
        let shape = NormShape { rows: input.elem_count() / channels, channels, groups };
        Ok((shape, self.device_scratch(kernels::norm_scratch(shape))?))
    }

    pub(super) fn device_scratch(&mut self, len: usize) -> Result<Span> {
        let (slot, device) = (&mut self.on_device.scratch, self.engine.device());
        storage::span(&storage::reuse(slot, &[len], DType::F32, device)?)
    }

    pub(super) fn device_forward(
        &mut self,
        backend: &dyn Backend,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        ws: &Workspace,
    ) -> Result<()> {
        let (shape, scratch) = self.device_shape(x, ws.normed_groups())?;
        let params = self.device_params(ws)?;
        let residual = residual.map(storage::span).transpose()?;
        let (x, y) = (storage::span(x)?, storage::span(y)?);
        if !ws.batch_statistics() {
            return kernels::norm_eval(backend, shape, &params, x, residual, y, scratch, self.relu);
        }
        let saved = self.device_statistics(shape.groups)?;
        let relu_mask = match residual {
            Some(residual) if self.relu && ws.keeps() => {
                Some(self.device_mask(shape, &[x, residual, y])?)
            }
            _ => None,
        };
        let relu = self.relu;
        kernels::norm_train(
            backend, shape, &params, x, residual, y, relu_mask, saved, scratch, relu,
        )
    }

    pub(super) fn device_params(&self, ws: &Workspace) -> Result<NormParams> {
        Ok(NormParams {
            gamma: storage::span(&self.weight.value)?,
            beta: storage::span(&self.bias.value)?,
            running_mean: storage::span(&self.running_mean)?,
            running_var: storage::span(&self.running_var)?,
            moves: ws.moves_statistics(),
            eps: EPS as f32,
            momentum: MOMENTUM as f32,
        })
    }

    /// Where a pass leaves its batch's statistics.
    pub(super) fn device_statistics(&mut self, groups: usize) -> Result<Span> {
        let (slot, device) = (&mut self.on_device.statistics, self.engine.device());
        let dims = [2, groups, self.weight.len()];
        storage::span(&storage::reuse(slot, &dims, DType::F32, device)?)
    }

    /// Where a pass over `spans` notes what the ReLU let through.
    pub(super) fn device_mask(&mut self, s: NormShape, spans: &[Span]) -> Result<Span> {
        let (slot, device) = (&mut self.on_device.relu_mask, self.engine.device());
        let len = kernels::mask_len(s, spans)?;
        storage::span(&storage::reuse(slot, &[len], DType::U8, device)?)
    }

    pub(super) fn device_backward(
        &mut self,
        backend: &dyn Backend,
        saved: &Saved,
        dout: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let (shape, scratch) = self.device_shape(&saved.input, saved.groups)?;
        let Some(statistics) = &self.on_device.statistics else { return no_forward() };
        let mask = match &self.on_device.relu_mask {
            _ if !self.relu => Mask::None,
            Some(relu_mask) if saved.added => Mask::Bits(storage::span(relu_mask)?),
            _ => Mask::Input(storage::span(&self.bias.value)?),
        };
        kernels::norm_backward(
            backend,
            shape,
            storage::span(&self.weight.value)?,
            storage::span(&saved.input)?,
            mask,
            storage::span(dout)?,
            dx.map(storage::span).transpose()?,
            storage::span(&self.weight.grad)?,
            storage::span(&self.bias.grad)?,
            storage::span(statistics)?,
            scratch,
        )
    }
}
