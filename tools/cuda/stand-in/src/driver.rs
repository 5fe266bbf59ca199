//! libcuda: device 0, of compute capability 9.0.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bt_stream::nn::cuda::emulate::Emulator;
use bt_stream::nn::cuda::{Arg, Backend, Launch};

use crate::device::{Memory, Refusal, device};
use crate::{Given, say, text};

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const INVALID_DEVICE: c_int = 101;
const INVALID_IMAGE: c_int = 200;
const INVALID_HANDLE: c_int = 400;
const NOT_FOUND: c_int = 500;
const LAUNCH_FAILED: c_int = 719;
const NOT_WHILE_RECORDING: c_int = 900;

/// A flag of contexts.
const SCHED_BLOCKING_SYNC: c_uint = 4;
/// Whether it was given to the device's.
static WAITS_ASLEEP: AtomicBool = AtomicBool::new(false);

type Done = Result<(), Refusal>;

fn status(done: Done) -> c_int {
    match done {
        Ok(()) => SUCCESS,
        Err(Refusal::Handle) => INVALID_HANDLE,
        Err(Refusal::Recording) => NOT_WHILE_RECORDING,
        Err(Refusal::Failed) => LAUNCH_FAILED,
    }
}

/// Writes what a call gives.
fn give<T>(to: Given<T>, value: T) -> c_int {
    to.write(0, value);
    SUCCESS
}

/// Writes a handle, or says why there is none.
fn give_handle(to: Given<usize>, made: Result<usize, Refusal>) -> c_int {
    match made {
        Ok(handle) => give(to, handle),
        Err(refusal) => status(Err(refusal)),
    }
}

macro_rules! exported {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> c_int $body:block)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> c_int $body
    )*};
}

