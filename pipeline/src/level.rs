//! Which instruction set runs: decided once, outside every loop.

/// An instruction set that this CPU has. It can only be had from the functions
/// below, which look at the CPU: holding one is the proof that its instructions
/// may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    kind: Kind,
    /// Whether it has AVX-512 VBMI as well, which came with Ice Lake and Zen 4: Cascade Lake has the
    /// rest of its kind alone.
    vbmi: bool,
}

/// What a [`Level`] of each kind proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Scalar,
    /// AVX2, BMI1, BMI2, LZCNT and POPCNT: all came with Haswell and Zen.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// All of these, and AVX-512 F, BW, VL, DQ and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, which belongs to the architecture.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// What every CPU has, and the specification of the others.
    pub const SCALAR: Level = Level::of(Kind::Scalar);

    const fn of(kind: Kind) -> Level {
        Level { kind, vbmi: false }
    }

    /// The best set of this CPU.
    pub fn detect() -> Level {
        *Level::available().last().unwrap_or(&Level::SCALAR)
    }

    /// Every set of this CPU, slowest first; for tests and benchmarks.
    pub fn available() -> Vec<Level> {
        #[allow(unused_mut, reason = "on other architectures")]
        let mut levels = vec![Level::SCALAR];
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::of(Kind::Neon));
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let bits = has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("popcnt");
            if has!("avx2") && bits {
                levels.push(Level::of(Kind::Avx2));
                // The widths of one vector and the byte dot product came with
                // the same CPUs (Cascade Lake, Zen 4) that make 512 bits pay.
                let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vl");
                if wide && has!("avx512dq") && has!("avx512vnni") {
                    levels.push(Level::of(Kind::Avx512));
                    if has!("avx512vbmi") {
                        levels.push(Level { kind: Kind::Avx512, vbmi: true });
                    }
                }
            }
        }
        levels
    }

    pub(crate) fn kind(self) -> Kind {
        self.kind
    }

    /// Whether there is AVX-512 VBMI.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_vbmi(self) -> bool {
        self.vbmi
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{}", self.kind, if self.vbmi { " VBMI" } else { "" })
    }
}

/// Declares `name(level, arguments..)`, which runs the `#[inline(always)]`
/// function `inner(arguments..)` compiled for the level's instruction set. On
/// aarch64 there is one for all, NEON's.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $inner:path) => {
        $(#[$doc])*
        $vis fn $name(level: $crate::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $inner($($arg),*)
                }
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $inner($($arg),*)
                }
                use $crate::level::Kind;
                match level.kind() {
                    Kind::Scalar => {}
                    // SAFETY: a level of this kind exists only where the CPU was
                    // found to have these features (`Level::available`).
                    Kind::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Kind::Avx512 => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = level;
            $inner($($arg),*)
        }
    };
}
pub(crate) use multiversion;
