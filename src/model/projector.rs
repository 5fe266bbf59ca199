//! The projector as the authors write it: linear layers without bias, BatchNorm and ReLU between.

use candle_core::{Device, Result, Tensor};

use crate::nn::{BatchNorm, Linear, Param, Workspace};

/// Linear, BN, ReLU, .., Linear: features `[N, F]` to embeddings `[N, D]`. Without any widths it is
/// the identity.
pub struct Projector {
    hidden: Vec<(Linear, BatchNorm)>,
    last: Option<Linear>,
}

impl Projector {
    /// A projector whose tensors are named `{name}.0.weight`, `{name}.1.weight`, ...
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(name: &str, input: usize, widths: &[usize], device: &Device) -> Result<Self> {
        let Some((&last, hidden)) = widths.split_last() else {
            return Ok(Self { hidden: Vec::new(), last: None });
        };
        let mut from = input;
        let mut layers = Vec::new();
        for (i, &to) in hidden.iter().enumerate() {
            let linear = Linear::new(&format!("{name}.{}", 3 * i), from, to, false, device)?;
            let norm = BatchNorm::new(&format!("{name}.{}", 3 * i + 1), to, true, device)?;
            layers.push((linear, norm));
            from = to;
        }
        let last = Linear::new(&format!("{name}.{}", 3 * hidden.len()), from, last, false, device)?;
        Ok(Self { hidden: layers, last: Some(last) })
    }

    /// Embeddings of features.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&mut self, features: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let mut x = features.clone();
        for (linear, norm) in &mut self.hidden {
            let y = linear.forward(&x, ws)?;
            x = norm.forward(&y, None, ws)?;
            ws.release(y);
        }
        match &mut self.last {
            Some(last) => last.forward(&x, ws),
            None => Ok(x),
        }
    }

    /// Sets every gradient from the embeddings' and returns the features', to be given back.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, grad: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let n = grad.dims()[0];
        let Some(last) = &mut self.last else {
            let dx = ws.take(grad.dims())?;
            let from = crate::nn::storage::read(grad)?;
            crate::nn::storage::with_mut(&dx, |dx| dx.copy_from_slice(&from))?;
            return Ok(dx);
        };
        let mut d = ws.take(&[n, last.weight().value.dims()[1]])?;
        last.backward(grad, Some(&d), false)?;
        for (linear, norm) in self.hidden.iter_mut().rev() {
            norm.backward(&d, None)?;
            let dx = ws.take(&[n, linear.weight().value.dims()[1]])?;
            linear.backward(&d, Some(&dx), false)?;
            ws.give(std::mem::replace(&mut d, dx));
        }
        Ok(d)
    }

    /// Multiply-adds of the last pass.
    pub fn multiply_adds(&self) -> u64 {
        let hidden = self.hidden.iter().map(|(linear, _)| linear);
        hidden.chain(&self.last).map(Linear::multiply_adds).sum()
    }

    /// Parameters in PyTorch's order.
    pub fn params(&mut self) -> Vec<&mut Param> {
        let mut all = Vec::new();
        for (linear, norm) in &mut self.hidden {
            all.extend(linear.params());
            all.extend([&mut norm.weight, &mut norm.bias]);
        }
        all.extend(self.last.iter_mut().flat_map(Linear::params));
        all
    }

    /// BatchNorm layers in PyTorch's order.
    pub fn norms(&self) -> Vec<&BatchNorm> {
        self.hidden.iter().map(|(_, norm)| norm).collect()
    }

    /// BatchNorm layers in PyTorch's order.
    pub fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        self.hidden.iter_mut().map(|(_, norm)| norm).collect()
    }
}
