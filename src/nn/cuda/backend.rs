//! What the engine asks of a device that runs kernels.

use candle_core::{DType, Result, bail};

use crate::nn::cpu::conv::ConvShape;

/// Contiguous elements in the backend's memory. Nothing keeps that memory alive: whoever holds the
/// tensor behind it must, until the device has done what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Address of the first element. Backends read and write there.
    pub(crate) addr: u64,
    /// Elements.
    pub(crate) len: usize,
    /// Their type: F32, BF16, U8, U32 or F64.
    pub(crate) dtype: DType,
}

impl Span {
    /// `len` elements of type `dtype` from the address `addr` on.
    ///
    /// # Safety
    /// Where the span is given to a backend, it is that backend's memory until what is asked for is
    /// done.
    pub unsafe fn new(addr: u64, len: usize, dtype: DType) -> Span {
        Span { addr, len, dtype }
    }

    /// Address of the first element.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// The elements' type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size_in_bytes()
    }

    /// `len` elements from element `start` on.
    ///
    /// # Panics
    /// When they lie beyond the end.
    pub fn part(&self, start: usize, len: usize) -> Span {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part of a span");
        Span { addr: self.addr + (start * self.dtype.size_in_bytes()) as u64, len, ..*self }
    }

    /// The same memory as elements of another type, as many as fit.
    pub fn cast(&self, dtype: DType) -> Span {
        Span { addr: self.addr, len: self.bytes() / dtype.size_in_bytes(), dtype }
    }

    /// The kernels' suffix for an element type, `f32` or `bf16`.
    ///
    /// # Errors
    /// For any other type.
    pub fn suffix(&self) -> Result<&'static str> {
        match self.dtype {
            DType::F32 => Ok("f32"),
            DType::BF16 => Ok("bf16"),
            other => bail!("no kernels for elements of type {other:?}"),
        }
    }
}

/// A kernel's argument, as it lies in its parameter buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer; 0 is null.
    Ptr(u64),
    /// `unsigned int`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

impl From<Span> for Arg {
    fn from(span: Span) -> Self {
        Arg::Ptr(span.addr)
    }
}

impl From<Option<Span>> for Arg {
    fn from(span: Option<Span>) -> Self {
        Arg::Ptr(span.map_or(0, |span| span.addr))
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Its symbol.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Its arguments, in order.
    pub args: &'a [Arg],
}

/// `c = alpha op(a) op(b) + beta c`, all row-major: `op(a)` is `[m, k]`, `op(b)` `[k, n]`, `c` `[m,
/// n]`. Factors are both F32 or both BF16, `c` is of their type or F32; sums are F32.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Rows of `c`.
    pub m: usize,
    /// Columns of `c`.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// `[m, k]`, or `[k, m]` with `a_transposed`.
    pub a: Span,
    /// Whether `a` is stored transposed.
    pub a_transposed: bool,
    /// `[k, n]`, or `[n, k]` with `b_transposed`.
    pub b: Span,
    /// Whether `b` is stored transposed.
    pub b_transposed: bool,
    /// `[m, n]`.
    pub c: Span,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what `c` holds; with 0 it is not read.
    pub beta: f32,
}

impl Gemm {
    /// Compares spans with sizes and types with each other.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<()> {
        let long = |span: &Span, rows: usize, columns: usize| {
            rows.checked_mul(columns).is_some_and(|len| len > 0 && span.len >= len)
        };
        let spans = long(&self.a, self.m, self.k)
            && long(&self.b, self.k, self.n)
            && long(&self.c, self.m, self.n);
        let factors = self.a.dtype == self.b.dtype;
        let result = self.c.dtype == DType::F32 || self.c.dtype == self.a.dtype;
        if !spans || !factors || !result {
            bail!("a product that does not fit: {self:?}");
        }
        Ok(())
    }
}

/// Which of a convolution's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvPass {
    /// `y` from `x` and `w`.
    Forward,
    /// `x`'s gradient (written to `x`) from `y`'s and `w`.
    Input,
    /// `w`'s gradient (written to `w`) from `x` and `y`'s.
    Weight,
}

/// A convolution, NHWC with weights O,KH,KW,I; all three spans of one type, F32 or BF16, sums F32.
#[derive(Clone, Copy, Debug)]
pub struct ConvCall {
    /// Which product.
    pub pass: ConvPass,
    /// Sizes.
    pub shape: ConvShape,
    /// Input, or its gradient.
    pub x: Span,
    /// Weight, or its gradient.
    pub w: Span,
    /// Output, or its gradient.
    pub y: Span,
    /// Whether the result is added to what its span holds.
    pub accumulate: bool,
    /// Whether the result has to be the same bits each time, in any process.
    pub deterministic: bool,
}

impl ConvCall {
    /// Compares spans with the shape and types with each other.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<()> {
        let s = &self.shape;
        let spans = self.x.len == s.input_len()
            && self.w.len == s.weight_len()
            && self.y.len == s.output_len();
        let types = self.x.dtype == self.w.dtype && self.x.dtype == self.y.dtype;
        let known = matches!(self.x.dtype, DType::F32 | DType::BF16);
        if !spans || !types || !known {
            bail!("a convolution that does not fit: {self:?}");
        }
        Ok(())
    }
}

