//! Batch normalisation over the last dimension, with residual addition and ReLU in the same pass.
//!
//! y = gamma (x - mean) / sqrt(var + eps) + beta (+ residual), then max(y, 0) where asked for.
//! Training uses the batch's statistics (variance divided by n) and moves the running ones by 0.1
//! towards them (variance divided by n - 1), as PyTorch does. The batch may consist of groups with
//! statistics of their own; running statistics then move once for each group, in order.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cpu::micro::Isa;
use super::cpu::norm::{self, Affine};
use super::cuda::kernels::norm::{self as kernels, Mask, NormParams, NormShape};
use super::cuda::{Backend, Span};
use super::{Engine, Param, Workspace, no_forward, storage};

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

    /// [`BatchNorm::forward`] without a residual, with an output for the caller to give back to `ws` when
    /// nobody reads it any more. For layers of which [`BatchNorm::reads_output`] is false.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`].
    pub fn forward_passing(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        debug_assert!(!self.reads_output(), "{}: its output must stay", self.name);
        self.check(x, None, ws)?;
        let y = ws.take(x.dims())?;
        self.forward_to(x, None, &y, ws)?;
        Ok(y)
    }

    /// Whether the backward pass reads the output. On a device the input says where the ReLU was open,
    /// or, where something was added, a bit an element does: a tensor less to read, twice, and to keep.
    pub fn reads_output(&self) -> bool {
        self.relu && self.engine.backend().is_none()
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
        let added = residual.is_some();
        let saved = || Saved { input: x.clone(), added, groups: ws.groups };
        self.saved = ws.keeps().then(saved);
        Ok(())
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
        storage::with_mut2(&self.running_mean, &self.running_var, |mean, var| {
            mean.iter_mut().zip(&*m).for_each(|(r, m)| blend(r, *m));
            var.iter_mut().zip(&*v).for_each(|(r, v)| blend(r, *v * n / (n - 1.0)));
        })?;
        self.num_batches_tracked += 1;
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
        let (mean, var) = (storage::read(&self.running_mean)?, storage::read(&self.running_var)?);
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
        let (slot, device) = (&mut self.on_device.scratch, self.engine.device());
        let scratch = storage::reuse(slot, &[kernels::norm_scratch(shape)], DType::F32, device)?;
        Ok((shape, storage::span(&scratch)?))
    }

    fn device_forward(
        &mut self,
        backend: &dyn Backend,
        x: &Tensor,
        residual: Option<&Tensor>,
        y: &Tensor,
        ws: &Workspace,
    ) -> Result<()> {
        let groups = if ws.batch_statistics() { ws.groups } else { 1 };
        let (shape, scratch) = self.device_shape(x, groups)?;
        let params = NormParams {
            gamma: storage::span(&self.weight.value)?,
            beta: storage::span(&self.bias.value)?,
            running_mean: storage::span(&self.running_mean)?,
            running_var: storage::span(&self.running_var)?,
            eps: EPS as f32,
            momentum: MOMENTUM as f32,
        };
        let residual = residual.map(storage::span).transpose()?;
        let (x, y) = (storage::span(x)?, storage::span(y)?);
        if !ws.batch_statistics() {
            return kernels::norm_eval(backend, shape, &params, x, residual, y, scratch, self.relu);
        }
        let dims = [2, shape.groups, shape.channels];
        let (slot, device) = (&mut self.on_device.statistics, self.engine.device());
        let saved = storage::reuse(slot, &dims, DType::F32, device)?;
        let saved = storage::span(&saved)?;
        let slot = &mut self.on_device.open;
        let open = match residual {
            Some(residual) if self.relu && ws.keeps() => {
                let len = kernels::mask_len(shape, &[x, residual, y])?;
                let open = storage::reuse(slot, &[len], DType::U8, device)?;
                Some(storage::span(&open)?)
            }
            _ => None,
        };
        let relu = self.relu;
        kernels::norm_train(backend, shape, &params, x, residual, y, open, saved, scratch, relu)?;
        self.num_batches_tracked += shape.groups as i64;
        Ok(())
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
