//! The projector as the authors write it: linear layers without bias, BatchNorm and ReLU between;
//! and what its ablations and other methods' projectors and predictors change about that.

use candle_core::{Device, Result, Tensor};

use crate::nn::{BatchNorm, Linear, Param, Relu, Workspace, storage};

/// Linear, BN, ReLU, .., Linear: features `[N, F]` to embeddings `[N, D]`. Without any widths it is
/// the identity.
pub struct Projector {
    hidden: Vec<(Linear, Between)>,
    last: Option<Linear>,
    output_norm: Option<BatchNorm>,
    /// The embeddings' gradient in the type of activations, where that is another.
    grad: Option<Tensor>,
}

/// What follows a hidden linear layer.
#[allow(clippy::large_enum_variant, reason = "a network has two or three of them")]
enum Between {
    /// BatchNorm with ReLU.
    Norm(BatchNorm),
    /// ReLU alone.
    Relu(Relu),
}

/// The layers of a [`Projector`].
#[derive(Clone, Copy, Debug)]
pub struct ProjectorLayers<'a> {
    /// Input dimension.
    pub input: usize,
    /// Output dimension of each linear layer.
    pub widths: &'a [usize],
    /// BatchNorm between the layers; without it they have biases.
    pub batch_norm: bool,
    /// BatchNorm behind the last layer, whose scale and shift stay 1 and 0 (`affine=False`).
    pub output_norm: bool,
    /// A bias in the last layer.
    pub output_bias: bool,
}

impl Projector {
    /// A projector whose tensors are named as in PyTorch's `Sequential`: `{name}.0.weight`,
    /// `{name}.1.weight`, ...
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(name: &str, layers: ProjectorLayers<'_>, device: &Device) -> Result<Self> {
        let Some((&last, widths)) = layers.widths.split_last() else {
            return Ok(Self { hidden: Vec::new(), last: None, output_norm: None, grad: None });
        };
        let mut from = layers.input;
        let mut index = 0..;
        let mut named = || format!("{name}.{}", index.next().unwrap_or_default());
        let mut hidden = Vec::new();
        for &to in widths {
            let linear = Linear::new(&named(), from, to, !layers.batch_norm, device)?;
            let between = match layers.batch_norm {
                true => Between::Norm(BatchNorm::new(&named(), to, true, device)?),
                false => Between::Relu(Relu::default()),
            };
            named(); // ReLU has a number of its own in PyTorch.
            hidden.push((linear, between));
            from = to;
        }
        let mut last_linear = Linear::new(&named(), from, last, layers.output_bias, device)?;
        if !layers.output_norm {
            // Embeddings are f32: the objectives' sums start from them.
            last_linear = last_linear.with_full_output();
        }
        let output_norm = layers
            .output_norm
            .then(|| BatchNorm::new(&named(), last, false, device))
            .transpose()?;
        Ok(Self { hidden, last: Some(last_linear), output_norm, grad: None })
    }

    /// Embeddings of features.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&mut self, features: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let mut x = features.clone();
        for (i, (linear, between)) in self.hidden.iter_mut().enumerate() {
            let y = linear.forward(&x, ws)?;
            let out = match between {
                Between::Norm(norm) => norm.forward(&y, None, ws)?,
                Between::Relu(relu) => relu.forward(&y, ws)?,
            };
            ws.release(y);
            // The features are the caller's.
            let before = std::mem::replace(&mut x, out);
            if i > 0 {
                ws.release(before);
            }
        }
        let Some(last) = &mut self.last else { return Ok(x) };
        let y = last.forward(&x, ws)?;
        if !self.hidden.is_empty() {
            ws.release(x);
        }
        let Some(norm) = &mut self.output_norm else { return Ok(y) };
        let out = norm.forward(&y, None, ws)?;
        ws.release(y);
        Ok(out)
    }

    /// Sets every gradient from the embeddings' and returns the features', to be given back.
    ///
    /// # Errors
    /// Without a forward pass in training mode before, or when shapes do not fit.
    pub fn backward(&mut self, grad: &Tensor, ws: &mut Workspace) -> Result<Tensor> {
        let n = grad.dims()[0];
        let Some(last) = &mut self.last else {
            let dx = ws.take(grad.dims())?;
            let grad = ws.engine().activations(grad, &mut self.grad)?;
            storage::copy(&grad, &dx)?;
            return Ok(dx);
        };
        let mut d = ws.take(&[n, last.weight().value.dims()[1]])?;
        match &mut self.output_norm {
            None => last.backward(grad, Some(&d), false)?,
            Some(norm) => {
                let before = ws.take(grad.dims())?;
                let grad = ws.engine().activations(grad, &mut self.grad)?;
                norm.backward(&grad, Some(&before))?;
                last.backward(&before, Some(&d), false)?;
                ws.put_back(before);
            }
        }
        for (linear, between) in self.hidden.iter_mut().rev() {
            match between {
                Between::Norm(norm) => norm.backward(&d, None)?,
                Between::Relu(relu) => relu.backward(&d)?,
            }
            let dx = ws.take(&[n, linear.weight().value.dims()[1]])?;
            linear.backward(&d, Some(&dx), false)?;
            ws.put_back(std::mem::replace(&mut d, dx));
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
        for (linear, between) in &mut self.hidden {
            all.extend(linear.params());
            if let Between::Norm(norm) = between {
                all.extend([&mut norm.weight, &mut norm.bias]);
            }
        }
        all.extend(self.last.iter_mut().flat_map(Linear::params));
        // The output's norm has none: its scale and shift are nobody's to move.
        all
    }

    /// BatchNorm layers in PyTorch's order.
    pub fn norms(&self) -> Vec<&BatchNorm> {
        let between = self.hidden.iter().filter_map(|(_, between)| match between {
            Between::Norm(norm) => Some(norm),
            Between::Relu(_) => None,
        });
        between.chain(&self.output_norm).collect()
    }

    /// BatchNorm layers in PyTorch's order.
    pub fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        let between = self.hidden.iter_mut().filter_map(|(_, between)| match between {
            Between::Norm(norm) => Some(norm),
            Between::Relu(_) => None,
        });
        between.chain(&mut self.output_norm).collect()
    }
}
