//! A device on the CPU, for tests (and, with the feature `emulation`, for `tools/cuda/stand-in`):
//! the same kernels, compiled by the system's C++ compiler and run thread by thread
//! (`kernels/emulate.h`), over the process's own memory.
//!
//! It answers what a GPU would leave open: that arguments are what the kernel's signature says,
//! that grids and blocks are within limits, that no barrier is left out, and, run forwards and
//! backwards, that no result depends on the order of threads. Matrix products and convolutions are
//! the CPU engine's.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{DType, Result, bail};
use half::bf16;

use super::{Arg, Backend, ConvCall, ConvPass, Gemm, Launch, Span};
use crate::nn::cpu::conv::Conv;
use crate::nn::cpu::micro::Isa;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/nn/cuda/kernels");

/// A kernel in the library: `emulation::Kernel`.
#[repr(C)]
struct Entry {
    name: *const c_char,
    letters: *const c_char,
    call: *const c_void,
}

type LaunchFn = unsafe extern "C" fn(
    kernel: *const Entry,
    grid: *const u32,
    block: *const u32,
    arguments: *mut *mut c_void,
    backwards: c_int,
) -> *const c_char;

/// The compiled kernels, loaded for the life of the process.
struct Library {
    /// Where each kernel's entry lies, and its arguments' letters.
    kernels: HashMap<String, (usize, String)>,
    launch: LaunchFn,
    _library: libloading::Library,
}

/// The emulated device. Memory is the process's: a span's address is a pointer.
pub struct Emulator {
    library: &'static Library,
    backwards: AtomicBool,
    refuses_to_wait: AtomicBool,
    most_elements: AtomicUsize,
}

impl Emulator {
    /// A device, `None` (with a line that says so) where there is no C++ compiler.
    ///
    /// # Panics
    /// When the kernels do not compile; in tests without a compiler where `BT_REQUIRE` has `cxx`.
    pub fn open() -> Option<Self> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            if !matches!(compiler().arg("--version").output(), Ok(out) if out.status.success()) {
                without("no C++ compiler: the CUDA kernels are not tested");
                return None;
            }
            Some(Library::load(&compile()))
        });
        let library = library.as_ref()?;
        Some(Self {
            library,
            backwards: false.into(),
            refuses_to_wait: false.into(),
            most_elements: usize::MAX.into(),
        })
    }

    /// The letters of a kernel's arguments: `p` for a pointer, `u` and `l` for whole numbers of 32
    /// and 64 bits, `f` for a float.
    pub fn signature(&self, kernel: &str) -> Option<&str> {
        self.library.kernels.get(kernel).map(|(_, letters)| letters.as_str())
    }

    /// Runs threads and blocks in the opposite order from now on.
    pub fn turn_around(&self) {
        self.backwards.fetch_xor(true, Ordering::Relaxed);
    }

    /// Runs `work` as a recording would see it: reading, writing and waiting are errors.
    pub fn without_waiting<R>(&self, work: impl FnOnce() -> R) -> R {
        self.refuses_to_wait.store(true, Ordering::Relaxed);
        let done = work();
        self.refuses_to_wait.store(false, Ordering::Relaxed);
        done
    }

    /// From now on a convolution's input and output may have this many elements each.
    pub fn limit_convolutions(&self, most_elements: usize) {
        self.most_elements.store(most_elements, Ordering::Relaxed);
    }

    fn may_wait(&self) -> Result<()> {
        if self.refuses_to_wait.load(Ordering::Relaxed) {
            bail!("the host waits for the device where a step is recorded");
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "../../../tests/common/skip.rs"]
mod skip;

/// Says that there is no device, and `why`.
fn without(why: &str) {
    #[cfg(test)]
    skip::skip("cxx", why);
    #[cfg(not(test))]
    println!("{why}");
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
}

/// Compiles the kernels, unless these sources have been compiled before.
fn compile() -> PathBuf {
    let out = Path::new(env!("OUT_DIR"));
    let library = out.join(format!("emulated-{:016x}.so", sources_hash()));
    if library.exists() {
        return library;
    }
    let directory = tempfile::tempdir_in(out).expect("a directory in OUT_DIR");
    let run = |command: &mut Command| {
        let done = command.output().expect("the compiler that said its version");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "the CUDA kernels do not compile for the CPU:\n{said}");
        done.stdout
    };
    let flags = ["-std=c++17", "-DBT_EMULATE", "-Wno-unknown-pragmas"];
    let scan = ["-DBT_EMULATE_SCAN", "-E", "-P", "-x", "c++"];
    let text = run(compiler().args(flags).args(scan).arg(format!("{SOURCES}/all.cu")));
    let text = String::from_utf8_lossy(&text);
    let registry: String =
        kernel_names(&text).iter().map(|name| format!("EMULATED({name})\n")).collect();
    std::fs::write(directory.path().join("registry.inc"), registry).expect("a list of kernels");
    let fresh = directory.path().join("emulated.so");
    // Products and sums are rounded one by one, whatever the CPU has; kernels ask for fused ones
    // where they count on them. Vector accesses alias elements.
    let rounding = ["-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"];
    let mut command = compiler();
    command.args(flags).args(rounding).args(["-shared", "-fPIC", "-I"]).arg(directory.path());
    run(command.arg(format!("{SOURCES}/emulate.cpp")).arg("-o").arg(&fresh));
    std::fs::rename(&fresh, &library).expect("the library moved to its place");
    library
}

