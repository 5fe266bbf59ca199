//! The blocks of one segment to its bytes: what `decode` takes apart.

use super::book::{BANDS, BOOK, CLASSES, NARROW_LIMIT, start};
use super::choose::{Outline, choose, code};
use crate::bit_io::BitWriter;
use crate::jpeg::{Block, ZIGZAG};

/// One block of a segment.
pub(super) struct Member<'a> {
    pub component: usize,
    pub class: usize,
    pub block: &'a Block,
    pub outline: &'a Outline,
}

/// Appends the bytes of a segment whose blocks are `members`, in its order.
pub(super) fn pack(
    members: &[Member<'_>],
    components: usize,
    index_bits: [u32; CLASSES],
    out: &mut Vec<u8>,
) {
    let listed = exceptions(members);
    let count = listed.len() / 4;
    match u8::try_from(count) {
        Ok(count) if count < 255 => out.push(count),
        // At most 56 a block, 3584 a segment.
        _ => out.extend([255, count as u8, (count >> 8) as u8]),
    }
    let dc: Vec<(i16, u32)> = (0..components).map(|c| dc_range(members, c)).collect();
    for &(least, bits) in &dc {
        out.extend((least as u16 & 0x0FFF | (bits as u16) << 12).to_le_bytes());
    }
    out.extend(listed);
    let mut writer = BitWriter::new(out);
    for member in members {
        let (least, bits) = dc[member.component];
        writer.put((i32::from(member.block.0[0]) - i32::from(least)) as u32, bits);
    }
    let mut profiles = Vec::with_capacity(members.len());
    for Member { class, outline, .. } in members {
        let number = choose(*class, outline, index_bits[*class]).0;
        writer.put(u32::from(number), index_bits[*class]);
        profiles.push(&BOOK[*class].profiles[usize::from(number)]);
    }
    writer.align();
    for (member, profile) in members.iter().zip(&profiles) {
        let mask = member.outline.mask.to_le_bytes();
        writer.bytes(&mask[..usize::from(profile.mask_bytes)]);
    }
    for bands in [0..2, 2..BANDS] {
        for (member, profile) in members.iter().zip(&profiles) {
            for band in bands.clone().filter(|&band| member.outline.counts[band] > 0) {
                let mut left = member.outline.mask & band_mask(band);
                while left != 0 {
                    let natural = ZIGZAG[left.trailing_zeros() as usize];
                    let value = member.block.0[usize::from(natural)];
                    writer.put(code(value, band), u32::from(profile.widths[band]));
                    left &= left - 1;
                }
            }
        }
        writer.align();
    }
}

/// The positions of a band.
fn band_mask(band: usize) -> u64 {
    let below = |position: usize| if position == 64 { u64::MAX } else { (1 << position) - 1 };
    below(start(band + 1)) & !below(start(band))
}

/// A component's least DC value, and the bits of what others have beyond it.
fn dc_range(members: &[Member<'_>], component: usize) -> (i16, u32) {
    let values = || members.iter().filter(|m| m.component == component).map(|m| m.block.0[0]);
    let (least, most) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
    (least, 32 - (i32::from(most) - i32::from(least)).leading_zeros())
}

/// The coefficients that narrow bands cannot hold, four bytes each.
fn exceptions(members: &[Member<'_>]) -> Vec<u8> {
    let mut listed = Vec::new();
    for (number, member) in members.iter().enumerate() {
        if member.outline.widths[2..].iter().all(|&width| width < super::book::MAX_NARROW) {
            continue;
        }
        for (position, &natural) in ZIGZAG.iter().enumerate().skip(start(2)) {
            let value = member.block.0[usize::from(natural)];
            if !(-NARROW_LIMIT..=NARROW_LIMIT).contains(&value) {
                listed.extend([number as u8, position as u8]);
                listed.extend(value.to_le_bytes());
            }
        }
    }
    listed
}
