//! The micro-kernels for AVX-512 and for AVX2 with FMA.

#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed, so that the loops unroll"
)]

use std::arch::x86_64::*;

use super::*;

/// # Safety
/// As [`Isa::tile`], and the CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
pub unsafe fn tile_512<const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the caller's promise about extents.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); NV]; MR];
        let mut b = t.b;
        for chunk in 0..t.chunks {
            let mut a = t.a.add(*t.offsets.add(chunk));
            for _ in 0..CHUNK / 4 {
                for k in 0..4 {
                    let mut bv = [_mm512_setzero_ps(); NV];
                    for v in 0..NV {
                        bv[v] = _mm512_loadu_ps(b.add((k * NV + v) * 16));
                    }
                    for r in 0..MR {
                        let av = _mm512_set1_ps(*a.add(r * CHUNK + k));
                        for v in 0..NV {
                            acc[r][v] = _mm512_fmadd_ps(av, bv[v], acc[r][v]);
                        }
                    }
                }
                a = a.add(4);
                b = b.add(4 * NV * 16);
            }
        }
        if t.n_rows == MR && t.cols == NV * 16 {
            for r in 0..MR {
                let row = *t.rows.add(r);
                for v in 0..NV {
                    let p = row.add(v * 16);
                    let old = if t.accumulate { _mm512_loadu_ps(p) } else { _mm512_setzero_ps() };
                    _mm512_storeu_ps(p, _mm512_add_ps(old, acc[r][v]));
                }
            }
        } else {
            let mut out = [[0f32; 32]; MR];
            for r in 0..MR {
                for v in 0..NV {
                    _mm512_storeu_ps(out[r].as_mut_ptr().add(v * 16), acc[r][v]);
                }
            }
            store_part(&out, t.n_rows, t.cols, t.accumulate, |r| *t.rows.add(r));
        }
    }
}

/// # Safety
/// As [`Isa::tile`], and the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn tile_256(t: &Tile) {
    const MR: usize = 6;
    // SAFETY: the caller's promise about extents.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; MR];
        let mut b = t.b;
        for chunk in 0..t.chunks {
            let mut a = t.a.add(*t.offsets.add(chunk));
            for _ in 0..CHUNK / 4 {
                for k in 0..4 {
                    let b0 = _mm256_loadu_ps(b.add(k * 16));
                    let b1 = _mm256_loadu_ps(b.add(k * 16 + 8));
                    for r in 0..MR {
                        let av = _mm256_set1_ps(*a.add(r * CHUNK + k));
                        acc[r][0] = _mm256_fmadd_ps(av, b0, acc[r][0]);
                        acc[r][1] = _mm256_fmadd_ps(av, b1, acc[r][1]);
                    }
                }
                a = a.add(4);
                b = b.add(64);
            }
        }
        if t.n_rows == MR && t.cols == 16 {
            for r in 0..MR {
                store_256(*t.rows.add(r), acc[r], t.accumulate);
            }
            return;
        }
        let mut out = [[0f32; 16]; MR];
        for r in 0..MR {
            store_256(out[r].as_mut_ptr(), acc[r], false);
        }
        store_part(&out, t.n_rows, t.cols, t.accumulate, |r| *t.rows.add(r));
    }
}

/// # Safety
/// As [`Isa::outer`], and the CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
pub unsafe fn outer_512<const MR: usize, const NV: usize>(o: &Outer) {
    // SAFETY: the caller's promise about extents.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); NV]; MR];
        let mut a = o.a;
        let mut b = o.b;
        for _ in 0..o.count {
            let mut bv = [_mm512_setzero_ps(); NV];
            for v in 0..NV {
                bv[v] = _mm512_loadu_ps(b[v]);
                b[v] = b[v].wrapping_add(o.b_stride);
            }
            for r in 0..MR {
                let av = _mm512_set1_ps(*a.add(r));
                for v in 0..NV {
                    acc[r][v] = _mm512_fmadd_ps(av, bv[v], acc[r][v]);
                }
            }
            a = a.wrapping_add(MR);
        }
        for v in 0..NV {
            let mask: __mmask16 = ((1u32 << o.cols[v]) - 1) as u16;
            for r in 0..MR {
                if r < o.n_rows {
                    let p = o.c[v].add(r * o.stride);
                    let old = if o.accumulate {
                        _mm512_maskz_loadu_ps(mask, p)
                    } else {
                        _mm512_setzero_ps()
                    };
                    _mm512_mask_storeu_ps(p, mask, _mm512_add_ps(old, acc[r][v]));
                }
            }
        }
    }
}

/// # Safety
/// As [`Isa::outer`], and the CPU has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn outer_256(o: &Outer, block: usize) {
    const MR: usize = 6;
    // SAFETY: the caller's promise about extents.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; MR];
        for k in 0..o.count {
            let b = o.b[block].add(k * o.b_stride);
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for r in 0..MR {
                let av = _mm256_set1_ps(*o.a.add(k * MR + r));
                acc[r][0] = _mm256_fmadd_ps(av, b0, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(av, b1, acc[r][1]);
            }
        }
        let row = |r| o.c[block].wrapping_add(r * o.stride);
        if o.n_rows == MR && o.cols[block] == BLOCK {
            for r in 0..MR {
                store_256(row(r), acc[r], o.accumulate);
            }
            return;
        }
        let mut out = [[0f32; BLOCK]; MR];
        for r in 0..MR {
            store_256(out[r].as_mut_ptr(), acc[r], false);
        }
        store_part(&out, o.n_rows, o.cols[block], o.accumulate, row);
    }
}

/// Writes or adds 16 floats.
///
/// # Safety
/// The CPU has AVX2, and `to` is valid for 16 floats.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store_256(to: *mut f32, values: [__m256; 2], accumulate: bool) {
    for v in 0..2 {
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(8 * v);
            let sum = match accumulate {
                true => _mm256_add_ps(_mm256_loadu_ps(to), values[v]),
                false => values[v],
            };
            _mm256_storeu_ps(to, sum);
        }
    }
}
