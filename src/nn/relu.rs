//! ReLU by itself. In the network it runs inside [`super::BatchNorm`]'s pass.

use candle_core::{Result, Tensor, bail};

use super::cpu::micro::Isa;
use super::cpu::norm;
use super::cuda::kernels::elementwise;
use super::{Engine, Workspace, no_forward, storage};

/// max(x, 0); the gradient at 0 is 0, as PyTorch has it.
#[derive(Default)]
pub struct Relu {
    output: Option<Tensor>,
}

impl Relu {
    /// max(x, 0), of any shape.
    ///
    /// # Errors
    /// When the device has no implementation.
    pub fn forward(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let y = ws.output(&mut self.output, x.dims())?;
        match ws.engine().backend() {
            None => {
                let x = storage::read(x)?;
                storage::with_mut(&y, |y| {
                    y.iter_mut().zip(&*x).for_each(|(y, x)| *y = norm::at_least(0.0, *x));
                })?;
            }
            Some(backend) => elementwise::relu(backend, storage::span(x)?, storage::span(&y)?)?,
        }
        Ok(y)
    }

    /// Turns the output's gradient into the input's, in place.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, dout: &Tensor) -> Result<()> {
        let Some(y) = &self.output else { return no_forward() };
        if y.dims() != dout.dims() {
            bail!("relu: gradient {:?} for {:?}", dout.dims(), y.dims());
        }
        if let Some(backend) = Engine::of(y.device())?.backend() {
            return elementwise::relu_backward(backend, storage::span(y)?, storage::span(dout)?);
        }
        let y = storage::read(y)?;
        storage::with_mut(dout, |d| norm::relu_grad(Isa::best(), &y, d))
    }
}
