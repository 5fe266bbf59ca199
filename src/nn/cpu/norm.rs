//! Batch normalisation's passes over memory, on `[rows][c]` slices.
//!
//! Rows are handled in strips a few hundred floats wide (whole rows, several when channels are
//! few), with the per-channel vectors repeated to that width: one loop for 16 channels and for
//! 2048. Reductions run over blocks of rows whose size depends on the channels alone; a block's
//! sums are f32 while it is in the cache, blocks are combined in order in f64.

use super::micro::{CHUNK, Isa, vectorised};
use super::{Buffer, Shared, each};

/// max(floor, x), but NaN stays NaN, as in PyTorch: what went wrong must reach the
/// loss. One instruction, as `f32::max` is two.
#[inline(always)]
pub fn at_least(floor: f32, x: f32) -> f32 {
    if x < floor { floor } else { x }
}

/// Floats of a strip, at least.
const STRIP: usize = 128;
/// Lines of that.
const LINES: usize = STRIP / CHUNK;
/// Floats of a block of a reduction, at least; two slices of them fit the first-level cache.
const BLOCK: usize = 4096;
/// Floats of a task of an elementwise pass.
const TASK: usize = 128 * 1024;

/// Scratch of a layer's passes, reused across steps.
#[derive(Default)]
pub struct Scratch {
    /// Sums of the blocks of a reduction.
    partial: Buffer,
    /// Per-channel vectors of a pass, repeated to the width of a strip.
    wide: [Buffer; 3],
}

/// Per-channel constants of one elementwise pass.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// Factor.
    pub scale: &'a [f32],
    /// Summand.
    pub shift: &'a [f32],
}

/// Rows of a strip and of a reduction's block.
fn strip_and_block(c: usize) -> (usize, usize) {
    let strip = STRIP.div_ceil(c);
    (strip, strip * (BLOCK.div_ceil(strip * c)).max(16))
}

fn repeated<'a>(values: &[f32], times: usize, to: &'a mut Buffer) -> &'a [f32] {
    let wide = to.get(values.len() * times);
    wide.chunks_exact_mut(values.len()).for_each(|part| part.copy_from_slice(values));
    wide
}

/// Sums over channels' repetitions in a strip.
fn fold(wide: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for part in wide.chunks(out.len()) {
        out.iter_mut().zip(part).for_each(|(o, p)| *o += p);
    }
}

/// Mean and variance (divided by the number of rows) of every channel of `y`, `[rows][c]`.
pub fn moments(isa: Isa, y: &[f32], c: usize, s: &mut Scratch, mean: &mut [f64], var: &mut [f64]) {
    let (strip, block) = strip_and_block(c);
    let rows = y.len() / c;
    let blocks = rows.div_ceil(block);
    let partial = s.partial.get(blocks * 2 * c);
    let target = Shared(partial.as_mut_ptr());
    each_block(blocks, |b| {
        let y = &y[b * block * c..((b + 1) * block).min(rows) * c];
        // SAFETY: block b's 2 c floats, written by its task alone.
        let out = unsafe { std::slice::from_raw_parts_mut(target.at(b * 2 * c), 2 * c) };
        let (mean, square) = out.split_at_mut(c);
        block_moments(isa, y, strip, mean, square);
    });
    // Chan's rule for combining means and squared deviations, in order.
    mean.fill(0.0);
    var.fill(0.0);
    let mut before = 0.0;
    for (b, part) in partial.chunks_exact(2 * c).enumerate() {
        let count = (rows - b * block).min(block) as f64;
        let total = before + count;
        for i in 0..c {
            let delta = part[i] as f64 - mean[i];
            mean[i] += delta * count / total;
            var[i] += part[c + i] as f64 + delta * delta * before * count / total;
        }
        before = total;
    }
    var.iter_mut().for_each(|v| *v /= rows as f64);
}

