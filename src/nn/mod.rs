//! Layers with explicit forward and backward passes.
//!
//! Activations are contiguous NHWC `f32` tensors; a convolution's weight is O,KH,KW,I. A layer owns
//! its parameters and whatever its backward pass needs, both preallocated and reused across steps.

pub mod param;
pub mod storage;

pub use param::{Param, ParamClass};
