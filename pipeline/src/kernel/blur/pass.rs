//! The two passes of the blur. Values at equal distance are added before they are
//! multiplied: half the products.

use super::BITS;
use crate::kernel::resize::mulhrs;
use crate::kernel::vector::{Vector, vectorized};
use crate::level::multiversion;

multiversion! {
    /// A plane of a row with [`BITS`] fractional bits and `radius` copies of its ends
    /// before and after it.
    pub(super) fn extend(plane: &[i16], radius: usize, line: &mut [i16]) = extend_inner
}

#[inline(always)]
fn extend_inner(plane: &[i16], radius: usize, line: &mut [i16]) {
    let end = radius + plane.len();
    line[..radius].fill(plane[0] << BITS);
    for (to, from) in line[radius..end].iter_mut().zip(plane) {
        *to = from << BITS;
    }
    line[end..end + radius].fill(plane[plane.len() - 1] << BITS);
}

vectorized! {
    /// Blurs along a row. `line` is three planes whose first `radius` elements lie
    /// before the row and last `radius` after it, `out` three planes as long as
    /// what is between; `weights` has `radius + 1` weights, each twice.
    pub(super) fn horizontal(line: &[i16], weights: &[[i16; 2]], out: &mut [i16])
        = horizontal_vector, horizontal_scalar
}

vectorized! {
    /// Blurs across rows: `rows[d]` says where in `ring` the rows at distance `d`
    /// are. Rounds to 0..=255.
    pub(super) fn vertical(
        ring: &[i16],
        rows: &[[usize; 2]],
        weights: &[[i16; 2]],
        out: &mut [i16],
    ) = vertical_vector, vertical_scalar
}

fn horizontal_scalar(line: &[i16], weights: &[[i16; 2]], out: &mut [i16]) {
    let (radius, stride) = (weights.len() - 1, out.len() / 3);
    let pitch = stride + 2 * radius;
    for (line, out) in line.chunks_exact(pitch).zip(out.chunks_exact_mut(stride)) {
        for (x, out) in out.iter_mut().enumerate() {
            *out = mulhrs(line[radius + x], weights[0][0]);
            for distance in 1..=radius {
                let pair = line[radius + x - distance] + line[radius + x + distance];
                *out += mulhrs(pair, weights[distance][0]);
            }
        }
    }
}

fn vertical_scalar(ring: &[i16], rows: &[[usize; 2]], weights: &[[i16; 2]], out: &mut [i16]) {
    for (at, out) in out.iter_mut().enumerate() {
        let mut sum = (1 << (BITS - 1)) + mulhrs(ring[rows[0][0] + at], weights[0][0]);
        for (&[above, below], &[weight, _]) in rows.iter().zip(weights).skip(1) {
            sum += mulhrs(ring[above + at] + ring[below + at], weight);
        }
        *out = sum.clamp(0, (256 << BITS) - 1) >> BITS;
    }
}

/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn horizontal_vector<V: Vector>(line: &[i16], weights: &[[i16; 2]], out: &mut [i16]) {
    let (radius, stride) = (weights.len() - 1, out.len() / 3);
    let pitch = stride + 2 * radius;
    assert!(stride.is_multiple_of(V::LEN) && stride * 3 == out.len() && pitch * 3 <= line.len());
    for at in (0..stride).step_by(V::LEN) {
        // SAFETY: `at + LEN` is at most `stride`, so that `radius` to either side
        // stays in the plane, three of which lie in `line` and `out`.
        unsafe {
            let from = line.as_ptr().add(radius + at);
            let center = V::splat_pair(&weights[0]);
            let mut sums: [V; 3] =
                std::array::from_fn(|plane| V::load(from.add(plane * pitch)).mulhrs(center));
            for (distance, weight) in weights.iter().enumerate().skip(1) {
                let weight = V::splat_pair(weight);
                for (plane, sum) in sums.iter_mut().enumerate() {
                    let left = V::load(from.add(plane * pitch).sub(distance));
                    let right = V::load(from.add(plane * pitch + distance));
                    *sum = sum.add(left.add(right).mulhrs(weight));
                }
            }
            for (plane, sum) in sums.into_iter().enumerate() {
                sum.store(out.as_mut_ptr().add(plane * stride + at));
            }
        }
    }
}

/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
unsafe fn vertical_vector<V: Vector>(
    ring: &[i16],
    rows: &[[usize; 2]],
    weights: &[[i16; 2]],
    out: &mut [i16],
) {
    let stride = out.len() / 3;
    assert!(
        stride.is_multiple_of(V::LEN) && stride * 3 == out.len() && rows.len() == weights.len()
    );
    let last = ring.len().checked_sub(out.len()).expect("the ring holds a row");
    assert!(rows.as_flattened().iter().all(|&row| row <= last));
    for at in (0..stride).step_by(V::LEN) {
        // SAFETY: `at + LEN` lies within each of the three planes of `out` and,
        // as just checked, of each row in `ring`.
        unsafe {
            let from = |row: usize, plane: usize| ring.as_ptr().add(row + plane * stride + at);
            let center = V::splat_pair(&weights[0]);
            let half = V::splat(1 << (BITS - 1));
            let mut sums: [V; 3] = std::array::from_fn(|plane| {
                half.add(V::load(from(rows[0][0], plane)).mulhrs(center))
            });
            for (&[above, below], weight) in rows.iter().zip(weights).skip(1) {
                let weight = V::splat_pair(weight);
                for (plane, sum) in sums.iter_mut().enumerate() {
                    let pair = V::load(from(above, plane)).add(V::load(from(below, plane)));
                    *sum = sum.add(pair.mulhrs(weight));
                }
            }
            let most = V::splat((256 << BITS) - 1);
            for (plane, sum) in sums.into_iter().enumerate() {
                sum.clamp(most).shr::<BITS>().store(out.as_mut_ptr().add(plane * stride + at));
            }
        }
    }
}
