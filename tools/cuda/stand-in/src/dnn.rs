//! libcudnn: convolutions in NHWC, by the calls of before its graphs.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock};

use bt_stream::nn::cpu::conv::ConvShape;
use bt_stream::nn::cuda::emulate::Emulator;
use bt_stream::nn::cuda::{Backend, ConvCall, ConvPass, Span};
use candle_core::DType;

use crate::device::{Memory, device};
use crate::{Given, say};

const SUCCESS: c_int = 0;
const BAD_PARAM: c_int = 2000;
const NOT_SUPPORTED: c_int = 3000;
const ALLOC_FAILED: c_int = 4003;
const EXECUTION_FAILED: c_int = 5000;

const NHWC: c_int = 1;
const FLOAT: c_int = 0;
const BFLOAT16: c_int = 9;
const TENSOR_OP_MATH: c_int = 1;
const FMA_MATH: c_int = 3;

/// What the algorithm with number 1 wants.
const WORKSPACE: usize = 1 << 20;

/// Images or a filter: element type and four sizes, channels second.
#[derive(Clone, Copy)]
struct Tensor {
    kind: c_int,
    sizes: [c_int; 4],
}

#[derive(Clone, Copy, Default)]
struct Convolution {
    pad: c_int,
    stride: c_int,
    math: c_int,
}

/// All that handles stand for.
#[derive(Default)]
struct All {
    next: usize,
    streams: HashMap<usize, usize>,
    tensors: HashMap<usize, Option<Tensor>>,
    convolutions: HashMap<usize, Option<Convolution>>,
}

fn all() -> MutexGuard<'static, All> {
    static ALL: LazyLock<Mutex<All>> = LazyLock::new(Mutex::default);
    ALL.lock().unwrap()
}

/// An algorithm that was timed: `cudnnConvolutionFwdAlgoPerf_t` and its like.
#[repr(C)]
#[derive(Clone, Copy)]
struct Timed {
    algorithm: c_int,
    status: c_int,
    time: f32,
    memory: usize,
    determinism: c_int,
    math: c_int,
    reserved: [c_int; 3],
}

/// Makes a handle in one of the tables.
fn create<T>(to: Given<usize>, table: fn(&mut All) -> &mut HashMap<usize, T>, value: T) -> c_int {
    let mut all = all();
    all.next += 1;
    let handle = all.next;
    table(&mut all).insert(handle, value);
    to.write(0, handle);
    SUCCESS
}

fn destroy<T>(table: &mut HashMap<usize, T>, handle: usize) -> c_int {
    table.remove(&handle).map_or(BAD_PARAM, |_| SUCCESS)
}