/// Names behind the marker that stands for `__global__`.
fn kernel_names(preprocessed: &str) -> Vec<&str> {
    let parts = preprocessed.split("BT_EMULATED_KERNEL").skip(1);
    parts
        .filter_map(|part| part.split_once('('))
        .filter_map(|(declaration, _)| declaration.split_whitespace().last())
        .collect()
}

fn sources_hash() -> u64 {
    let mut files: Vec<_> = std::fs::read_dir(SOURCES)
        .expect("the kernels")
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension != "rs"));
    files.sort();
    let mut all = std::env::var("CXX").unwrap_or_default().into_bytes();
    files.iter().for_each(|file| all.extend(std::fs::read(file).expect("a source")));
    xxhash_rust::xxh3::xxh3_64(&all)
}

impl Library {
    fn load(path: &Path) -> Self {
        // SAFETY: the library is our own, compiled just now; loading it runs no code of note.
        let library = unsafe { libloading::Library::new(path) }.expect("the compiled kernels");
        // SAFETY: both symbols have these signatures in `emulate.cpp`; the library stays loaded.
        let (entry, launch) = unsafe {
            let entry: libloading::Symbol<'_, unsafe extern "C" fn(u32) -> *const Entry> =
                library.get(b"emulate_kernel").expect("its list of kernels");
            let launch: libloading::Symbol<'_, LaunchFn> =
                library.get(b"emulate_launch").expect("its launcher");
            (*entry, *launch)
        };
        let text = |at: *const c_char| {
            // SAFETY: strings of the library, which stays loaded.
            unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
        };
        // SAFETY: answers null beyond the last kernel.
        let all = (0..).map(|number| unsafe { entry(number) }).take_while(|at| !at.is_null());
        let kernels = all.map(|at| {
            // SAFETY: not null, so an entry of the library's static list.
            let entry = unsafe { &*at };
            (text(entry.name), (at as usize, text(entry.letters)))
        });
        Self { kernels: kernels.collect(), launch, _library: library }
    }
}

/// A launch's arguments as words that pointers to them can be given for.
fn words(launch: &Launch<'_>, letters: &str) -> Result<Vec<u64>> {
    let given: String = launch.args.iter().map(letter).collect();
    if given != letters {
        bail!("{}: takes arguments {letters}, was given {given}", launch.kernel);
    }
    Ok(launch
        .args
        .iter()
        .map(|arg| match *arg {
            Arg::Ptr(at) | Arg::U64(at) => at,
            Arg::U32(value) => u64::from(value),
            Arg::F32(value) => u64::from(value.to_bits()),
        })
        .collect())
}

fn letter(arg: &Arg) -> char {
    match arg {
        Arg::Ptr(_) => 'p',
        Arg::U32(_) => 'u',
        Arg::U64(_) => 'l',
        Arg::F32(_) => 'f',
    }
}

/// What any CUDA device of today allows.
fn check_limits(launch: &Launch<'_>) -> Result<()> {
    let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    let grid =
        (1..=i32::MAX as u32).contains(&gx) && [gy, gz].iter().all(|g| (1..65536).contains(g));
    if !grid || !(1..=1024).contains(&threads) || bz > 64 || launch.shared_bytes > 48 * 1024 {
        bail!("{}: no device takes {launch:?}", launch.kernel);
    }
    if launch.shared_bytes != 0 {
        bail!("{}: dynamic shared memory is not emulated", launch.kernel);
    }
    Ok(())
}

