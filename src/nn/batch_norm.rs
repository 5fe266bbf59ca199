//! Batch normalisation over the last dimension, with residual addition and ReLU in the same pass.
//!
//! y = gamma (x - mean) / sqrt(var + eps) + beta (+ residual), then max(y, 0) where asked for.
//! Training uses the batch's statistics (variance divided by n) and moves the running ones by 0.1
//! towards them (variance divided by n - 1), as PyTorch does. The batch may consist of groups with
//! statistics of their own; running statistics then move once for each group, in order.

use candle_core::{Device, Result, Tensor, bail};

use super::cpu::norm;
use super::{Engine, Param, Workspace, no_forward, storage};

mod cpu;
mod device;
mod fused;

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
    relu_mask: Option<Tensor>,
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

    /// Makes the running statistics of `layers`, all of one device, parts of one tensor, which it
    /// returns: who keeps a copy of them copies once. For before anything was recorded of a pass.
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

    /// Normalises `x`, `[.., C]`, adds `residual` (of the same shape), applies ReLU. In evaluation
    /// the running statistics are used and nothing is kept.
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
            None if ws.batch_statistics() => self.cpu_train(x, residual, y, ws)?,
            None => self.cpu_eval(x, residual, y)?,
        }
        self.passed(x, residual.is_some(), ws);
        Ok(())
    }

    /// Notes what the backward pass needs of a pass, and counts it.
    fn passed(&mut self, x: &Tensor, added: bool, ws: &Workspace) {
        let saved = || Saved { input: x.clone(), added, groups: ws.groups };
        self.saved = ws.keeps().then(saved);
        self.num_batches_tracked += if ws.moves_statistics() { ws.groups as i64 } else { 0 };
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

    /// Sets the parameters' gradients from `dout`, the output's, and writes the input's to `dx`;
    /// without `dx` in place over `dout`. With `dx`, `dout` afterwards holds the residual's
    /// gradient: itself, masked by the ReLU. On a device `dx` may be the input itself
    /// ([`Workspace::take_over`]), which ends what this layer keeps.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit; on the CPU when
    /// `dx` or `dout` lies where the input does.
    pub fn backward(&mut self, dout: &Tensor, dx: Option<&Tensor>) -> Result<()> {
        let Some(saved) = self.saved.take() else { return no_forward() };
        let fits = |t: &Tensor| t.dims() == saved.input.dims();
        if !fits(dout) || !dx.is_none_or(fits) {
            bail!("{}: gradient {:?} for {:?}", self.name, dout.dims(), saved.input.dims());
        }
        match self.engine.shared_backend() {
            Some(backend) => self.device_backward(&*backend, &saved, dout, dx)?,
            None => {
                // The input is read while they are written.
                if std::iter::once(dout).chain(dx).any(|t| storage::same(t, &saved.input)) {
                    bail!("{}: on the CPU a gradient needs memory beside the input's", self.name);
                }
                self.cpu_backward(&saved, dout, dx)?;
            }
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
}