fn describe<T>(table: &mut HashMap<usize, Option<T>>, handle: usize, value: T) -> c_int {
    match table.get_mut(&handle) {
        Some(known) => {
            *known = Some(value);
            SUCCESS
        }
        None => BAD_PARAM,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cudnnCreate(to: Given<usize>) -> c_int {
    create(to, |all| &mut all.streams, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnDestroy(handle: usize) -> c_int {
    destroy(&mut all().streams, handle)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetStream(handle: usize, stream: usize) -> c_int {
    match all().streams.get_mut(&handle) {
        Some(known) => {
            *known = stream;
            SUCCESS
        }
        None => BAD_PARAM,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cudnnCreateTensorDescriptor(to: Given<usize>) -> c_int {
    create(to, |all| &mut all.tensors, None)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnDestroyTensorDescriptor(tensor: usize) -> c_int {
    destroy(&mut all().tensors, tensor)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetTensor4dDescriptor(
    tensor: usize,
    format: c_int,
    kind: c_int,
    n: c_int,
    c: c_int,
    h: c_int,
    w: c_int,
) -> c_int {
    let elements: i64 = [n, c, h, w].map(i64::from).iter().product();
    if format != NHWC || ![FLOAT, BFLOAT16].contains(&kind) || elements > i64::from(i32::MAX) {
        return NOT_SUPPORTED;
    }
    describe(&mut all().tensors, tensor, Tensor { kind, sizes: [n, c, h, w] })
}

#[unsafe(no_mangle)]
extern "C" fn cudnnCreateFilterDescriptor(to: Given<usize>) -> c_int {
    create(to, |all| &mut all.tensors, None)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnDestroyFilterDescriptor(filter: usize) -> c_int {
    destroy(&mut all().tensors, filter)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetFilter4dDescriptor(
    filter: usize,
    kind: c_int,
    format: c_int,
    o: c_int,
    c: c_int,
    h: c_int,
    w: c_int,
) -> c_int {
    cudnnSetTensor4dDescriptor(filter, format, kind, o, c, h, w)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnCreateConvolutionDescriptor(to: Given<usize>) -> c_int {
    create(to, |all| &mut all.convolutions, None)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnDestroyConvolutionDescriptor(convolution: usize) -> c_int {
    destroy(&mut all().convolutions, convolution)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetConvolution2dDescriptor(
    convolution: usize,
    pad_h: c_int,
    pad_w: c_int,
    stride_h: c_int,
    stride_w: c_int,
    dilation_h: c_int,
    dilation_w: c_int,
    mode: c_int,
    compute: c_int,
) -> c_int {
    let square = pad_h == pad_w && stride_h == stride_w;
    // Cross-correlation, sums in f32.
    if !square || (dilation_h, dilation_w, mode, compute) != (1, 1, 1, FLOAT) {
        return NOT_SUPPORTED;
    }
    let value = Convolution { pad: pad_h, stride: stride_h, math: 0 };
    describe(&mut all().convolutions, convolution, value)
}

#[unsafe(no_mangle)]
extern "C" fn cudnnSetConvolutionMathType(convolution: usize, math: c_int) -> c_int {
    match all().convolutions.get_mut(&convolution) {
        Some(Some(known)) => {
            known.math = math;
            SUCCESS
        }
        _ => BAD_PARAM,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cudnnGetErrorString(status: c_int) -> *const c_char {
    let text: &CStr = match status {
        SUCCESS => c"success",
        BAD_PARAM => c"bad parameter",
        NOT_SUPPORTED => c"not supported",
        _ => c"failed",
    };
    text.as_ptr()
}

/// What a call computes with, after its descriptors were compared with each other.
struct Call {
    stream: usize,
    call: ConvCall,
    math: c_int,
}

/// Descriptors and addresses in the order of the pass: two inputs and the result.
type Operands = [(usize, u64); 3];

fn call(handle: usize, convolution: usize, pass: ConvPass, given: Operands) -> Option<Call> {
    let all = all();
    let stream = *all.streams.get(&handle)?;
    let convolution = (*all.convolutions.get(&convolution)?)?;
    let tensor = |(descriptor, at): (usize, u64)| Some(((*all.tensors.get(&descriptor)?)?, at));
    let [first, second, third] = given;
    let (first, second, third) = (tensor(first)?, tensor(second)?, tensor(third)?);
    let (x, w, y) = match pass {
        ConvPass::Forward => (first, second, third),
        ConvPass::Input => (third, first, second),
        ConvPass::Weight => (first, third, second),
    };
    let sizes = |tensor: Tensor| tensor.sizes.map(|size| size as usize);
    let ([n, c, h, width], [o, wc, kernel, kw]) = (sizes(x.0), sizes(w.0));
    let (pad, stride) = (convolution.pad as usize, convolution.stride as usize);
    let shape = ConvShape { n, h, w: width, c, o, kernel, stride, pad };
    let (oh, ow) = shape.out();
    let one_kind = x.0.kind == w.0.kind && x.0.kind == y.0.kind;
    if !one_kind || wc != c || kw != kernel || sizes(y.0) != [n, o, oh, ow] {
        return None;
    }
    let dtype = if x.0.kind == FLOAT { DType::F32 } else { DType::BF16 };
    // SAFETY: before a span is given to the emulator, `Memory::check` has found what it names.
    let span = |addr: u64, len: usize| unsafe { Span::new(addr, len, dtype) };
    let (x, w) = (span(x.1, shape.input_len()), span(w.1, shape.weight_len()));
    let y = span(y.1, shape.output_len());
    let call = ConvCall { pass, shape, x, w, y, accumulate: false, deterministic: false };
    Some(Call { stream, call, math: convolution.math })
}

fn result_of(call: &ConvCall) -> Span {
    match call.pass {
        ConvPass::Forward => call.y,
        ConvPass::Input => call.x,
        ConvPass::Weight => call.w,
    }
}

/// Of the algorithms number 2 is not to be had; number 1 is fast, not deterministic and there in
/// more ways than cuDNN has algorithms; 0 and 3 are deterministic and differ in the last bit. Which
/// of these two is the faster hangs on the day: with `STAND_IN_STOPWATCH` it is 3. With
/// `STAND_IN_WORKSPACE` each wants that many bytes; with `STAND_IN_FRUGAL` too 3 wants them for
/// gradients of weights alone.
fn find(
    call: Option<Call>,
    most: c_int,
    count: Given<c_int>,
    entries: Given<Timed>,
    (space, bytes): (u64, usize),
) -> c_int {
    let Some(Call { stream, call, .. }) = call else {
        say("a search with descriptors that do not fit");
        return BAD_PARAM;
    };
    let out = result_of(&call);
    let mut device = device();
    let scribble = Arc::new(move |memory: &mut Memory, _: &Emulator| {
        for span in [call.x, call.w, call.y] {
            memory.check("search", span.addr(), span.bytes())?;
        }
        memory.bytes("search", out.addr(), out.bytes())?.fill(0xAB);
        memory.bytes("search", space, bytes)?[..WORKSPACE.min(bytes)].fill(0xCD);
        Ok(())
    });
    // A search waits for the device.
    if device.push(stream, scribble).is_err() || device.synchronize(stream).is_err() {
        return EXECUTION_FAILED;
    }
    let fast = if call.x.dtype() == DType::F32 { FMA_MATH } else { TENSOR_OP_MATH };
    let mut found = vec![(2, NOT_SUPPORTED, -1.0, 0, 0, fast)];
    let wanted = |number| workspace_of(number, call.pass);
    found.extend([(1, SUCCESS, 0.5, wanted(1), 0, fast); 8]);
    let slow = |number| (number, SUCCESS, 1.0, wanted(number), 1, FMA_MATH);
    let (zero, three) = (slow(0), slow(3));
    found.extend(match std::env::var_os("STAND_IN_STOPWATCH") {
        None => [zero, three],
        Some(_) => [three, zero],
    });
    let found = found.into_iter().map(|found| match found {
        (number, SUCCESS, _, wanted, determinism, math) if wanted > bytes => {
            (number, ALLOC_FAILED, -1.0, wanted, determinism, math)
        }
        found => found,
    });
    let found = found.take(most.max(0) as usize);
    count.write(0, found.len() as c_int);
    for (nth, (algorithm, status, time, memory, determinism, math)) in found.enumerate() {
        let reserved = [0; 3];
        let timed = Timed { algorithm, status, time, memory, determinism, math, reserved };
        entries.write(nth, timed);
    }
    SUCCESS
}

/// Bytes that an algorithm wants.
fn workspace_of(algorithm: c_int, pass: ConvPass) -> usize {
    static ALL: OnceLock<Option<usize>> = OnceLock::new();
    static FRUGAL: OnceLock<bool> = OnceLock::new();
    let all = ALL.get_or_init(|| std::env::var("STAND_IN_WORKSPACE").ok()?.parse().ok());
    let frugal = FRUGAL.get_or_init(|| std::env::var_os("STAND_IN_FRUGAL").is_some());
    match all {
        Some(_) if *frugal && algorithm == 3 && pass != ConvPass::Weight => 0,
        Some(all) => *all,
        None if algorithm == 1 => WORKSPACE,
        None => 0,
    }
}

/// One of the passes.
fn convolve(
    call: Option<Call>,
    alpha: Given<f32>,
    algorithm: c_int,
    (space, bytes): (u64, usize),
    beta: Given<f32>,
) -> c_int {
    let Some(Call { stream, mut call, math }) = call else {
        say("a convolution with descriptors that do not fit");
        return BAD_PARAM;
    };
    let (alpha, beta) = (alpha.read(0), beta.read(0));
    let wanted = match algorithm {
        0 | 1 | 3 => workspace_of(algorithm, call.pass),
        _ => return NOT_SUPPORTED,
    };
    let half = call.x.dtype() == DType::BF16;
    let found = if algorithm == 1 && half { TENSOR_OP_MATH } else { FMA_MATH };
    if alpha != 1.0 || ![0.0, 1.0].contains(&beta) || bytes < wanted || math != found {
        say(&format!("not as it was found: {algorithm}, {bytes} bytes, math {math}, beta {beta}"));
        return BAD_PARAM;
    }
    call.accumulate = beta == 1.0;
    let op = Arc::new(move |memory: &mut Memory, emulator: &Emulator| {
        for span in [call.x, call.w, call.y] {
            memory.check("convolution", span.addr(), span.bytes())?;
        }
        if wanted > 0 {
            let space = memory.bytes("convolution's workspace", space, wanted)?;
            space[..WORKSPACE.min(wanted)].fill(0xCD);
        }
        emulator.conv(&call).map_err(|error| error.to_string())?;
        let out = result_of(&call);
        if algorithm == 3 && !half {
            // The lowest bit of each little-endian float: as if its terms were added in another
            // order.
            let bytes = memory.bytes("convolution", out.addr(), out.bytes())?;
            bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
        }
        Ok(())
    });
    device().push(stream, op).map_or(EXECUTION_FAILED, |()| SUCCESS)
}

macro_rules! passes {
    ($($pass:ident: $find:ident, $convolve:ident;)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $find(
            handle: usize,
            first: usize,
            first_at: u64,
            second: usize,
            second_at: u64,
            convolution: usize,
            out: usize,
            out_at: u64,
            most: c_int,
            count: Given<c_int>,
            entries: Given<Timed>,
            space: u64,
            bytes: usize,
        ) -> c_int {
            let given = [(first, first_at), (second, second_at), (out, out_at)];
            let call = call(handle, convolution, ConvPass::$pass, given);
            find(call, most, count, entries, (space, bytes))
        }

        #[unsafe(no_mangle)]
        extern "C" fn $convolve(
            handle: usize,
            alpha: Given<f32>,
            first: usize,
            first_at: u64,
            second: usize,
            second_at: u64,
            convolution: usize,
            algorithm: c_int,
            space: u64,
            bytes: usize,
            beta: Given<f32>,
            out: usize,
            out_at: u64,
        ) -> c_int {
            let given = [(first, first_at), (second, second_at), (out, out_at)];
            let call = call(handle, convolution, ConvPass::$pass, given);
            convolve(call, alpha, algorithm, (space, bytes), beta)
        }
    )*};
}

passes! {
    Forward: cudnnFindConvolutionForwardAlgorithmEx, cudnnConvolutionForward;
    Input: cudnnFindConvolutionBackwardDataAlgorithmEx, cudnnConvolutionBackwardData;
    Weight: cudnnFindConvolutionBackwardFilterAlgorithmEx, cudnnConvolutionBackwardFilter;
}
