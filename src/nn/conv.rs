//! Convolution without bias, as a ResNet has it: 1x1, 3x3, 7x7, stride 1 and 2, zero padding.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cpu::conv::{Conv, ConvShape};
use super::cpu::micro::Isa;
use super::cuda::conv::{ConvState, DeviceConv};
use super::{Engine, Param, Workspace, no_forward, storage};

/// A convolution, described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zeros on every side.
    pub padding: usize,
}

/// A convolution; input `[N, H, W, I]`, output `[N, OH, OW, O]`.
pub struct Conv2d {
    config: Conv2dConfig,
    /// O,KH,KW,I.
    pub weight: Param,
    engine: Engine,
    /// Whether the output is f32 whatever the activations are.
    full_output: bool,
    /// The last pass's shape.
    shape: Option<ConvShape>,
    plan: Option<Conv>,
    on_device: ConvState,
    input: Option<Tensor>,
    output: Option<Tensor>,
}

impl Conv2d {
    /// A convolution whose weight, named `{name}.weight`, is zero.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(name: &str, config: Conv2dConfig, device: &Device) -> Result<Self> {
        let shape = [config.output, config.kernel, config.kernel, config.input];
        let weight = Param::zeros(format!("{name}.weight"), &shape, device)?;
        Ok(Self {
            config,
            weight,
            engine: Engine::of(device)?,
            full_output: false,
            shape: None,
            plan: None,
            on_device: ConvState::default(),
            input: None,
            output: None,
        })
    }

    /// Gives an f32 output whatever the activations are; for products alone (1x1, stride 1).
    pub(super) fn set_full_output(&mut self) {
        self.full_output = true;
    }

    /// The description.
    pub fn config(&self) -> Conv2dConfig {
        self.config
    }

    /// The last training pass's input.
    ///
    /// # Errors
    /// Without a forward pass in training mode before.
    pub fn input(&self) -> Result<&Tensor> {
        self.input.as_ref().map_or_else(no_forward, Ok)
    }

    /// Multiply-adds of the last pass by the definition.
    pub fn multiply_adds(&self) -> u64 {
        let k = self.config;
        let taps = k.input * k.kernel * k.kernel;
        self.shape.map_or(0, |s| (s.output_len() * taps) as u64)
    }

    /// x * w; keeps `x` for the backward pass when training.
    ///
    /// # Errors
    /// When `x` is not `[N, H, W, I]` or smaller than the kernel.
    pub fn forward(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let s = self.shape(x)?;
        let (oh, ow) = s.out();
        let dtype = if self.full_output { DType::F32 } else { self.engine.dtype() };
        let y = ws.output_of(&mut self.output, &[s.n, oh, ow, s.o], dtype)?;
        match self.engine.backend() {
            None => {
                let plan = plan(&mut self.plan, s);
                let (x, w) = (storage::read(x)?, storage::read(&self.weight.value)?);
                storage::with_mut(&y, |y| plan.forward(&x, &w, y))?;
            }
            Some(backend) => {
                let state = &mut self.on_device;
                DeviceConv::new(&self.engine, backend, state, s, self.config.input).forward(
                    storage::span(x)?,
                    &self.weight,
                    storage::span(&y)?,
                    ws,
                )?;
            }
        }
        self.shape = Some(s);
        self.input = ws.keeps().then(|| x.clone());
        Ok(y)
    }

    /// Sets the weight's gradient from `dy`, the output's.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when `dy` has another shape.
    pub fn backward_weight(&mut self, dy: &Tensor) -> Result<()> {
        let Some(x) = self.input.clone() else { return no_forward() };
        let s = self.check(&x, dy)?;
        match self.engine.backend() {
            None => {
                let plan = plan(&mut self.plan, s);
                let (x, dy) = (storage::read(&x)?, storage::read(dy)?);
                storage::with_mut(&self.weight.grad, |dw| plan.weight_grad(&x, &dy, dw))
            }
            Some(backend) => {
                let state = &mut self.on_device;
                DeviceConv::new(&self.engine, backend, state, s, self.config.input).weight_grad(
                    storage::span(&x)?,
                    storage::span(dy)?,
                    &self.weight,
                )
            }
        }
    }

    /// Writes the input's gradient to `dx`, or adds it. `dx` may be the input itself
    /// ([`Workspace::take_over`]), which ends what this layer keeps.
    ///
    /// # Errors
    /// As [`Conv2d::backward_weight`], or when `dx` is not of the input's shape.
    pub fn backward_input(&mut self, dy: &Tensor, dx: &Tensor, accumulate: bool) -> Result<()> {
        let Some(x) = self.input.clone() else { return no_forward() };
        let s = self.check(&x, dy)?;
        if dx.dims() != x.dims() {
            bail!("{}: dx is {:?}, the input {:?}", self.weight.name, dx.dims(), x.dims());
        }
        match self.engine.backend() {
            None => {
                let plan = plan(&mut self.plan, s);
                let (dy, w) = (storage::read(dy)?, storage::read(&self.weight.value)?);
                storage::with_mut(dx, |dx| plan.input_grad(&dy, &w, dx, accumulate))
            }
            Some(backend) => {
                let state = &mut self.on_device;
                DeviceConv::new(&self.engine, backend, state, s, self.config.input).input_grad(
                    storage::span(dy)?,
                    &self.weight,
                    storage::span(dx)?,
                    accumulate,
                )
            }
        }?;
        if storage::same(dx, &x) {
            self.input = None;
        }
        Ok(())
    }

    fn shape(&self, x: &Tensor) -> Result<ConvShape> {
        let k = self.config;
        let &[n, h, w, c] = x.dims() else {
            bail!("{}: expected [N, H, W, C], got {:?}", self.weight.name, x.dims())
        };
        // Images on a device come with channels of zeros behind their own.
        let channels = c == k.input || (k.input == 3 && c == self.engine.image_channels());
        if !channels || h.min(w) + 2 * k.padding < k.kernel || n == 0 {
            bail!("{}: {k:?} does not fit an input of {:?}", self.weight.name, x.dims());
        }
        let (kernel, stride, pad) = (k.kernel, k.stride, k.padding);
        Ok(ConvShape { n, h, w, c, o: k.output, kernel, stride, pad })
    }

    fn check(&self, x: &Tensor, dy: &Tensor) -> Result<ConvShape> {
        let s = self.shape(x)?;
        let (oh, ow) = s.out();
        if dy.dims() != [s.n, oh, ow, s.o] {
            bail!("{}: dy is {:?} for an input of {:?}", self.weight.name, dy.dims(), x.dims());
        }
        Ok(s)
    }
}

/// The CPU's plan for a shape, made anew when the shape changes.
fn plan(slot: &mut Option<Conv>, shape: ConvShape) -> &Conv {
    if slot.as_ref().is_none_or(|p| p.shape() != shape) {
        *slot = None;
    }
    slot.get_or_insert_with(|| Conv::new(Isa::best(), shape))
}
