//! From the loader's batches to the network's images: the one place where the pipeline's memory
//! becomes candle's.
//!
//! For a CUDA device the loader writes 8-bit pixels into page-locked buffers. They are uploaded
//! beside the step before, into one of two buffers in turn, and normalised on the device. An upload
//! waits for what last read its buffer, the normalisation of two batches before, and for nothing of
//! the step. With `augment.device = "cuda"` the loader stops after the flip, and what it drew comes
//! with the pixels.

use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bt_pipeline::augment::{DType as PixelType, ViewConfig};
use bt_pipeline::memory::BatchMemory;
use bt_pipeline::{Batch, Loader, LoaderConfig};
use candle_core::{DType, Device, Tensor};

use crate::config::{AugmentDevice, Misconfigured};
use crate::nn::cuda::kernels::augment::{self, ViewRecords, Views};
use crate::nn::cuda::kernels::elementwise;
use crate::nn::cuda::{Backend, Mark, Upload};
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
    let (images, height, width) = (spec.views * batch.size(), spec.height, spec.width);
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
    /// Whether the device finishes the views.
    finishes: bool,
    /// Uploaded pixels, in turn.
    staging: [Staging; 2],
    turn: usize,
    scratch: Option<Tensor>,
    images: Option<Tensor>,
}

/// Where pixels arrive, and what is to be done to them.
#[derive(Default)]
struct Staging {
    pixels: Option<Tensor>,
    records: Option<Tensor>,
    /// Behind what last read or made them.
    free: Mark,
}

/// An upload, which is dropped before the memory that it writes to.
struct Sent {
    upload: Upload,
    _to: Tensor,
}

/// A batch on its way to the device.
pub struct Arriving {
    // Uploads come before what they read: they are dropped first, and that waits for them.
    pixels: Option<Sent>,
    /// What the device is to do to the views.
    records: Option<(Sent, ViewRecords)>,
    /// Which of the staging buffers.
    place: usize,
    batch: Batch,
}

impl Arriving {
    /// The batch.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

impl Intake {
    /// For batches of `views`, finished by `finisher`, to the engine of `device`.
    ///
    /// # Errors
    /// A device without an engine; the CPU, where a CUDA device is to finish the views.
    pub fn new(device: &Device, views: &[ViewConfig], finisher: AugmentDevice) -> Result<Self> {
        let normal = |view: &ViewConfig| (view.normalize.mean, view.normalize.std);
        let engine = Engine::of(device)?;
        let finishes = finisher == AugmentDevice::Cuda;
        if finishes && engine.backend().is_none() {
            let text = "augment.device = \"cuda\" wants a CUDA device in train.device";
            bail!(Misconfigured(text.into()));
        }
        Ok(Self {
            engine,
            views: views.iter().map(normal).collect(),
            finishes,
            staging: Default::default(),
            turn: 0,
            scratch: None,
            images: None,
        })
    }

