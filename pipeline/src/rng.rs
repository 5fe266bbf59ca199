//! Every random draw of the pipeline, keyed by (seed, epoch, sample, view), so
//! that no draw depends on threads or on what was drawn for another sample.

use rand_core::{Rng as _, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A generator for one key.
#[derive(Clone, Debug)]
pub struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// The generator of one view of one sample in one epoch.
    pub fn keyed(seed: u64, epoch: u64, sample: u64, view: u64) -> Self {
        let mut state = [0u8; 32];
        let mut hash = 0x6A09_E667_F3BC_C908u64;
        for (key, chunk) in [seed, epoch, sample, view].into_iter().zip(state.chunks_exact_mut(8)) {
            hash = mix(hash ^ mix(key.wrapping_add(0x9E37_79B9_7F4A_7C15)));
            chunk.copy_from_slice(&hash.to_le_bytes());
        }
        // xoshiro must not start from all zeros; `from_seed` sees to that.
        Rng(Xoshiro256PlusPlus::from_seed(state))
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n, without bias (Lemire, "Fast random integer generation
    /// in an interval", 2019).
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "no integer lies below 0");
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.bits()) * u128::from(n);
            if (product as u64) >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// True with probability `p`. One draw, whatever `p` is.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Puts `items` into a uniformly random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// SplitMix64's finalizer: a bijection of 64 bits that mixes all of them.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_key_changes_the_draws() {
        let first = |s, e, i, v| Rng::keyed(s, e, i, v).bits();
        let base = first(1, 2, 3, 4);
        assert_eq!(base, first(1, 2, 3, 4));
        for other in [first(2, 2, 3, 4), first(1, 3, 3, 4), first(1, 2, 4, 4), first(1, 2, 3, 5)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_stream_of_a_key_is_frozen() {
        // A change here changes every run that was ever started.
        let mut rng = Rng::keyed(0, 0, 0, 0);
        let drawn: Vec<u64> = (0..3).map(|_| rng.bits()).collect();
        assert_eq!(drawn, FROZEN);
    }
    const FROZEN: [u64; 3] = [10657810291139987827, 5833622130877267747, 15776499287412287212];

    #[test]
    fn below_is_uniform_to_within_five_sigma() {
        let mut rng = Rng::keyed(7, 0, 0, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[rng.below(6) as usize] += 1;
        }
        let sigma = (60_000.0 * (1.0 / 6.0) * (5.0 / 6.0f64)).sqrt();
        for count in counts {
            assert!((f64::from(count) - 10_000.0).abs() < 5.0 * sigma, "{counts:?}");
        }
    }
}
