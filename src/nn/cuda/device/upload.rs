//! Uploads beside the computation: pinned host memory, a stream of its own, events in both
//! directions.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};
use candle_core::{Error, Result, bail};

use crate::nn::cuda::{Mark, Span, Upload};

/// The second stream.
pub struct Uploads {
    stream: Arc<CudaStream>,
}

impl Uploads {
    pub fn new(compute: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self { stream: compute.context().new_stream().map_err(Error::wrap)? })
    }

    /// Copies `from` to `to` once the compute stream has come to `after`.
    ///
    /// # Safety
    /// As [`Backend::upload`](crate::nn::cuda::Backend::upload).
    pub unsafe fn start(&self, from: &[u8], to: Span, after: &Mark) -> Result<Upload> {
        if from.len() != to.bytes() {
            bail!("an upload of {} bytes to {}", from.len(), to.bytes());
        }
        if let Some(token) = after.token() {
            let Some(event) = token.downcast_ref::<CudaEvent>() else {
                bail!("the mark is another device's")
            };
            self.stream.wait(event).map_err(Error::wrap)?;
        }
        // SAFETY: `to` is memory of this device; the caller keeps both sides as they are until
        // the upload was dropped, which waits for its event (`Underway`).
        unsafe { result::memcpy_htod_async(to.addr, from, self.stream.cu_stream()) }
            .map_err(Error::wrap)?;
        let event = self.stream.record_event(None).map_err(Error::wrap)?;
        Ok(Upload::new(Box::new(Underway(event))))
    }

    /// Has the compute stream wait for the upload.
    pub fn finish(&self, compute: &CudaStream, upload: &Upload) -> Result<()> {
        match upload.token().downcast_ref::<Underway>() {
            Some(Underway(event)) => compute.wait(event).map_err(Error::wrap),
            None => bail!("the upload is another device's"),
        }
    }
}

/// The event behind an upload. Whoever drops it may then free both sides, so it waits, which takes
/// no time where the step that used the upload has been waited for.
struct Underway(CudaEvent);

impl Drop for Underway {
    fn drop(&mut self) {
        let _ = self.0.synchronize();
    }
}

/// Page-locked memory, zeroed; `None` when the driver has none.
pub fn pinned(context: &Arc<CudaContext>, bytes: usize) -> Option<*mut u8> {
    context.bind_to_thread().ok()?;
    // SAFETY: a plain allocation of whole pages, nobody else's; it is written before it is used.
    unsafe {
        let at = result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE).ok()?;
        std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
        Some(at.cast())
    }
}

/// Gives page-locked memory back.
///
/// # Safety
/// `at` came from [`pinned`] and is not used again; no upload from it is under way.
pub unsafe fn free_pinned(context: &Arc<CudaContext>, at: *mut u8) {
    if context.bind_to_thread().is_ok() {
        // SAFETY: as above.
        let _ = unsafe { result::free_host(at.cast()) };
    }
}
