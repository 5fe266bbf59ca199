//! Convolutions by cuDNN in NHWC. For each shape and pass the algorithms are timed once, in place
//! where the result is not added to another; the fastest stays, with the workspace that it wants.
//! Where results have to repeat the stopwatch has no say: algorithms that each give the same bits
//! every time differ from each other, and a process that resumes a run would take another than the
//! one that began it.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cudnn::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Error, Result, bail};

use crate::nn::cpu::conv::ConvShape;
use crate::nn::cuda::{ConvCall, ConvPass};

/// Workspace that an algorithm may ask for, in bytes. It is there from the first convolution on,
/// for the search and for what was found: captured steps hold its address.
const WORKSPACE: usize = 256 << 20;

/// The same where no algorithm makes do with less, as those that turn NHWC into another layout.
const MOST_WORKSPACE: usize = 4 << 30;

/// Most elements of a tensor: cuDNN's kernels count them in 32 bits with a sign, and refuse more.
pub const MOST_ELEMENTS: usize = i32::MAX as usize;

/// Results of a search that there is room for. The ways that a layer may not take come among them,
/// and the fast ones first: 8 algorithms, each with up to three kinds of arithmetic.
const MOST_RESULTS: usize = 32;

/// The number, in all three passes, of the implicit product with precomputed indices: of those
/// algorithms that give the same bits each time and work for any shape, the fastest by far.
const PRECOMPUTED: u32 = 1;

/// What a plan was made for: the pass, its sizes, whether elements are bfloat16, whether results
/// repeat.
type Key = (ConvPass, ConvShape, bool, bool);

/// A cuDNN handle on one stream, and what was found for each convolution.
pub struct Dnn {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
    plans: HashMap<Key, Plan>,
    /// The last one is the largest, and in use; captured steps may hold the others' addresses.
    workspaces: Vec<CudaSlice<u8>>,
}

// SAFETY: a handle may be used from any thread, by one at a time: it lives in a mutex.
unsafe impl Send for Dnn {}

/// Descriptors of one convolution, and how one of its passes is done.
struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
    way: Way,
    workspace: usize,
}

/// An algorithm of one of the passes.
#[derive(Clone, Copy)]
enum Way {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Input(sys::cudnnConvolutionBwdDataAlgo_t),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// What is known of an algorithm that was timed.
#[derive(Clone, Copy)]
struct Timed {
    way: Way,
    memory: usize,
    math: sys::cudnnMathType_t,
    /// The algorithm's number.
    number: u32,
}

impl Timed {
    /// What is taken first where results have to repeat, in any process.
    fn order(&self) -> impl Ord + use<> {
        let tensor_cores = self.math == sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH;
        (self.number != PRECOMPUTED, self.number, !tensor_cores, self.math as u32)
    }
}

impl Dnn {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = result::create_handle().map_err(failed)?;
        // SAFETY: both are valid; the stream outlives the handle, which is dropped first.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }.map_err(failed)?;
        Ok(Self {
            handle,
            stream: Arc::clone(stream),
            plans: HashMap::new(),
            workspaces: Vec::new(),
        })
    }

