//! Host side of the kernels: what each one is given, how many blocks run it, and what does not fit.
//!
//! Functions check lengths and types, allocate nothing on the device and wait for nothing, so that
//! a step that consists of them can be recorded and replayed. Kernels read and write 16 bytes at a
//! time where channels are a multiple of 8 and every span lies on a boundary of 16 bytes; other
//! shapes go one element at a time.
//!
//! One topic is a `.cu` and a `.rs` file of the same name; `all.cu` is what is compiled.

pub mod augment;
pub mod elementwise;
pub mod fold;
pub mod loss;
pub mod norm;
pub mod norm_pool;
pub mod optim;
pub mod pool;

#[cfg(test)]
mod tests;

use candle_core::{DType, Result, bail};

use super::{Arg, Backend, Launch, Span};

/// Threads of most blocks; `TILE_THREADS` in `common.cuh`.
const THREADS: u32 = 256;

/// Most blocks along a grid's second and third axis.
const MOST_ALONG_Y: usize = 65535;

/// `a` divided by `b`, rounded up, as a grid wants it.
fn blocks(a: usize, b: usize) -> Result<u32> {
    u32::try_from(a.div_ceil(b)).or_else(|_| bail!("{a} elements are more than a kernel takes"))
}

/// A number that kernels take as `unsigned`.
fn unsigned(value: usize) -> Result<Arg> {
    u32::try_from(value).map(Arg::U32).or_else(|_| bail!("{value} is more than a kernel takes"))
}

/// Checks a span's length and type.
fn expect(what: &str, span: Span, len: usize, dtype: DType) -> Result<()> {
    if span.len != len || span.dtype != dtype {
        let (got, other) = (span.len, span.dtype);
        bail!("{what}: expected {len} elements of {dtype:?}, got {got} of {other:?}");
    }
    Ok(())
}

/// Checks that scratch is long enough and lies where f64 may lie.
fn expect_scratch(what: &str, scratch: Span, len: usize) -> Result<()> {
    if scratch.len < len || scratch.dtype != DType::F32 || !scratch.addr.is_multiple_of(16) {
        bail!("{what}: expected {len} elements of scratch on a boundary of 16, got {scratch:?}");
    }
    Ok(())
}

/// Whether accesses of 16 bytes may begin at every span.
fn aligned(spans: &[Span]) -> bool {
    spans.iter().all(|span| span.addr.is_multiple_of(16))
}

/// A launch of `kernel` with one-dimensional blocks.
fn launch(b: &dyn Backend, kernel: &str, blocks: u32, args: &[Arg]) -> Result<()> {
    let (grid, block) = ([blocks, 1, 1], [THREADS, 1, 1]);
    b.launch(&Launch { kernel, grid, block, shared_bytes: 0, args })
}

/// How blocks read a `[rows, channels]` matrix: `Tile` in `common.cuh`.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    /// Channels of a thread.
    vector: usize,
    /// Threads along channels.
    x: u32,
    /// Blocks along channels.
    tiles: u32,
}

impl Tiling {
    fn new(channels: usize, spans: &[Span]) -> Result<Self> {
        let vector = if channels.is_multiple_of(8) && aligned(spans) { 8 } else { 1 };
        let vectors = channels / vector;
        let x = vectors.next_power_of_two().min(32) as u32;
        Ok(Self { vector, x, tiles: blocks(vectors, x as usize)? })
    }

    /// Rows that a block takes at a time.
    fn y(&self) -> usize {
        (THREADS / self.x) as usize
    }

    /// Rows of a part, and parts, for a pass that writes every element: `each` rows a thread.
    fn parts(&self, rows: usize, each: usize) -> Part {
        let rows_per_part = (self.y() * each).max(rows.div_ceil(MOST_ALONG_Y));
        Part { rows_per_part, parts: rows.div_ceil(rows_per_part) }
    }

    fn launch(
        &self,
        b: &dyn Backend,
        kernel: &str,
        [parts, groups]: [usize; 2],
        args: &[Arg],
    ) -> Result<()> {
        if parts > MOST_ALONG_Y || groups > MOST_ALONG_Y {
            bail!("{kernel}: {parts} x {groups} blocks are more than a grid holds");
        }
        let grid = [self.tiles, parts as u32, groups as u32];
        let block = [self.x, THREADS / self.x, 1];
        b.launch(&Launch { kernel, grid, block, shared_bytes: 0, args })
    }
}

/// A cut of rows into equal parts, the last one perhaps shorter.
#[derive(Clone, Copy, Debug)]
struct Part {
    rows_per_part: usize,
    parts: usize,
}

/// Blocks that a reduction is spread over: several for each multiprocessor of any device. A
/// constant, so that sums do not depend on the device.
const REDUCTION_BLOCKS: usize = 1536;

/// Most parts of a reduction: what is joined at its end.
const MOST_PARTS: usize = 512;

/// The parts of a reduction over `rows` rows of each of `groups` groups. It depends on the shape
/// alone, not on where spans lie.
fn reduction(rows: usize, channels: usize, groups: usize) -> Part {
    let vectors = if channels.is_multiple_of(8) { channels / 8 } else { channels };
    let x = vectors.next_power_of_two().min(32);
    let (tiles, y) = (vectors.div_ceil(x), THREADS as usize / x);
    let parts = (REDUCTION_BLOCKS / (tiles * groups)).clamp(1, MOST_PARTS);
    let rows_per_part = rows.div_ceil(parts).max(4 * y);
    Part { rows_per_part, parts: rows.div_ceil(rows_per_part) }
}
