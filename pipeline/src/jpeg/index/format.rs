//! What a packed side index says of its entries before they follow, and its fields. Under `index`.

use crate::jpeg::error::JpegError;

/// The widths of packed entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Packing {
    pub least_distance: u32,
    pub distance_bits: u32,
    pub least_dc: [i16; 3],
    pub dc_bits: [u32; 3],
}

impl Packing {
    pub fn entry_bits(&self) -> usize {
        (self.distance_bits + self.dc_bits.iter().sum::<u32>()) as usize
    }

    /// Whether `count` entries take no bits, as those of a picture of one gray. They are not read:
    /// an index of such entries could ask for any amount of memory.
    pub fn has_no_bits(&self, count: usize) -> bool {
        self.entry_bits() == 0 && count > 1
    }
}

/// Bits that hold 0..=most.
pub(super) fn bits_for(most: u64) -> u32 {
    64 - most.leading_zeros()
}

/// The front of a byte string, a field at a time.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], JpegError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(JpegError::Index("too short"))?;
        self.0 = rest;
        Ok(*field)
    }
}