fn each_block(blocks: usize, f: impl Fn(usize) + Sync + Send) {
    // A few blocks a task: a block alone is a matter of microseconds.
    let tasks = blocks.div_ceil(8);
    each(tasks, |t| (t * 8..(t * 8 + 8).min(blocks)).for_each(&f));
}

thread_local! {
    static WIDE: std::cell::RefCell<[Vec<f32>; 3]> = const {
        std::cell::RefCell::new([Vec::new(), Vec::new(), Vec::new()])
    };
}

fn block_moments(isa: Isa, y: &[f32], strip: usize, mean: &mut [f32], square: &mut [f32]) {
    let c = mean.len();
    WIDE.with_borrow_mut(|[sum, centre, _]| {
        sum.clear();
        sum.resize(strip * c, 0.0);
        add_strips(isa, y, sum);
        fold(sum, mean);
        let rows = (y.len() / c) as f32;
        mean.iter_mut().for_each(|m| *m /= rows);
        centre.clear();
        (0..strip).for_each(|_| centre.extend_from_slice(mean));
        sum.fill(0.0);
        add_squares(isa, y, centre, sum);
        fold(sum, square);
    });
}

vectorised! {
    fn add_strips(y: &[f32], sum: &mut [f32]) {
        for row in y.chunks(sum.len()) {
            sum.iter_mut().zip(row).for_each(|(s, y)| *s += y);
        }
    }

    fn add_squares(y: &[f32], centre: &[f32], sum: &mut [f32]) {
        for row in y.chunks(sum.len()) {
            for ((s, y), m) in sum.iter_mut().zip(row).zip(centre) {
                *s += (y - m) * (y - m);
            }
        }
    }

    fn affine_strips(y: &[f32], scale: &[f32], shift: &[f32], relu: bool, out: &mut [f32]) {
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        for (y, out) in y.chunks(scale.len()).zip(out.chunks_mut(scale.len())) {
            for (((o, y), a), b) in out.iter_mut().zip(y).zip(scale).zip(shift) {
                *o = at_least(floor, y * a + b);
            }
        }
    }

    fn affine_add_strips(
        y: &[f32],
        residual: &[f32],
        scale: &[f32],
        shift: &[f32],
        relu: bool,
        out: &mut [f32],
    ) {
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        let strips = y.chunks(scale.len()).zip(residual.chunks(scale.len()));
        for ((y, r), out) in strips.zip(out.chunks_mut(scale.len())) {
            for ((((o, y), r), a), b) in out.iter_mut().zip(y).zip(r).zip(scale).zip(shift) {
                *o = at_least(floor, y * a + b + r);
            }
        }
    }

    fn mask_strips(out: &[f32], dout: &mut [f32]) {
        for (d, o) in dout.iter_mut().zip(out) {
            *d = if *o > 0.0 { *d } else { 0.0 };
        }
    }

    fn add_grads(dz: &[f32], y: &[f32], centre: &[f32], s1: &mut [f32], s2: &mut [f32]) {
        for (dz, y) in dz.chunks(centre.len()).zip(y.chunks(centre.len())) {
            for ((((s1, s2), d), y), m) in s1.iter_mut().zip(&mut *s2).zip(dz).zip(y).zip(centre) {
                *s1 += d;
                *s2 += d * (y - m);
            }
        }
    }

    /// [`mask_strips`] and [`add_grads`] in one pass. Lines of 16, so that what is masked is stored
    /// as a whole: the compiler would make a store under a mask of it, which takes many cycles with
    /// AVX2 on AMD's CPUs, and which the loads of the sums would wait for.
    fn mask_and_add_grads(
        out: &[f32],
        dz: &mut [f32],
        y: &[f32],
        centre: &[f32],
        s1: &mut [f32],
        s2: &mut [f32],
    ) {
        let width = centre.len();
        for ((out, dz), y) in out.chunks(width).zip(dz.chunks_mut(width)).zip(y.chunks(width)) {
            let at = dz.len() / CHUNK * CHUNK;
            let (outs, dzs) = (out.as_chunks::<CHUNK>().0, dz[..at].as_chunks_mut::<CHUNK>().0);
            let sums = s1.as_chunks_mut::<CHUNK>().0.iter_mut().zip(s2.as_chunks_mut::<CHUNK>().0);
            let given = y.as_chunks::<CHUNK>().0.iter().zip(centre.as_chunks::<CHUNK>().0);
            for (((out, dz), (y, m)), (s1, s2)) in outs.iter().zip(dzs).zip(given).zip(sums) {
                masked_sums(out, dz, y, m, s1, s2);
            }
            for i in at..dz.len() {
                dz[i] = if out[i] > 0.0 { dz[i] } else { 0.0 };
                s1[i] += dz[i];
                s2[i] += dz[i] * (y[i] - centre[i]);
            }
        }
    }

    /// As [`mask_and_add_grads`], for strips of [`STRIP`], whose sums stay in registers.
    fn mask_and_add_strip(
        out: &[f32],
        dz: &mut [f32],
        y: &[f32],
        centre: &[f32],
        s1: &mut [f32],
        s2: &mut [f32],
    ) {
        let (Some(centre), Some(s1), Some(s2)) = (
            centre.as_chunks::<CHUNK>().0.first_chunk::<LINES>(),
            s1.as_chunks_mut::<CHUNK>().0.first_chunk_mut::<LINES>(),
            s2.as_chunks_mut::<CHUNK>().0.first_chunk_mut::<LINES>(),
        ) else {
            unreachable!("strips of {STRIP} floats");
        };
        let (centre, mut sum1, mut sum2) = (*centre, *s1, *s2);
        let strips = out.as_chunks::<STRIP>().0.iter().zip(dz.as_chunks_mut::<STRIP>().0);
        for ((out, dz), y) in strips.zip(y.as_chunks::<STRIP>().0) {
            for v in 0..LINES {
                for i in 0..CHUNK {
                    let at = v * CHUNK + i;
                    let d = if out[at] > 0.0 { dz[at] } else { 0.0 };
                    dz[at] = d;
                    sum1[v][i] += d;
                    sum2[v][i] += d * (y[at] - centre[v][i]);
                }
            }
        }
        (*s1, *s2) = (sum1, sum2);
    }

    fn grad_strips(dz: &[f32], y: &[f32], a: &[f32], b: &[f32], k: &[f32], dy: &mut [f32]) {
        let strips = dz.chunks(a.len()).zip(y.chunks(a.len())).zip(dy.chunks_mut(a.len()));
        for ((dz, y), dy) in strips {
            for (((((o, d), y), a), b), k) in dy.iter_mut().zip(dz).zip(y).zip(a).zip(b).zip(k) {
                *o = d * a + y * b + k;
            }
        }
    }

    fn grad_strips_in_place(y: &[f32], a: &[f32], b: &[f32], k: &[f32], dy: &mut [f32]) {
        for (y, dy) in y.chunks(a.len()).zip(dy.chunks_mut(a.len())) {
            for ((((o, y), a), b), k) in dy.iter_mut().zip(y).zip(a).zip(b).zip(k) {
                *o = *o * a + y * b + k;
            }
        }
    }
}

