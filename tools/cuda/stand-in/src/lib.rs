//! CUDA's driver, cuBLAS, cuDNN and cuRAND as far as `bt-stream` calls them, on the CPU.
//!
//! Put in the place of NVIDIA's libraries (`tools/cuda/stand_in.sh`), it lets the very binary that
//! is meant for a GPU run where there is none: the calls of `src/nn/cuda/device`, candle's and
//! cudarc's around them, with the kernels and products of `bt-stream`'s emulation behind. It is
//! stricter than a GPU:
//!
//! - Work is done as late as the order of streams and events allows, or as early
//!   ([`device::eager`]), so that a missing wait shows.
//! - A convolution's tensors have fewer than 2^31 elements.
//! - A product into bf16 is an error where cuBLAS may add it up in bf16.
//! - Addresses must lie in memory that is allocated when the work is done; fresh memory holds NaN,
//!   freed memory too, and no byte behind an allocation may change.
//! - Pinned memory is read and written when a copy is done, other memory when it is asked for.
//! - A context whose waits keep a core busy is not to be had.
//! - While a stream is recorded, whatever would wait, allocate or read the host's memory is an
//!   error.
//! - Of cuDNN's algorithms one is not to be had, the fast ones are not deterministic and scribble
//!   over their workspace, the rest differ in the last bit and are the faster by turns, and a
//!   search scribbles over the result.
//!
//! What a call means is written here from the same documentation as the code that makes it: a
//! misreading would be in both. A GPU alone can tell.

use std::ffi::{CStr, c_char};

mod blas;
mod device;
mod dnn;
mod driver;
mod rand;

/// A pointer that the caller of a C function gives. The library's documentation says for what it
/// must be valid; whoever calls wrongly is not told.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Given<T>(*mut T);

impl<T> Given<T> {
    fn address(self) -> u64 {
        self.0 as u64
    }

    /// As another type, which it is without being said so.
    fn cast<U>(self) -> Given<U> {
        Given(self.0.cast())
    }

    /// Element `nth`.
    fn read(self, nth: usize) -> T
    where
        T: Copy,
    {
        // SAFETY: valid for as much as the function reads, says its caller.
        unsafe { self.0.add(nth).read_unaligned() }
    }

    /// Writes element `nth`.
    fn write(self, nth: usize, value: T) {
        // SAFETY: valid for as much as the function writes, says its caller.
        unsafe { self.0.add(nth).write_unaligned(value) }
    }

    /// The first `len` elements, for now.
    fn slice<'a>(self, len: usize) -> &'a mut [T] {
        // SAFETY: valid, and used by nobody else meanwhile, says the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0, len) }
    }
}

/// A string that a C function is given.
fn text(at: Given<c_char>) -> String {
    // SAFETY: it ends with a zero, says the caller.
    unsafe { CStr::from_ptr(at.0) }.to_string_lossy().into_owned()
}

/// An error on standard error, for whoever looks for the reason of a status.
fn say(message: &str) {
    eprintln!("stand-in: {message}");
}
