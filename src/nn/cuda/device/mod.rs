//! A GPU: kernels of `kernels/*.cu`, cuBLAS and cuDNN on candle's stream.
//!
//! Everything goes to one stream, so that it is done in order and nothing needs events but the
//! uploads ([`upload`]), which have a stream of their own.
//!
//! CUDA's libraries are linked, as candle asks cudarc for it, or opened at run time, where
//! `--cfg feature="dynamic-loading"` is given to cudarc and to this crate (`tools/cuda/rustc.sh`):
//! then the program starts where there is no driver, and says so when a device is asked for.

mod blas;
mod dnn;
mod upload;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use bt_pipeline::unpoisoned;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    self, CudaFunction, CudaGraph, CudaModule, CudaStream, DevicePtr, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaStorage, DType, Device, Error, Result, bail};

use super::{Arg, Backend, ConvCall, Gemm, Launch, Mark, Replay, Span, Upload};

/// The kernels, compiled by `build.rs`.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// A CUDA device.
pub struct Gpu {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    blas: Mutex<blas::Blas>,
    dnn: Mutex<dnn::Dnn>,
    uploads: upload::Uploads,
    multiprocessors: u32,
}

/// Whether one of CUDA's libraries is there. Where they are opened at run time cudarc would panic at
/// the first call into one that is not; a program that they are linked to does not start without.
macro_rules! present {
    ($library:ident) => {{
        #[cfg(feature = "dynamic-loading")]
        use candle_core::cuda_backend::cudarc::$library::sys::is_culib_present;
        #[cfg(feature = "dynamic-loading")]
        // SAFETY: it only tries to open the library.
        let present = unsafe { is_culib_present() };
        #[cfg(not(feature = "dynamic-loading"))]
        let present = true;
        present
    }};
}

/// The first figure of the oldest compute capability that the kernels are written for.
const OLDEST: i32 = 8;

/// The numbers of this machine's devices that are not too old.
pub fn usable() -> Vec<usize> {
    let count = || driver::CudaContext::device_count();
    let count = if driver_present() { count().map_or(0, |count| count.max(0) as usize) } else { 0 };
    (0..count).filter(|&number| major(number).is_ok_and(|major| major >= OLDEST)).collect()
}

/// The first figure of a device's compute capability; the driver has been started.
fn major(number: usize) -> Result<i32> {
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR;
    let device = driver::result::device::get(number as i32).map_err(Error::wrap)?;
    // SAFETY: a device that the call above returned.
    unsafe { driver::result::device::get_attribute(device, MAJOR) }.map_err(Error::wrap)
}

/// Whether the driver's library is there.
pub fn driver_present() -> bool {
    present!(driver)
}

/// The driver and the libraries beside it.
fn check_libraries() -> Result<()> {
    if !driver_present() {
        bail!(
            "no CUDA driver (libcuda.so.1) on this machine: install NVIDIA's driver, or use \
             train.device = \"cpu\""
        );
    }
    let found = [
        ("cuBLAS (libcublas)", "nvidia-cublas", present!(cublas)),
        ("cuDNN (libcudnn)", "nvidia-cudnn-cu13", present!(cudnn)),
        ("cuRAND (libcurand)", "nvidia-curand", present!(curand)),
    ];
    match found.iter().find(|(.., present)| !present) {
        Some((name, wheel, _)) => bail!(
            "no {name} on this machine: install it, or the wheel {wheel} from PyPI, and put the \
             folders of PyTorch's wheels (nvidia/*/lib) into LD_LIBRARY_PATH"
        ),
        None => Ok(()),
    }
}

/// Opens device `number`.
///
/// # Errors
/// No driver, no such device, a library that is missing or of another version.
pub fn open(number: usize) -> Result<(Device, Gpu)> {
    check_libraries()?;
    wait_asleep(number)?;
    let device = Device::new_cuda_with_stream(number)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: one stream computes on all tensors; the upload stream's buffers are ordered by its
    // own events. So nothing relies on the events that are switched off here.
    unsafe { cuda.disable_event_tracking() };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    keep_freed_memory(number)?;
    let major = major(number)?;
    if major < OLDEST {
        bail!(
            "CUDA device {number} is of compute capability {major}.x: this program's kernels want \
             {OLDEST}.0 or newer; use another device or train.device = \"cpu\""
        );
    }
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT;
    let multiprocessors = context.attribute(COUNT).map_err(Error::wrap)? as u32;
    let module = context.load_module(Ptx::from_binary(KERNELS.to_vec())).map_err(|e| {
        Error::Msg(format!(
            "the kernels do not load on CUDA device {number} ({e}): build with \
             CUDA_COMPUTE_CAP of this device"
        ))
    })?;
    let gpu = Gpu {
        module,
        functions: Mutex::default(),
        blas: Mutex::new(blas::Blas::new(&stream)?),
        dnn: Mutex::new(dnn::Dnn::new(&stream)?),
        uploads: upload::Uploads::new(&stream)?,
        multiprocessors,
        stream,
    };
    Ok((device, gpu))
}

