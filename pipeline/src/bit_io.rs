//! Bit fields, the lowest bit of a byte first: what side indexes and re-coded images are packed
//! with.

/// Appends fields to bytes.
pub(crate) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    bits: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    /// Behind what `out` has.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        BitWriter { out, bits: 0, count: 0 }
    }

    /// Appends the lowest `width` bits of `value`, which has no others; at most 32.
    pub fn put(&mut self, value: u32, width: u32) {
        self.bits |= u64::from(value) << self.count;
        self.count += width;
        if self.count >= 32 {
            self.out.extend((self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.count -= 32;
        }
    }

    /// Fills up to a whole byte.
    pub fn align(&mut self) {
        let bytes = self.count.div_ceil(8) as usize;
        self.out.extend(&self.bits.to_le_bytes()[..bytes]);
        (self.bits, self.count) = (0, 0);
    }

    /// Appends whole bytes, right behind [`BitWriter::align`].
    pub fn bytes(&mut self, bytes: &[u8]) {
        debug_assert_eq!(self.count, 0);
        self.out.extend_from_slice(bytes);
    }
}

/// Reads what [`BitWriter`] wrote; zeros after the end.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    /// From the first bit of `bytes` on.
    pub fn new(bytes: &'a [u8]) -> Self {
        BitReader { bytes, at: 0 }
    }

    /// The next `bits` bits, at most 32.
    pub fn take(&mut self, bits: u32) -> u64 {
        let byte = self.at / 8;
        let word = match self.bytes.get(byte..byte + 8) {
            Some(word) => word.try_into().map_or(0, u64::from_le_bytes),
            None => {
                let rest = self.bytes.get(byte..).unwrap_or(&[]);
                let mut word = [0; 8];
                word[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(word)
            }
        };
        let value = word >> (self.at % 8) & ((1 << bits) - 1);
        self.at += bits as usize;
        value
    }
}
