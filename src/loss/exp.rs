//! The exponential over slices, written so that the compiler vectorises it.
//!
//! `f32::exp` is a call per element; the cross-entropy form of the loss takes dim^2 of them. Each
//! kernel is one plain loop, its specification, compiled for several instruction sets; as the
//! compiler neither reorders nor fuses floating-point operations, all give the same bits.

use crate::nn::cpu::micro::vectorised;

/// exp(x) for |x| below about 87, within 2 units in the last place; clamped beyond.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (x - k * LN2_HI) - k * LN2_LO;
    // Cephes' minimax polynomial for exp on [-ln 2 / 2, ln 2 / 2].
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    value * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// Partial sums that run side by side: a register of AVX-512, four of SSE2.
const LANES: usize = 16;
/// Elements that are summed in f32 before their sum goes on in f64.
const BLOCK: usize = 1024;

vectorised! {
    /// Replaces each x by e = exp((x - max) scale) and returns their sum: a soft-max's inside.
    pub(crate) fn shifted_exps(row: &mut [f32], max: f32, scale: f32) -> f64 {
        let mut total = 0.0;
        for block in row.chunks_mut(BLOCK) {
            let mut sums = [0f32; LANES];
            let mut whole = block.chunks_exact_mut(LANES);
            for lanes in &mut whole {
                for (x, sum) in lanes.iter_mut().zip(&mut sums) {
                    *x = exp((*x - max) * scale);
                    *sum += *x;
                }
            }
            for (x, sum) in whole.into_remainder().iter_mut().zip(&mut sums) {
                *x = exp((*x - max) * scale);
                *sum += *x;
            }
            total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        total
    }

    /// With c = x scale: replaces x by e = exp(max(c, 0) - shift) where c > 0, else by 0, and
    /// returns the sum of all e, those of c <= 0 too: the cross-entropy's redundancy term.
    pub(crate) fn positive_exps(row: &mut [f32], scale: f32, shift: f32) -> f64 {
        let mut total = 0.0;
        for block in row.chunks_mut(BLOCK) {
            let mut sums = [0f32; LANES];
            let mut whole = block.chunks_exact_mut(LANES);
            for lanes in &mut whole {
                for (x, sum) in lanes.iter_mut().zip(&mut sums) {
                    let c = *x * scale;
                    let e = exp(c.max(0.0) - shift);
                    *sum += e;
                    *x = if c > 0.0 { e } else { 0.0 };
                }
            }
            for (x, sum) in whole.into_remainder().iter_mut().zip(&mut sums) {
                let c = *x * scale;
                let e = exp(c.max(0.0) - shift);
                *sum += e;
                *x = if c > 0.0 { e } else { 0.0 };
            }
            total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::cpu::micro::Isa;

    type Kernel = fn(Isa, &mut [f32], f32, f32) -> f64;

    #[test]
    fn agrees_with_the_library_to_a_few_ulps() {
        for i in -86_000..87_000 {
            let x = i as f32 * 1e-3;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn vector_kernels_have_the_plain_loops_bits_at_any_length() {
        let kernels: [Kernel; 2] = [shifted_exps, positive_exps];
        let plain = Isa::all()[0];
        let mut rng = bt_pipeline::rng::Rng::keyed(5, 0, 0, 0);
        for len in (0..70).chain([255, 1023, 1024, 1025, 3000]) {
            let row: Vec<f32> = (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
            for (a, b) in [(0.9, 10.0), (7.5, 0.25)] {
                for kernel in kernels {
                    let mut want = row.clone();
                    let sum = kernel(plain, &mut want, a, b).to_bits();
                    for isa in Isa::all() {
                        let mut got = row.clone();
                        assert_eq!(kernel(isa, &mut got, a, b).to_bits(), sum, "{isa:?}, {len}");
                        let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits();
                        assert!(got.iter().zip(&want).all(same), "{isa:?}, {len}");
                    }
                }
            }
        }
    }

    #[test]
    fn sums_follow_the_definition() {
        let row = [0.5f32, -0.25, 0.125];
        let (mut x, mut y) = (row, row);
        let shifted = shifted_exps(Isa::best(), &mut x, 0.5, 2.0);
        let want: f64 = row.iter().map(|x| ((f64::from(*x) - 0.5) * 2.0).exp()).sum();
        assert!((shifted - want).abs() < 1e-6);
        let positive = positive_exps(Isa::best(), &mut y, 2.0, 0.1);
        let want: f64 = row.iter().map(|x| ((f64::from(*x) * 2.0).max(0.0) - 0.1).exp()).sum();
        assert!((positive - want).abs() < 1e-6 && y[1] == 0.0 && y[0] > 2.0);
    }
}