    pub fn conv(&mut self, call: &ConvCall) -> Result<()> {
        let half = call.x.dtype == DType::BF16;
        let key = (call.pass, call.shape, half, call.deterministic);
        if !self.plans.contains_key(&key) {
            let plan = self.plan(call, half)?;
            self.plans.insert(key, plan);
        }
        let (space, _) = self.workspace(WORKSPACE)?;
        let plan = &self.plans[&key];
        let bytes = plan.workspace;
        let (one, beta) = (1f32, if call.accumulate { 1f32 } else { 0f32 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let at = |addr: u64| addr as *mut c_void;
        let (x, w, y) = (at(call.x.addr), at(call.w.addr), at(call.y.addr));
        let handle = self.handle;
        // SAFETY: `ConvCall::check` has compared the spans with the shape that the descriptors were
        // made from; the workspace has the bytes that the search allowed; the scalars are read
        // before the calls return.
        unsafe {
            match plan.way {
                Way::Forward(algorithm) => result::convolution_forward(
                    handle,
                    scalar(&one),
                    plan.x,
                    x,
                    plan.w,
                    w,
                    plan.conv,
                    algorithm,
                    space,
                    bytes,
                    scalar(&beta),
                    plan.y,
                    y,
                ),
                Way::Input(algorithm) => result::convolution_backward_data(
                    handle,
                    scalar(&one),
                    plan.w,
                    w,
                    plan.y,
                    y,
                    plan.conv,
                    algorithm,
                    space,
                    bytes,
                    scalar(&beta),
                    plan.x,
                    x,
                ),
                Way::Weight(algorithm) => result::convolution_backward_filter(
                    handle,
                    scalar(&one),
                    plan.x,
                    x,
                    plan.y,
                    y,
                    plan.conv,
                    algorithm,
                    space,
                    bytes,
                    scalar(&beta),
                    plan.w,
                    w,
                ),
            }
        }
        .map_err(|e| Error::Msg(format!("cuDNN, {:?} of {:?}: {e:?}", call.pass, call.shape)))
    }

    /// The address of a workspace of at least `bytes`, and how many it has.
    fn workspace(&mut self, bytes: usize) -> Result<(*mut c_void, usize)> {
        if self.workspaces.last().is_none_or(|space| space.len() < bytes) {
            // SAFETY: cuDNN writes what it reads of it.
            let space = unsafe { self.stream.alloc::<u8>(bytes) }.map_err(Error::wrap)?;
            self.workspaces.push(space);
        }
        let space = self.workspaces.last().expect("just made");
        let (address, _nothing_to_wait_for) = space.device_ptr(&self.stream);
        Ok((address as *mut c_void, space.len()))
    }

    fn plan(&mut self, call: &ConvCall, half: bool) -> Result<Plan> {
        let s = call.shape;
        let mut plan = descriptors(s, half)?;
        let timed = self.choose(call, &plan)?;
        (plan.way, plan.workspace) = (timed.way, timed.memory);
        // SAFETY: the descriptor is this plan's own.
        unsafe { result::set_convolution_math_type(plan.conv, timed.math) }.map_err(failed)?;
        Ok(plan)
    }

    /// The algorithm for a pass, in the least workspace that there is one for. What there is for
    /// others before it is allowed as well, but not where results have to repeat: a run that is
    /// resumed comes to its convolutions in another order.
    fn choose(&mut self, call: &ConvCall, plan: &Plan) -> Result<Timed> {
        let mut least = WORKSPACE;
        loop {
            let (space_at, all) = self.workspace(least)?;
            let bytes = if call.deterministic { least } else { all };
            if let Some(found) = self.search(call, plan, (space_at, bytes))? {
                return Ok(found);
            }
            if bytes >= MOST_WORKSPACE {
                bail!(
                    "cuDNN has no algorithm for {:?} of {:?} in {:?} within {} MB of memory",
                    call.pass,
                    call.shape,
                    call.x.dtype,
                    bytes >> 20
                );
            }
            least = 2 * bytes;
        }
    }

    /// Times the pass's algorithms and takes the fastest, or the first by [`Timed::order`]. The
    /// result goes where the caller's goes, which is written next; to memory of its own where it
    /// will be added to what the caller's holds.
    fn search(
        &mut self,
        call: &ConvCall,
        plan: &Plan,
        (space_at, space_bytes): (*mut c_void, usize),
    ) -> Result<Option<Timed>> {
        let out = match call.pass {
            ConvPass::Forward => call.y,
            ConvPass::Input => call.x,
            ConvPass::Weight => call.w,
        };
        // SAFETY: cuDNN writes what it reads of it.
        let memory = |bytes| unsafe { self.stream.alloc::<u8>(bytes) }.map_err(Error::wrap);
        let result = call.accumulate.then(|| memory(out.bytes())).transpose()?;
        let result_at = result.as_ref().map(|result| result.device_ptr(&self.stream));
        let result_at = result_at.as_ref().map_or(out.addr, |(addr, _)| *addr) as *mut c_void;
        let at = |addr: u64| addr as *const c_void;
        let (x, w, y) = (at(call.x.addr), at(call.w.addr), at(call.y.addr));
        let (handle, most) = (self.handle, MOST_RESULTS as i32);
        let mut count = 0;
        // SAFETY, of the calls: descriptors and spans belong together as in `conv`; results go to
        // memory of the output's bytes; at most `most` entries are written, and cuDNN has
        // filled the first `count` of them.
        macro_rules! time {
            ($way:path, $perf:ty, $find:path, $($given:expr),*) => {{
                let mut found = Vec::<$perf>::with_capacity(MOST_RESULTS);
                let entries = found.as_mut_ptr();
                // SAFETY: as said above.
                let status = unsafe {
                    $find(
                        handle, $($given),*, result_at, most, &mut count, entries, space_at,
                        space_bytes,
                    )
                };
                status.result().map_err(failed)?;
                // SAFETY: as said above.
                unsafe { found.set_len(count.clamp(0, most) as usize) };
                let fits = |f: &$perf| {
                    f.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && allowed(call, f.determinism, f.mathType)
                };
                let timed = |f: $perf| Timed {
                    way: $way(f.algo),
                    memory: f.memory,
                    math: f.mathType,
                    number: f.algo as u32,
                };
                let mut found = found.into_iter().filter(fits).map(timed);
                match call.deterministic {
                    true => found.min_by_key(Timed::order),
                    // They come in the order of their times.
                    false => found.next(),
                }
            }};
        }
        Ok(match call.pass {
            ConvPass::Forward => time!(
                Way::Forward,
                sys::cudnnConvolutionFwdAlgoPerf_t,
                sys::cudnnFindConvolutionForwardAlgorithmEx,
                plan.x,
                x,
                plan.w,
                w,
                plan.conv,
                plan.y
            ),
            ConvPass::Input => time!(
                Way::Input,
                sys::cudnnConvolutionBwdDataAlgoPerf_t,
                sys::cudnnFindConvolutionBackwardDataAlgorithmEx,
                plan.w,
                w,
                plan.y,
                y,
                plan.conv,
                plan.x
            ),
            ConvPass::Weight => time!(
                Way::Weight,
                sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                sys::cudnnFindConvolutionBackwardFilterAlgorithmEx,
                plan.x,
                x,
                plan.y,
                y,
                plan.conv,
                plan.w
            ),
        })
    }
}

/// Whether an algorithm gives what was asked for: the same bits each time, f32 where that is the
/// precision.
fn allowed(call: &ConvCall, found: sys::cudnnDeterminism_t, math: sys::cudnnMathType_t) -> bool {
    let repeats = found == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC;
    let exact = math == sys::cudnnMathType_t::CUDNN_FMA_MATH;
    (repeats || !call.deterministic) && (exact || call.x.dtype == DType::BF16)
}

/// The descriptors of a convolution; the way is not chosen yet.
fn descriptors(s: ConvShape, half: bool) -> Result<Plan> {
    use sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC as NHWC;
    let size = |value: usize| {
        i32::try_from(value).map_err(|_| Error::Msg(format!("a convolution of size {value}")))
    };
    let dtype = if half {
        sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16
    } else {
        sys::cudnnDataType_t::CUDNN_DATA_FLOAT
    };
    let math = if half {
        sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH
    } else {
        sys::cudnnMathType_t::CUDNN_FMA_MATH
    };
    let (n, c, o) = (size(s.n)?, size(s.c)?, size(s.o)?);
    let (oh, ow) = s.out();
    let (kernel, stride, pad) = (size(s.kernel)?, size(s.stride)?, size(s.pad)?);
    let plan = Plan {
        x: result::create_tensor_descriptor().map_err(failed)?,
        y: result::create_tensor_descriptor().map_err(failed)?,
        w: result::create_filter_descriptor().map_err(failed)?,
        conv: result::create_convolution_descriptor().map_err(failed)?,
        way: Way::Forward(sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM),
        workspace: 0,
    };
    // SAFETY: the descriptors were made just now.
    unsafe {
        let (h, w) = (size(s.h)?, size(s.w)?);
        result::set_tensor4d_descriptor(plan.x, NHWC, dtype, [n, c, h, w]).map_err(failed)?;
        let (oh, ow) = (size(oh)?, size(ow)?);
        result::set_tensor4d_descriptor(plan.y, NHWC, dtype, [n, o, oh, ow]).map_err(failed)?;
        result::set_filter4d_descriptor(plan.w, dtype, NHWC, [o, c, kernel, kernel])
            .map_err(failed)?;
        result::set_convolution2d_descriptor(
            plan.conv,
            pad,
            pad,
            stride,
            stride,
            1,
            1,
            sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
            sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
        )
        .map_err(failed)?;
        result::set_convolution_math_type(plan.conv, math).map_err(failed)?;
    }
    Ok(plan)
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: they are this plan's own and not used again.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_filter_descriptor(self.w);
            let _ = result::destroy_convolution_descriptor(self.conv);
        }
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle is this one's own and not used again.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(error: result::CudnnError) -> Error {
    Error::Msg(format!("cuDNN: {error:?}"))
}
