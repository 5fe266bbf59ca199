//! Global average pool: `[N, H, W, C]` to `[N, C]`.

use candle_core::{Result, Tensor, bail};

use super::cpu::micro::Isa;
use super::cpu::pool;
use super::cuda::kernels::pool as kernels;
use super::{Engine, Workspace, no_forward, storage};

/// The mean over an image's pixels.
#[derive(Default)]
pub struct AvgPool {
    shape: Option<[usize; 4]>,
    output: Option<Tensor>,
}

impl AvgPool {
    /// The mean over the pixels.
    ///
    /// # Errors
    /// When `x` is not `[N, H, W, C]`.
    pub fn forward(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let &[n, h, w, c] = x.dims() else {
            bail!("average pool: expected [N, H, W, C], got {:?}", x.dims())
        };
        let y = ws.output(&mut self.output, &[n, c])?;
        match ws.engine().backend() {
            None => {
                let x = storage::read(x)?;
                storage::with_mut(&y, |y| pool::mean_forward(Isa::best(), &x, h * w, c, y))?;
            }
            Some(backend) => {
                let (x, y) = (storage::span(x)?, storage::span(&y)?);
                kernels::global_average(backend, n, h * w, c, x, y)?;
            }
        }
        self.shape = ws.keeps().then_some([n, h, w, c]);
        Ok(y)
    }

    /// The last training pass's output, in its buffer.
    pub fn last(&self) -> Option<&Tensor> {
        self.output.as_ref()
    }

    /// Writes the input's gradient to `dx`.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, dy: &Tensor, dx: &Tensor) -> Result<()> {
        let Some([n, h, w, c]) = self.shape else { return no_forward() };
        if dy.dims() != [n, c] || dx.dims() != [n, h, w, c] {
            bail!("average pool: gradients {:?} and {:?}", dy.dims(), dx.dims());
        }
        if let Some(backend) = Engine::of(dy.device())?.backend() {
            let (dy, dx) = (storage::span(dy)?, storage::span(dx)?);
            return kernels::global_average_backward(backend, n, h * w, c, dy, dx);
        }
        let dy = storage::read(dy)?;
        storage::with_mut(dx, |dx| pool::mean_backward(&dy, h * w, c, dx))
    }
}
