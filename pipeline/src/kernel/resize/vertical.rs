//! The vertical pass: rows of the ring, weighted, to one row of the view.

use super::axis::Weights;
use super::{BITS, mulhrs};
use crate::kernel::vector::{Vector, vectorized};

vectorized! {
    /// Sums the rows at `rows` in `ring` with their weights
    /// and rounds to 0..=255. `out` is three planes of equal padded length.
    pub(super) fn vertical(ring: &[i16], rows: &[usize], weights: Weights<'_>, out: &mut [i16])
        = vector, scalar
}

fn scalar(ring: &[i16], rows: &[usize], weights: Weights<'_>, out: &mut [i16]) {
    out.fill(1 << (BITS - 1));
    for (&row, &[weight, _]) in rows.iter().zip(weights.iter()) {
        for (sum, &value) in out.iter_mut().zip(&ring[row..]) {
            *sum += mulhrs(value, weight);
        }
    }
    for sum in out {
        *sum = (*sum).clamp(0, 256 * (1 << BITS) - 1) >> BITS;
    }
}

/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn vector<V: Vector>(ring: &[i16], rows: &[usize], weights: Weights<'_>, out: &mut [i16]) {
    let stride = out.len() / 3;
    assert!(
        stride.is_multiple_of(V::LEN) && stride * 3 == out.len() && rows.len() == weights.len()
    );
    let last = ring.len().checked_sub(out.len()).expect("the ring holds a row");
    assert!(rows.iter().all(|&row| row <= last));
    for at in (0..stride).step_by(V::LEN) {
        // SAFETY: `at + LEN` lies within each of the three planes of `out` and,
        // as just checked, of each row in `ring`.
        unsafe {
            // The three planes together share the load of the weight.
            let mut sums = [V::splat(1 << (BITS - 1)); 3];
            for (&row, weight) in rows.iter().zip(weights.iter()) {
                let weight = V::splat_pair(weight);
                let from = ring.as_ptr().add(row + at);
                for (plane, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(V::load(from.add(plane * stride)).mulhrs(weight));
                }
            }
            let most = V::splat((256 << BITS) - 1);
            for (plane, sum) in sums.into_iter().enumerate() {
                sum.clamp(most).shr::<BITS>().store(out.as_mut_ptr().add(plane * stride + at));
            }
        }
    }
}
