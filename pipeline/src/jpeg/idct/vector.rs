//! A block in each 128-bit lane: one with NEON, two with AVX2, four with AVX-512.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one condition for all, stated once")]

use super::super::lanes::Lanes;
use super::{Block, CONST_BITS, EVEN, ODD, PASS1_BITS, PASS2_BIAS};

/// Blocks whose last coefficient is below this zig-zag position have nothing
/// in rows and columns 4..8.
const SPAN_OF_QUARTER: u8 = 10;

/// Values of twice the width, or two vectors in turns: the low and the high half of each lane.
#[derive(Clone, Copy)]
struct Wide<V>(V, V);

/// Two vectors whose weighted sums are wanted.
#[derive(Clone, Copy)]
struct Pair<V>([V; 2]);

// SAFETY (all below): the trait's callers know that the CPU has `V`'s instructions.
impl<V: Lanes> Pair<V> {
    #[inline(always)]
    unsafe fn of(a: V, b: V) -> Pair<V> {
        Pair(unsafe { a.pair(b) })
    }

    #[inline(always)]
    unsafe fn dot(self, first: i32, second: i32) -> Wide<V> {
        let [low, high] = unsafe { V::dot(self.0, first, second) };
        Wide(low, high)
    }
}

impl<V: Lanes> Wide<V> {
    #[inline(always)]
    unsafe fn zip(a: V, b: V) -> Wide<V> {
        let [low, high] = unsafe { a.zip16(b) };
        Wide(low, high)
    }

