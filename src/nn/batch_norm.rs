//! Batch normalisation over the last dimension, with residual addition and ReLU in the same pass.
//!
//! y = gamma (x - mean) / sqrt(var + eps) + beta (+ residual), then max(y, 0) where asked for.
//! Training uses the batch's statistics (variance divided by n) and moves the running ones by 0.1
//! towards them (variance divided by n - 1), as PyTorch does. The batch may consist of groups with
//! statistics of their own; running statistics then move once for each group, in order.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cpu::micro::Isa;
use super::cpu::norm::{self, Affine};
use super::cuda::kernels::norm::{
    self as kernels, Branch, GradBranch, Mask, NormParams, NormShape,
};
use super::cuda::kernels::norm_pool::{self, NormPoolShape};
use super::cuda::{Backend, Span};
use super::{Engine, MaxPool, Param, Workspace, no_forward, storage};

/// PyTorch's default, as is the momentum.
pub const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// A BatchNorm layer on `[.., C]`, followed by ReLU or not.
pub struct BatchNorm {
    name: String,
    /// Gamma, `[C]`.
    pub weight: Param,
    /// Beta, `[C]`.
    pub bias: Param,
    /// `[C]`.
    pub running_mean: Tensor,
    /// `[C]`.
    pub running_var: Tensor,
    /// Training passes seen, one for each group.
    pub num_batches_tracked: i64,
    relu: bool,
    saved: Option<Saved>,
    output: Option<Tensor>,
    scratch: Scratch,
    engine: Engine,
    on_device: OnDevice,
}

/// What the layer keeps on a device.
#[derive(Default)]
struct OnDevice {
    /// Mean and 1 / standard deviation of each group and channel, `[2, groups, C]`.
    statistics: Option<Tensor>,
    /// Bits of the elements that the ReLU let through, where the input does not tell.
    open: Option<Tensor>,
    scratch: Option<Tensor>,
}

/// What the backward pass needs.
struct Saved {
    input: Tensor,
    /// Whether something was added.
    added: bool,
    groups: usize,
}

/// Vectors that live from forward to backward, or are reused.
#[derive(Default)]
struct Scratch {
    norm: norm::Scratch,
    /// Of each group and channel.
    mean: Vec<f32>,
    inv_std: Vec<f64>,
    moments: [Vec<f64>; 2],
    constants: [Vec<f32>; 3],
}

