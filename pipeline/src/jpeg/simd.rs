//! Which instructions there are: chosen once, outside every loop.

/// Proof that AVX2, BMI1 and BMI2 were detected; only [`Simd::detect`] and
/// [`Simd::all`] make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2Token {
    wide: bool,
}

impl Avx2Token {
    /// Whether AVX-512 F and BW were detected, too, and are to be used.
    pub(crate) fn wide(self) -> bool {
        self.wide
    }
}

/// The instructions the decoder's kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// Portable code; the specification of the other paths.
    Scalar,
    /// AVX2 with BMI1 and BMI2; AVX-512 where it pays and is there.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2Token),
}

impl Simd {
    /// The best there is on this machine.
    pub fn detect() -> Simd {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
        {
            let wide = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw");
            return Simd::Avx2(Avx2Token { wide });
        }
        Simd::Scalar
    }

    /// Every path this machine can run, the scalar one first.
    pub fn all() -> Vec<Simd> {
        let mut all = vec![Simd::Scalar];
        #[cfg(target_arch = "x86_64")]
        if let Simd::Avx2(best) = Simd::detect() {
            all.push(Simd::Avx2(Avx2Token { wide: false }));
            if best.wide {
                all.push(Simd::Avx2(best));
            }
        }
        all
    }
}
