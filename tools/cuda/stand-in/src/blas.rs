//! libcublas: one product.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Arc, LazyLock, Mutex};

use bt_stream::nn::cuda::emulate::Emulator;
use bt_stream::nn::cuda::{Backend, Gemm, Span};
use candle_core::DType;

use crate::device::{Memory, device};
use crate::{Given, say};

const SUCCESS: c_int = 0;
const NOT_INITIALIZED: c_int = 1;
const INVALID_VALUE: c_int = 7;
const EXECUTION_FAILED: c_int = 13;

/// CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, beside the default mode.
const F32_SUMS: c_int = 16;

/// A handle's settings.
#[derive(Clone, Copy, Default)]
struct Settings {
    stream: usize,
    math_mode: c_int,
}

static HANDLES: LazyLock<Mutex<HashMap<usize, Settings>>> = LazyLock::new(Mutex::default);

fn settings_of(handle: usize) -> Option<Settings> {
    HANDLES.lock().unwrap().get(&handle).copied()
}

/// Changes the settings of a handle that exists.
fn set(handle: usize, change: impl FnOnce(&mut Settings)) -> c_int {
    match HANDLES.lock().unwrap().get_mut(&handle) {
        Some(known) => {
            change(known);
            SUCCESS
        }
        None => NOT_INITIALIZED,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasCreate_v2(to: Given<usize>) -> c_int {
    let mut handles = HANDLES.lock().unwrap();
    let handle = handles.len() + 1;
    handles.insert(handle, Settings::default());
    to.write(0, handle);
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasDestroy_v2(handle: usize) -> c_int {
    if settings_of(handle).is_some() { SUCCESS } else { NOT_INITIALIZED }
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetStream_v2(handle: usize, stream: usize) -> c_int {
    set(handle, |known| known.stream = stream)
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetMathMode(handle: usize, mode: c_int) -> c_int {
    set(handle, |known| known.math_mode = mode)
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetWorkspace_v2(handle: usize, at: u64, bytes: usize) -> c_int {
    if settings_of(handle).is_none() {
        return NOT_INITIALIZED;
    }
    match device().memory.check("cuBLAS's workspace", at, bytes) {
        Ok(()) if at.is_multiple_of(256) => SUCCESS,
        _ => INVALID_VALUE,
    }
}

fn dtype(kind: c_int) -> Option<DType> {
    match kind {
        0 => Some(DType::F32),
        14 => Some(DType::BF16),
        _ => None,
    }
}

/// Column-major: `C = alpha op(A) op(B) + beta C`, read as rows of the transposed matrices.
#[unsafe(no_mangle)]
extern "C" fn cublasGemmEx(
    handle: usize,
    trans_a: c_int,
    trans_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: Given<f32>,
    a: u64,
    a_type: c_int,
    lda: c_int,
    b: u64,
    b_type: c_int,
    ldb: c_int,
    beta: Given<f32>,
    c: u64,
    c_type: c_int,
    ldc: c_int,
    compute: c_int,
    _algorithm: c_int,
) -> c_int {
    let Some(Settings { stream, math_mode }) = settings_of(handle) else {
        return NOT_INITIALIZED;
    };
    let types = (dtype(a_type), dtype(b_type), dtype(c_type));
    let (Some(a_type), Some(b_type), Some(c_type)) = types else { return INVALID_VALUE };
    let sizes = [m, n, k].map(usize::try_from);
    let [Ok(m), Ok(n), Ok(k)] = sizes else { return INVALID_VALUE };
    // Rows of each matrix as it is stored: what lies between two columns.
    let rows = (if trans_a == 0 { m } else { k }, if trans_b == 0 { k } else { n }, m);
    let together = (lda as usize, ldb as usize, ldc as usize) == rows;
    // CUBLAS_COMPUTE_32F, and N or T.
    if compute != 68 || !together || ![trans_a, trans_b].iter().all(|t| (0..2).contains(t)) {
        say("a product of another form than the stand-in has");
        return INVALID_VALUE;
    }
    if math_mode != F32_SUMS && c_type == DType::BF16 {
        say("a product that may be added up in bf16");
        return INVALID_VALUE;
    }
    // SAFETY: before a span is given to the emulator, `Memory::check` has found what it names.
    let span = |addr: u64, len: usize, dtype: DType| unsafe { Span::new(addr, len, dtype) };
    // Of the compute type, on the host.
    let (alpha, beta) = (alpha.read(0), beta.read(0));
    let gemm = Gemm {
        m: n,
        n: m,
        k,
        a: span(b, n * k, b_type),
        a_transposed: trans_b == 1,
        b: span(a, m * k, a_type),
        b_transposed: trans_a == 1,
        c: span(c, m * n, c_type),
        alpha,
        beta,
    };
    let op = Arc::new(move |memory: &mut Memory, emulator: &Emulator| {
        for span in [gemm.a, gemm.b, gemm.c] {
            memory.check("product", span.addr(), span.bytes())?;
        }
        emulator.gemm(&gemm).map_err(|error| error.to_string())
    });
    device().push(stream, op).map_or(EXECUTION_FAILED, |()| SUCCESS)
}
