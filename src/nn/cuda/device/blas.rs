//! Matrix products by cuBLAS.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Error, Result, bail};

use crate::nn::cuda::Gemm;

/// Bytes of workspace: what NVIDIA advises for Hopper. Given once, so that captured steps may use
/// it.
const WORKSPACE: usize = 32 << 20;

/// A cuBLAS handle on one stream.
pub struct Blas {
    handle: sys::cublasHandle_t,
    _workspace: CudaSlice<u8>,
}

// SAFETY: a handle may be used from any thread, by one at a time: it lives in a mutex.
unsafe impl Send for Blas {}

impl Blas {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let workspace = stream.alloc_zeros::<u8>(WORKSPACE).map_err(Error::wrap)?;
        let handle = result::create_handle().map_err(Error::wrap)?;
        let (address, _nothing_to_wait_for) = workspace.device_ptr(stream);
        // SAFETY: handle and stream are valid; the workspace lives as long as the handle.
        unsafe {
            result::set_stream(handle, stream.cu_stream().cast()).map_err(Error::wrap)?;
            sys::cublasSetWorkspace_v2(handle, address as *mut c_void, WORKSPACE)
                .result()
                .map_err(Error::wrap)?;
            // Else the parts of a product that is split over k may be added up in bf16, where c is.
            let f32_sums = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            sys::cublasSetMathMode(handle, f32_sums).result().map_err(Error::wrap)?;
        }
        drop(_nothing_to_wait_for);
        Ok(Self { handle, _workspace: workspace })
    }

    /// Row-major products by a library that is column-major: c^T = op(b)^T op(a)^T.
    pub fn gemm(&mut self, g: &Gemm) -> Result<()> {
        use sys::cublasOperation_t::{CUBLAS_OP_N as PLAIN, CUBLAS_OP_T as TRANSPOSED};
        let turned = |transposed| if transposed { TRANSPOSED } else { PLAIN };
        let size = |value: usize| {
            i32::try_from(value).map_err(|_| Error::Msg(format!("a product of {value} rows")))
        };
        let (m, n, k) = (size(g.m)?, size(g.n)?, size(g.k)?);
        let factors = kind(g.a.dtype)?;
        // SAFETY: `Gemm::check` has compared the spans with the sizes; alpha and beta are read
        // before the call returns (the handle's pointer mode is the host's, its default).
        unsafe {
            result::gemm_ex(
                self.handle,
                turned(g.b_transposed),
                turned(g.a_transposed),
                n,
                m,
                k,
                std::ptr::from_ref(&g.alpha).cast(),
                g.b.addr as *const c_void,
                factors,
                if g.b_transposed { k } else { n },
                g.a.addr as *const c_void,
                factors,
                if g.a_transposed { m } else { k },
                std::ptr::from_ref(&g.beta).cast(),
                g.c.addr as *mut c_void,
                kind(g.c.dtype)?,
                n,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| Error::Msg(format!("cuBLAS, {g:?}: {e}")))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is this one's own and not used again.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn kind(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        other => bail!("no products of elements of type {other:?}"),
    }
}