exported! {
    fn cuInit(_flags: c_uint) -> c_int {
        SUCCESS
    }

    fn cuDeviceGet(to: Given<c_int>, ordinal: c_int) -> c_int {
        if ordinal != 0 {
            return INVALID_DEVICE;
        }
        give(to, 0)
    }

    fn cuDeviceGetCount(to: Given<c_int>) -> c_int {
        give(to, 1)
    }

    fn cuDeviceGetAttribute(to: Given<c_int>, attribute: c_int, _device: c_int) -> c_int {
        let value = match attribute {
            16 => device().multiprocessors(),
            75 => 9,
            76 => 0,
            115 => 1,
            _ => return INVALID_VALUE,
        };
        give(to, value)
    }

    fn cuDevicePrimaryCtxSetFlags_v2(_device: c_int, flags: c_uint) -> c_int {
        WAITS_ASLEEP.store(flags & SCHED_BLOCKING_SYNC != 0, Ordering::Relaxed);
        SUCCESS
    }

    fn cuDevicePrimaryCtxRetain(to: Given<usize>, _device: c_int) -> c_int {
        if !WAITS_ASLEEP.load(Ordering::Relaxed) {
            say("a context in which waits keep a core busy");
            return INVALID_VALUE;
        }
        give(to, 1)
    }

    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> c_int {
        SUCCESS
    }

    fn cuCtxSetCurrent(_context: usize) -> c_int {
        SUCCESS
    }

    fn cuCtxGetCurrent(to: Given<usize>) -> c_int {
        give(to, 1)
    }

    fn cuCtxSynchronize() -> c_int {
        status(device().synchronize_all())
    }

    fn cuDeviceGetDefaultMemPool(to: Given<usize>, _device: c_int) -> c_int {
        give(to, 1)
    }

    fn cuMemPoolSetAttribute(_pool: usize, attribute: c_int, _value: Given<u64>) -> c_int {
        match attribute {
            4 => SUCCESS,
            8 => {
                device().memory.forget_peak();
                SUCCESS
            }
            _ => INVALID_VALUE,
        }
    }

    fn cuMemPoolGetAttribute(_pool: usize, attribute: c_int, to: Given<u64>) -> c_int {
        match attribute {
            7 => give(to, device().memory.used() as u64),
            8 => give(to, device().memory.peak() as u64),
            _ => INVALID_VALUE,
        }
    }

    fn cuStreamCreate(to: Given<usize>, _flags: c_uint) -> c_int {
        give(to, device().new_stream())
    }

    fn cuStreamDestroy_v2(_stream: usize) -> c_int {
        SUCCESS
    }

    fn cuStreamSynchronize(stream: usize) -> c_int {
        status(device().synchronize(stream))
    }

    fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> c_int {
        status(device().wait_event(stream, event))
    }

    fn cuStreamIsCapturing(stream: usize, to: Given<c_int>) -> c_int {
        give(to, c_int::from(device().is_recorded(stream)))
    }

    fn cuEventCreate(to: Given<usize>, _flags: c_uint) -> c_int {
        give(to, device().new_event())
    }

    fn cuEventRecord(event: usize, stream: usize) -> c_int {
        status(device().record_event(event, stream))
    }

    fn cuEventSynchronize(event: usize) -> c_int {
        status(device().synchronize_event(event))
    }

    fn cuEventDestroy_v2(event: usize) -> c_int {
        status(device().drop_event(event))
    }

    fn cuMemAllocAsync(to: Given<u64>, bytes: usize, stream: usize) -> c_int {
        let mut device = device();
        if device.is_recorded(stream) {
            say("an allocation while the stream is recorded");
            return NOT_WHILE_RECORDING;
        }
        if bytes == 0 {
            return INVALID_VALUE;
        }
        give(to, device.memory.allocate(bytes))
    }

    fn cuMemFreeAsync(address: u64, stream: usize) -> c_int {
        status(device().free(stream, address))
    }

    fn cuMemHostAlloc(to: Given<u64>, bytes: usize, _flags: c_uint) -> c_int {
        give(to, device().memory.pin(bytes))
    }

    fn cuMemFreeHost(at: Given<c_void>) -> c_int {
        let mut device = device();
        // As the driver does: what may still read it comes first.
        if device.synchronize_all().is_err() {
            return LAUNCH_FAILED;
        }
        match device.memory.unpin(at.address()) {
            Ok(()) => SUCCESS,
            Err(message) => {
                say(&message);
                INVALID_VALUE
            }
        }
    }

    fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: usize) -> c_int {
        let op = Arc::new(move |memory: &mut Memory, _: &Emulator| {
            memory.bytes("memset", at, bytes)?.fill(value);
            Ok(())
        });
        status(device().push(stream, op))
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: Given<u8>, bytes: usize, stream: usize) -> c_int {
        let mut device = device();
        let source = from.address();
        if device.memory.is_pinned(source, bytes) {
            return status(device.push(stream, Arc::new(move |memory, _| {
                if !memory.is_pinned(source, bytes) {
                    return Err("a copy from pinned memory that was freed".into());
                }
                let from = Given(source as *mut u8).slice(bytes);
                memory.bytes("copy to the device", to, bytes)?.copy_from_slice(from);
                Ok(())
            })));
        }
        if device.is_recorded(stream) {
            say("a copy from the host while the stream is recorded");
            return NOT_WHILE_RECORDING;
        }
        let from = from.slice(bytes).to_vec();
        status(device.push(stream, Arc::new(move |memory, _| {
            memory.bytes("copy to the device", to, bytes)?.copy_from_slice(&from);
            Ok(())
        })))
    }

    fn cuMemcpyDtoHAsync_v2(to: Given<u8>, from: u64, bytes: usize, stream: usize) -> c_int {
        let mut device = device();
        if device.is_recorded(stream) {
            say("a copy to the host while the stream is recorded");
            return NOT_WHILE_RECORDING;
        }
        let to = to.address();
        let pinned = device.memory.is_pinned(to, bytes);
        let asked = device.push(stream, Arc::new(move |memory, _| {
            let from = memory.bytes("copy to the host", from, bytes)?;
            Given(to as *mut u8).slice(bytes).copy_from_slice(from);
            Ok(())
        }));
        // To memory that is not pinned the call returns once all is there.
        status(asked.and_then(|()| if pinned { Ok(()) } else { device.synchronize(stream) }))
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> c_int {
        status(device().push(stream, Arc::new(move |memory, _| {
            let copy = memory.bytes("copy", from, bytes)?.to_vec();
            memory.bytes("copy", to, bytes)?.copy_from_slice(&copy);
            Ok(())
        })))
    }

    fn cuModuleLoadData(to: Given<usize>, image: Given<u32>) -> c_int {
        // A fat binary begins with this.
        if image.read(0) != 0xBA55_ED50 {
            say("a module that is no fat binary");
            return INVALID_IMAGE;
        }
        give(to, 1)
    }

    fn cuModuleUnload(_module: usize) -> c_int {
        SUCCESS
    }

    fn cuModuleGetFunction(to: Given<usize>, _module: usize, name: Given<c_char>) -> c_int {
        let name = text(name);
        match device().function(&name) {
            Some(function) => give(to, function),
            None => {
                say(&format!("no kernel {name}"));
                NOT_FOUND
            }
        }
    }

    fn cuLaunchKernel(
        function: usize,
        gx: c_uint,
        gy: c_uint,
        gz: c_uint,
        bx: c_uint,
        by: c_uint,
        bz: c_uint,
        shared_bytes: c_uint,
        stream: usize,
        params: Given<Given<u64>>,
        _extra: Given<c_void>,
    ) -> c_int {
        let mut device = device();
        let Some((name, letters)) = device.kernel(function) else { return INVALID_HANDLE };
        let read = |(nth, letter): (usize, char)| {
            let at = params.read(nth);
            match letter {
                'p' => Arg::Ptr(at.read(0)),
                'l' => Arg::U64(at.read(0)),
                'u' => Arg::U32(at.cast().read(0)),
                _ => Arg::F32(at.cast().read(0)),
            }
        };
        let args: Vec<Arg> = letters.chars().enumerate().map(read).collect();
        status(device.push(stream, Arc::new(move |memory, emulator| {
            for arg in &args {
                if let Arg::Ptr(at @ 1..) = arg {
                    memory.check(&name, *at, 1)?;
                }
            }
            let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
            let launch = Launch { kernel: &name, grid, block, shared_bytes, args: &args };
            emulator.launch(&launch).map_err(|error| error.to_string())
        })))
    }

    fn cuStreamBeginCapture_v2(stream: usize, _mode: c_int) -> c_int {
        status(device().record(stream))
    }

    fn cuStreamEndCapture(stream: usize, to: Given<usize>) -> c_int {
        give_handle(to, device().end_recording(stream))
    }

    fn cuGraphInstantiateWithFlags(to: Given<usize>, graph: usize, _flags: u64) -> c_int {
        give_handle(to, device().instantiate(graph))
    }

    fn cuGraphLaunch(graph: usize, stream: usize) -> c_int {
        status(device().replay(graph, stream))
    }

    fn cuGraphDestroy(graph: usize) -> c_int {
        status(device().drop_graph(graph))
    }

    fn cuGraphExecDestroy(graph: usize) -> c_int {
        status(device().drop_graph(graph))
    }

    fn cuGetErrorName(status: c_int, to: Given<*const c_char>) -> c_int {
        give(to, name_of(status).as_ptr())
    }

    fn cuGetErrorString(status: c_int, to: Given<*const c_char>) -> c_int {
        give(to, name_of(status).as_ptr())
    }
}

fn name_of(status: c_int) -> &'static CStr {
    match status {
        SUCCESS => c"success",
        INVALID_VALUE => c"invalid value",
        INVALID_DEVICE => c"no such device",
        INVALID_IMAGE => c"not a module",
        INVALID_HANDLE => c"not a handle",
        NOT_FOUND => c"not found",
        LAUNCH_FAILED => c"work has failed (stand-in)",
        NOT_WHILE_RECORDING => c"not while a stream is recorded",
        _ => c"unknown",
    }
}