impl Backend for Emulator {
    fn multiprocessors(&self) -> u32 {
        3
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        check_limits(launch)?;
        let Some((kernel, letters)) = self.library.kernels.get(launch.kernel) else {
            bail!("there is no kernel `{}`", launch.kernel);
        };
        let mut words = words(launch, letters)?;
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let backwards = c_int::from(self.backwards.load(Ordering::Relaxed));
        // SAFETY: the entry is the library's; each pointer leads to a word that holds
        // (little-endian, so at its beginning) an argument of the type that the kernel has there,
        // as was checked. That spans are what their addresses say is the promise of who made them.
        let error = unsafe {
            (self.library.launch)(
                *kernel as *const Entry,
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                pointers.as_mut_ptr(),
                backwards,
            )
        };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a string constant of the library.
        let error = unsafe { CStr::from_ptr(error) }.to_string_lossy();
        bail!("{}: {error}", launch.kernel)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        gemm.check()?;
        let (m, n, k) = (gemm.m, gemm.n, gemm.k);
        let (a, b) = (floats(gemm.a, m * k)?, floats(gemm.b, k * n)?);
        let (a_row, a_col) = if gemm.a_transposed { (1, m) } else { (k, 1) };
        let (b_row, b_col) = if gemm.b_transposed { (1, k) } else { (n, 1) };
        let mut c = if gemm.beta == 0.0 { vec![0.0; m * n] } else { floats(gemm.c, m * n)? };
        // SAFETY: the strides are those of [m, k], [k, n] and [m, n] matrices of these lengths.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                gemm.beta != 0.0,
                a.as_ptr(),
                a_col as isize,
                a_row as isize,
                b.as_ptr(),
                b_col as isize,
                b_row as isize,
                gemm.beta,
                gemm.alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        set_floats(gemm.c, &c)
    }

    fn most_elements(&self) -> usize {
        self.most_elements.load(Ordering::Relaxed)
    }

    fn conv(&self, call: &ConvCall) -> Result<()> {
        call.check()?;
        if call.x.len.max(call.y.len) > self.most_elements() {
            bail!("a convolution of more elements than there may be: {call:?}");
        }
        let conv = Conv::new(Isa::best(), call.shape);
        let all = |span: Span| floats(span, span.len);
        let (x, w, y) = (all(call.x)?, all(call.w)?, all(call.y)?);
        let (to, mut now) = match call.pass {
            ConvPass::Forward => (call.y, vec![0.0; y.len()]),
            ConvPass::Input => (call.x, vec![0.0; x.len()]),
            ConvPass::Weight => (call.w, vec![0.0; w.len()]),
        };
        match call.pass {
            ConvPass::Forward => conv.forward(&x, &w, &mut now),
            ConvPass::Input => conv.input_grad(&y, &w, &mut now, false),
            ConvPass::Weight => conv.weight_grad(&x, &y, &mut now),
        }
        if call.accumulate {
            now.iter_mut().zip(all(to)?).for_each(|(now, before)| *now += before);
        }
        set_floats(to, &now)
    }

    fn zero(&self, span: Span) -> Result<()> {
        // SAFETY: a span's address and length are its memory's, by the promise of who made it.
        unsafe { std::ptr::write_bytes(span.addr as *mut u8, 0, span.bytes()) };
        Ok(())
    }

    fn copy(&self, from: Span, to: Span) -> Result<()> {
        if from.bytes() != to.bytes() {
            bail!("a copy from {from:?} to {to:?}");
        }
        // SAFETY: as in `zero`.
        unsafe { std::ptr::copy(from.addr as *const u8, to.addr as *mut u8, from.bytes()) };
        Ok(())
    }

    fn read(&self, from: Span, to: &mut [u8]) -> Result<()> {
        self.may_wait()?;
        if from.bytes() != to.len() {
            bail!("{} bytes read from {from:?}", to.len());
        }
        // SAFETY: as in `zero`.
        unsafe { std::ptr::copy(from.addr as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn write(&self, from: &[u8], to: Span) -> Result<()> {
        self.may_wait()?;
        if from.len() != to.bytes() {
            bail!("{} bytes written to {to:?}", from.len());
        }
        // SAFETY: as in `zero`.
        unsafe { std::ptr::copy(from.as_ptr(), to.addr as *mut u8, from.len()) };
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.may_wait()
    }
}

/// The first `len` elements of a span of F32 or BF16.
fn floats(span: Span, len: usize) -> Result<Vec<f32>> {
    match span.dtype {
        // SAFETY: of the span's type; callers have compared `len` with its length.
        DType::F32 => Ok(unsafe { elements::<f32>(span, len) }.to_vec()),
        // SAFETY: as above.
        DType::BF16 => {
            // SAFETY: as above.
            Ok(unsafe { elements::<bf16>(span, len) }.iter().map(|v| v.to_f32()).collect())
        }
        other => bail!("products of {other:?}"),
    }
}

fn set_floats(span: Span, values: &[f32]) -> Result<()> {
    match span.dtype {
        // SAFETY: of the span's type; callers have compared lengths.
        DType::F32 => unsafe { elements::<f32>(span, values.len()) }.copy_from_slice(values),
        // SAFETY: as above.
        DType::BF16 => unsafe { elements::<bf16>(span, values.len()) }
            .iter_mut()
            .zip(values)
            .for_each(|(to, value)| *to = bf16::from_f32(*value)),
        other => bail!("products of {other:?}"),
    }
    Ok(())
}

/// # Safety
/// `T` is what the span's type says, `len` is at most its length, and nobody else uses the memory.
unsafe fn elements<'a, T>(span: Span, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise; that the address is its memory's is that of who made the span.
    unsafe { std::slice::from_raw_parts_mut(span.addr as *mut T, len) }
}