/// Has threads that wait for the device sleep: a step ends in one wait for all of it, and the core
/// that the driver would keep busy meanwhile is the loader's. To be said before the device's
/// context is made; by this call and not the context's own, which drivers before 12.1 lack.
fn wait_asleep(number: usize) -> Result<()> {
    let flags = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
    driver::result::init().map_err(Error::wrap)?;
    let device = driver::result::device::get(number as i32).map_err(Error::wrap)?;
    // SAFETY: a plain call without pointers.
    match unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(device, flags) } {
        // Made by somebody else in this process, who chose how to wait: no reason to do without the
        // device.
        sys::CUresult::CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE => Ok(()),
        status => status.result().map_err(Error::wrap),
    }
}

/// Has the driver keep what is freed for the next allocation, instead of giving it back at the next
/// wait.
fn keep_freed_memory(number: usize) -> Result<()> {
    let mut all = u64::MAX;
    // SAFETY: plain calls with pointers to locals that outlive them; the attribute's value is a
    // u64.
    unsafe {
        let mut device = 0;
        sys::cuDeviceGet(&mut device, number as i32).result().map_err(Error::wrap)?;
        let pool = driver::result::device::get_default_mem_pool(device).map_err(Error::wrap)?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast())
            .result()
            .map_err(Error::wrap)
    }
}

/// The most that was allocated at a time: the driver's pool, where all tensors come from. With
/// `anew` it is counted from now on.
fn memory_peak(number: usize, anew: bool) -> Option<u64> {
    use sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT as NOW;
    use sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH as HIGH;
    let (mut peak, mut now) = (0u64, 0u64);
    // SAFETY: as in `keep_freed_memory`.
    unsafe {
        let mut device = 0;
        sys::cuDeviceGet(&mut device, number as i32).result().ok()?;
        let pool = driver::result::device::get_default_mem_pool(device).ok()?;
        if anew {
            // To nothing else than 0.
            sys::cuMemPoolSetAttribute(pool, HIGH, (&raw mut peak).cast()).result().ok()?;
        } else {
            sys::cuMemPoolGetAttribute(pool, HIGH, (&raw mut peak).cast()).result().ok()?;
            // Recorded steps allocate nothing, and whether the driver's mark is above what was
            // there when it was set to 0 is not documented.
            sys::cuMemPoolGetAttribute(pool, NOW, (&raw mut now).cast()).result().ok()?;
        }
    }
    Some(peak.max(now))
}

/// The device address of element `start`.
pub fn address(storage: &CudaStorage, start: usize) -> Result<u64> {
    fn of<T: CudaDType>(storage: &CudaStorage, start: usize) -> Result<u64> {
        let slice = storage.as_cuda_slice::<T>()?;
        let stream = slice.stream().clone();
        let (address, _nothing_to_wait_for) = slice.device_ptr(&stream);
        Ok(address + (start * size_of::<T>()) as u64)
    }
    use candle_core::backend::BackendStorage;
    match storage.dtype() {
        DType::F32 => of::<f32>(storage, start),
        DType::BF16 => of::<half::bf16>(storage, start),
        DType::F64 => of::<f64>(storage, start),
        DType::U8 => of::<u8>(storage, start),
        DType::U32 => of::<u32>(storage, start),
        other => bail!("no address for elements of type {other:?}"),
    }
}

impl Gpu {
    /// Makes the device this thread's: training may go on in another than the one that opened it.
    fn here(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(Error::wrap)
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let mut known = unpoisoned(self.functions.lock());
        if let Some(function) = known.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name);
        let function = function.map_err(|e| Error::Msg(format!("kernel {name}: {e}")))?;
        known.insert(name.to_owned(), function.clone());
        Ok(function)
    }
}

