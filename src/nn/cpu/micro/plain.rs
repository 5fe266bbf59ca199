//! The micro-kernels' specification, in plain loops.

use super::*;

/// # Safety
/// As [`Isa::tile`].
pub unsafe fn tile(t: &Tile) {
    const MR: usize = 4;
    let mut acc = [[0f32; 16]; MR];
    for k in 0..t.chunks * CHUNK {
        let (chunk, lane) = (k / CHUNK, k % CHUNK);
        // SAFETY: b holds `chunks * CHUNK` rows of 16.
        let b = unsafe { &*t.b.add(k * 16).cast::<[f32; 16]>() };
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `offsets` holds `chunks` offsets of chunks of MR x CHUNK.
            let a = unsafe { *t.a.add(*t.offsets.add(chunk) + r * CHUNK + lane) };
            acc.iter_mut().zip(b).for_each(|(s, b)| *s += a * b);
        }
    }
    // SAFETY: the caller's promise about `rows`.
    unsafe { store_part(&acc, t.n_rows, t.cols, t.accumulate, |r| *t.rows.add(r)) }
}

/// # Safety
/// As [`Isa::outer`].
pub unsafe fn outer(o: &Outer, block: usize) {
    const MR: usize = 4;
    let mut acc = [[0f32; BLOCK]; MR];
    for k in 0..o.count {
        // SAFETY: the caller vouches for `count` rows of a and b.
        let (a, b) = unsafe {
            let b = o.b[block].add(k * o.b_stride);
            (&*o.a.add(k * MR).cast::<[f32; MR]>(), &*b.cast::<[f32; BLOCK]>())
        };
        for (acc, a) in acc.iter_mut().zip(a) {
            acc.iter_mut().zip(b).for_each(|(s, b)| *s += a * b);
        }
    }
    let row = |r| o.c[block].wrapping_add(r * o.stride);
    // SAFETY: the caller vouches for c.
    unsafe { store_part(&acc, o.n_rows, o.cols[block], o.accumulate, row) }
}
