//! Where a step's time goes on a device: every call is waited for and its time added to those of
//! the same kind (`bench step --profile`). Waiting costs some tens of microseconds a call, as threads
//! that wait for a device sleep, and steps are not recorded, so that the sum is more than a step
//! takes; the shares are what to read, and those of small kernels are too large.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bt_pipeline::unpoisoned;
use candle_core::Result;

use super::{Backend, ConvCall, ConvPass, Gemm, Launch, Mark, Replay, Span, Upload};

/// All calls of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProfileLine {
    /// A kernel's name, or a product with its sizes.
    pub what: String,
    /// Calls.
    pub calls: u64,
    /// Their time together.
    pub time: Duration,
    /// Floating-point operations of products as they are done, two for each multiply-add; 0 for
    /// others. A folded stem's are 1.74 times the definition's.
    pub flops: f64,
}

/// A backend whose calls are timed one by one.
pub struct Profiler {
    inner: Arc<dyn Backend>,
    lines: Mutex<HashMap<String, ProfileLine>>,
}

impl Profiler {
    /// Times the calls of `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, lines: Mutex::default() }
    }

    /// What was timed since the last call, longest first.
    pub fn take(&self) -> Vec<ProfileLine> {
        let lines = std::mem::take(&mut *self.lines());
        let mut lines: Vec<ProfileLine> = lines.into_values().collect();
        lines.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.what.cmp(&b.what)));
        lines
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, HashMap<String, ProfileLine>> {
        unpoisoned(self.lines.lock())
    }

    fn timed<R>(&self, what: String, flops: f64, call: impl FnOnce() -> Result<R>) -> Result<R> {
        self.inner.wait()?;
        let start = Instant::now();
        let out = call()?;
        self.inner.wait()?;
        let time = start.elapsed();
        let mut lines = self.lines();
        let line = lines
            .entry(what)
            .or_insert_with_key(|what| ProfileLine { what: what.clone(), ..Default::default() });
        line.calls += 1;
        line.time += time;
        line.flops += flops;
        Ok(out)
    }
}

impl Backend for Profiler {
    fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors()
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.timed(launch.kernel.to_owned(), 0.0, || self.inner.launch(launch))
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        let &Gemm { m, n, k, .. } = gemm;
        let turned = |transposed| if transposed { "T" } else { "" };
        let (a, b) = (turned(gemm.a_transposed), turned(gemm.b_transposed));
        let (from, to) = (gemm.a.dtype, gemm.c.dtype);
        let what = format!("product a{a} b{b}, {m} x {n}, {k} terms, {from:?} to {to:?}");
        self.timed(what, 2.0 * m as f64 * n as f64 * k as f64, || self.inner.gemm(gemm))
    }

    fn most_elements(&self) -> usize {
        self.inner.most_elements()
    }

    fn conv(&self, call: &ConvCall) -> Result<()> {
        let s = call.shape;
        let pass = match call.pass {
            ConvPass::Forward => "forward",
            ConvPass::Input => "input gradient",
            ConvPass::Weight => "weight gradient",
        };
        let what = format!(
            "convolution, {pass}, {} x {} x {} x {} to {} channels, {k} x {k}, stride {}",
            s.n,
            s.h,
            s.w,
            s.c,
            s.o,
            s.stride,
            k = s.kernel
        );
        let flops = 2.0 * s.output_len() as f64 * (s.weight_len() / s.o.max(1)) as f64;
        self.timed(what, flops, || self.inner.conv(call))
    }

    fn zero(&self, span: Span) -> Result<()> {
        self.timed("zero".into(), 0.0, || self.inner.zero(span))
    }

    fn copy(&self, from: Span, to: Span) -> Result<()> {
        self.timed("copy".into(), 0.0, || self.inner.copy(from, to))
    }

    fn read(&self, from: Span, to: &mut [u8]) -> Result<()> {
        self.timed("read".into(), 0.0, || self.inner.read(from, to))
    }

    fn write(&self, from: &[u8], to: Span) -> Result<()> {
        self.timed("write".into(), 0.0, || self.inner.write(from, to))
    }

    fn mark(&self) -> Result<Mark> {
        self.inner.mark()
    }

    unsafe fn upload(&self, from: &[u8], to: Span, after: &Mark) -> Result<Upload> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload(from, to, after) }
    }

    fn arrived(&self, upload: &Upload) -> Result<()> {
        self.inner.arrived(upload)
    }

    fn allocate_host(&self, bytes: usize) -> Option<*mut u8> {
        self.inner.allocate_host(bytes)
    }

    unsafe fn free_host(&self, at: *mut u8) {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.inner.free_host(at) }
    }

    /// Does the work: what is timed cannot be recorded.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        work().map(|()| None)
    }

    fn peak_bytes(&self) -> u64 {
        self.inner.peak_bytes()
    }

    fn forget_peak(&self) {
        self.inner.forget_peak();
    }

    fn wait(&self) -> Result<()> {
        self.inner.wait()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::nn::cpu::conv::ConvShape;
    use crate::nn::cuda::emulate::Emulator;

    fn span(values: &mut [f32]) -> Span {
        Span { addr: values.as_mut_ptr() as u64, len: values.len(), dtype: DType::F32 }
    }

    #[test]
    fn calls_of_a_kind_are_counted_with_their_operations_and_done() {
        let Some(device) = Emulator::open() else { return };
        let profiler = Profiler::new(Arc::new(device));
        let (mut a, mut b, mut c) = ([1.0, 2.0], [3.0, 4.0], [0.0; 4]);
        let gemm = Gemm {
            m: 2,
            n: 2,
            k: 1,
            a: span(&mut a),
            a_transposed: false,
            b: span(&mut b),
            b_transposed: true,
            c: span(&mut c),
            alpha: 1.0,
            beta: 0.0,
        };
        profiler.gemm(&gemm).unwrap();
        profiler.gemm(&gemm).unwrap();
        let shape = ConvShape { n: 1, h: 1, w: 1, c: 2, o: 2, kernel: 1, stride: 1, pad: 0 };
        let (x, w, y) = (span(&mut a), span(&mut c), span(&mut b));
        let pass = ConvPass::Forward;
        let conv = ConvCall { pass, shape, x, w, y, accumulate: false, deterministic: true };
        profiler.conv(&conv).unwrap();
        assert_eq!((c, b), ([3.0, 4.0, 6.0, 8.0], [11.0, 22.0]));
        let mut lines = profiler.take();
        assert!(profiler.take().is_empty() && lines.iter().all(|line| line.time > Duration::ZERO));
        lines.sort_by_key(|line| line.calls);
        let found: Vec<_> =
            lines.iter().map(|line| (line.what.as_str(), line.calls, line.flops)).collect();
        let conv = "convolution, forward, 1 x 1 x 1 x 2 to 2 channels, 1 x 1, stride 1";
        let product = "product a bT, 2 x 2, 1 terms, F32 to F32";
        assert_eq!(found, [(conv, 1, 8.0), (product, 2, 16.0)]);
    }
}
