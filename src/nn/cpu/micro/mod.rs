//! Micro-kernels: a few rows times a few columns, all of it in registers.
//!
//! Operand A is cut along k in chunks of [`CHUNK`]: `[mr][16]`, one cache line a row, each chunk at
//! an offset of its own. So packing copies whole lines, the kernel's addresses are constants from
//! one pointer, and where an image lies in lines of 16 channels its pixels are chunks without
//! packing. Operand B comes in panels `[k][width]`. The second kind of kernel ([`Isa::outer`]) sums
//! outer products of rows, for weight gradients: A is `[k][mr]`, B three blocks of columns.
//!
//! `plain` is the specification; the AVX2, AVX-512 and NEON versions differ from it in rounding
//! alone (fused multiply-add), which the tests bound.

#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Columns of k that are packed together: one cache line.
pub const CHUNK: usize = 16;
/// The most rows any kernel has.
pub const MAX_MR: usize = 16;
/// Columns of one outer-product block.
pub const BLOCK: usize = 16;
/// Blocks of one outer-product call: the three taps of a 3x3 kernel's row.
pub const BLOCKS: usize = 3;

/// The instruction set that the kernels use; can be had only where the CPU has it.
///
/// Not `bt_pipeline::Level`, which proves other features: with AVX2 no fused multiply-adds, which the
/// kernels use, and with AVX-512 VNNI, which CPUs lack that run them well. A run's weights depend on
/// the set, and so it does not follow what the loader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// Target features for loops that the compiler vectorises.
#[derive(Clone, Copy)]
pub(crate) enum Lanes {
    /// What every CPU of the architecture has: NEON is among that of aarch64.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Defines functions whose plain loops are compiled once per instruction set and chosen by a
/// leading [`Isa`] argument. No fused multiply-adds: all versions give the same bits.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name(isa: $crate::nn::cpu::micro::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            use $crate::nn::cpu::micro::Lanes;
            match isa.lanes() {
                Lanes::Baseline => body($($arg),*),
                // SAFETY: an `Isa` exists only where the CPU has its instructions.
                #[cfg(target_arch = "x86_64")]
                Lanes::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Lanes::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    )*};
}
pub(crate) use vectorised;

/// One call of a product kernel: C rows (+)= A panel x B panel.
pub struct Tile {
    /// Chunks of k.
    pub chunks: usize,
    /// A; chunk i, `[mr][CHUNK]`, begins `offsets[i]` floats in.
    pub a: *const f32,
    /// `chunks` offsets.
    pub offsets: *const usize,
    /// B, `[chunks * CHUNK][width]`, `width` being [`Isa::width`] of `cols`.
    pub b: *const f32,
    /// `n_rows` destinations of `cols` floats each.
    pub rows: *const *mut f32,
    /// Rows that are written, at most `mr`.
    pub n_rows: usize,
    /// Columns that are written, at most `nr`.
    pub cols: usize,
    /// Add to the destination instead of overwriting it.
    pub accumulate: bool,
}

/// One call of an outer-product kernel: `C (+)= sum over k of A[k]^T B[k]`.
pub struct Outer {
    /// Number of k.
    pub count: usize,
    /// A, `[count][outer_mr]`.
    pub a: *const f32,
    /// The blocks' columns for k = 0; the first `blocks` are used.
    pub b: [*const f32; BLOCKS],
    /// Floats from one k to the next in B.
    pub b_stride: usize,
    /// For each block the destination of row 0, column 0.
    pub c: [*mut f32; BLOCKS],
    /// Columns of each block that are written; a block is [`BLOCK`] wide.
    pub cols: [usize; BLOCKS],
    /// Blocks in use, at least 1.
    pub blocks: usize,
    /// Distance of the destination's rows.
    pub stride: usize,
    /// Rows that are written, at most `outer_mr`.
    pub n_rows: usize,
    /// Add to the destination instead of overwriting it.
    pub accumulate: bool,
}

