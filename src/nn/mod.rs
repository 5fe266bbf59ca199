//! Layers with explicit forward and backward passes.
//!
//! Activations are contiguous NHWC `f32` tensors; a convolution's weight is O,KH,KW,I. In training a
//! layer keeps its output (a buffer of its own, reused by the next step) and what its backward pass
//! needs; gradients and evaluation's activations come from a [`Workspace`] and go back to it. So the
//! steady state allocates nothing.
//!
//! A layer matches on the device: [`cpu`] holds the CPU's arithmetic, another backend would stand
//! beside it.

pub mod avg_pool;
pub mod batch_norm;
pub mod conv;
pub mod cpu;
pub mod linear;
pub mod max_pool;
pub mod param;
pub mod relu;
pub mod storage;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Result, Tensor, bail};

pub use avg_pool::AvgPool;
pub use batch_norm::BatchNorm;
pub use conv::{Conv2d, Conv2dConfig};
pub use linear::Linear;
pub use max_pool::MaxPool;
pub use param::{Param, ParamClass};
pub use relu::Relu;

/// Buffers kept for reuse: more than a pass has in flight, few enough that batches of many different
/// sizes do not pile up.
const KEPT: usize = 12;

/// What a pass through the network carries along: its mode and the buffers that it reuses.
pub struct Workspace {
    device: Device,
    /// Whether layers keep what a backward pass needs and BatchNorm uses the batch's statistics.
    pub training: bool,
    /// Equal, contiguous parts of the batch with BatchNorm statistics of their own, in order: two
    /// views that travel together are two passes to BatchNorm.
    pub groups: usize,
    /// Raised from elsewhere to give up the pass: the next layer that asks for memory gets an error.
    pub given_up: Arc<AtomicBool>,
    free: Vec<Tensor>,
}

impl Workspace {
    /// An empty workspace on `device`, in training mode with one group.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            training: true,
            groups: 1,
            given_up: Arc::default(),
            free: Vec::new(),
        }
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor of `shape` with unspecified content: one that was given back, or a new one.
    ///
    /// # Errors
    /// When the device cannot allocate, or the pass was given up.
    pub fn take(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.go_on()?;
        let len: usize = shape.iter().product();
        match self.free.iter().rposition(|t| t.elem_count() == len) {
            Some(i) => self.free.swap_remove(i).reshape(shape),
            None => storage::zeros(shape, &self.device),
        }
    }

    /// Gives a tensor back; nobody may use it any more.
    pub fn give(&mut self, tensor: Tensor) {
        if self.free.len() == KEPT {
            self.free.remove(0);
        }
        self.free.push(tensor);
    }

    /// An output for a layer: `slot`, its own, when training, else one to give back.
    fn output(&mut self, slot: &mut Option<Tensor>, shape: &[usize]) -> Result<Tensor> {
        self.go_on()?;
        if self.training { storage::reuse(slot, shape, &self.device) } else { self.take(shape) }
    }

    fn go_on(&self) -> Result<()> {
        if self.given_up.load(Ordering::Relaxed) {
            bail!("the pass was given up");
        }
        Ok(())
    }

    /// Gives back a layer's output in evaluation; in training it stays the layer's.
    pub fn release(&mut self, output: Tensor) {
        if !self.training {
            self.give(output);
        }
    }

    /// Frees the buffers that were given back.
    pub fn clear(&mut self) {
        self.free.clear();
    }
}

/// What a layer answers where a backward pass comes without a forward pass in training mode.
fn no_forward<T>() -> Result<T> {
    bail!("backward without a forward pass in training mode before it")
}