/// One line of [`mask_and_add_grads`].
#[inline(always)]
fn masked_sums(
    out: &[f32; CHUNK],
    dz: &mut [f32; CHUNK],
    y: &[f32; CHUNK],
    centre: &[f32; CHUNK],
    s1: &mut [f32; CHUNK],
    s2: &mut [f32; CHUNK],
) {
    let (mut masked, mut first, mut second) = (*dz, *s1, *s2);
    for i in 0..CHUNK {
        masked[i] = if out[i] > 0.0 { masked[i] } else { 0.0 };
        first[i] += masked[i];
        second[i] += masked[i] * (y[i] - centre[i]);
    }
    (*dz, *s1, *s2) = (masked, first, second);
}

/// Splits `out`, `[rows][c]`, into tasks of whole strips and calls `f(range of elements, part)`.
fn each_part(
    c: usize,
    out: &mut [f32],
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync + Send,
) {
    let (strip, _) = strip_and_block(c);
    let width = (TASK / (strip * c)).max(1) * strip * c;
    let len = out.len();
    let target = Shared(out.as_mut_ptr());
    each(len.div_ceil(width), |t| {
        let range = t * width..((t + 1) * width).min(len);
        // SAFETY: ranges of different tasks are disjoint parts of `out`.
        let part = unsafe { std::slice::from_raw_parts_mut(target.at(range.start), range.len()) };
        f(range, part);
    });
}

