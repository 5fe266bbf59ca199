//! Convolutions and linear layers on a device: 1 x 1 ones as matrix products, the rest by the
//! backend's convolution.

use candle_core::{DType, Result, Tensor, bail};

use super::kernels::{elementwise, fold};
use super::{Backend, ConvCall, ConvPass, Gemm, Span};
use crate::nn::cpu::conv::ConvShape;
use crate::nn::engine::Engine;
use crate::nn::{Param, Workspace, no_forward, storage};

/// What a layer keeps on the device between its passes. Images come with more channels than
/// the stem's weight has: it is then widened by zeros.
#[derive(Default)]
pub struct ConvState {
    /// The weight with the input's channels, where those are more than its own.
    widened: Option<Tensor>,
    /// The weight's gradient as the products give it, where that is not yet what is asked for.
    grad: Option<Tensor>,
    /// A stem's weight and images, folded ([`fold`]).
    folded: Option<Tensor>,
    images: Option<Tensor>,
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
    pub fn forward(&mut self, x: Span, weight: &Param, y: Span, ws: &mut Workspace) -> Result<()> {
        if let Some(fold) = self.fold() {
            let images = ws.output(&mut self.state.images, &[fold.n, fold.h, fold.w, fold.c])?;
            let (x_folded, w) =
                (storage::span(&images)?, self.slot(|state| &mut state.folded, fold)?);
            fold::images(self.backend, self.shape, x, x_folded)?;
            fold::weight(self.backend, fold.o, storage::span(&weight.value)?, w)?;
            self.conv(fold, ConvPass::Forward, x_folded, w, y, false)?;
            ws.release(images);
            return Ok(());
        }
        let w = self.weight(weight, true)?;
        if !self.is_product() {
            return self.conv(self.shape, ConvPass::Forward, x, w, y, false);
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
        // Folding has left the weight as it was before.
        let w = self.weight(weight, self.fold().is_some())?;
        if !self.is_product() {
            return self.conv(self.shape, ConvPass::Input, dx, w, dy, accumulate);
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
        if let Some(fold) = self.fold() {
            let Some(images) = &self.state.images else { return no_forward() };
            let (x, found) = (storage::span(images)?, self.slot(|state| &mut state.grad, fold)?);
            self.conv(fold, ConvPass::Weight, x, found, dy, false)?;
            return fold::weight_grad(self.backend, fold.o, found, grad);
        }
        let s = self.shape;
        if x.dtype == DType::F32 && self.channels == s.c {
            return self.conv(s, ConvPass::Weight, x, grad, dy, false);
        }
        let found = self.slot(|state| &mut state.grad, s)?;
        self.conv(s, ConvPass::Weight, x, found, dy, false)?;
        if self.channels == s.c {
            elementwise::cast(self.backend, found, grad)
        } else {
            elementwise::unpad_channels(self.backend, found, s.c, grad, self.channels)
        }
    }

    /// The weight as the products read it; `renewed` when it may have changed since it was last
    /// read.
    fn weight(&mut self, weight: &Param, renewed: bool) -> Result<Span> {
        let s = self.shape;
        if self.channels == s.c {
            return storage::span(weight.factor());
        }
        let wide = self.slot(|state| &mut state.widened, s)?;
        if renewed {
            let own = storage::span(&weight.value)?;
            elementwise::pad_channels(self.backend, own, self.channels, wide, s.c)?;
        }
        Ok(wide)
    }

    /// Memory of the layer's own for a weight of `s`, in the type of activations.
    fn slot(
        &mut self,
        slot: impl Fn(&mut ConvState) -> &mut Option<Tensor>,
        s: ConvShape,
    ) -> Result<Span> {
        let dims = [s.o, s.kernel, s.kernel, s.c];
        let (dtype, device) = (self.engine.dtype(), self.engine.device());
        storage::span(&storage::reuse(slot(self.state), &dims, dtype, device)?)
    }

    /// What is done in the layer's place where it is a stem's; where tensor cores do it.
    fn fold(&self) -> Option<ConvShape> {
        let cores = self.engine.dtype() == DType::BF16;
        if cores { fold::folded(self.shape, self.channels) } else { None }
    }

    /// The backend's convolution, of as many images at a time as it takes. What goes to a weight's
    /// gradient in bfloat16 is rounded once more with each part.
    fn conv(
        &self,
        s: ConvShape,
        pass: ConvPass,
        x: Span,
        w: Span,
        y: Span,
        accumulate: bool,
    ) -> Result<()> {
        let (input, output) = (s.input_len() / s.n, s.output_len() / s.n);
        let most = self.backend.most_elements() / input.max(output);
        if most == 0 {
            bail!("a convolution of {s:?}: a single image is more than the device's library takes");
        }
        let parts = s.n.div_ceil(most);
        let deterministic = self.engine.options().deterministic;
        for part in 0..parts {
            // As even as they come: two sizes at most, for each of which algorithms are looked for.
            let images = part * s.n / parts..(part + 1) * s.n / parts;
            let shape = ConvShape { n: images.len(), ..s };
            self.backend.conv(&ConvCall {
                pass,
                shape,
                x: x.part(images.start * input, shape.input_len()),
                w,
                y: y.part(images.start * output, shape.output_len()),
                // A weight's gradient is a sum over images.
                accumulate: accumulate || (pass == ConvPass::Weight && part > 0),
                deterministic,
            })?;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;

    use super::*;
    use crate::nn::cuda::emulate::Emulator;
    use crate::nn::cuda::profile::Profiler;
    use crate::nn::engine::emulated;
    use crate::nn::{Conv2d, Conv2dConfig, Precision, Workspace};

    const CPU: Device = Device::Cpu;

    fn noise(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
        let mut rng = bt_pipeline::rng::Rng::keyed(seed, 0, 0, 0);
        let len = shape.iter().product();
        let values: Vec<f32> = (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
        Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        storage::read(&storage::host(t).unwrap()).unwrap().to_vec()
    }

    /// Output and both gradients of a layer on `images` images.
    fn passes(config: Conv2dConfig, images: usize) -> Result<[Vec<f32>; 3]> {
        let mut conv = Conv2d::new("conv", config, &CPU)?;
        let mut ws = Workspace::new(&CPU)?;
        let dtype = ws.engine().dtype();
        let weight = noise(conv.weight.value.dims(), DType::F32, 1);
        conv.weight.set(&values(&weight))?;
        let channels = if config.input == 3 { ws.engine().image_channels() } else { config.input };
        let x = noise(&[images, 7, 5, channels], dtype, 2);
        let y = conv.forward(&x, &mut ws)?;
        let dy = noise(y.dims(), dtype, 3);
        conv.backward_weight(&dy)?;
        // Added to what is there, as behind a shortcut.
        let dx = noise(x.dims(), dtype, 4);
        conv.backward_input(&dy, &dx, true)?;
        Ok([values(&y), values(&dx), values(&conv.weight.grad)])
    }

    /// Output and weight gradient of a stem on images of three channels.
    fn stem(config: Conv2dConfig, [n, h, w]: [usize; 3]) -> Result<[Vec<f32>; 2]> {
        let mut conv = Conv2d::new("conv", config, &CPU)?;
        let mut ws = Workspace::new(&CPU)?;
        let (dtype, channels) = (ws.engine().dtype(), ws.engine().image_channels());
        // Both precisions see the same numbers.
        let rounded = |shape: &[usize], seed| noise(shape, DType::BF16, seed).to_dtype(dtype);
        conv.weight.set(&values(&noise(conv.weight.value.dims(), DType::BF16, 1)))?;
        let x = rounded(&[n, h, w, 3], 2)?.pad_with_zeros(3, 0, channels - 3)?;
        let y = conv.forward(&x, &mut ws)?;
        conv.backward_weight(&rounded(y.dims(), 3)?)?;
        Ok([values(&y), values(&conv.weight.grad)])
    }

    #[test]
    fn a_stem_is_the_same_on_folded_images() {
        let Some(device) = Emulator::open() else { return };
        let device = Arc::new(device);
        let config = Conv2dConfig { input: 3, output: 16, kernel: 7, stride: 2, padding: 3 };
        let profiler = Arc::new(Profiler::new(device.clone()));
        let run = |precision, size| {
            let found = emulated(profiler.clone(), precision, || stem(config, size));
            let folds = profiler.take().into_iter().any(|line| line.what == "fold_images");
            assert_eq!(folds, precision == Precision::Bf16 && size[1] % 2 == 0, "{size:?}");
            found
        };
        // Of even sides, which are folded, and not.
        for size in [[3, 10, 6], [5, 8, 8], [2, 9, 6]] {
            device.limit_convolutions(usize::MAX);
            let want = run(Precision::F32, size).unwrap();
            let whole = run(Precision::Bf16, size).unwrap();
            // Two folded images of 10 x 6 or one of 8 x 8.
            device.limit_convolutions(2 * 8 * 6 * 16);
            let parts = run(Precision::Bf16, size).unwrap();
            assert!(parts[0] == whole[0], "{size:?}");
            for (got, want) in whole.iter().chain(&parts).zip(want.iter().cycle()) {
                let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
                assert_eq!(got.len(), want.len());
                let off = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-2 * most, "{size:?}: {off} of {most}");
            }
        }
    }

    #[test]
    fn batches_beyond_the_librarys_limit_go_in_parts() {
        let Some(device) = Emulator::open() else { return };
        let device = Arc::new(device);
        for (input, output, kernel, stride) in [(3, 16, 3, 1), (16, 8, 3, 2), (8, 24, 1, 2)] {
            let config = Conv2dConfig { input, output, kernel, stride, padding: kernel / 2 };
            for precision in [Precision::F32, Precision::Bf16] {
                let pass = || emulated(device.clone(), precision, || passes(config, 7));
                device.limit_convolutions(usize::MAX);
                let whole = pass().unwrap();
                // Three images of the larger side: parts of 2, 2 and 3.
                let image = (7 * 5 * input.max(8))
                    .max(7usize.div_ceil(stride) * 5usize.div_ceil(stride) * output);
                device.limit_convolutions(3 * image + 1);
                let parts = pass().unwrap();
                assert!(parts[0] == whole[0] && parts[1] == whole[1], "{config:?} {precision:?}");
                let tolerance = if precision == Precision::F32 { 1e-5 } else { 2e-2 };
                let most = whole[2].iter().fold(0f32, |most, v| most.max(v.abs()));
                for (a, b) in parts[2].iter().zip(&whole[2]) {
                    assert!(
                        (a - b).abs() <= tolerance * most,
                        "{config:?} {precision:?}: {a}, {b}"
                    );
                }
                device.limit_convolutions(image - 1);
                let error = pass().unwrap_err().to_string();
                assert!(error.contains("a single image"), "{error}");
            }
        }
    }
}
