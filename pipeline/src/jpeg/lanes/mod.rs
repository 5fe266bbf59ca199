//! [`Lanes`]: vectors as the inverse DCT and the colour conversion need them; a
//! block goes to a 128-bit lane.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

/// A vector of 16-bit or 32-bit integers in 128-bit lanes.
///
/// # Safety
/// All methods are unsafe: the caller has found the CPU to have the instructions
/// of the implementation; pointers have behind them what each method says.
pub(in crate::jpeg) trait Lanes: Copy {
    /// Lanes: blocks that go through at once, 1, 2 or 4.
    const BLOCKS: usize;
    /// Bytes that are neighbours in memory, as many as the vector has.
    unsafe fn load_bytes(from: *const u8) -> Self;
    /// Eight values for each of the first `BLOCKS` lanes; 16 aligned bytes each.
    unsafe fn load(rows: [*const i16; 4]) -> Self;
    /// One value repeated in each lane; 2 bytes each.
    unsafe fn repeat16(values: [*const i16; 4]) -> Self;
    /// All 16-bit elements the same.
    unsafe fn set16(value: i16) -> Self;
    /// All 32-bit elements the same.
    unsafe fn set32(value: i32) -> Self;
    /// Low halves of the lanes interleaved by 8 bits, then the high halves.
    unsafe fn zip8(self, other: Self) -> [Self; 2];
    /// As `zip8`, by 16 bits.
    unsafe fn zip16(self, other: Self) -> [Self; 2];
    /// As `zip8`, by 32 bits.
    unsafe fn zip32(self, other: Self) -> [Self; 2];
    /// Two vectors as [`Lanes::dot`] wants them.
    unsafe fn pair(self, other: Self) -> [Self; 2];
    /// `a * first + b * second` in 32 bits for what [`Lanes::pair`] made of a and b: of the low
    /// half of each lane, and of the high half. The weights fit 16 bits.
    unsafe fn dot(pair: [Self; 2], first: i32, second: i32) -> [Self; 2];
    /// Low half of the product.
    unsafe fn mul16(self, other: Self) -> Self;
    /// High half of the product.
    unsafe fn mulhi16(self, other: Self) -> Self;
    /// Difference, wrapping.
    unsafe fn sub16(self, other: Self) -> Self;
    /// Saturating sum.
    unsafe fn adds16(self, other: Self) -> Self;
    /// Sum, wrapping.
    unsafe fn add32(self, other: Self) -> Self;
    /// Difference, wrapping.
    unsafe fn sub32(self, other: Self) -> Self;
    /// Arithmetic shift right.
    unsafe fn shift16<const N: u32>(self) -> Self;
    /// Arithmetic shift right.
    unsafe fn shift32<const N: u32>(self) -> Self;
    /// To 16 bits, saturating.
    unsafe fn pack32(self, other: Self) -> Self;
    /// To unsigned 8 bits, saturating.
    unsafe fn pack16(self, other: Self) -> Self;
    /// The low eight bytes of the lanes one after the other to `to`, the high ones
    /// to `to + stride`; 8 bytes a lane each.
    unsafe fn store_rows(self, to: *mut u8, stride: usize);
}