/// out = y * scale + shift (+ residual), then ReLU where asked for.
pub fn affine(
    isa: Isa,
    y: &[f32],
    by: Affine<'_>,
    residual: Option<&[f32]>,
    relu: bool,
    s: &mut Scratch,
    out: &mut [f32],
) {
    let c = by.scale.len();
    let (strip, _) = strip_and_block(c);
    let [scale, shift, _] = &mut s.wide;
    let (scale, shift) = (repeated(by.scale, strip, scale), repeated(by.shift, strip, shift));
    each_part(c, out, |range, out| match residual {
        None => affine_strips(isa, &y[range], scale, shift, relu, out),
        Some(r) => affine_add_strips(isa, &y[range.clone()], &r[range], scale, shift, relu, out),
    });
}

/// Zeroes `dout` wherever `out`, a ReLU's output, is not positive.
pub fn relu_grad(isa: Isa, out: &[f32], dout: &mut [f32]) {
    each_part(STRIP, dout, |range, dout| mask_strips(isa, &out[range], dout));
}

/// The sums that the gradient needs: of dz, and of dz * (y - mean), for every channel. With `out`,
/// `dz` is first masked in place by the ReLU whose output `out` is.
///
/// # Panics
/// When `dz`, `out` and `y` differ in length.
pub fn grad_sums(
    isa: Isa,
    dz: &mut [f32],
    out: Option<&[f32]>,
    y: &[f32],
    mean: &[f32],
    s: &mut Scratch,
    sums: &mut [Vec<f64>; 2],
) {
    let c = mean.len();
    assert!(dz.len() == y.len() && out.is_none_or(|out| out.len() == y.len()), "lengths differ");
    let (strip, block) = strip_and_block(c);
    let rows = y.len() / c;
    let blocks = rows.div_ceil(block);
    let Scratch { partial, wide: [centre, ..] } = s;
    let (centre, partial) = (repeated(mean, strip, centre), partial.get(blocks * 2 * c));
    let (target, dz) = (Shared(partial.as_mut_ptr()), Shared(dz.as_mut_ptr()));
    each_block(blocks, |b| {
        let range = b * block * c..((b + 1) * block).min(rows) * c;
        // SAFETY: block b's elements of both, which its task alone touches; `dz` is as long as `y`.
        let (sums, dz) = unsafe {
            (
                std::slice::from_raw_parts_mut(target.at(b * 2 * c), 2 * c),
                std::slice::from_raw_parts_mut(dz.at(range.start), range.len()),
            )
        };
        WIDE.with_borrow_mut(|[s1, s2, _]| {
            for s in [&mut *s1, &mut *s2] {
                s.clear();
                s.resize(strip * c, 0.0);
            }
            let y = &y[range.clone()];
            match out {
                None => add_grads(isa, dz, y, centre, s1, s2),
                Some(out) if centre.len() == STRIP && dz.len().is_multiple_of(STRIP) => {
                    mask_and_add_strip(isa, &out[range.clone()], dz, y, centre, s1, s2);
                }
                Some(out) => mask_and_add_grads(isa, &out[range], dz, y, centre, s1, s2),
            }
            let (first, second) = sums.split_at_mut(c);
            fold(s1, first);
            fold(s2, second);
        });
    });
    for (i, sum) in sums.iter_mut().enumerate() {
        sum.clear();
        sum.resize(c, 0.0);
        for part in partial.chunks_exact(2 * c) {
            sum.iter_mut().zip(&part[i * c..]).for_each(|(s, p)| *s += *p as f64);
        }
    }
}

