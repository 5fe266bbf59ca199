//! Pooling over NHWC slices: 3 x 3 maximum with stride 2 (any kernel and stride), global average.

use super::micro::{Isa, vectorised};
use super::{Shared, each, elements};

/// A max pool on one input shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Images.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Kernel height and width, at most 16.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Border on every side that never wins.
    pub pad: usize,
}

impl PoolShape {
    /// Output height and width.
    pub fn out(&self) -> (usize, usize) {
        let side = |s: usize| (s + 2 * self.pad - self.kernel) / self.stride + 1;
        (side(self.h), side(self.w))
    }
}

vectorised! {
    fn take_larger(x: &[f32], tap: u8, y: &mut [f32], winner: &mut [u8]) {
        for ((y, w), x) in y.iter_mut().zip(winner).zip(x) {
            let larger = *x > *y || x.is_nan();
            *w = if larger { tap } else { *w };
            *y = if larger { *x } else { *y };
        }
    }

    fn add_won(dy: &[f32], winner: &[u8], tap: u8, dx: &mut [f32]) {
        for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(winner) {
            *dx += if *w == tap { *dy } else { 0.0 };
        }
    }

    fn add_rows(x: &[f32], sum: &mut [f32]) {
        for row in x.chunks_exact(sum.len()) {
            sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
        }
    }
}

/// Maximum of each window; `winner` gets the window's tap (ky * kernel + kx), the first among
/// equals.
pub fn max_forward(isa: Isa, s: &PoolShape, x: &[f32], y: &mut [f32], winner: &mut [u8]) {
    let (oh, ow) = s.out();
    let row = ow * s.c;
    assert!(y.len() == elements(&[s.n, oh, ow, s.c]) && winner.len() == y.len());
    let (y, winner) = (Shared(y.as_mut_ptr()), Shared(winner.as_mut_ptr()));
    each(s.n * oh, |task| {
        let (n, oy) = (task / oh, task % oh);
        // SAFETY: output row `task` of both, written by this task alone; lengths were checked.
        let (y, winner) = unsafe {
            (
                std::slice::from_raw_parts_mut(y.at(task * row), row),
                std::slice::from_raw_parts_mut(winner.at(task * row), row),
            )
        };
        y.fill(f32::NEG_INFINITY);
        winner.fill(0);
        for (ox, (y, winner)) in
            y.chunks_exact_mut(s.c).zip(winner.chunks_exact_mut(s.c)).enumerate()
        {
            for ky in 0..s.kernel {
                for kx in 0..s.kernel {
                    if let Some(at) = input(s, n, oy * s.stride + ky, ox * s.stride + kx) {
                        let tap = (ky * s.kernel + kx) as u8;
                        take_larger(isa, &x[at..at + s.c], tap, y, winner);
                    }
                }
            }
        }
    });
}

/// Index of a padded position's first channel, `None` in the border.
fn input(s: &PoolShape, n: usize, y: usize, x: usize) -> Option<usize> {
    let (y, x) = (y.checked_sub(s.pad)?, x.checked_sub(s.pad)?);
    (y < s.h && x < s.w).then(|| ((n * s.h + y) * s.w + x) * s.c)
}

/// Overwrites `dx`: each output's gradient goes to its window's winner.
pub fn max_backward(isa: Isa, s: &PoolShape, winner: &[u8], dy: &[f32], dx: &mut [f32]) {
    let (oh, ow) = s.out();
    let row = s.w * s.c;
    assert_eq!(dx.len(), elements(&[s.n, s.h, s.w, s.c]));
    assert_eq!(winner.len(), elements(&[s.n, oh, ow, s.c]));
    let dx = Shared(dx.as_mut_ptr());
    each(s.n * s.h, |task| {
        let (n, y) = (task / s.h, task % s.h);
        // SAFETY: input row `task`, written by this task alone; the length was checked.
        let dx = unsafe { std::slice::from_raw_parts_mut(dx.at(task * row), row) };
        dx.fill(0.0);
        for (x, dx) in dx.chunks_exact_mut(s.c).enumerate() {
            for (ky, oy) in windows(s, y, oh) {
                for (kx, ox) in windows(s, x, ow) {
                    let at = ((n * oh + oy) * ow + ox) * s.c;
                    let tap = (ky * s.kernel + kx) as u8;
                    add_won(isa, &dy[at..at + s.c], &winner[at..at + s.c], tap, dx);
                }
            }
        }
    });
}

/// The windows over input position `i` of one axis: (position in the window, window).
fn windows(s: &PoolShape, i: usize, out: usize) -> impl Iterator<Item = (usize, usize)> {
    let (i, stride) = (i + s.pad, s.stride);
    (0..s.kernel).filter_map(move |k| {
        let start = i.checked_sub(k)?;
        (start.is_multiple_of(stride) && start / stride < out).then_some((k, start / stride))
    })
}

/// `y[n][c]`: mean over the `area` pixels of `x[n]`.
pub fn mean_forward(isa: Isa, x: &[f32], area: usize, c: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(area * c).zip(y.chunks_exact_mut(c)) {
        y.fill(0.0);
        add_rows(isa, x, y);
        y.iter_mut().for_each(|y| *y /= area as f32);
    }
}

/// `dx[n][pixel][c] = dy[n][c] / area`.
pub fn mean_backward(dy: &[f32], area: usize, c: usize, dx: &mut [f32]) {
    for (dx, dy) in dx.chunks_exact_mut(area * c).zip(dy.chunks_exact(c)) {
        let (first, rest) = dx.split_at_mut(c);
        first.iter_mut().zip(dy).for_each(|(x, y)| *x = y / area as f32);
        rest.chunks_exact_mut(c).for_each(|row| row.copy_from_slice(first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 2^64 elements, which are none in 64 bits.
    const WRAPS: PoolShape =
        PoolShape { n: 1 << 62, h: 2, w: 2, c: 1, kernel: 1, stride: 1, pad: 0 };

    #[test]
    #[should_panic(expected = "a tensor fits the memory")]
    fn no_output_is_as_long_as_a_product_that_wraps() {
        max_forward(Isa::best(), &WRAPS, &[], &mut [], &mut []);
    }

    #[test]
    #[should_panic(expected = "a tensor fits the memory")]
    fn no_gradient_is_as_long_as_a_product_that_wraps() {
        max_backward(Isa::best(), &WRAPS, &[], &[], &mut []);
    }
}
