//! The bit reader: unstuffed bytes, highest bit first, eight at a time.
//!
//! The variant after F. Giesen, "Reading bits in far too many ways" (2018):
//! one unaligned load tops the buffer up to at least 56 bits, without a branch.

/// A position in unstuffed bytes with a buffer of the bits that follow.
///
/// Invariant: `count <= 63`, the top `count` bits of `buffer` are the next
/// bits, and the bits below them are either zero or already right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits {
    next: *const u8,
    pub buffer: u64,
    pub count: u32,
}

impl Bits {
    /// A reader of nothing, to be replaced.
    pub const EMPTY: Bits = Bits { next: std::ptr::null(), buffer: 0, count: 0 };

    /// Starts `bit` bits (0..8) into the byte at `start`.
    ///
    /// # Safety
    /// 8 bytes must be readable at `start`.
    pub unsafe fn new(start: *const u8, bit: u32) -> Bits {
        let mut bits = Bits { next: start, buffer: 0, count: 0 };
        // SAFETY: the caller's promise.
        unsafe { bits.refill() };
        bits.consume(bit & 7);
        bits
    }

    /// Fills the buffer to at least 56 bits.
    ///
    /// # Safety
    /// 8 bytes must be readable at [`Bits::byte`] + 8, which bounds `next`.
    #[inline(always)]
    pub unsafe fn refill(&mut self) {
        // SAFETY: the caller's promise; `read_unaligned` has no other needs.
        unsafe {
            let word = u64::from_be(self.next.cast::<u64>().read_unaligned());
            self.buffer |= word >> (self.count & 63);
            self.next = self.next.add(((63 - self.count) >> 3) as usize);
            self.count |= 56;
        }
    }

    /// Drops `bits` bits (at most the count).
    #[inline(always)]
    pub fn consume(&mut self, bits: u32) {
        self.buffer <<= bits & 63;
        self.count = self.count.wrapping_sub(bits);
    }

    /// Bits consumed since the start of the byte at `base`.
    pub fn position(&self, base: *const u8) -> usize {
        (self.next as usize - base as usize) * 8 - self.count as usize
    }
}