impl Backend for Gpu {
    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.here()?;
        let function = self.function(launch.kernel)?;
        let mut args = launch.args.to_vec();
        let mut pointers: Vec<*mut c_void> = args
            .iter_mut()
            .map(|arg| match arg {
                Arg::Ptr(value) | Arg::U64(value) => std::ptr::from_mut(value).cast(),
                Arg::U32(value) => std::ptr::from_mut(value).cast(),
                Arg::F32(value) => std::ptr::from_mut(value).cast(),
            })
            .collect();
        let [gx, gy, gz] = launch.grid;
        let [bx, by, bz] = launch.block;
        // SAFETY: the wrappers in `kernels` pass what the kernel's parameter list asks for (tested
        // against its source), with spans of the lengths that it touches; `args` outlives the call,
        // which copies it.
        unsafe {
            driver::result::launch_kernel(
                function.cu_function(),
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared_bytes,
                self.stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(|e| Error::Msg(format!("kernel {}: {e}", launch.kernel)))
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        gemm.check()?;
        self.here()?;
        unpoisoned(self.blas.lock()).gemm(gemm)
    }

    fn most_elements(&self) -> usize {
        dnn::MOST_ELEMENTS
    }

    fn conv(&self, call: &ConvCall) -> Result<()> {
        call.check()?;
        self.here()?;
        unpoisoned(self.dnn.lock()).conv(call)
    }

    fn zero(&self, span: Span) -> Result<()> {
        self.here()?;
        // SAFETY: a span is memory of this device, kept alive by whoever holds its tensor.
        unsafe {
            driver::result::memset_d8_async(span.addr, 0, span.bytes(), self.stream.cu_stream())
        }
        .map_err(Error::wrap)
    }

    fn copy(&self, from: Span, to: Span) -> Result<()> {
        if from.bytes() != to.bytes() {
            bail!("a copy of {} bytes to {}", from.bytes(), to.bytes());
        }
        self.here()?;
        let stream = self.stream.cu_stream();
        // SAFETY: as in `zero`; lengths are equal.
        unsafe { driver::result::memcpy_dtod_async(to.addr, from.addr, from.bytes(), stream) }
            .map_err(Error::wrap)
    }

    fn read(&self, from: Span, to: &mut [u8]) -> Result<()> {
        if from.bytes() != to.len() {
            bail!("a copy of {} bytes to {}", from.bytes(), to.len());
        }
        // How a copy to memory that is not pinned waits for what comes before it is the driver's to
        // choose.
        self.wait()?;
        self.here()?;
        // SAFETY: as in `zero`; `to` is not touched before the wait below is over.
        unsafe { driver::result::memcpy_dtoh_async(to, from.addr, self.stream.cu_stream()) }
            .map_err(Error::wrap)?;
        self.wait()
    }

    fn write(&self, from: &[u8], to: Span) -> Result<()> {
        if from.len() != to.bytes() {
            bail!("a copy of {} bytes to {}", from.len(), to.bytes());
        }
        self.here()?;
        // SAFETY: as in `zero`. From memory that is not pinned the call returns once `from` was
        // read.
        unsafe { driver::result::memcpy_htod_async(to.addr, from, self.stream.cu_stream()) }
            .map_err(Error::wrap)
    }

    fn mark(&self) -> Result<Mark> {
        let event = self.stream.record_event(None).map_err(Error::wrap)?;
        Ok(Mark::new(Box::new(event)))
    }

    unsafe fn upload(&self, from: &[u8], to: Span, after: &Mark) -> Result<Upload> {
        // SAFETY: the caller's promise.
        unsafe { self.uploads.start(from, to, after) }
    }

    fn arrived(&self, upload: &Upload) -> Result<()> {
        self.uploads.finish(&self.stream, upload)
    }

    fn allocate_host(&self, bytes: usize) -> Option<*mut u8> {
        upload::pinned(self.stream.context(), bytes)
    }

    unsafe fn free_host(&self, at: *mut u8) {
        // SAFETY: it came from `allocate_host`, says the caller.
        unsafe { upload::free_pinned(self.stream.context(), at) }
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as HERE;
        self.stream.begin_capture(HERE).map_err(Error::wrap)?;
        let done = work();
        let flags =
            sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags);
        done?;
        match graph.map_err(Error::wrap)? {
            Some(graph) => Ok(Some(Box::new(Captured(graph)))),
            None => bail!("the capture of a step came to nothing"),
        }
    }

    fn peak_bytes(&self) -> u64 {
        memory_peak(self.stream.context().ordinal(), false).unwrap_or(0)
    }

    fn forget_peak(&self) {
        memory_peak(self.stream.context().ordinal(), true);
    }

    fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::wrap)
    }
}

/// A captured step.
struct Captured(CudaGraph);

// SAFETY: CUDA forbids only concurrent use of one graph; it has one owner, who replays it.
unsafe impl Send for Captured {}

impl Replay for Captured {
    fn run(&self) -> Result<()> {
        self.0.launch().map_err(Error::wrap)
    }
}