    #[inline(always)]
    unsafe fn add(self, other: Wide<V>) -> Wide<V> {
        unsafe { Wide(self.0.add32(other.0), self.1.add32(other.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Wide<V>) -> Wide<V> {
        unsafe { Wide(self.0.sub32(other.0), self.1.sub32(other.1)) }
    }

    #[inline(always)]
    unsafe fn shift_and_pack<const SHIFT: u32>(self) -> V {
        unsafe { self.0.shift32::<SHIFT>().pack32(self.1.shift32::<SHIFT>()) }
    }
}

/// One dimension over the vectors' index; HALF: inputs 4..8 are zero.
///
/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn transform<V: Lanes, const SHIFT: u32, const HALF: bool>(x: [V; 8], round: i32) -> [V; 8] {
    const ONE: i32 = 1 << CONST_BITS;
    // SAFETY: the caller's promise.
    unsafe {
        let rounding = Wide(V::set32(round), V::set32(round));
        let zero = V::set32(0);
        let (even0, even1, rotated);
        if HALF {
            let sum = Pair::of(x[0], zero).dot(ONE, 0);
            even0 = if round == 0 { sum } else { sum.add(rounding) };
            even1 = even0;
            rotated = Pair::of(x[2], zero);
        } else {
            let both = Pair::of(x[0], x[4]);
            let (sum, difference) = (both.dot(ONE, ONE), both.dot(ONE, -ONE));
            even0 = if round == 0 { sum } else { sum.add(rounding) };
            even1 = if round == 0 { difference } else { difference.add(rounding) };
            rotated = Pair::of(x[2], x[6]);
        }
        let rotated1 = rotated.dot(EVEN[0][0], EVEN[0][1]);
        let rotated0 = rotated.dot(EVEN[1][0], EVEN[1][1]);
        let even =
            [even0.add(rotated0), even1.add(rotated1), even1.sub(rotated1), even0.sub(rotated0)];
        let low = Pair::of(x[1], x[3]);
        let high = Pair::of(x[5], x[7]);
        let mut out = [zero; 8];
        for i in 0..4 {
            let mut odd = low.dot(ODD[i][0], ODD[i][1]);
            if !HALF {
                odd = odd.add(high.dot(ODD[i][2], ODD[i][3]));
            }
            out[i] = even[i].add(odd).shift_and_pack::<SHIFT>();
            out[7 - i] = even[i].sub(odd).shift_and_pack::<SHIFT>();
        }
        out
    }
}

/// Transposes the 8 x 8 values of each lane.
///
/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn transpose<V: Lanes>(r: [V; 8]) -> [V; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (Wide::zip(r[0], r[4]), Wide::zip(r[1], r[5]));
        let (c, d) = (Wide::zip(r[2], r[6]), Wide::zip(r[3], r[7]));
        let (e, f) = (Wide::zip(a.0, c.0), Wide::zip(a.1, c.1));
        let (g, h) = (Wide::zip(b.0, d.0), Wide::zip(b.1, d.1));
        let (p, q) = (Wide::zip(e.0, g.0), Wide::zip(e.1, g.1));
        let (s, t) = (Wide::zip(f.0, h.0), Wide::zip(f.1, h.1));
        [p.0, p.1, q.0, q.1, s.0, s.1, t.0, t.1]
    }
}

/// Columns of 16-bit values to rows of saturated bytes: element i holds, in
/// each lane, rows 2 i and 2 i + 1.
///
/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn transpose_to_bytes<V: Lanes>(c: [V; 8]) -> [V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let [c01, c23] = c[0].pack16(c[2]).zip8(c[1].pack16(c[3]));
        let [c45, c67] = c[4].pack16(c[6]).zip8(c[5].pack16(c[7]));
        let (low, high) = (Wide::zip(c01, c23), Wide::zip(c45, c67));
        let ([a, b], [c, d]) = (low.0.zip32(high.0), low.1.zip32(high.1));
        [a, b, c, d]
    }
}

/// The neighbouring blocks `numbers`, as many as `V` has lanes, to eight rows at `to`.
///
/// # Safety
/// The CPU has `V`'s instructions, and eight rows of 8 bytes for each block, `stride`
/// apart, are writable at `to`.
///
/// # Panics
/// When a number is out of range.
#[inline(always)]
pub(super) unsafe fn idct<V: Lanes>(
    blocks: &[Block],
    spans: &[u8],
    numbers: &[u8],
    quant: &Block,
    to: *mut u8,
    stride: usize,
) {
    let mut span = 0;
    let rows: [*const i16; 4] = std::array::from_fn(|lane| {
        let number = usize::from(numbers[lane % V::BLOCKS]);
        span = span.max(spans[number]);
        blocks[number].0.as_ptr()
    });
    // SAFETY: the caller's promise; each pointer is that of a block.
    unsafe {
        if span <= 1 {
            flat::<V>(rows, quant.0[0], to, stride);
        } else if span <= SPAN_OF_QUARTER {
            both_passes::<V, true>(rows, quant, to, stride);
        } else {
            both_passes::<V, false>(rows, quant, to, stride);
        }
    }
}

/// Blocks that have only a DC coefficient.
///
/// # Safety
/// As [`both_passes`].
#[inline(always)]
unsafe fn flat<V: Lanes>(blocks: [*const i16; 4], step: i16, to: *mut u8, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        // Both passes reduce to shifts; saturation is where `both_passes` has it.
        let dc = V::repeat16(blocks).mul16(V::set16(step));
        let four = dc.adds16(dc).adds16(dc.adds16(dc));
        let level = four.adds16(V::set16(PASS2_BIAS)).shift16::<{ PASS1_BITS + 3 }>();
        let bytes = level.pack16(level);
        for y in (0..8).step_by(2) {
            bytes.store_rows(to.add(y * stride), stride);
        }
    }
}

/// # Safety
/// The CPU has `V`'s instructions, `blocks` point to 64 coefficients each, and eight
/// rows of 8 bytes for each block, `stride` apart, are writable at `to`.
#[inline(always)]
unsafe fn both_passes<V: Lanes, const HALF: bool>(
    blocks: [*const i16; 4],
    quant: &Block,
    to: *mut u8,
    stride: usize,
) {
    const SHIFT1: u32 = CONST_BITS - PASS1_BITS;
    const SHIFT2: u32 = CONST_BITS + PASS1_BITS + 3;
    // SAFETY: the caller's promise; a block holds eight rows of eight values.
    unsafe {
        let mut rows = [V::set32(0); 8];
        for (y, row) in rows.iter_mut().enumerate().take(if HALF { 4 } else { 8 }) {
            let steps = V::load([quant.0.as_ptr().add(y * 8); 4]);
            *row = V::load(blocks.map(|block| block.add(y * 8))).mul16(steps);
        }
        let work = transform::<V, SHIFT1, HALF>(rows, 1 << (SHIFT1 - 1));
        let mut columns = transpose(work);
        columns[0] = columns[0].adds16(V::set16(PASS2_BIAS));
        let work = transform::<V, SHIFT2, HALF>(columns, 0);
        for (pair, rows) in transpose_to_bytes(work).into_iter().enumerate() {
            rows.store_rows(to.add(2 * pair * stride), stride);
        }
    }
}
