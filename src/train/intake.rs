//! From the loader's batches to the network's images: the one place where the pipeline's memory
//! becomes candle's.
//!
//! For a CUDA device the loader writes 8-bit pixels into page-locked buffers. They are uploaded beside
//! the step before, into one of two buffers in turn, and normalised on the device.

use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Result, ensure};
use bt_pipeline::augment::{DType as PixelType, ViewConfig};
use bt_pipeline::memory::BatchMemory;
use bt_pipeline::{Batch, Loader, LoaderConfig};
use candle_core::{DType, Device, Tensor};

use crate::nn::cuda::kernels::elementwise;
use crate::nn::cuda::{Backend, Upload};
use crate::nn::{Engine, storage};

/// A batch's views as one tensor on `device`, `[views * size, H, W, channels]`, from a loader that
/// normalises them itself (`f32`).
///
/// # Errors
/// When the device cannot take it.
///
/// # Panics
/// When the batch holds another element type.
pub fn images_of(batch: &Batch, device: &Device) -> candle_core::Result<Tensor> {
    let spec = batch.spec();
    let engine = Engine::of(device)?;
    let (images, height, width) = (spec.views * batch.size, spec.height, spec.width);
    let shape = (images, height, width, 3);
    images_to(&Tensor::from_slice(batch.as_f32(), shape, &Device::Cpu)?, &engine)
}

/// Normalised images of the CPU, `[N, H, W, 3]` in `f32`, as `engine` takes them.
///
/// # Errors
/// When the device cannot take them.
pub fn images_to(images: &Tensor, engine: &Engine) -> candle_core::Result<Tensor> {
    let Some(backend) = engine.backend() else { return Ok(images.clone()) };
    let (n, height, width, _) = images.dims4()?;
    let there = images.to_device(engine.device())?;
    let channels = engine.image_channels();
    let dims = [n, height, width, channels];
    let wide = storage::zeros_of(&dims, engine.dtype(), engine.device())?;
    let (from, to) = (storage::span(&there)?, storage::span(&wide)?);
    elementwise::pad_channels(backend, from, 3, to, channels)?;
    // `there` is freed in the order of the device's work.
    Ok(wide)
}

/// How training batches reach the device.
pub struct Intake {
    engine: Engine,
    /// What normalises each view.
    views: Vec<([f32; 3], [f32; 3])>,
    /// Uploaded pixels, in turn.
    staging: [Option<Tensor>; 2],
    turn: usize,
    images: Option<Tensor>,
}

/// A batch on its way to the device.
pub struct Arriving {
    upload: Option<Upload>,
    /// Which of the staging buffers.
    place: usize,
}

impl Intake {
    /// For batches of `views` to the engine of `device`.
    ///
    /// # Errors
    /// A device without an engine.
    pub fn new(device: &Device, views: &[ViewConfig]) -> Result<Self> {
        let normal = |view: &ViewConfig| (view.normalize.mean, view.normalize.std);
        Ok(Self {
            engine: Engine::of(device)?,
            views: views.iter().map(normal).collect(),
            staging: [None, None],
            turn: 0,
            images: None,
        })
    }

    /// A loader's configuration, changed to what this intake takes.
    pub fn adapt(&self, config: LoaderConfig) -> LoaderConfig {
        match self.engine.backend() {
            Some(_) => LoaderConfig { dtype: PixelType::U8, ..config },
            None => config,
        }
    }

    /// A loader that writes where the device copies from fastest.
    pub fn with_memory(&self, loader: Loader) -> Loader {
        match self.engine.shared_backend() {
            Some(backend) => loader.in_memory(Arc::new(Pinned(backend))),
            None => loader,
        }
    }

    /// Begins to bring `batch` to the device, beside what it does; `batch` must stay until what
    /// [`Intake::images`] gave has been used and waited for.
    ///
    /// # Errors
    /// What the device says.
    pub fn begin(&mut self, batch: &Batch) -> Result<Arriving> {
        let place = self.turn;
        let Some(backend) = self.engine.backend() else {
            return Ok(Arriving { upload: None, place });
        };
        ensure!(batch.spec().dtype == PixelType::U8, "a device takes 8-bit pixels");
        let (bytes, device) = (batch.as_bytes(), self.engine.device());
        let to = storage::reuse(&mut self.staging[place], &[bytes.len()], DType::U8, device)?;
        let upload = Some(backend.upload(bytes, storage::span(&to)?)?);
        self.turn = (self.turn + 1) % self.staging.len();
        Ok(Arriving { upload, place })
    }

    /// The batch's images, `[views * size, H, W, channels]`, in a buffer that the next call overwrites.
    ///
    /// # Errors
    /// What the device says.
    pub fn images(&mut self, batch: &Batch, arriving: &Arriving) -> Result<Tensor> {
        let (Some(backend), Some(upload)) = (self.engine.backend(), &arriving.upload) else {
            return Ok(images_of(batch, self.engine.device())?);
        };
        backend.arrived(upload)?;
        let (spec, channels) = (batch.spec(), self.engine.image_channels());
        let dims = [spec.views * batch.size, spec.height, spec.width, channels];
        let (dtype, device) = (self.engine.dtype(), self.engine.device());
        let images = storage::reuse(&mut self.images, &dims, dtype, device)?;
        let Some(pixels) = &self.staging[arriving.place] else {
            return Ok(images);
        };
        let (pixels, out) = (storage::span(pixels)?, storage::span(&images)?);
        let each = batch.size * spec.height * spec.width;
        for (view, (mean, std)) in self.views.iter().enumerate() {
            let from = pixels.part(view * each * 3, each * 3);
            let to = out.part(view * each * channels, each * channels);
            elementwise::normalize_images(backend, from, to, channels, *mean, *std)?;
        }
        Ok(images)
    }
}

/// Page-locked memory for the loader's buffers.
struct Pinned(Arc<dyn Backend>);

impl BatchMemory for Pinned {
    fn allocate(&self, bytes: usize) -> Option<NonNull<u8>> {
        self.0.allocate_host(bytes).and_then(NonNull::new)
    }

    unsafe fn free(&self, at: NonNull<u8>, _: usize) {
        // SAFETY: it came from `allocate`, says the caller.
        unsafe { self.0.free_host(at.as_ptr()) }
    }
}
