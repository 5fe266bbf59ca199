//! Where a network's arithmetic runs, and in which precision.
//!
//! Layers, parameters and workspaces are made for a candle device and ask [`Engine::of`] what it
//! can do. The CPU computes in f32 by [`super::cpu`]. A CUDA device is opened once per process, by
//! [`Engine::open`]; from then on everything on it goes through its [`Backend`], which knows
//! nothing of precision and other options. Those are the engine's: a device that is opened again
//! with others gives another engine over the same backend, and what was made before keeps its own.
//! Opened devices are shared by the whole process, as the driver's context is that they stand for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use bt_pipeline::unpoisoned;
use candle_core::{DType, Device, DeviceLocation, Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cuda::kernels::elementwise;
use super::cuda::{Backend, Profiler};
use super::storage;

/// Element type of activations and of the factors of products. Weights, statistics and sums are f32
/// either way, and so are gradients of weights, but for convolutions larger than 1 x 1: in bfloat16
/// theirs is rounded to it once, or with each part of a batch that is split, before it is kept in
/// f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16; on a CUDA device only.
    Bf16,
}

/// How a CUDA device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Element type of activations.
    pub precision: Precision,
    /// Only algorithms that give the same bits each time.
    pub deterministic: bool,
    /// Whether steps are recorded in CUDA graphs.
    pub graphs: bool,
}

/// What computes for a device. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    device: Device,
    backend: Option<Arc<dyn Backend>>,
    options: EngineOptions,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({:?}, {:?})", self.device.location(), self.options)
    }
}

/// The latest engine of each CUDA device, by number.
fn opened() -> &'static Mutex<HashMap<usize, Engine>> {
    static OPENED: OnceLock<Mutex<HashMap<usize, Engine>>> = OnceLock::new();
    OPENED.get_or_init(Mutex::default)
}

impl Engine {
    /// The CPU's.
    pub fn cpu() -> Self {
        #[cfg(test)]
        if let Some(engine) = EMULATED.with(|engine| engine.borrow().clone()) {
            return engine;
        }
        Self { device: Device::Cpu, backend: None, options: EngineOptions::default() }
    }

    /// The engine of `device`; of a CUDA device the one that [`Engine::open`] gave last.
    ///
    /// # Errors
    /// A CUDA device that [`Engine::open`] did not give, or a device of another kind.
    pub fn of(device: &Device) -> Result<Self> {
        match device.location() {
            DeviceLocation::Cpu => Ok(Self::cpu()),
            DeviceLocation::Cuda { gpu_id } => {
                let engines = unpoisoned(opened().lock());
                match engines.get(&gpu_id) {
                    Some(engine) => Ok(engine.clone()),
                    None => bail!("CUDA device {gpu_id} was not opened by the engine"),
                }
            }
            other => bail!("no engine for {other:?}"),
        }
    }

    /// Opens CUDA device `number`, or takes it as it is open already. What is made for it from now
    /// on computes as `options` say; layers and workspaces that there are go on as they were made.
    ///
    /// # Errors
    /// A build without the feature `cuda`, no driver or device, a library that is missing.
    pub fn open(number: usize, options: EngineOptions) -> Result<Self> {
        let mut engines = unpoisoned(opened().lock());
        let engine = match engines.get(&number) {
            Some(known) => Self { options, ..known.clone() },
            None => {
                let (device, backend) = super::cuda::open(number)?;
                Self { device, backend: Some(backend), options }
            }
        };
        engines.insert(number, engine.clone());
        Ok(engine)
    }