/// A place in the order of what a device was asked for. The default is its beginning.
#[derive(Default)]
pub struct Mark(Option<Box<dyn std::any::Any + Send>>);

impl Mark {
    /// A place that its backend knows by `token`.
    pub fn new(token: Box<dyn std::any::Any + Send>) -> Self {
        Self(Some(token))
    }

    /// The backend's own; `None` at the beginning.
    pub fn token(&self) -> Option<&(dyn std::any::Any + Send)> {
        self.0.as_deref()
    }
}

/// A copy from the host that may not have arrived yet. Source and destination stay as they are
/// until [`Backend::arrived`] was asked and what follows has waited, or this is dropped, which
/// waits.
pub struct Upload(Box<dyn std::any::Any + Send>);

impl Upload {
    /// An upload that its backend knows by `token`.
    pub fn new(token: Box<dyn std::any::Any + Send>) -> Self {
        Self(token)
    }

    /// The backend's own.
    pub fn token(&self) -> &(dyn std::any::Any + Send) {
        &*self.0
    }
}

/// A sequence of work that was recorded and can be done again.
pub trait Replay: Send {
    /// Asks for all of it once more, with the same memory.
    ///
    /// # Errors
    /// What the driver says.
    fn run(&self) -> Result<()>;
}

/// A device that runs kernels. Everything is done in the order in which it was asked for; only
/// [`Backend::read`] and [`Backend::wait`] wait until it is done.
pub trait Backend: Send + Sync {
    /// Multiprocessors: how many blocks keep the device busy.
    fn multiprocessors(&self) -> u32;

    /// Launches a kernel.
    ///
    /// # Errors
    /// A kernel that does not exist, or what the driver says.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// A matrix product.
    ///
    /// # Errors
    /// Spans that are too short or of a type that does not go together; what the library says.
    fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// Most elements that input and output of a convolution may have.
    fn most_elements(&self) -> usize {
        usize::MAX
    }

    /// One of a convolution's products.
    ///
    /// # Errors
    /// As [`Backend::gemm`]; more than [`Backend::most_elements`].
    fn conv(&self, call: &ConvCall) -> Result<()>;

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// What the driver says.
    fn zero(&self, span: Span) -> Result<()>;

    /// Copies on the device.
    ///
    /// # Errors
    /// Spans of different size; what the driver says.
    fn copy(&self, from: Span, to: Span) -> Result<()>;

    /// Copies to the host and waits for it.
    ///
    /// # Errors
    /// As [`Backend::copy`].
    fn read(&self, from: Span, to: &mut [u8]) -> Result<()>;

    /// Copies from the host; `from` may change once this has returned.
    ///
    /// # Errors
    /// As [`Backend::copy`].
    fn write(&self, from: &[u8], to: Span) -> Result<()>;

    /// The place behind what was asked for until now.
    ///
    /// # Errors
    /// What the driver says.
    fn mark(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    /// Begins to copy `from` to `to` beside everything else, once what was asked for before `after`
    /// is done: that may read what `to` holds, or make it.
    ///
    /// # Errors
    /// As [`Backend::copy`].
    ///
    /// # Safety
    /// Until the [`Upload`] has been dropped, or what follows [`Backend::arrived`] has been waited
    /// for, nobody changes or frees the bytes of `from`, nor frees the memory of `to`. One that is
    /// forgotten is never over.
    unsafe fn upload(&self, from: &[u8], to: Span, _after: &Mark) -> Result<Upload> {
        self.write(from, to)?;
        Ok(Upload::new(Box::new(())))
    }

    /// What is asked for from now on sees the upload's bytes.
    ///
    /// # Errors
    /// What the driver says.
    fn arrived(&self, _upload: &Upload) -> Result<()> {
        Ok(())
    }

    /// Host memory that the device copies from fastest, zeroed, on a boundary of 64; `None` where
    /// any memory will do.
    fn allocate_host(&self, _bytes: usize) -> Option<*mut u8> {
        None
    }

    /// Gives it back.
    ///
    /// # Safety
    /// `at` came from [`Backend::allocate_host`] and is not used again.
    unsafe fn free_host(&self, _at: *mut u8) {}

    /// Records what `work` asks for instead of doing it, where the device can; nothing in it may
    /// wait or allocate. `None` where it cannot: the work is then done.
    ///
    /// # Errors
    /// Those of `work`; what the driver says.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        work()?;
        Ok(None)
    }

    /// Most bytes of the device's memory that were in use at a time, 0 where it does not tell.
    fn peak_bytes(&self) -> u64 {
        0
    }

    /// Lets [`Backend::peak_bytes`] begin anew.
    fn forget_peak(&self) {}

    /// Waits until everything is done.
    ///
    /// # Errors
    /// What the driver says of anything that was asked for.
    fn wait(&self) -> Result<()>;
}
