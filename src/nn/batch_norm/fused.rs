//! Two layers in one pass over memory: a block's last BatchNorm with its shortcut's, the stem's
//! with the max pool behind it. Where no kernel does both, and on the CPU, one layer runs after the
//! other, which is the specification.

use candle_core::{Result, Tensor, bail};

use super::BatchNorm;
use crate::nn::cuda::Span;
use crate::nn::cuda::kernels::norm::{self as kernels, Branch, GradBranch, NormShape};
use crate::nn::cuda::kernels::norm_pool::{self, NormPoolShape};
use crate::nn::{MaxPool, Workspace, no_forward, storage};

impl BatchNorm {
    /// [`BatchNorm::forward`] with `other`'s output for `theirs` as the residual. On a device one
    /// pass over memory does for both, and `other`'s output is not written.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`].
    pub fn forward_pair(
        &mut self,
        x: &Tensor,
        other: &mut Self,
        theirs: &Tensor,
        ws: &mut Workspace,
    ) -> Result<Tensor> {
        let Some(backend) = self.engine.shared_backend().filter(|_| self.pairs_with(other)) else {
            // Nobody reads it again.
            other.check(theirs, None, ws)?;
            let residual = ws.take(theirs.dims())?;
            other.forward_to(theirs, None, &residual, ws)?;
            let y = self.forward(x, Some(&residual), ws)?;
            ws.put_back(residual);
            return Ok(y);
        };
        self.check(x, Some(theirs), ws)?;
        other.check(theirs, None, ws)?;
        let y = ws.output(&mut self.output, x.dims())?;
        let (shape, scratch) = self.device_shape(x, ws.normed_groups())?;
        let (_, their_scratch) = other.device_shape(theirs, shape.groups)?;
        let (params, their_params) = (self.device_params(ws)?, other.device_params(ws)?);
        // Evaluation's statistics lie in scratch, and those that were saved stay.
        let statistics = |layer: &mut Self, scratch| match ws.batch_statistics() {
            true => layer.device_statistics(shape.groups),
            false => Ok(scratch),
        };
        let (saved, their_saved) = (statistics(self, scratch)?, statistics(other, their_scratch)?);
        let pair = [
            Branch { params: &params, x: storage::span(x)?, saved, scratch },
            Branch {
                params: &their_params,
                x: storage::span(theirs)?,
                saved: their_saved,
                scratch: their_scratch,
            },
        ];
        let to = storage::span(&y)?;
        if ws.batch_statistics() {
            let spans = [pair[0].x, pair[1].x, to];
            let relu_mask = ws.keeps().then(|| self.device_mask(shape, &spans)).transpose()?;
            kernels::norm_train_pair(&*backend, shape, pair, to, relu_mask)?;
        } else {
            kernels::norm_eval_pair(&*backend, shape, pair, to)?;
        }
        for (layer, input, added) in [(self, x, true), (other, theirs, false)] {
            layer.passed(input, added, ws);
        }
        Ok(y)
    }

    /// Whether one pass of a device's does for both: the sum goes through a ReLU.
    fn pairs_with(&self, other: &Self) -> bool {
        self.relu && !other.relu
    }

    /// [`BatchNorm::forward`], and `pool` of that. On a device what is between them is not written.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`], or when `x` is not `[N, H, W, C]`.
    pub fn forward_pooled(
        &mut self,
        x: &Tensor,
        pool: &mut MaxPool,
        ws: &mut Workspace,
    ) -> Result<Tensor> {
        let Some(backend) = self.engine.shared_backend().filter(|_| self.pools_with(pool)) else {
            let whole = self.forward(x, None, ws)?;
            let y = pool.forward(&whole, ws)?;
            ws.release(whole);
            return Ok(y);
        };
        self.check(x, None, ws)?;
        let (shape, y) = pool.begin(x, ws)?;
        let s = NormPoolShape { pool: shape, groups: ws.normed_groups() };
        let scratch = self.device_scratch(norm_pool::norm_pool_scratch(s))?;
        let params = self.device_params(ws)?;
        let (from, to) = (storage::span(x)?, storage::span(&y)?);
        let b = &*backend;
        if ws.batch_statistics() {
            let (winner, saved) = (pool.winners_there(&y, ws)?, self.device_statistics(s.groups)?);
            norm_pool::norm_pool_train(b, s, &params, from, to, winner, saved, scratch)?;
        } else {
            norm_pool::norm_pool_eval(b, &shape, &params, from, to, scratch)?;
        }
        self.passed(x, false, ws);
        Ok(y)
    }