    /// Has everything that is made for `device` from now on timed call by call; `None` for the CPU.
    ///
    /// # Errors
    /// As [`Engine::of`].
    pub fn profiled(device: &Device) -> Result<Option<Arc<Profiler>>> {
        let engine = Self::of(device)?;
        let (Some(backend), DeviceLocation::Cuda { gpu_id }) =
            (engine.backend.clone(), device.location())
        else {
            return Ok(None);
        };
        let profiler = Arc::new(Profiler::new(backend));
        let engine = Self { backend: Some(profiler.clone()), ..engine };
        unpoisoned(opened().lock()).insert(gpu_id, engine);
        Ok(Some(profiler))
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What runs kernels; `None` on the CPU.
    pub fn backend(&self) -> Option<&dyn Backend> {
        self.backend.as_deref()
    }

    /// The backend, to keep.
    pub fn shared_backend(&self) -> Option<Arc<dyn Backend>> {
        self.backend.clone()
    }

    /// How it was opened.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Element type of activations.
    pub fn dtype(&self) -> DType {
        match self.options.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// Channels of images: their 3, or 8 where products want whole vectors of bfloat16.
    pub fn image_channels(&self) -> usize {
        match (&self.backend, self.options.precision) {
            (Some(_), Precision::Bf16) => 8,
            _ => 3,
        }
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What the device says of anything that was asked for.
    pub fn wait(&self) -> Result<()> {
        self.backend().map_or(Ok(()), |backend| backend.wait())
    }

    /// Most bytes in use at a time: of the device, or of the process (0 where the system does not
    /// tell).
    pub fn peak_bytes(&self) -> u64 {
        match self.backend() {
            Some(backend) => backend.peak_bytes(),
            None => resident_peak().unwrap_or(0),
        }
    }

    /// Lets [`Engine::peak_bytes`] begin anew where the system allows it, so that what came before
    /// is not counted.
    pub fn forget_peak(&self) {
        match self.backend() {
            Some(backend) => backend.forget_peak(),
            // Linux's word for it; elsewhere the peak is the process's.
            None => drop(std::fs::write("/proc/self/clear_refs", "5")),
        }
    }

    /// `x` in the type of activations: itself, or a copy in `slot`.
    ///
    /// # Errors
    /// What the device says.
    pub fn activations(&self, x: &Tensor, slot: &mut Option<Tensor>) -> Result<Tensor> {
        self.converted(x, self.dtype(), slot)
    }

    /// `x` as f32: itself, or a copy in `slot`.
    ///
    /// # Errors
    /// What the device says.
    pub fn full(&self, x: &Tensor, slot: &mut Option<Tensor>) -> Result<Tensor> {
        self.converted(x, DType::F32, slot)
    }

    /// `x`, an f32 tensor of the CPU's or of this device's, on this device: itself, or a copy in
    /// `slot`.
    ///
    /// # Errors
    /// What the device says.
    pub fn taken_in(&self, x: &Tensor, slot: &mut Option<Tensor>) -> Result<Tensor> {
        if x.device().same_device(&self.device) {
            return Ok(x.clone());
        }
        let x = x.contiguous()?;
        let copy = storage::reuse(slot, x.dims(), DType::F32, &self.device)?;
        storage::assign(&copy, &storage::read(&x)?)?;
        Ok(copy)
    }

    fn converted(&self, x: &Tensor, dtype: DType, slot: &mut Option<Tensor>) -> Result<Tensor> {
        let Some(backend) = self.backend() else { return Ok(x.clone()) };
        if x.dtype() == dtype {
            return Ok(x.clone());
        }
        let copy = storage::reuse(slot, x.dims(), dtype, &self.device)?;
        elementwise::cast(backend, storage::span(x)?, storage::span(&copy)?)?;
        Ok(copy)
    }
}

/// The process's largest resident size so far.
fn resident_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
thread_local! {
    /// Stands in for the CPU's engine on this thread.
    static EMULATED: std::cell::RefCell<Option<Engine>> = const { std::cell::RefCell::new(None) };
}

/// Runs `f` with everything that is made for the CPU on this thread computed by `backend`, whose
/// memory is the process's own.
#[cfg(test)]
pub(crate) fn emulated<R>(
    backend: Arc<dyn Backend>,
    precision: Precision,
    f: impl FnOnce() -> R,
) -> R {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            EMULATED.with(|engine| engine.borrow_mut().take());
        }
    }
    let options = EngineOptions { precision, ..EngineOptions::default() };
    let engine = Engine { device: Device::Cpu, backend: Some(backend), options };
    EMULATED.with(|slot| *slot.borrow_mut() = Some(engine));
    let _reset = Reset;
    f()
}
