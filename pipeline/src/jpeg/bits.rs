//! The bit reader: unstuffed bytes, highest bit first, eight at a time.
//!
//! The variant after F. Giesen, "Reading bits in far too many ways" (2018):
//! one unaligned load tops the buffer up to at least 56 bits, without a branch.

/// Eight bytes as a number, the first one highest.
///
/// # Safety
/// 8 bytes must be readable at `at`.
#[inline(always)]
pub(crate) unsafe fn load_be(at: *const u8) -> u64 {
    // SAFETY: the caller's promise; `read_unaligned` has no other needs.
    u64::from_be(unsafe { at.cast::<u64>().read_unaligned() })
}

/// A position in unstuffed bytes with a buffer of the bits that follow.
///
/// Invariant: `count <= 63`, the top `count` bits of `buffer` are the next
/// bits, and the bits below them are either zero or already right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits {
    next: *const u8,
    pub buffer: u64,
    count: u32,
}

impl Bits {
    /// Starts at bit `position` of the bytes at `base`.
    ///
    /// # Safety
    /// 8 bytes must be readable from the bit's byte on.
    #[inline(always)]
    pub unsafe fn new(base: *const u8, position: usize) -> Bits {
        // SAFETY: the caller's promise.
        unsafe {
            let mut bits = Bits { next: base.add(position / 8), buffer: 0, count: 0 };
            bits.refill();
            bits.consume(position as u32 & 7);
            bits
        }
    }

    /// Fills the buffer to at least 56 bits.
    ///
    /// # Safety
    /// 16 bytes must be readable from the current position on, which bounds
    /// `next`.
    #[inline(always)]
    pub unsafe fn refill(&mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            self.buffer |= load_be(self.next) >> (self.count & 63);
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
    #[inline(always)]
    pub fn position(&self, base: *const u8) -> usize {
        (self.next as usize - base as usize) * 8 - self.count as usize
    }
}