    /// Whether one pass of a device's does for this layer and `pool`.
    fn pools_with(&self, pool: &MaxPool) -> bool {
        self.relu && pool.window() == norm_pool::WINDOW
    }

    /// The backward pass of [`BatchNorm::forward_pair`]: sets both layers' parameters' gradients,
    /// writes the input's gradient to `dx`, which on a device may be the input itself, and that of
    /// `other`'s over `dout`.
    ///
    /// # Errors
    /// As [`BatchNorm::backward`].
    pub fn backward_pair(&mut self, other: &mut Self, dout: &Tensor, dx: &Tensor) -> Result<()> {
        let Some(backend) = self.engine.shared_backend().filter(|_| self.pairs_with(other)) else {
            self.backward(dout, Some(dx))?;
            return other.backward(dout, None);
        };
        let Some(saved) = self.saved.take() else { return no_forward() };
        let Some(theirs) = &other.saved else { return no_forward() };
        let (theirs, groups) = (theirs.input.clone(), saved.groups);
        if [dout, dx, &theirs].iter().any(|t| t.dims() != saved.input.dims()) {
            bail!("{}: gradient {:?} for {:?}", self.name, dout.dims(), saved.input.dims());
        }
        let Some(relu_mask) = &self.on_device.relu_mask else { return no_forward() };
        let (relu_mask, dout) = (storage::span(relu_mask)?, storage::span(dout)?);
        let (shape, own) = self.device_branch(&saved.input, storage::span(dx)?, groups)?;
        let (_, of_other) = other.device_branch(&theirs, dout, groups)?;
        kernels::norm_backward_pair(&*backend, shape, [own, of_other], relu_mask, dout)?;
        self.saved = (!storage::same(dx, &saved.input)).then_some(saved);
        Ok(())
    }

    /// The backward pass of [`BatchNorm::forward_pooled`] from the pool's gradient: sets the
    /// parameters' gradients, returns the input's to give back to `ws`.
    ///
    /// # Errors
    /// As [`BatchNorm::backward`].
    pub fn backward_pooled(
        &mut self,
        pool: &mut MaxPool,
        dy: &Tensor,
        ws: &mut Workspace,
    ) -> Result<Tensor> {
        let Some(backend) = self.engine.shared_backend().filter(|_| self.pools_with(pool)) else {
            let dx = ws.take(self.input()?.dims())?;
            pool.backward(dy, &dx)?;
            self.backward(&dx, None)?;
            return Ok(dx);
        };
        let Some(saved) = self.saved.take() else { return no_forward() };
        let (shape, winner) = pool.won_there(dy)?;
        let s = NormPoolShape { pool: shape, groups: saved.groups };
        let scratch = self.device_scratch(norm_pool::norm_pool_scratch(s))?;
        let Some(statistics) = &self.on_device.statistics else { return no_forward() };
        // Over the input, which ends what this layer keeps.
        let dx = ws.take_over(&saved.input)?;
        let x = storage::span(&dx)?;
        norm_pool::norm_pool_backward(
            &*backend,
            s,
            [storage::span(&self.weight.value)?, storage::span(&self.bias.value)?],
            x,
            winner,
            storage::span(dy)?,
            x,
            [storage::span(&self.weight.grad)?, storage::span(&self.bias.grad)?],
            storage::span(statistics)?,
            scratch,
        )?;
        Ok(dx)
    }

    /// This layer's part of a pair's backward pass.
    fn device_branch(
        &mut self,
        input: &Tensor,
        dx: Span,
        groups: usize,
    ) -> Result<(NormShape, GradBranch)> {
        let (shape, scratch) = self.device_shape(input, groups)?;
        let Some(statistics) = &self.on_device.statistics else { return no_forward() };
        let branch = GradBranch {
            gamma: storage::span(&self.weight.value)?,
            x: storage::span(input)?,
            dx,
            dgamma: storage::span(&self.weight.grad)?,
            dbeta: storage::span(&self.bias.grad)?,
            saved: storage::span(statistics)?,
            scratch,
        };
        Ok((shape, branch))
    }
}
