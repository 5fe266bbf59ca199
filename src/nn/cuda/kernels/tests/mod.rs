//! Every kernel against the CPU engine, on the emulated device: forwards and backwards, on aligned
//! and odd addresses, in memory whose surroundings are watched.

mod augment;
mod elementwise;
mod fold;
mod loss;
mod norm;
mod norm_pool;
mod optim;
mod pool;

use candle_core::DType;
use half::bf16;

use crate::nn::cuda::emulate::Emulator;
use crate::nn::cuda::{Arg, Backend, Launch, Span};

/// Bytes that stand around and in memory that nothing was written to: NaN in every float type.
const UNWRITTEN: u8 = 0xff;
/// Bytes before and behind.
const GUARD: usize = 64;

/// Memory of the emulated device; what lies around it must be as it was when it is dropped.
pub struct Memory {
    /// All bytes; only their address is used, for kernels write behind the compiler's back.
    bytes: *mut [u8],
    start: usize,
    len: usize,
    dtype: DType,
}

impl Memory {
    /// `len` elements that nothing was written to, `odd` elements behind a boundary of 64 bytes.
    pub fn unwritten_at(odd: usize, len: usize, dtype: DType) -> Self {
        let size = dtype.size_in_bytes();
        let bytes = vec![UNWRITTEN; len * size + 3 * GUARD + odd * size].into_boxed_slice();
        let start = GUARD + bytes[GUARD..].as_ptr().align_offset(GUARD) + odd * size;
        Self { bytes: Box::into_raw(bytes), start, len, dtype }
    }

    pub fn unwritten(len: usize, dtype: DType) -> Self {
        Self::unwritten_at(0, len, dtype)
    }

    /// Values rounded to `dtype`.
    pub fn of_at(odd: usize, values: &[f32], dtype: DType) -> Self {
        let memory = Self::unwritten_at(odd, values.len(), dtype);
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect(),
            DType::U8 => values.iter().map(|v| *v as u8).collect(),
            other => unreachable!("{other:?}"),
        };
        // SAFETY: as in `all`; nobody else looks at fresh memory.
        let all = unsafe { &mut *memory.bytes };
        all[memory.start..memory.start + bytes.len()].copy_from_slice(&bytes);
        memory
    }

    pub fn of(values: &[f32], dtype: DType) -> Self {
        Self::of_at(0, values, dtype)
    }

    pub fn span(&self) -> Span {
        let addr = self.bytes.cast::<u8>().wrapping_add(self.start) as u64;
        Span { addr, len: self.len, dtype: self.dtype }
    }

    fn all(&self) -> &[u8] {
        // SAFETY: it came from a box and lives as long as this; kernels have returned when it is
        // read.
        unsafe { &*self.bytes }
    }

    fn inside(&self) -> &[u8] {
        &self.all()[self.start..self.start + self.len * self.dtype.size_in_bytes()]
    }

    pub fn floats(&self) -> Vec<f32> {
        let bytes = self.inside();
        match self.dtype {
            DType::F32 => {
                bytes.as_chunks().0.iter().map(|b: &[u8; 4]| f32::from_ne_bytes(*b)).collect()
            }
            DType::BF16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_ne_bytes(*b).to_f32()).collect()
            }
            DType::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn doubles(&self) -> Vec<f64> {
        self.inside().as_chunks().0.iter().map(|b: &[u8; 8]| f64::from_ne_bytes(*b)).collect()
    }

    pub fn numbers(&self) -> Vec<u32> {
        self.inside().as_chunks().0.iter().map(|b: &[u8; 4]| u32::from_ne_bytes(*b)).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let end = self.start + self.len * self.dtype.size_in_bytes();
        let around = [&self.all()[..self.start], &self.all()[end..]];
        let untouched = around.iter().all(|part| part.iter().all(|byte| *byte == UNWRITTEN));
        // SAFETY: from a box, and dropped once.
        drop(unsafe { Box::from_raw(self.bytes) });
        assert!(untouched || std::thread::panicking(), "a kernel wrote beyond its memory");
    }
}

/// Runs `test` with threads forwards and backwards, as within a recording.
pub fn on_device(test: impl Fn(&Emulator)) {
    let Some(device) = Emulator::open() else { return };
    for _ in 0..2 {
        device.without_waiting(|| test(&device));
        device.turn_around();
    }
}

/// Reproducible values in [-1, 1).
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = bt_pipeline::rng::Rng::keyed(seed, 0, 0, 0);
    (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect()
}

/// Values as `dtype` holds them.
pub fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::BF16 => values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
        _ => values.to_vec(),
    }
}

/// Checks that results are what they should be, as well as `dtype` can hold that: each within half
/// a step of its type, and all within `share` of the largest.
pub fn close(what: &str, got: &[f32], want: &[f32], dtype: DType, share: f32) {
    let largest = want.iter().fold(0f32, |max, w| max.max(w.abs()));
    within(what, got, want, dtype, largest * share);
}

/// [`close`], but within an absolute `error`.
pub fn within(what: &str, got: &[f32], want: &[f32], dtype: DType, error: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let step = if dtype == DType::BF16 { 1.0 / 128.0 } else { 0.0 };
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let allowed = w.abs() * step * 0.502 + error;
        let same = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= allowed;
        assert!(same, "{what}: {g} instead of {w} at {i} of {}", want.len());
    }
}

pub const TYPES: [DType; 2] = [DType::F32, DType::BF16];

#[test]
fn launches_that_do_not_fit_are_refused() {
    let Some(device) = Emulator::open() else { return };
    let launch = |kernel: &str, threads: u32, args: &[Arg]| {
        let (grid, block) = ([1; 3], [threads, 1, 1]);
        device.launch(&Launch { kernel, grid, block, shared_bytes: 0, args })
    };
    let x = Memory::of(&[-1.0; 8], DType::F32);
    let at = Arg::from(x.span());
    launch("relu_v8_f32", 32, &[at, at, Arg::U64(8)]).unwrap();
    assert_eq!(x.floats(), [0.0; 8]);
    let error = launch("relu_v8_f32", 32, &[at, at, Arg::U32(8)]).unwrap_err().to_string();
    assert!(error.contains("takes arguments ppl, was given ppu"), "{error}");
    assert!(launch("relu_v8_f32", 32, &[at, at]).is_err());
    assert!(launch("relu_v8_f32", 2048, &[at, at, Arg::U64(8)]).is_err());
    assert!(launch("relu_v9_f32", 32, &[at, at, Arg::U64(8)]).is_err());
    assert!(device.without_waiting(|| device.wait()).is_err());
}
