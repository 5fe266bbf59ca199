//! A trainable parameter: its value and the gradient that the backward pass writes.

use candle_core::{DType, Device, Result, Tensor};

use super::cuda::kernels::elementwise;
use super::engine::Engine;
use super::storage;

/// How an optimizer treats a parameter. The authors' LARS neither decays nor adapts 1-D parameters
/// (biases, BatchNorm's scale and shift) and gives them their own learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamClass {
    /// Two dimensions or more: the weight of a convolution or linear layer.
    Weight,
    /// One dimension: a bias, or BatchNorm's scale or shift.
    Vector,
}

/// A parameter. Both tensors keep their storage for the life of the network: layers and optimizers
/// write into them in place.
#[derive(Clone, Debug)]
pub struct Param {
    /// torchvision's name, with `backbone.` or `projector.` in front.
    pub name: String,
    /// The value; a convolution's weight is O,KH,KW,I.
    pub value: Tensor,
    /// The gradient of the loss, same shape as `value`; overwritten by each backward pass.
    pub grad: Tensor,
    /// The value in bfloat16, where the engine computes in it; whoever changes `value` renews it.
    pub half: Option<Tensor>,
}

impl Param {
    /// A zeroed parameter of `shape` with a zero gradient.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn zeros(name: impl Into<String>, shape: &[usize], device: &Device) -> Result<Self> {
        let (value, grad) = (storage::zeros(shape, device)?, storage::zeros(shape, device)?);
        // Vectors stay what they are: biases, and BatchNorm's scale and shift.
        let halved = shape.len() > 1 && Engine::of(device)?.dtype() == DType::BF16;
        let half = halved.then(|| storage::zeros_of(shape, DType::BF16, device)).transpose()?;
        Ok(Self { name: name.into(), value, grad, half })
    }

    /// Weight or vector, by the number of dimensions.
    pub fn class(&self) -> ParamClass {
        if self.value.rank() > 1 { ParamClass::Weight } else { ParamClass::Vector }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.value.elem_count()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs `f(value, grad)` on the elements of a CPU parameter: the optimizer's way in.
    ///
    /// # Errors
    /// When the parameter is not on the CPU.
    pub fn update<R>(&mut self, f: impl FnOnce(&mut [f32], &[f32]) -> R) -> Result<R> {
        let grad = storage::read(&self.grad)?;
        storage::with_mut(&self.value, |value| f(value, &grad))
    }

    /// Overwrites the value in place with `values`, in `value`'s element order.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn set(&mut self, values: &[f32]) -> Result<()> {
        storage::assign(&self.value, values)?;
        self.renew_half()
    }

    /// Makes `half` the value again, after the value has changed.
    ///
    /// # Errors
    /// What the device says.
    pub fn renew_half(&self) -> Result<()> {
        match (&self.half, Engine::of(self.value.device())?.backend()) {
            (Some(half), Some(backend)) => {
                elementwise::cast(backend, storage::span(&self.value)?, storage::span(half)?)
            }
            _ => Ok(()),
        }
    }

    /// What products read: `half`, or the value.
    pub fn factor(&self) -> &Tensor {
        self.half.as_ref().unwrap_or(&self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_writes_the_value_in_place_and_reads_the_gradient() -> Result<()> {
        let mut p = Param::zeros("projector.0.weight", &[2, 2], &Device::Cpu)?;
        let alias = p.value.clone();
        storage::with_mut(&p.grad, |g| g.copy_from_slice(&[1., 2., 3., 4.]))?;
        p.update(|v, g| v.iter_mut().zip(g).for_each(|(v, g)| *v -= 0.5 * g))?;
        assert_eq!(alias.to_vec2::<f32>()?, [[-0.5, -1.0], [-1.5, -2.0]]);
        Ok(())
    }

    #[test]
    fn class_follows_the_number_of_dimensions() -> Result<()> {
        assert_eq!(Param::zeros("a", &[3], &Device::Cpu)?.class(), ParamClass::Vector);
        assert_eq!(Param::zeros("a", &[3, 1, 1, 2], &Device::Cpu)?.class(), ParamClass::Weight);
        Ok(())
    }
}