impl BatchNorm {
    /// A layer over `channels` with gamma 1 and beta 0, running mean 0 and variance 1.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(name: &str, channels: usize, relu: bool, device: &Device) -> Result<Self> {
        let param = |part: &str| Param::zeros(format!("{name}.{part}"), &[channels], device);
        let running_var = storage::zeros(channels, device)?;
        storage::assign(&running_var, &vec![1.0; channels])?;
        let mut weight = param("weight")?;
        weight.set(&vec![1.0; channels])?;
        Ok(Self {
            name: name.into(),
            weight,
            bias: param("bias")?,
            running_mean: storage::zeros(channels, device)?,
            running_var,
            num_batches_tracked: 0,
            relu,
            saved: None,
            output: None,
            scratch: Scratch::default(),
            engine: Engine::of(device)?,
            on_device: OnDevice::default(),
        })
    }

    /// Makes the running statistics of `layers`, all of one device, parts of one tensor, which it returns:
    /// who keeps a copy of them copies once. For before anything was recorded of a pass.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn lay_together(layers: &mut [&mut Self]) -> Result<Option<Tensor>> {
        let Some(first) = layers.first() else { return Ok(None) };
        let len = layers.iter().map(|layer| 2 * layer.weight.len()).sum::<usize>();
        let all = storage::zeros(len, first.engine.device())?;
        let mut at = 0;
        for layer in layers {
            for own in [&mut layer.running_mean, &mut layer.running_var] {
                let part = all.narrow(0, at, own.elem_count())?;
                storage::copy(own, &part)?;
                at += own.elem_count();
                *own = part;
            }
        }
        Ok(Some(all))
    }

    /// The layer's name, the front of its tensors' names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Normalises `x`, `[.., C]`, adds `residual` (of the same shape), applies ReLU. In evaluation the
    /// running statistics are used and nothing is kept.
    ///
    /// # Errors
    /// When shapes do not fit, or a group has but one value a channel in training.
    pub fn forward(
        &mut self,
        x: &Tensor,
        residual: Option<&Tensor>,
        ws: &mut Workspace,
    ) -> Result<Tensor> {
        self.check(x, residual, ws)?;
        let y = ws.output(&mut self.output, x.dims())?;
        self.forward_to(x, residual, &y, ws)?;
        Ok(y)
    }

    /// [`BatchNorm::forward`] with `other`'s output for `theirs` as the residual. On a device one pass over
    /// memory does for both, and `other`'s output is not written.
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
            ws.give(residual);
            return Ok(y);
        };
        self.check(x, Some(theirs), ws)?;
        other.check(theirs, None, ws)?;
        let y = ws.output(&mut self.output, x.dims())?;
        let (shape, scratch) = self.device_shape(x, ws.normed_groups())?;
        let (_, their_scratch) = other.device_shape(theirs, shape.groups)?;
        let (params, their_params) = (self.device_params()?, other.device_params()?);
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
            let open = self.device_mask(shape, &[pair[0].x, pair[1].x, to])?;
            kernels::norm_train_pair(&*backend, shape, pair, to, open)?;
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
        let params = self.device_params()?;
        let (from, to) = (storage::span(x)?, storage::span(&y)?);
        match pool.winners_there(&y, ws)? {
            None => norm_pool::norm_pool_eval(&*backend, &shape, &params, from, to, scratch)?,
            Some(winner) => {
                let saved = self.device_statistics(s.groups)?;
                let b = &*backend;
                norm_pool::norm_pool_train(b, s, &params, from, to, winner, saved, scratch)?;
            }
        }
        self.passed(x, false, ws);
        Ok(y)
    }

    /// Whether one pass of a device's does for this layer and `pool`.
    fn pools_with(&self, pool: &MaxPool) -> bool {
        self.relu && pool.window() == norm_pool::WINDOW
    }

    /// The last training pass's output, in its buffer.
    ///
    /// # Errors
    /// Without a forward pass in training mode before.
    pub fn output(&self) -> Result<&Tensor> {
        self.output.as_ref().map_or_else(no_forward, Ok)
    }

    fn forward_to(
        &mut self,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        ws: &Workspace,
    ) -> Result<()> {
        match self.engine.shared_backend() {
            Some(backend) => self.device_forward(&*backend, x, residual, y, ws)?,
            None if ws.batch_statistics() => self.cpu_train(x, residual, y, ws.groups)?,
            None => self.cpu_eval(x, residual, y)?,
        }
        self.passed(x, residual.is_some(), ws);
        Ok(())
    }

    /// Notes what the backward pass needs of a pass, and counts it.
    fn passed(&mut self, x: &Tensor, added: bool, ws: &Workspace) {
        let saved = || Saved { input: x.clone(), added, groups: ws.groups };
        self.saved = ws.keeps().then(saved);
        self.num_batches_tracked += if ws.batch_statistics() { ws.groups as i64 } else { 0 };
    }

    fn check(&self, x: &Tensor, residual: Option<&Tensor>, ws: &Workspace) -> Result<()> {
        let (c, len) = (self.weight.len(), x.elem_count());
        if x.dims().last() != Some(&c) || len == 0 {
            bail!("{}: expected [.., {c}], got {:?}", self.name, x.dims());
        }
        if let Some(r) = residual
            && r.dims() != x.dims()
        {
            bail!("{}: residual {:?} for {:?}", self.name, r.dims(), x.dims());
        }
        if ws.batch_statistics() && (ws.groups == 0 || !x.dims()[0].is_multiple_of(ws.groups)) {
            bail!("{}: a batch of {} is not {} groups", self.name, x.dims()[0], ws.groups);
        }
        if ws.batch_statistics() && len / c / ws.groups < 2 {
            bail!(
                "{}: training wants more than one value a channel, got {:?}",
                self.name,
                x.dims()
            );
        }
        Ok(())
    }

    fn cpu_train(
        &mut self,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        groups: usize,
    ) -> Result<()> {
        let (isa, c) = (Isa::best(), self.weight.len());
        let x = storage::read(x)?;
        let residual = residual.map(storage::read).transpose()?;
        let part = x.len() / groups;
        self.scratch.mean.resize(groups * c, 0.0);
        self.scratch.inv_std.resize(groups * c, 0.0);
        for g in 0..groups {
            let of = g * part..(g + 1) * part;
            self.statistics(&x[of.clone()], g)?;
            let r = residual.as_ref().map(|r| &r[of.clone()]);
            let [scale, shift, _] = &self.scratch.constants;
            storage::with_mut(y, |y| {
                norm::affine(
                    isa,
                    &x[of.clone()],
                    Affine { scale, shift },
                    r,
                    self.relu,
                    &mut y[of],
                );
            })?;
        }
        Ok(())
    }

    /// Group `g`'s statistics: kept, merged into the running ones, made into scale and shift.
    fn statistics(&mut self, x: &[f32], g: usize) -> Result<()> {
        let c = self.weight.len();
        let Scratch { norm, mean, inv_std, moments: [m, v], constants } = &mut self.scratch;
        for values in [&mut *m, &mut *v] {
            values.resize(c, 0.0);
        }
        norm::moments(Isa::best(), x, c, norm, m, v);
        let n = (x.len() / c) as f64;
        let blend = |running: &mut f32, now: f64| {
            *running = ((1.0 - MOMENTUM) * *running as f64 + MOMENTUM * now) as f32;
        };
        // One after the other: they may be parts of one tensor.
        storage::with_mut(&self.running_mean, |mean| {
            mean.iter_mut().zip(&*m).for_each(|(r, m)| blend(r, *m));
        })?;
        storage::with_mut(&self.running_var, |var| {
            var.iter_mut().zip(&*v).for_each(|(r, v)| blend(r, *v * n / (n - 1.0)));
        })?;
        for i in 0..c {
            mean[g * c + i] = m[i] as f32;
            inv_std[g * c + i] = 1.0 / (v[i] + EPS).sqrt();
        }
        let (gamma, beta) = (storage::read(&self.weight.value)?, storage::read(&self.bias.value)?);
        let inv = &inv_std[g * c..];
        affine_constants(&gamma, &beta, |i| (m[i], inv[i]), constants);
        Ok(())
    }

    fn cpu_eval(&mut self, x: &Tensor, residual: Option<&Tensor>, y: &Tensor) -> Result<()> {
        let x = storage::read(x)?;
        let residual = residual.map(storage::read).transpose()?;
        let (gamma, beta) = (storage::read(&self.weight.value)?, storage::read(&self.bias.value)?);
        let mean = storage::read(&self.running_mean)?.to_vec();
        let var = storage::read(&self.running_var)?;
        let inv = |i: usize| 1.0 / (var[i] as f64 + EPS).sqrt();
        let constants = &mut self.scratch.constants;
        affine_constants(&gamma, &beta, |i| (mean[i] as f64, inv(i)), constants);
        let [scale, shift, _] = &self.scratch.constants;
        storage::with_mut(y, |y| {
            let by = Affine { scale, shift };
            norm::affine(Isa::best(), &x, by, residual.as_deref(), self.relu, y);
        })
    }

    /// Sets the parameters' gradients from `dout`, the output's, and writes the input's to `dx`; without
    /// `dx` in place over `dout`. With `dx`, `dout` afterwards holds the residual's gradient: itself,
    /// masked by the ReLU. `dx` may be the input itself ([`Workspace::take_over`]), which ends what
    /// this layer keeps.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, dout: &Tensor, dx: Option<&Tensor>) -> Result<()> {
        let Some(saved) = self.saved.take() else { return no_forward() };
        let fits = |t: &Tensor| t.dims() == saved.input.dims();
        if !fits(dout) || !dx.is_none_or(fits) {
            bail!("{}: gradient {:?} for {:?}", self.name, dout.dims(), saved.input.dims());
        }
        match self.engine.shared_backend() {
            Some(backend) => self.device_backward(&*backend, &saved, dout, dx)?,
            None => self.cpu_backward(&saved, dout, dx)?,
        }
        let overwritten = dx.is_some_and(|dx| storage::same(dx, &saved.input));
        self.saved = (!overwritten).then_some(saved);
        Ok(())
    }

    /// The backward pass of [`BatchNorm::forward_pair`]: sets both layers' parameters' gradients, writes
    /// the input's gradient to `dx`, which may be the input itself, and that of `other`'s over `dout`.
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
        let Some(open) = &self.on_device.open else { return no_forward() };
        let (open, dout) = (storage::span(open)?, storage::span(dout)?);
        let (shape, own) = self.device_branch(&saved.input, storage::span(dx)?, groups)?;
        let (_, of_other) = other.device_branch(&theirs, dout, groups)?;
        kernels::norm_backward_pair(&*backend, shape, [own, of_other], open, dout)?;
        self.saved = (!storage::same(dx, &saved.input)).then_some(saved);
        Ok(())
    }

    /// The backward pass of [`BatchNorm::forward_pooled`] from the pool's gradient: sets the parameters'
    /// gradients, returns the input's to give back to `ws`.
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

    /// The last training pass's input.
    ///
    /// # Errors
    /// Without a forward pass in training mode before.
    pub fn input(&self) -> Result<&Tensor> {
        self.saved.as_ref().map_or_else(no_forward, |saved| Ok(&saved.input))
    }

    /// `input` as the kernels see it, and their scratch.
    fn device_shape(&mut self, input: &Tensor, groups: usize) -> Result<(NormShape, Span)> {
        let channels = self.weight.len();
        let shape = NormShape { rows: input.elem_count() / channels, channels, groups };
        Ok((shape, self.device_scratch(kernels::norm_scratch(shape))?))
    }

    fn device_scratch(&mut self, len: usize) -> Result<Span> {
        let (slot, device) = (&mut self.on_device.scratch, self.engine.device());
        storage::span(&storage::reuse(slot, &[len], DType::F32, device)?)
    }

    fn device_forward(
        &mut self,
        backend: &dyn Backend,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        ws: &Workspace,
    ) -> Result<()> {
        let (shape, scratch) = self.device_shape(x, ws.normed_groups())?;
        let params = self.device_params()?;
        let residual = residual.map(storage::span).transpose()?;
        let (x, y) = (storage::span(x)?, storage::span(y)?);
        if !ws.batch_statistics() {
            return kernels::norm_eval(backend, shape, &params, x, residual, y, scratch, self.relu);
        }
        let saved = self.device_statistics(shape.groups)?;
        let open = match residual {
            Some(residual) if self.relu && ws.keeps() => {
                Some(self.device_mask(shape, &[x, residual, y])?)
            }
            _ => None,
        };
        let relu = self.relu;
        kernels::norm_train(backend, shape, &params, x, residual, y, open, saved, scratch, relu)
    }

    fn device_params(&self) -> Result<NormParams> {
        Ok(NormParams {
            gamma: storage::span(&self.weight.value)?,
            beta: storage::span(&self.bias.value)?,
            running_mean: storage::span(&self.running_mean)?,
            running_var: storage::span(&self.running_var)?,
            eps: EPS as f32,
            momentum: MOMENTUM as f32,
        })
    }

    /// Where a pass leaves its batch's statistics.
    fn device_statistics(&mut self, groups: usize) -> Result<Span> {
        let (slot, device) = (&mut self.on_device.statistics, self.engine.device());
        let dims = [2, groups, self.weight.len()];
        storage::span(&storage::reuse(slot, &dims, DType::F32, device)?)
    }

    /// Where a pass over `spans` notes what the ReLU let through.
    fn device_mask(&mut self, s: NormShape, spans: &[Span]) -> Result<Span> {
        let (slot, device) = (&mut self.on_device.open, self.engine.device());
        let len = kernels::mask_len(s, spans)?;
        storage::span(&storage::reuse(slot, &[len], DType::U8, device)?)
    }

    fn device_backward(
        &mut self,
        backend: &dyn Backend,
        saved: &Saved,
        dout: &Tensor,
        dx: Option<&Tensor>,
    ) -> Result<()> {
        let (shape, scratch) = self.device_shape(&saved.input, saved.groups)?;
        let Some(statistics) = &self.on_device.statistics else { return no_forward() };
        let mask = match &self.on_device.open {
            _ if !self.relu => Mask::None,
            Some(open) if saved.added => Mask::Bits(storage::span(open)?),
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

    fn cpu_backward(&mut self, saved: &Saved, dout: &Tensor, dx: Option<&Tensor>) -> Result<()> {
        let x = storage::read(&saved.input)?;
        let out = self.output.clone().filter(|_| self.relu);
        let out = out.as_ref().map(storage::read).transpose()?;
        let part = x.len() / saved.groups;
        for g in 0..saved.groups {
            let of = g * part..(g + 1) * part;
            let mask = out.as_ref().map(|out| &out[of.clone()]);
            storage::with_mut(dout, |dout| -> Result<()> {
                let dz = &mut dout[of.clone()];
                self.group_grads(&x[of.clone()], dz, mask, g)?;
                let [a, b, k] = &self.scratch.constants;
                let (isa, abk) = (Isa::best(), [&a[..], &b[..], &k[..]]);
                match dx {
                    None => norm::grad(isa, None, &x[of.clone()], abk, dz),
                    Some(dx) => storage::with_mut(dx, |dx| {
                        norm::grad(isa, Some(dz), &x[of.clone()], abk, &mut dx[of.clone()]);
                    })?,
                }
                Ok(())
            })??;
        }
        Ok(())
    }

    /// Masks group `g`'s gradient, adds to (group 0: sets) the parameters' gradients and prepares
    /// the constants of dx = a dz + b x + k, with x^ = (x - mean) inv_std and n rows:
    /// dx = gamma inv_std (dz - sum(dz) / n - x^ sum(dz x^) / n).
    fn group_grads(
        &mut self,
        x: &[f32],
        dz: &mut [f32],
        mask: Option<&[f32]>,
        g: usize,
    ) -> Result<()> {
        let c = self.weight.len();
        let Scratch { norm, mean, inv_std, moments, constants } = &mut self.scratch;
        let (mean, inv_std) = (&mean[g * c..(g + 1) * c], &inv_std[g * c..(g + 1) * c]);
        norm::grad_sums(Isa::best(), dz, mask, x, mean, norm, moments);
        let [sum, sum_x] = moments;
        let n = (x.len() / c) as f64;
        let gamma = storage::read(&self.weight.value)?;
        let [a, b, k] = constants;
        for v in [&mut *a, &mut *b, &mut *k] {
            v.resize(c, 0.0);
        }
        for i in 0..c {
            let scale = gamma[i] as f64 * inv_std[i];
            let slope = -scale * inv_std[i] * inv_std[i] * sum_x[i] / n;
            a[i] = scale as f32;
            b[i] = slope as f32;
            k[i] = (-scale * sum[i] / n - slope * mean[i] as f64) as f32;
        }
        storage::with_mut2(&self.weight.grad, &self.bias.grad, |dgamma, dbeta| {
            for i in 0..c {
                let (w, b) = ((sum_x[i] * inv_std[i]) as f32, sum[i] as f32);
                dgamma[i] = if g == 0 { w } else { dgamma[i] + w };
                dbeta[i] = if g == 0 { b } else { dbeta[i] + b };
            }
        })
    }
}

/// Scale and shift of gamma (x - mean) inv_std + beta.
fn affine_constants(
    gamma: &[f32],
    beta: &[f32],
    mean_inv: impl Fn(usize) -> (f64, f64),
    [scale, shift, _]: &mut [Vec<f32>; 3],
) {
    scale.clear();
    shift.clear();
    for i in 0..gamma.len() {
        let (mean, inv) = mean_inv(i);
        let s = gamma[i] as f64 * inv;
        scale.push(s as f32);
        shift.push((beta[i] as f64 - mean * s) as f32);
    }
}
