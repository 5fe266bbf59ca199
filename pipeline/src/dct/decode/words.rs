//! Without vectors: the codes of eight positions from one word, and nothing done for positions
//! whose coefficient is zero.

use super::super::book::{BANDS, BOOK, Profile, start};
use super::super::segment::{MAX_BLOCKS, Shape};
use super::scalar::value;
use super::{Blocks, Coded, Head, mask_of};
use crate::jpeg::{Block, ZIGZAG};

/// The lower `width` bits, at most 12.
fn low(width: u32) -> u64 {
    (1 << width) - 1
}

/// At least 57 bits from bit `bit` on. Where the bit is at most as far behind the segment as a
/// block is long, [`super::PAD`] has the bytes.
#[inline(always)]
fn load(data: &[u8], bit: usize) -> u64 {
    let bytes = data[bit / 8..][..8].try_into().unwrap_or_default();
    u64::from_le_bytes(bytes) >> (bit % 8)
}

/// See [`super::decode`]. None where the segment is not exactly as long as its
/// blocks.
pub(super) fn body(coded: Coded<'_>, head: &Head, shape: &Shape, out: &mut Blocks) -> Option<()> {
    let (data, limit) = (coded.data, 8 * coded.length);
    let mut profiles = [(&Profile::EMPTY, 0u64); MAX_BLOCKS];
    let (mut dc_at, mut index_at, mut mask_at) = (head.dc_at, head.index_at, head.masks_at);
    let mut count = 0;
    for (component, part) in shape.parts().iter().enumerate() {
        let (dc_bits, index_bits) = (head.dc_bits[component], head.index_bits[part.class]);
        for _ in 0..part.blocks() {
            let beyond = load(data, dc_at) & low(dc_bits);
            let index = load(data, index_at) & low(index_bits);
            let profile = BOOK[part.class].profiles.get(index as usize)?;
            let mask = load(data, 8 * mask_at) & mask_of(profile);
            out.blocks[count] = Block([0; 64]);
            out.blocks[count].0[0] = head.least[component].wrapping_add(beyond as i16);
            out.spans[count] = 64 - (mask | 1).leading_zeros() as u8;
            profiles[count] = (profile, mask);
            mask_at += usize::from(profile.mask_bytes);
            if mask_at > coded.length {
                return None;
            }
            dc_at += dc_bits as usize;
            index_at += index_bits as usize;
            count += 1;
        }
    }
    let mut bit = 8 * mask_at;
    for bands in [0..2, 2..BANDS] {
        for (block, (profile, mask)) in out.blocks.iter_mut().zip(&profiles[..count]) {
            if bit > limit {
                return None;
            }
            for band in bands.clone() {
                let (first, width) = (start(band), u32::from(profile.widths[band]));
                let mut left = (mask & !(u64::MAX << (start(band + 1) - 1) << 1)) >> first;
                let mut bits = load(data, bit);
                bit += (width * left.count_ones()) as usize;
                while left != 0 {
                    let natural = ZIGZAG[(first + left.trailing_zeros() as usize) & 63];
                    block.0[usize::from(natural & 63)] = value((bits & low(width)) as u32);
                    bits >>= width;
                    left &= left - 1;
                }
            }
        }
        bit = bit.next_multiple_of(8);
    }
    (bit == limit).then_some(())
}
