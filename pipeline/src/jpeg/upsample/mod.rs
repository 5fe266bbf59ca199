//! Rows of subsampled components to full width: libjpeg's "fancy" triangle
//! filter for factors of two, repetition for the rest (jdsample.c).
//!
//! Input rows carry one neighbour on either side: `row[1..]` are the samples
//! to be doubled. At the edges of a component the neighbour is a copy of the
//! edge, which gives exactly libjpeg's special cases there.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::level::{Kind, Level};

/// How a component gets to the size of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upsample {
    /// Full size already.
    None,
    /// Twice as wide, triangle filter.
    H2,
    /// Twice as high, triangle filter.
    V2,
    /// Both.
    H2V2,
    /// Repeats samples this often, horizontally and vertically.
    Repeat(usize, usize),
}

impl Upsample {
    /// The method libjpeg takes for a component `columns` wide.
    pub fn choose(h_ratio: usize, v_ratio: usize, columns: usize) -> Upsample {
        match (h_ratio, v_ratio) {
            (1, 1) => Upsample::None,
            (2, 1) if columns > 2 => Upsample::H2,
            (2, 2) if columns > 2 => Upsample::H2V2,
            (1, 2) => Upsample::V2,
            (h, v) => Upsample::Repeat(h, v),
        }
    }

    /// The factors, horizontal and vertical.
    pub fn ratios(self) -> (usize, usize) {
        match self {
            Upsample::None => (1, 1),
            Upsample::H2 => (2, 1),
            Upsample::V2 => (1, 2),
            Upsample::H2V2 => (2, 2),
            Upsample::Repeat(h, v) => (h, v),
        }
    }

    /// Samples looked at beyond the one that covers a pixel, horizontally and
    /// vertically.
    pub fn reach(self) -> (usize, usize) {
        match self {
            Upsample::None | Upsample::Repeat(..) => (0, 0),
            Upsample::H2 => (1, 0),
            Upsample::V2 => (0, 1),
            Upsample::H2V2 => (1, 1),
        }
    }
}

/// Doubles `out.len() / 2` samples: `row` has one neighbour on each side.
///
/// # Panics
/// When `row` is shorter than `out.len() / 2 + 2`.
pub(crate) fn h2(level: Level, row: &[u8], out: &mut [u8]) {
    let row = &row[..out.len() / 2 + 2];
    match level.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of these kinds exists only where AVX2 was found; the lengths
        // were made to fit above.
        Kind::Avx2 | Kind::Avx512 if row.len() >= avx2::STEP + 2 => unsafe { avx2::h2(row, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 CPU has NEON; as above.
        Kind::Neon if row.len() >= neon::STEP + 2 => unsafe { neon::h2(row, out) },
        _ => scalar::h2(row, out),
    }
}

/// One of the two rows between `near` and `far`, doubled in width as [`h2`].
///
/// # Panics
/// When a row is shorter than `out.len() / 2 + 2`.
pub(crate) fn h2v2(level: Level, near: &[u8], far: &[u8], out: &mut [u8]) {
    let length = out.len() / 2 + 2;
    let (near, far) = (&near[..length], &far[..length]);
    match level.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `h2`.
        Kind::Avx2 | Kind::Avx512 if length >= avx2::STEP + 2 => unsafe {
            avx2::h2v2(near, far, out)
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as in `h2`.
        Kind::Neon if length >= neon::STEP + 2 => unsafe { neon::h2v2(near, far, out) },
        _ => scalar::h2v2(near, far, out),
    }
}

/// One of the two rows between `near` and `far`; `below` says that `far` is
/// the lower one, which rounds differently. No neighbours here.
///
/// # Panics
/// When a row is shorter than `out`.
pub(crate) fn v2(near: &[u8], far: &[u8], below: bool, out: &mut [u8]) {
    let bias = if below { 2 } else { 1 };
    for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
        *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    }
}

/// Repeats every sample `times` times.
pub(crate) fn repeat(row: &[u8], times: usize, out: &mut [u8]) {
    for (chunk, &sample) in out.chunks_mut(times).zip(row) {
        chunk.fill(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn every_path_equals_scalar_at_awkward_widths() {
        let mut rng = Rng::keyed(4, 0, 0, 0);
        for width in 1..100 {
            let mut row = || -> Vec<u8> { (0..width + 2).map(|_| rng.below(256) as u8).collect() };
            let (near, far) = (row(), row());
            let (mut one, mut two) = (vec![0; 2 * width], vec![0; 2 * width]);
            scalar::h2(&near, &mut one);
            scalar::h2v2(&near, &far, &mut two);
            for level in Level::available() {
                let mut out = vec![0; 2 * width];
                h2(level, &near, &mut out);
                assert_eq!(out, one);
                h2v2(level, &near, &far, &mut out);
                assert_eq!(out, two);
            }
        }
    }
}
