//! The micro-kernels for NEON: 6 rows of 16 columns are 24 of its 32 registers.

#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed, so that the loops unroll"
)]

use std::arch::aarch64::*;

use super::*;

/// Rows of either kernel.
pub const MR: usize = 6;

/// A row of 16 columns.
type Row = [float32x4_t; 4];

/// # Safety
/// As [`Isa::tile`].
pub unsafe fn tile(t: &Tile) {
    // SAFETY: every aarch64 CPU has NEON; the caller's promise about extents.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); 4]; MR];
        let mut b = t.b;
        for chunk in 0..t.chunks {
            let a = t.a.add(*t.offsets.add(chunk));
            for k in 0..CHUNK {
                let bv = load(b);
                for r in 0..MR {
                    multiply_add(&mut acc[r], *a.add(r * CHUNK + k), bv);
                }
                b = b.add(16);
            }
        }
        if t.n_rows == MR && t.cols == 16 {
            for r in 0..MR {
                store(*t.rows.add(r), acc[r], t.accumulate);
            }
            return;
        }
        let out = spilled(acc);
        store_part(&out, t.n_rows, t.cols, t.accumulate, |r| *t.rows.add(r));
    }
}

/// # Safety
/// As [`Isa::outer`].
pub unsafe fn outer(o: &Outer, block: usize) {
    // SAFETY: every aarch64 CPU has NEON; the caller's promise about extents.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); 4]; MR];
        for k in 0..o.count {
            let bv = load(o.b[block].add(k * o.b_stride));
            for r in 0..MR {
                multiply_add(&mut acc[r], *o.a.add(k * MR + r), bv);
            }
        }
        let row = |r| o.c[block].wrapping_add(r * o.stride);
        if o.n_rows == MR && o.cols[block] == BLOCK {
            for r in 0..MR {
                store(row(r), acc[r], o.accumulate);
            }
            return;
        }
        store_part(&spilled(acc), o.n_rows, o.cols[block], o.accumulate, row);
    }
}

/// # Safety
/// `from` is valid for 16 floats.
#[inline(always)]
unsafe fn load(from: *const f32) -> Row {
    // SAFETY: the caller's promise.
    unsafe { [0, 4, 8, 12].map(|at| vld1q_f32(from.add(at))) }
}

#[inline(always)]
fn multiply_add(sums: &mut Row, a: f32, b: Row) {
    for v in 0..4 {
        // SAFETY: every aarch64 CPU has NEON.
        sums[v] = unsafe { vfmaq_n_f32(sums[v], b[v], a) };
    }
}

/// Writes or adds 16 floats.
///
/// # Safety
/// `to` is valid for 16 floats.
#[inline(always)]
unsafe fn store(to: *mut f32, values: Row, accumulate: bool) {
    for v in 0..4 {
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(4 * v);
            let sum = match accumulate {
                true => vaddq_f32(vld1q_f32(to), values[v]),
                false => values[v],
            };
            vst1q_f32(to, sum);
        }
    }
}

#[inline(always)]
fn spilled(acc: [Row; MR]) -> [[f32; 16]; MR] {
    let mut out = [[0f32; 16]; MR];
    for r in 0..MR {
        // SAFETY: a row has 16 floats.
        unsafe { store(out[r].as_mut_ptr(), acc[r], false) };
    }
    out
}