    /// A loader's configuration, changed to what this intake takes.
    pub fn adapt(&self, config: LoaderConfig) -> LoaderConfig {
        match self.engine.backend() {
            Some(_) if self.finishes => config.unfinished(),
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

    /// Begins to bring `batch` to the device, beside what it does.
    ///
    /// # Errors
    /// What the device says.
    pub fn begin(&mut self, batch: Batch) -> Result<Arriving> {
        let place = self.turn;
        let Some(backend) = self.engine.backend() else {
            return Ok(Arriving { pixels: None, records: None, place, batch });
        };
        ensure!(batch.spec().dtype == PixelType::U8, "a device takes 8-bit pixels");
        let left = batch.unfinished.len();
        let due = if self.finishes { batch.spec().views * batch.size() } else { 0 };
        ensure!(left == due, "{left} views are to be finished, not {due}");
        let device = self.engine.device();
        let Staging { pixels, records, free } = &mut self.staging[place];
        let mut send = |bytes: &[u8], slot: &mut Option<Tensor>, dtype: DType| -> Result<Sent> {
            let len = bytes.len() / dtype.size_in_bytes();
            let to = match slot {
                Some(known) if known.elem_count() == len => known.clone(),
                _ => {
                    let fresh = slot.insert(storage::zeros_of(&[len], dtype, device)?);
                    *free = backend.mark()?;
                    fresh.clone()
                }
            };
            // SAFETY: who calls this keeps batch and records until `Sent` was dropped (`Arriving`),
            // which keeps the tensor; nobody writes to either.
            let upload = unsafe { backend.upload(bytes, storage::span(&to)?, free)? };
            Ok(Sent { upload, _to: to })
        };
        let records = if self.finishes {
            let drawn = ViewRecords::of(&batch.unfinished)?;
            let sent = send(drawn.bytes(), records, DType::U32)?;
            Some((sent, drawn))
        } else {
            None
        };
        let pixels = Some(send(batch.as_bytes(), pixels, DType::U8)?);
        self.turn = (self.turn + 1) % self.staging.len();
        Ok(Arriving { pixels, records, place, batch })
    }

    /// The batch's images, `[views * size, H, W, channels]`, in a buffer that the next call
    /// overwrites.
    ///
    /// # Errors
    /// What the device says.
    pub fn images(&mut self, arriving: &Arriving) -> Result<Tensor> {
        let batch = &arriving.batch;
        let (Some(backend), Some(sent)) = (self.engine.backend(), &arriving.pixels) else {
            return Ok(images_of(batch, self.engine.device())?);
        };
        backend.arrived(&sent.upload)?;
        let (spec, channels) = (batch.spec(), self.engine.image_channels());
        let dims = [spec.views * batch.size(), spec.height, spec.width, channels];
        let (dtype, device) = (self.engine.dtype(), self.engine.device());
        let images = storage::reuse(&mut self.images, &dims, dtype, device)?;
        let Staging { pixels: Some(pixels), records, free } = &mut self.staging[arriving.place]
        else {
            bail!("batch was not started by Intake::begin")
        };
        let (pixels, out) = (storage::span(pixels)?, storage::span(&images)?);
        if let Some((sent, _)) = &arriving.records {
            backend.arrived(&sent.upload)?;
            let (count, height, width) = (dims[0], spec.height, spec.width);
            let views = Views { count, height, width };
            let records = storage::span(records.as_ref().context("they were sent")?)?;
            let scratch =
                storage::reuse(&mut self.scratch, &[views.scratch()], DType::F32, device)?;
            augment::augment(backend, views, pixels, records, storage::span(&scratch)?)?;
        }
        let each = batch.size() * spec.height * spec.width;
        for (view, (mean, std)) in self.views.iter().enumerate() {
            let from = pixels.part(view * each * 3, each * 3);
            let to = out.part(view * each * channels, each * channels);
            elementwise::normalize_images(backend, from, to, channels, *mean, *std)?;
        }
        *free = backend.mark()?;
        Ok(images)
    }
}

/// Page-locked memory for the loader's buffers.
struct Pinned(Arc<dyn Backend>);

// SAFETY: page-locked memory of the whole process, which any thread may use; zeroed, on a boundary
// of 64, and of one caller until it is freed (`Backend::allocate_host`).
unsafe impl BatchMemory for Pinned {
    fn allocate(&self, bytes: usize) -> Option<NonNull<u8>> {
        self.0.allocate_host(bytes).and_then(NonNull::new)
    }

    unsafe fn free(&self, at: NonNull<u8>, _: usize) {
        // SAFETY: it came from `allocate`, says the caller.
        unsafe { self.0.free_host(at.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use bt_pipeline::augment::Preset;
    use bt_pipeline::shard::{OpenOptions, PackOptions, SynthSource, pack};
    use bt_pipeline::synth::Spec;
    use bt_pipeline::{Position, ShardSet};

    use super::*;
    use crate::nn::Precision;
    use crate::nn::cuda::emulate::Emulator;
    use crate::nn::engine::emulated;

    /// Images of the first epoch as an intake gives them, each batch fetched before the one in
    /// front of it is read; their first three channels.
    fn images(set: &Arc<ShardSet>, finisher: AugmentDevice) -> Vec<Vec<f32>> {
        let views = Preset::BarlowCifar.views();
        let mut intake = Intake::new(&Device::Cpu, &views, finisher).unwrap();
        let config = intake.adapt(LoaderConfig::training(views, 4, 1));
        let loader = intake.with_memory(Loader::new(Arc::clone(set), config).unwrap());
        let mut batches = loader.start(Position::default(), 1).unwrap().map(|batch| batch.unwrap());
        let mut out = Vec::new();
        let mut ahead = batches.next().map(|batch| intake.begin(batch).unwrap());
        while let Some(arriving) = ahead {
            ahead = batches.next().map(|batch| intake.begin(batch).unwrap());
            let images = storage::host(&intake.images(&arriving).unwrap()).unwrap();
            let channels = images.dim(3).unwrap();
            let values = storage::read(&images).unwrap();
            out.push(values.chunks(channels).flat_map(|pixel| pixel[..3].to_vec()).collect());
        }
        out
    }

    #[test]
    fn a_device_sees_the_views_that_the_loader_would_have_normalised() {
        let Some(device) = Emulator::open() else { return };
        let device: Arc<dyn Backend> = Arc::new(device);
        let dir = tempfile::tempdir().unwrap();
        let source = SynthSource::new(Spec { images: 20, side: 40, ..Spec::default() }).unwrap();
        let options = PackOptions::default();
        pack(&source, dir.path(), "test", &options, &mut |_| ()).unwrap();
        let pattern = dir.path().to_string_lossy().into_owned();
        let set = Arc::new(ShardSet::open(&pattern, &OpenOptions::default()).unwrap());
        let here = images(&set, AugmentDevice::Cpu);
        assert_eq!(here.len(), 5);
        for (precision, tolerance) in [(Precision::F32, 1e-6), (Precision::Bf16, 2e-2)] {
            let by = |finisher| emulated(device.clone(), precision, || images(&set, finisher));
            let there = by(AugmentDevice::Cpu);
            assert_eq!(here.len(), there.len());
            for (a, b) in here.iter().flatten().zip(there.iter().flatten()) {
                assert!((a - b).abs() < tolerance, "{precision:?}: {b} for {a}");
            }
            assert_eq!(by(AugmentDevice::Cuda), there, "finished on the device");
        }
    }

    #[test]
    fn the_cpu_does_not_finish_views_in_a_devices_place() {
        let views = Preset::BarlowCifar.views();
        let error = Intake::new(&Device::Cpu, &views, AugmentDevice::Cuda).err().unwrap();
        assert!(error.to_string().contains("train.device"), "{error}");
    }
}
