//! Linear layer, with or without bias: a 1 x 1 convolution on 1 x 1 images.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::cuda::kernels::elementwise;
use super::{Conv2d, Conv2dConfig, Engine, Param, Workspace, storage};

/// A linear layer; input `[N, I]`, output `[N, O]`, weight `[O, I]`.
pub struct Linear {
    conv: Conv2d,
    /// `[O]`.
    pub bias: Option<Param>,
    engine: Engine,
    on_device: State,
}

/// What the layer keeps on a device.
#[derive(Default)]
struct State {
    /// Input and output gradient in the type of activations, where they come in another.
    input: Option<Tensor>,
    grad: Option<Tensor>,
    /// For the sums of the bias's gradient.
    sums: Option<Tensor>,
}

impl Linear {
    /// A layer with zero parameters, `{name}.weight` and perhaps `{name}.bias`.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(
        name: &str,
        input: usize,
        output: usize,
        bias: bool,
        device: &Device,
    ) -> Result<Self> {
        let config = Conv2dConfig { input, output, kernel: 1, stride: 1, padding: 0 };
        let mut conv = Conv2d::new(name, config, device)?;
        conv.weight = Param::zeros(format!("{name}.weight"), &[output, input], device)?;
        let name = format!("{name}.bias");
        let bias = bias.then(|| Param::zeros(name, &[output], device)).transpose()?;
        Ok(Self { conv, bias, engine: Engine::of(device)?, on_device: State::default() })
    }

    /// Gives an f32 output whatever the activations are.
    pub fn with_full_output(mut self) -> Self {
        self.conv.set_full_output();
        self
    }

    /// The weight.
    pub fn weight(&self) -> &Param {
        &self.conv.weight
    }

    /// Every parameter.
    pub fn params(&mut self) -> impl Iterator<Item = &mut Param> {
        std::iter::once(&mut self.conv.weight).chain(&mut self.bias)
    }

    /// Multiply-adds of the last pass.
    pub fn multiply_adds(&self) -> u64 {
        self.conv.multiply_adds()
    }

    /// x W^T (+ bias).
    ///
    /// # Errors
    /// When `x` is not `[N, I]`.
    pub fn forward(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let x = self.engine.activations(x, &mut self.on_device.input)?;
        let y = self.conv.forward(&pixels(&x)?, ws)?.flatten_from(1)?;
        let Some(bias) = &self.bias else { return Ok(y) };
        if let Some(backend) = self.engine.backend() {
            let (rows, columns) = y.dims2()?;
            let bias = storage::span(&bias.value)?;
            elementwise::add_bias(backend, storage::span(&y)?, bias, rows, columns)?;
            return Ok(y);
        }
        let b = storage::read(&bias.value)?;
        storage::with_mut(&y, |y| {
            for row in y.chunks_exact_mut(b.len()) {
                row.iter_mut().zip(&*b).for_each(|(y, b)| *y += b);
            }
        })?;
        drop(b);
        Ok(y)
    }

    /// Sets the parameters' gradients from `dy` and writes (or adds) the input's to `dx`.
    ///
    /// # Errors
    /// As [`Conv2d::backward_weight`].
    pub fn backward(&mut self, dy: &Tensor, dx: Option<&Tensor>, accumulate: bool) -> Result<()> {
        self.bias_grad(dy)?;
        let dy = self.engine.activations(dy, &mut self.on_device.grad)?;
        let dy = pixels(&dy)?;
        self.conv.backward_weight(&dy)?;
        match dx {
            Some(dx) => self.conv.backward_input(&dy, &pixels(dx)?, accumulate),
            None => Ok(()),
        }
    }

    fn bias_grad(&mut self, dy: &Tensor) -> Result<()> {
        let Some(bias) = &self.bias else { return Ok(()) };
        if let Some(backend) = self.engine.backend() {
            let (rows, columns) = dy.dims2()?;
            let wanted = [elementwise::column_sums_scratch(rows, columns)];
            let (slot, device) = (&mut self.on_device.sums, self.engine.device());
            let scratch = storage::reuse(slot, &wanted, DType::F32, device)?;
            let (dy, db) = (storage::span(dy)?, storage::span(&bias.grad)?);
            let scratch = storage::span(&scratch)?;
            return elementwise::column_sums(backend, dy, db, rows, columns, scratch);
        }
        let dy = storage::read(dy)?;
        storage::with_mut(&bias.grad, |db| {
            db.fill(0.0);
            for row in dy.chunks_exact(db.len()) {
                db.iter_mut().zip(row).for_each(|(b, d)| *b += d);
            }
        })
    }
}

/// `[N, C]` as `[N, 1, 1, C]`, the same storage.
fn pixels(x: &Tensor) -> Result<Tensor> {
    match *x.dims() {
        [n, c] => x.reshape((n, 1, 1, c)),
        _ => bail!("linear: expected [N, C], got {:?}", x.dims()),
    }
}
