//! The CUDA backend's arithmetic: memory spans in, memory spans out; knows neither tensors nor
//! layers.
//!
//! What a device must be able to do stands in [`Backend`]: launch one of the kernels of
//! `kernels/*.cu`, multiply matrices, convolve, copy. Everything above that - which kernel, how
//! many blocks, what is kept from forward to backward - is plain Rust that does not know whether
//! the backend is a GPU (`device`, feature `cuda`, over cuDNN and cuBLAS) or the emulation that the
//! tests use where there is none (`emulate`, which compiles the same kernels for the CPU).

pub mod backend;
pub mod conv;
#[cfg(feature = "cuda")]
pub(crate) mod device;
#[cfg(any(test, feature = "emulation"))]
pub mod emulate;
pub mod kernels;
pub mod profile;

use std::sync::Arc;

use candle_core::{Device, Result};

pub use backend::{Arg, Backend, ConvCall, ConvPass, Gemm, Launch, Mark, Replay, Span, Upload};
pub use profile::{ProfileLine, Profiler};

/// Opens CUDA device `number`: its candle device, and what runs kernels on it.
///
/// # Errors
/// No driver, no such device, a library or version that does not fit.
#[cfg(feature = "cuda")]
pub fn open(number: usize) -> Result<(Device, Arc<dyn Backend>)> {
    let (device, backend) = device::open(number)?;
    Ok((device, Arc::new(backend)))
}

/// Whether there is a driver.
#[cfg(feature = "cuda")]
pub fn present() -> bool {
    device::driver_present()
}

/// The numbers of the CUDA devices that the kernels run on; none where there is no driver, or one
/// that does not start.
#[cfg(feature = "cuda")]
pub fn usable() -> Vec<usize> {
    device::usable()
}

/// As with the feature `cuda`: always an error.
///
/// # Errors
/// Always: this build cannot.
#[cfg(not(feature = "cuda"))]
pub fn open(number: usize) -> Result<(Device, Arc<dyn Backend>)> {
    candle_core::bail!(
        "this build has no CUDA: device {number} wants `cargo build --release --features cuda`"
    )
}
