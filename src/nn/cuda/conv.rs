//! Convolutions and linear layers on a device: 1 x 1 ones as matrix products, the rest by the
//! backend's convolution.

use candle_core::{DType, Result, Tensor};

use super::kernels::elementwise;
use super::{Backend, ConvCall, ConvPass, Gemm, Span};
use crate::nn::cpu::conv::ConvShape;
use crate::nn::engine::Engine;
use crate::nn::{Param, storage};

/// What a layer keeps on the device between its passes. Images come with more channels than
/// the stem's weight has: it is then widened by zeros.
#[derive(Default)]
pub struct ConvState {
    /// The weight with the input's channels, where those are more than its own.
    widened: Option<Tensor>,
    /// The weight's gradient as the products give it, where that is not yet what is asked for.
    grad: Option<Tensor>,
}

/// One layer's products on one input shape.
pub struct DeviceConv<'a> {
    engine: &'a Engine,
    backend: &'a dyn Backend,
    state: &'a mut ConvState,
    /// With the input's channels.
    shape: ConvShape,
    /// The weight's own channels.
    channels: usize,
}

impl<'a> DeviceConv<'a> {
    /// The products of a layer with weights of `channels` on input of `shape`.
    pub fn new(
        engine: &'a Engine,
        backend: &'a dyn Backend,
        state: &'a mut ConvState,
        shape: ConvShape,
        channels: usize,
    ) -> Self {
        Self { engine, backend, state, shape, channels }
    }

    /// y = x * w.
    ///
    /// # Errors
    /// What the backend says.
    pub fn forward(&mut self, x: Span, weight: &Param, y: Span) -> Result<()> {
        let w = self.weight(weight, true)?;
        if !self.is_product() {
            return self.conv(ConvPass::Forward, x, w, y, false);
        }
        let (rows, s) = (self.rows(), self.shape);
        self.backend.gemm(&Gemm {
            m: rows,
            n: s.o,
            k: s.c,
            a: x,
            a_transposed: false,
            b: w,
            b_transposed: true,
            c: y,
            alpha: 1.0,
            beta: 0.0,
        })
    }

    /// The input's gradient, written or added.
    ///
    /// # Errors
    /// What the backend says.
    pub fn input_grad(
        &mut self,
        dy: Span,
        weight: &Param,
        dx: Span,
        accumulate: bool,
    ) -> Result<()> {
        let w = self.weight(weight, false)?;
        if !self.is_product() {
            return self.conv(ConvPass::Input, dx, w, dy, accumulate);
        }
        let (rows, s) = (self.rows(), self.shape);
        self.backend.gemm(&Gemm {
            m: rows,
            n: s.c,
            k: s.o,
            a: dy,
            a_transposed: false,
            b: w,
            b_transposed: false,
            c: dx,
            alpha: 1.0,
            beta: if accumulate { 1.0 } else { 0.0 },
        })
    }

    /// The weight's gradient.
    ///
    /// # Errors
    /// What the backend says.
    pub fn weight_grad(&mut self, x: Span, dy: Span, weight: &Param) -> Result<()> {
        let grad = storage::span(&weight.grad)?;
        if self.is_product() && self.channels == self.shape.c {
            let (rows, s) = (self.rows(), self.shape);
            return self.backend.gemm(&Gemm {
                m: s.o,
                n: s.c,
                k: rows,
                a: dy,
                a_transposed: true,
                b: x,
                b_transposed: false,
                c: grad,
                alpha: 1.0,
                beta: 0.0,
            });
        }
        let s = self.shape;
        if x.dtype == DType::F32 && self.channels == s.c {
            return self.conv(ConvPass::Weight, x, grad, dy, false);
        }
        let dims = [s.o, s.kernel, s.kernel, s.c];
        let (dtype, device) = (self.engine.dtype(), self.engine.device());
        let found = storage::reuse(&mut self.state.grad, &dims, dtype, device)?;
        let found = storage::span(&found)?;
        self.conv(ConvPass::Weight, x, found, dy, false)?;
        if self.channels == s.c {
            elementwise::cast(self.backend, found, grad)
        } else {
            elementwise::unpad_channels(self.backend, found, s.c, grad, self.channels)
        }
    }

    /// The weight as the products read it; `renewed` when it may have changed since it was last read.
    fn weight(&mut self, weight: &Param, renewed: bool) -> Result<Span> {
        let s = self.shape;
        if self.channels == s.c {
            return storage::span(weight.factor());
        }
        let dims = [s.o, s.kernel, s.kernel, s.c];
        let (dtype, device) = (self.engine.dtype(), self.engine.device());
        let wide = storage::reuse(&mut self.state.widened, &dims, dtype, device)?;
        let wide = storage::span(&wide)?;
        if renewed {
            let own = storage::span(&weight.value)?;
            elementwise::pad_channels(self.backend, own, self.channels, wide, s.c)?;
        }
        Ok(wide)
    }

    fn conv(&self, pass: ConvPass, x: Span, w: Span, y: Span, accumulate: bool) -> Result<()> {
        let deterministic = self.engine.options().deterministic;
        self.backend.conv(&ConvCall { pass, shape: self.shape, x, w, y, accumulate, deterministic })
    }

    /// Whether the layer is a plain product of rows and weights.
    fn is_product(&self) -> bool {
        let s = self.shape;
        s.kernel == 1 && s.stride == 1 && s.pad == 0
    }

    /// Pixels.
    fn rows(&self) -> usize {
        self.shape.n * self.shape.h * self.shape.w
    }
}
