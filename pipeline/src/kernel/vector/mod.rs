//! Vectors of 16-bit integers: what the kernels that need shuffles, or sums kept
//! in registers, are written with, once for all widths.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;

/// A vector of 16-bit integers in 128-bit lanes, eight to a lane.
///
/// # Safety
/// All methods are unsafe: the caller has found the CPU to have the
/// instructions of the implementation.
pub trait Vector: Copy {
    /// Elements.
    const LEN: usize;
    /// Lane l: 16 bytes at `at` of row 8 l + `row`, 8-bit values in pairs.
    unsafe fn load_pairs(rows: &[&[u8]], row: usize, at: usize) -> Self;
    /// An unaligned load.
    unsafe fn load(from: *const i16) -> Self;
    /// As many bytes, unaligned, each an element.
    unsafe fn load_bytes(from: *const u8) -> Self;
    /// An unaligned store.
    unsafe fn store(self, to: *mut i16);
    /// Stores the elements as bytes, those beyond 0..=255 as the nearer of the two.
    unsafe fn store_bytes(self, to: *mut u8);
    /// Stores lane `lane`, eight elements.
    unsafe fn store_lane(self, lane: usize, to: *mut i16);
    /// All elements the same.
    unsafe fn splat(value: i16) -> Self;
    /// All elements the same, from two copies in memory: a load, no shuffle.
    unsafe fn splat_pair(from: *const [i16; 2]) -> Self;
    /// Sum, wrapping.
    unsafe fn add(self, other: Self) -> Self;
    /// Rounded high part of the product, `pmulhrsw`; unspecified where both are the
    /// least value.
    unsafe fn mulhrs(self, other: Self) -> Self;
    /// Sums of the products of neighbours, 32 bits each, `pmaddwd`.
    unsafe fn pair_products(self, other: Self) -> Self;
    /// All 32-bit elements the same.
    unsafe fn splat32(value: i32) -> Self;
    /// Sum of 32-bit elements, wrapping.
    unsafe fn add32(self, other: Self) -> Self;
    /// Shift left of 32-bit elements.
    unsafe fn shl32<const N: u32>(self) -> Self;
    /// Shift right of 32-bit elements, with their sign.
    unsafe fn sar32<const N: u32>(self) -> Self;
    /// 32-bit elements of two vectors to 16 bits, in the order that `zip16` takes apart.
    unsafe fn narrow(self, other: Self) -> Self;
    /// Clamps to 0..=`most`.
    unsafe fn clamp(self, most: Self) -> Self;
    /// Shift left.
    unsafe fn shl<const N: u32>(self) -> Self;
    /// Shift right, zeros coming in.
    unsafe fn shr<const N: u32>(self) -> Self;
    /// Bitwise and.
    unsafe fn and(self, other: Self) -> Self;
    /// Interleaves the lower and the upper halves of each lane, in units of 16 bits.
    unsafe fn zip16(self, other: Self) -> [Self; 2];
    /// As `zip16`, in units of 32 bits.
    unsafe fn zip32(self, other: Self) -> [Self; 2];
    /// As `zip16`, in units of 64 bits.
    unsafe fn zip64(self, other: Self) -> [Self; 2];
}

/// Transposes the 8 x 8 elements in each lane.
///
/// # Safety
/// The CPU has `V`'s instructions.
#[inline(always)]
pub unsafe fn transpose<V: Vector>(v: [V; 8]) -> [V; 8] {
    // SAFETY: passed on from the caller, here and below.
    unsafe {
        let [a0, a1] = v[0].zip16(v[1]);
        let [a2, a3] = v[2].zip16(v[3]);
        let [a4, a5] = v[4].zip16(v[5]);
        let [a6, a7] = v[6].zip16(v[7]);
        let [b0, b1] = a0.zip32(a2);
        let [b2, b3] = a1.zip32(a3);
        let [b4, b5] = a4.zip32(a6);
        let [b6, b7] = a5.zip32(a7);
        let ([c0, c1], [c2, c3]) = (b0.zip64(b4), b1.zip64(b5));
        let ([c4, c5], [c6, c7]) = (b2.zip64(b6), b3.zip64(b7));
        [c0, c1, c2, c3, c4, c5, c6, c7]
    }
}

/// Declares `name(level, arguments..)`, which runs `vector::<V>(arguments..)` with
/// the widest vectors of the level, or `scalar(arguments..)`, its specification.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $vector:ident, $scalar:path) => {
        $(#[$doc])*
        $vis fn $name(level: $crate::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::level::Kind;
                use $crate::kernel::vector::{Avx2, Avx512};
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) {
                    // SAFETY: this function runs only where AVX2 is.
                    unsafe { $vector::<Avx2>($($arg),*) }
                }
                #[target_feature(enable = "avx2,avx512f,avx512bw")]
                fn avx512($($arg: $ty),*) {
                    // SAFETY: this function runs only where AVX-512 BW is.
                    unsafe { $vector::<Avx512>($($arg),*) }
                }
                match level.kind() {
                    Kind::Scalar => {}
                    // SAFETY: a level of this kind exists only where the CPU was
                    // found to have these features (`Level::available`).
                    Kind::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Kind::Avx512 => return unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(target_arch = "aarch64")]
            if level.kind() == $crate::level::Kind::Neon {
                // SAFETY: every aarch64 CPU has NEON.
                return unsafe { $vector::<$crate::kernel::vector::Neon>($($arg),*) };
            }
            let _ = level;
            $scalar($($arg),*)
        }
    };
}
pub(crate) use vectorized;
