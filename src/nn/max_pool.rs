//! Max pool, as behind an ImageNet stem: 3x3, stride 2, padding 1 (any kernel up to 16).

use candle_core::{DType, Result, Tensor, bail};

use super::cpu::micro::Isa;
use super::cpu::pool::{self, PoolShape};
use super::cuda::Span;
use super::cuda::kernels::pool as kernels;
use super::{Engine, Workspace, no_forward, storage};

/// A max pool; input `[N, H, W, C]`. The gradient goes to the first of equal maxima.
pub struct MaxPool {
    kernel: usize,
    stride: usize,
    padding: usize,
    winner: Vec<u8>,
    /// The same on a device.
    winner_there: Option<Tensor>,
    shape: Option<PoolShape>,
    output: Option<Tensor>,
}

impl MaxPool {
    /// A pool with square windows; the border never wins.
    ///
    /// # Panics
    /// When `kernel` is 0 or above 16, `stride` is 0, or `padding` more than half the kernel.
    pub fn new(kernel: usize, stride: usize, padding: usize) -> Self {
        assert!((1..=16).contains(&kernel) && stride > 0 && padding <= kernel / 2);
        Self {
            kernel,
            stride,
            padding,
            winner: Vec::new(),
            winner_there: None,
            shape: None,
            output: None,
        }
    }

    /// Kernel, stride and padding.
    pub fn window(&self) -> (usize, usize, usize) {
        (self.kernel, self.stride, self.padding)
    }

    /// The maximum of each window.
    ///
    /// # Errors
    /// When `x` is not `[N, H, W, C]` or smaller than a window.
    pub fn forward(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let (shape, y) = self.begin(x, ws)?;
        match ws.engine().backend() {
            None => {
                let x = storage::read(x)?;
                self.winner.resize(y.elem_count(), 0);
                let winner = &mut self.winner;
                storage::with_mut(&y, |y| pool::max_forward(Isa::best(), &shape, &x, y, winner))?;
            }
            Some(backend) => {
                let winner = self.winners_there(&y, ws)?;
                kernels::max_pool(backend, &shape, storage::span(x)?, storage::span(&y)?, winner)?;
            }
        }
        Ok(y)
    }

    /// A pass's sizes and its output.
    pub(super) fn begin(&mut self, x: &Tensor, ws: &mut Workspace) -> Result<(PoolShape, Tensor)> {
        let &[n, h, w, c] = x.dims() else {
            bail!("max pool: expected [N, H, W, C], got {:?}", x.dims())
        };
        if h.min(w) + 2 * self.padding < self.kernel {
            bail!("max pool: {:?} is smaller than a window of {}", x.dims(), self.kernel);
        }
        let (kernel, stride, pad) = (self.kernel, self.stride, self.padding);
        let shape = PoolShape { n, h, w, c, kernel, stride, pad };
        let (oh, ow) = shape.out();
        self.shape = ws.keeps().then_some(shape);
        let y = ws.output(&mut self.output, &[n, oh, ow, c])?;
        Ok((shape, y))
    }

    /// Where a pass on a device leaves the winners, if a backward pass comes.
    pub(super) fn winners_there(&mut self, y: &Tensor, ws: &Workspace) -> Result<Option<Span>> {
        if !ws.keeps() {
            return Ok(None);
        }
        let winner = storage::reuse(&mut self.winner_there, y.dims(), DType::U8, ws.device())?;
        storage::span(&winner).map(Some)
    }

    /// The last training pass's sizes and winners, on a device.
    pub(super) fn won_there(&self, dy: &Tensor) -> Result<(PoolShape, Span)> {
        let (Some(s), Some(winner)) = (self.shape, &self.winner_there) else {
            return no_forward();
        };
        let (oh, ow) = s.out();
        if dy.dims() != [s.n, oh, ow, s.c] {
            bail!("max pool: gradient {:?} for {s:?}", dy.dims());
        }
        Ok((s, storage::span(winner)?))
    }

    /// Writes the input's gradient to `dx`.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, dy: &Tensor, dx: &Tensor) -> Result<()> {
        let Some(s) = self.shape else { return no_forward() };
        let (oh, ow) = s.out();
        if dy.dims() != [s.n, oh, ow, s.c] || dx.dims() != [s.n, s.h, s.w, s.c] {
            bail!("max pool: gradients {:?} and {:?} for {s:?}", dy.dims(), dx.dims());
        }
        if let Some(backend) = Engine::of(dy.device())?.backend() {
            let (_, winner) = self.won_there(dy)?;
            let (dy, dx) = (storage::span(dy)?, storage::span(dx)?);
            return kernels::max_pool_backward(backend, &s, dy, winner, dx);
        }
        let (dy, winner) = (storage::read(dy)?, &self.winner);
        storage::with_mut(dx, |dx| pool::max_backward(Isa::best(), &s, winner, &dy, dx))
    }
}