impl Isa {
    /// The best instruction set of this CPU.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Self(Kind::Avx512);
            }
            if has_avx2() {
                return Self(Kind::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        let best = Kind::Neon;
        #[cfg(not(target_arch = "aarch64"))]
        let best = Kind::Plain;
        Self(best)
    }

    /// Every instruction set that this CPU has, the specification first.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "on other architectures")]
        let mut all = vec![Self(Kind::Plain)];
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Kind::Neon));
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2() {
                all.push(Self(Kind::Avx2));
            }
            if has_avx512() {
                all.push(Self(Kind::Avx512));
            }
        }
        all
    }

    /// Rows of a product panel.
    pub fn mr(self) -> usize {
        match self.0 {
            Kind::Plain => 4,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => 6,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => 14,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => neon::MR,
        }
    }

    /// Columns of a full product panel.
    pub fn nr(self) -> usize {
        match self.0 {
            Kind::Plain => 16,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => 16,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => 32,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => 16,
        }
    }

    /// The packed width of a panel of `cols <= nr` columns.
    pub fn width(self, cols: usize) -> usize {
        if cols <= 16 { 16 } else { self.nr() }
    }

    /// Rows of an outer-product panel.
    pub fn outer_mr(self) -> usize {
        match self.0 {
            Kind::Plain => 4,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => 6,
            // 8 x 3 blocks: every width in use is a multiple of 8, so no row is wasted.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => 8,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => neon::MR,
        }
    }

    /// How wide plain loops may be compiled: see [`vectorised`].
    pub(crate) fn lanes(self) -> Lanes {
        match self.0 {
            Kind::Plain => Lanes::Baseline,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Lanes::Avx2,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Lanes::Avx512,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => Lanes::Baseline,
        }
    }

    /// Runs a product kernel.
    ///
    /// # Safety
    /// The pointers of `tile` are valid for the extents it states, and nobody else touches the
    /// destinations meanwhile.
    pub unsafe fn tile(self, tile: &Tile) {
        // SAFETY: the caller's promise; an `Isa` exists only where the CPU has the instructions.
        unsafe {
            match (self.0, self.width(tile.cols)) {
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, 32) => x86::tile_512::<14, 2>(tile),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, _) => x86::tile_512::<14, 1>(tile),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx2, _) => x86::tile_256(tile),
                #[cfg(target_arch = "aarch64")]
                (Kind::Neon, _) => neon::tile(tile),
                (Kind::Plain, _) => plain::tile(tile),
            }
        }
    }

    /// Runs an outer-product kernel.
    ///
    /// # Safety
    /// As [`Isa::tile`].
    pub unsafe fn outer(self, outer: &Outer) {
        // SAFETY: as in `tile`.
        unsafe {
            match (self.0, outer.blocks) {
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, 3) => x86::outer_512::<8, 3>(outer),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, 2) => x86::outer_512::<8, 2>(outer),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, _) => x86::outer_512::<8, 1>(outer),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx2, n) => (0..n).for_each(|i| x86::outer_256(outer, i)),
                #[cfg(target_arch = "aarch64")]
                (Kind::Neon, n) => (0..n).for_each(|i| neon::outer(outer, i)),
                (Kind::Plain, n) => (0..n).for_each(|i| plain::outer(outer, i)),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

/// The feature set of every AVX-512 server CPU, so that plain loops may use masks and bytes too.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
}

/// Writes or adds a finished `[MR][W]` tile to rows that it does not fill.
///
/// # Safety
/// `row(r)` is valid for `cols` floats for all r < n_rows.
unsafe fn store_part<const W: usize>(
    tile: &[[f32; W]],
    n_rows: usize,
    cols: usize,
    accumulate: bool,
    row: impl Fn(usize) -> *mut f32,
) {
    for (r, values) in tile.iter().enumerate().take(n_rows) {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(row(r), cols) };
        for (o, v) in out.iter_mut().zip(values) {
            *o = if accumulate { *o + v } else { *v };
        }
    }
}
