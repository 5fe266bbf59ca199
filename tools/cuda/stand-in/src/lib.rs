//! CUDA's driver, cuBLAS, cuDNN and cuRAND as far as `bt-stream` calls them, on the CPU.
//!
//! Put in the place of NVIDIA's libraries (`tools/cuda/stand_in.sh`), it lets the very binary that is meant
//! for a GPU run where there is none: the calls of `src/nn/cuda/device`, candle's and cudarc's around
//! them, with the kernels and products of `bt-stream`'s emulation behind. It is stricter than a GPU:
//!
//! - Work is done as late as the order of streams and events allows, or as early ([`device::eager`]), so that a
//!   missing wait shows.
//! - Addresses must lie in memory that is allocated when the work is done; fresh memory holds NaN, freed
//!   memory too, and no byte behind an allocation may change.
//! - Pinned memory is read and written when a copy is done, other memory when it is asked for.
//! - While a stream is recorded, whatever would wait, allocate or read the host's memory is an error.
//! - Of cuDNN's algorithms the first is not to be had, the second is not deterministic and scribbles over
//!   its workspace, and a search scribbles over the result.
//!
//! What a call means is written here from the same documentation as the code that makes it: a misreading
//! would be in both. A GPU alone can tell.

mod blas;
mod device;
mod dnn;
mod driver;
mod rand;

/// An error on standard error, for whoever looks for the reason of a status.
fn say(message: &str) {
    eprintln!("stand-in: {message}");
}