/// dy = dz * a + y * b + k, the three constants per channel; without `dz` in place over `dy`.
pub fn grad(
    isa: Isa,
    dz: Option<&[f32]>,
    y: &[f32],
    [a, b, k]: [&[f32]; 3],
    s: &mut Scratch,
    dy: &mut [f32],
) {
    let c = a.len();
    let (strip, _) = strip_and_block(c);
    let [wide_a, wide_b, wide_k] = &mut s.wide;
    let (a, b) = (repeated(a, strip, wide_a), repeated(b, strip, wide_b));
    let k = repeated(k, strip, wide_k);
    each_part(c, dy, |range, dy| match dz {
        Some(dz) => grad_strips(isa, &dz[range.clone()], &y[range], a, b, k, dy),
        None => grad_strips_in_place(isa, &y[range], a, b, k, dy),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "lengths differ")]
    fn a_gradient_shorter_than_its_input_is_refused() {
        let (mut dz, y, mut sums) = (vec![0.0; 32], vec![0.0; 64], [Vec::new(), Vec::new()]);
        let s = &mut Scratch::default();
        grad_sums(Isa::best(), &mut dz, None, &y, &[0.0; 16], s, &mut sums);
    }

    /// One pass over memory gives the bits of two, on every instruction set.
    #[test]
    fn a_mask_and_its_sums_are_those_of_one_after_the_other() {
        let values = |n: usize, by: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * by) % 1013) as f32 * 0.01 - 5.0).collect()
        };
        for (isa, (rows, c)) in Isa::all().into_iter().flat_map(|isa| {
            [(1, 16), (9, 64), (700, 16), (333, 48), (65, 130), (33, 128), (5, 256), (40, 3)]
                .map(|shape| (isa, shape))
        }) {
            let [out, y, dz] = [7919, 6007, 4001].map(|by| values(rows * c, by));
            let (mean, s) = (values(c, 31), &mut Scratch::default());
            let [mut fused, mut apart] = [(); 2].map(|()| (dz.clone(), [Vec::new(), Vec::new()]));
            grad_sums(isa, &mut fused.0, Some(&out), &y, &mean, s, &mut fused.1);
            mask_strips(isa, &out, &mut apart.0);
            grad_sums(isa, &mut apart.0, None, &y, &mean, s, &mut apart.1);
            assert!(fused == apart, "{rows} x {c}");
        }
    }

    #[test]
    fn moments_agree_with_a_two_pass_sum_in_f64() {
        for (rows, c) in [(2, 3), (5, 16), (1000, 16), (777, 130), (64, 2048), (3, 1)] {
            let y: Vec<f32> =
                (0..rows * c).map(|i| 100.0 + ((i * 7919) % 1013) as f32 * 0.01).collect();
            let (mut mean, mut var) = (vec![0.0; c], vec![0.0; c]);
            moments(Isa::best(), &y, c, &mut Scratch::default(), &mut mean, &mut var);
            for j in 0..c {
                let column: Vec<f64> = y.iter().skip(j).step_by(c).map(|&v| v as f64).collect();
                let m = column.iter().sum::<f64>() / rows as f64;
                let v = column.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / rows as f64;
                assert!((mean[j] - m).abs() < 1e-5 * m, "{rows} {c} {j}");
                assert!((var[j] - v).abs() < 1e-5 * v + 1e-9, "{rows} {c} {j}: {} {v}", var[j]);
            }
        }
    }
}
