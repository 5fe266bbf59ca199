//! Without vectors: the codes of eight positions from one word, and nothing done for positions
//! whose coefficient is zero.

use std::ops::Range;

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
    let bytes = data[bit / 8..].first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(bytes) >> (bit % 8)
}

/// A block's profile, and where it has coefficients beside DC.
type Packed = (&'static Profile, u64);

/// See [`super::decode`]. None where the segment is not exactly as long as its
/// blocks.
pub(super) fn body(coded: Coded<'_>, head: &Head, shape: &Shape, out: &mut Blocks) -> Option<()> {
    let mut packed = [(&Profile::EMPTY, 0); MAX_BLOCKS];
    let masks_end = front(coded, head, shape, out, &mut packed)?;
    let mut bit = 8 * masks_end;
    for bands in [0..2, 2..BANDS] {
        for (block, one) in out.blocks.iter_mut().zip(&packed[..shape.blocks()]) {
            bit = values(coded, bit, bands.clone(), one, block)?;
        }
        bit = bit.next_multiple_of(8);
    }
    (bit == 8 * coded.length).then_some(())
}

/// DC values, spans, profiles and masks of all blocks, everything else zero; gives the byte behind
/// the masks. None where that is beyond the segment.
fn front(
    coded: Coded<'_>,
    head: &Head,
    shape: &Shape,
    out: &mut Blocks,
    packed: &mut [Packed; MAX_BLOCKS],
) -> Option<usize> {
    let data = coded.data;
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
            packed[count] = (profile, mask);
            mask_at += usize::from(profile.mask_bytes);
            if mask_at > coded.length {
                return None;
            }
            dc_at += dc_bits as usize;
            index_at += index_bits as usize;
            count += 1;
        }
    }
    Some(mask_at)
}

/// The values of a block's `bands`, from bit `bit` on; gives the bit behind them. None where the
/// segment ends before the block.
#[inline(always)]
fn values(
    coded: Coded<'_>,
    mut bit: usize,
    bands: Range<usize>,
    (profile, mask): &Packed,
    block: &mut Block,
) -> Option<usize> {
    if bit > 8 * coded.length {
        return None;
    }
    for band in bands {
        let (first, width) = (start(band), u32::from(profile.widths[band]));
        let mut left = (mask & !(u64::MAX << (start(band + 1) - 1) << 1)) >> first;
        let mut bits = load(coded.data, bit);
        bit += (width * left.count_ones()) as usize;
        while left != 0 {
            let natural = ZIGZAG[(first + left.trailing_zeros() as usize) & 63];
            block.0[usize::from(natural & 63)] = value((bits & low(width)) as u32);
            bits >>= width;
            left &= left - 1;
        }
    }
    Some(bit)
}
