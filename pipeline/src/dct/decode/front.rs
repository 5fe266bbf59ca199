//! The first step of the vector bodies: DC values, profiles and masks of all
//! blocks, to arrays that the later steps go through.

use std::arch::x86_64::*;

use super::super::book::{BOOK, Profile};
use super::super::segment::{MAX_BLOCKS, Shape};
use super::{Coded, Head};

/// Blocks with room for the last vector of four.
const ROOM: usize = MAX_BLOCKS + 4;

/// What the steps hand on. Words are of eight bytes: a block has one for each
/// eight zig-zag positions in `narrow`, one for each four in `wide`.
#[repr(C, align(64))]
pub(super) struct Work {
    /// Codes of positions 8..64, a byte each; the first word of a block is 0.
    pub narrow: [[u64; 8]; ROOM],
    /// Codes of positions 0..8, 16 bits each.
    pub wide: [[u64; 2]; ROOM],
    /// Where a word's bits are put, and from which bit of which byte they come.
    pub narrow_to: [[u64; 8]; ROOM],
    pub narrow_bit: [[u64; 8]; ROOM],
    pub wide_to: [[u64; 2]; ROOM],
    pub wide_bit: [[u64; 2]; ROOM],
    /// Bit k: the coefficient at position k is not zero.
    pub masks: [u64; ROOM],
    /// The lowest byte of each mask, and widths of the wide bands, two bytes each.
    pub low_masks: [u8; ROOM],
    pub wide_widths: [u16; ROOM],
    pub profiles: [&'static Profile; ROOM],
    pub dc: [i16; ROOM],
}

impl Default for Work {
    fn default() -> Work {
        const NONE: &Profile = &Profile::EMPTY;
        Work {
            narrow: [[0; 8]; ROOM],
            wide: [[0; 2]; ROOM],
            narrow_to: [[0; 8]; ROOM],
            narrow_bit: [[0; 8]; ROOM],
            wide_to: [[0; 2]; ROOM],
            wide_bit: [[0; 2]; ROOM],
            masks: [0; ROOM],
            low_masks: [0; ROOM],
            wide_widths: [0; ROOM],
            profiles: [NONE; ROOM],
            dc: [0; ROOM],
        }
    }
}

/// At least 57 bits from bit `bit` on.
///
/// # Safety
/// Eight bytes must be readable from the bit's byte on.
#[inline(always)]
pub(super) unsafe fn load(data: *const u8, bit: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { data.add(bit >> 3).cast::<u64>().read_unaligned() >> (bit & 7) }
}

/// Fills `dc`, `masks`, `low_masks`, `wide_widths`, `profiles` and `spans`; gives the
/// byte behind the masks. None where that is beyond the segment.
///
/// # Safety
/// The conditions of [`super::avx2::body`].
#[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
#[inline]
pub(super) unsafe fn front(
    coded: Coded<'_>,
    head: &Head,
    shape: &Shape,
    work: &mut Work,
    spans: &mut [u8; MAX_BLOCKS],
) -> Option<usize> {
    let data = coded.data.as_ptr();
    let (mut dc_at, mut index_at, mut mask_at) = (head.dc_at, head.index_at, head.masks_at);
    let mut block = 0;
    for (component, part) in shape.parts().iter().enumerate() {
        let (least, dc_bits) = (head.least[component], head.dc_bits[component]);
        let (index_bits, book) = (head.index_bits[part.class], &BOOK[part.class].profiles[..]);
        for _ in 0..part.blocks() {
            // SAFETY: the bits of DC values and indexes lie before `masks_at`, which
            // `Head::read` found inside the segment; `mask_at` is checked below each time it
            // grows; eight bytes can be read there, as PAD bytes follow. A book has 2^12
            // profiles and an index at most 12 bits; blocks are at most MAX_BLOCKS.
            unsafe {
                let beyond = _bzhi_u64(load(data, dc_at), dc_bits) as i16;
                let index = _bzhi_u64(load(data, index_at), index_bits) as usize;
                let profile = book.get_unchecked(index);
                let bytes = usize::from(profile.mask_bytes);
                let mask = data.add(mask_at).cast::<u64>().read_unaligned();
                let mask = _bzhi_u64(mask, 8 * bytes as u32) & !1;
                *work.dc.get_unchecked_mut(block) = least.wrapping_add(beyond);
                *work.masks.get_unchecked_mut(block) = mask;
                *work.low_masks.get_unchecked_mut(block) = mask as u8;
                *work.wide_widths.get_unchecked_mut(block) =
                    u16::from_le_bytes([profile.widths[0], profile.widths[1]]);
                *work.profiles.get_unchecked_mut(block) = profile;
                *spans.get_unchecked_mut(block) = 64 - _lzcnt_u64(mask | 1) as u8;
                mask_at += bytes;
            }
            if mask_at > coded.length {
                return None;
            }
            dc_at += dc_bits as usize;
            index_at += index_bits as usize;
            block += 1;
        }
    }
    Some(mask_at)
}
