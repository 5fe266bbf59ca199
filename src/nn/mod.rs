//! Layers with explicit forward and backward passes.
//!
//! Activations are contiguous NHWC `f32` tensors; a convolution's weight is O,KH,KW,I. In training
//! a layer keeps its output (a buffer of its own, reused by the next step) and what its backward
//! pass needs; activations of passes that no backward pass follows ([`Mode`]), gradients and
//! outputs that no backward pass reads come from a [`Workspace`] and go back to it, and on a device
//! most gradients lie where a dead activation was ([`Workspace::take_over`]). Scratch is a layer's
//! or a thread's and kept. So the steady state of training allocates nothing but handles of
//! tensors.
//!
//! On a CUDA device activations may be `bf16` ([`Precision`]); parameters and their gradients are
//! `f32` everywhere. A layer asks its [`Engine`] who computes: [`cpu`] holds the CPU's arithmetic,
//! [`cuda`] that of devices that run kernels.

pub mod avg_pool;
pub mod batch_norm;
pub mod conv;
pub mod cpu;
pub mod cuda;
pub mod engine;
pub mod linear;
pub mod max_pool;
pub mod param;
pub mod relu;
pub mod storage;
pub mod workspace;

#[cfg(test)]
mod tests;

use candle_core::{Result, bail};

pub use avg_pool::AvgPool;
pub use batch_norm::BatchNorm;
pub use conv::{Conv2d, Conv2dConfig};
pub use engine::{Engine, EngineOptions, Precision};
pub use linear::Linear;
pub use max_pool::MaxPool;
pub use param::{Param, ParamClass};
pub use relu::Relu;
pub use workspace::{Mode, Workspace};

/// What a layer answers where a backward pass comes without a forward pass in training mode.
fn no_forward<T>() -> Result<T> {
    bail!("backward without a forward pass in training mode before it")
}
