//! The specification: one bit field after the other.

use super::super::book::{BANDS, BOOK, Profile, start};
use super::super::segment::{MAX_BLOCKS, Shape};
use super::{Blocks, Head, mask_of};
use crate::jpeg::{Block, ZIGZAG};

/// Bit fields, the lowest bit of a byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `width` bits, at most 12; None beyond the end.
    fn take(&mut self, width: usize) -> Option<u32> {
        let end = self.at + width;
        if end > 8 * self.bytes.len() {
            return None;
        }
        let byte = |at: usize| self.bytes.get(at).map_or(0, |&b| u32::from(b));
        let at = self.at / 8;
        let word = byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16;
        self.at = end;
        Some((word >> ((end - width) % 8)) & ((1 << width) - 1))
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

/// The value that a code stands for: its lowest bit is the sign, the others the
/// magnitude less one.
pub(super) fn value(code: u32) -> i16 {
    let magnitude = (code >> 1) as i16 + 1;
    if code & 1 == 1 { -magnitude } else { magnitude }
}

/// See [`super::decode`]. None where the segment is not exactly as long as its
/// blocks.
pub(super) fn body(bytes: &[u8], head: &Head, shape: &Shape, out: &mut Blocks) -> Option<()> {
    let mut profiles: [(Profile, u64); MAX_BLOCKS] = [(Profile::default(), 0); MAX_BLOCKS];
    let mut dc = Bits { bytes, at: head.dc_at };
    let mut index = Bits { bytes, at: head.index_at };
    let mut masks = bytes.get(head.masks_at..)?;
    let mut block = 0;
    for (component, part) in shape.parts().iter().enumerate() {
        for _ in 0..part.blocks() {
            let beyond = dc.take(head.dc_bits[component] as usize)?;
            out.blocks[block] = Block([0; 64]);
            out.blocks[block].0[0] = head.least[component].wrapping_add(beyond as i16);
            let number = index.take(head.index_bits[part.class] as usize)?;
            let profile = BOOK[part.class].profiles.get(number as usize)?;
            let (mask, rest) = masks.split_at_checked(usize::from(profile.mask_bytes))?;
            masks = rest;
            let mask = mask.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
            let mask = mask & mask_of(profile);
            out.spans[block] = 64 - (mask | 1).leading_zeros() as u8;
            profiles[block] = (*profile, mask);
            block += 1;
        }
    }
    let mut bits = Bits { bytes, at: 8 * (bytes.len() - masks.len()) };
    for bands in [0..2, 2..BANDS] {
        for (block, (profile, mask)) in out.blocks.iter_mut().zip(&profiles[..block]) {
            for band in bands.clone() {
                let positions = start(band)..start(band + 1);
                for (position, &natural) in positions.clone().zip(&ZIGZAG[positions]) {
                    if mask >> position & 1 == 1 {
                        let code = bits.take(usize::from(profile.widths[band]))?;
                        block.0[usize::from(natural)] = value(code);
                    }
                }
            }
        }
        bits.align();
    }
    (bits.at == 8 * bytes.len()).then_some(())
}
