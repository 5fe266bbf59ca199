//! Byte unstuffing: entropy-coded bytes without the 0 that follows each 0xFF. Of several 0xFF all
//! but the last are fill bytes (T.81, B.1.1.2), before a marker and, as libjpeg has it, before a 0.
//!
//! Done once up front, so that the bit reader loads eight bytes at a time
//! without looking for markers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::level::{Kind, Level};

/// Bytes of `out` that may be written after the unstuffed ones.
pub(crate) const SLACK: usize = 64;

/// Copies `coded` to `out` until its end or the first marker, dropping stuffed
/// zeros and fill bytes, those before the marker too. Gives (bytes read, bytes written).
/// The next [`SLACK`] bytes of `out` are set to zero.
///
/// # Panics
/// When `out` is shorter than `coded.len() + SLACK`.
pub(crate) fn unstuff(level: Level, coded: &[u8], out: &mut [u8]) -> (usize, usize) {
    assert!(out.len() >= coded.len() + SLACK);
    let (read, written) = match level.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of these kinds exists only where AVX2 was found; the assertion
        // above is the length condition.
        Kind::Avx2 | Kind::Avx512 => unsafe { avx2::unstuff(coded, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 CPU has NEON; as above.
        Kind::Neon => unsafe { neon::unstuff(coded, out) },
        Kind::Scalar => scalar::unstuff(coded, out),
    };
    out[written..written + SLACK].fill(0);
    (read, written)
}

/// Goes on behind an 0xFF that `next` follows; false where that is a marker.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn past_ff(next: u8, out: &mut [u8], read: &mut usize, written: &mut usize) -> bool {
    match next {
        0 => {
            out[*written] = 0xFF;
            *read += 2;
            *written += 1;
        }
        // A fill byte.
        0xFF => *read += 1,
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn every_path_equals_scalar() {
        let mut rng = Rng::keyed(1, 0, 0, 0);
        for case in 0..2000 {
            let length = rng.below(200) as usize;
            let dense = case % 3;
            let coded: Vec<u8> = (0..length)
                .map(|_| match (dense, rng.below(8)) {
                    (0, _) => rng.below(256) as u8,
                    (_, 0) => 0xFF,
                    (1, 1..=6) => 0,
                    (2, 1) => 0,
                    (_, _) => rng.below(3) as u8,
                })
                .collect();
            let mut expected = vec![7; length + SLACK];
            let counts = unstuff(Level::SCALAR, &coded, &mut expected);
            for level in Level::available() {
                let mut out = vec![9; length + SLACK];
                assert_eq!(unstuff(level, &coded, &mut out), counts);
                assert_eq!(out[..counts.1 + SLACK], expected[..counts.1 + SLACK]);
            }
        }
    }

    #[test]
    fn a_marker_ends_the_data() {
        let mut out = [1; 100];
        let coded = [1, 0xFF, 0, 2, 0xFF, 0xD9, 3];
        assert_eq!(unstuff(Level::SCALAR, &coded, &mut out), (4, 3));
        assert_eq!(out[..4], [1, 0xFF, 2, 0]);
        // A lone 0xFF at the end is no data either.
        assert_eq!(unstuff(Level::SCALAR, &[5, 0xFF], &mut out), (1, 1));
    }

    #[test]
    fn fill_bytes_are_none_of_the_data() {
        for level in Level::available() {
            let mut out = [1; 300];
            for fill in [1, 2, 40] {
                let mut coded = vec![1];
                coded.extend(vec![0xFF; fill]);
                coded.extend([0xFF, 0, 2]);
                coded.extend(vec![0xFF; fill]);
                coded.extend([0xFF, 0xD0, 3]);
                coded.extend([0; 40]);
                assert_eq!(unstuff(level, &coded, &mut out), (2 * fill + 4, 3));
                assert_eq!(out[..4], [1, 0xFF, 2, 0]);
            }
            assert_eq!(unstuff(level, &[5, 0xFF, 0xFF], &mut out), (2, 1));
        }
    }
}
