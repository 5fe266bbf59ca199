//! The bytes of one segment to blocks of coefficients: a safe front part, the
//! same for all instruction sets, and a body for each of them.
//!
//! `scalar.rs` is the specification; the others give the same blocks, and the
//! same errors, for any bytes. `words.rs` has no instructions of its own, and stands
//! where there is no vector body.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod front;
mod scalar;
#[cfg(any(target_arch = "aarch64", test))]
mod words;

use super::book::{NARROW_LIMIT, Profile};
use super::error::DctError;
use super::segment::{MAX_BLOCKS, Shape};
use crate::jpeg::{Block, ZIGZAG};
use crate::level::{Kind, Level};

/// Bytes that must follow a segment: bodies check positions once a block, and
/// a block's narrow bands take 49 bytes at most, loaded eight at a time.
pub(crate) const PAD: usize = 64;

/// Bits that DC values have beyond the least one, at most.
pub(crate) const MAX_DC_BITS: u32 = 12;

/// Decoded blocks, and what the bodies keep between their steps.
pub(crate) struct Blocks {
    /// Row-major coefficients.
    pub blocks: Box<[Block; MAX_BLOCKS]>,
    /// For each block, the zig-zag position after its last coefficient; at least 1.
    pub spans: [u8; MAX_BLOCKS],
    #[cfg(target_arch = "x86_64")]
    work: Box<front::Work>,
}

impl Blocks {
    pub fn new() -> Blocks {
        Blocks {
            blocks: Box::new([Block([0; 64]); MAX_BLOCKS]),
            spans: [0; MAX_BLOCKS],
            #[cfg(target_arch = "x86_64")]
            work: Box::default(),
        }
    }
}

/// A segment in bytes: `data[..length]`, with [`PAD`] bytes or more behind it.
#[derive(Clone, Copy)]
pub(crate) struct Coded<'a> {
    data: &'a [u8],
    length: usize,
}

impl<'a> Coded<'a> {
    /// The segment at `start`; None where it and the padding are not in `data`.
    pub fn new(data: &'a [u8], start: usize, length: usize) -> Option<Coded<'a>> {
        let data = data.get(start..)?;
        (length.checked_add(PAD)? <= data.len()).then_some(Coded { data, length })
    }

    fn bytes(&self) -> &'a [u8] {
        &self.data[..self.length]
    }
}

/// What stands before the blocks' own bits.
#[derive(Clone, Copy, Default)]
struct Head {
    /// By component: the least DC value, and bits of what is beyond it.
    least: [i16; 3],
    dc_bits: [u32; 3],
    /// Where exceptions begin, and how many there are.
    exceptions: (usize, usize),
    /// Bits of a profile's index, by class.
    index_bits: [u32; 2],
    /// Bit positions of the DC values and of the indexes.
    dc_at: usize,
    index_at: usize,
    /// Byte position of the masks.
    masks_at: usize,
}

const SHORT: DctError = DctError::Corrupt("segment too short");

impl Head {
    fn read(bytes: &[u8], shape: &Shape, index_bits: [u32; 2]) -> Result<Head, DctError> {
        let mut head = Head { index_bits, ..Head::default() };
        let byte = |at: usize| bytes.get(at).copied().ok_or(SHORT);
        let (mut count, mut at) = (usize::from(byte(0)?), 1);
        if count == 255 {
            count = usize::from(u16::from_le_bytes([byte(1)?, byte(2)?]));
            at = 3;
        }
        let (mut dc_bits, mut index_bits) = (0, 0);
        for (component, part) in shape.parts().iter().enumerate() {
            let word = u16::from_le_bytes([byte(at)?, byte(at + 1)?]);
            // The lower 12 bits have a sign.
            head.least[component] = (word << 4) as i16 >> 4;
            head.dc_bits[component] = u32::from(word >> 12);
            if head.dc_bits[component] > MAX_DC_BITS {
                return Err(DctError::Corrupt("bits of DC values"));
            }
            dc_bits += part.blocks() * head.dc_bits[component] as usize;
            index_bits += part.blocks() * head.index_bits[part.class] as usize;
            at += 2;
        }
        head.exceptions = (at, count);
        head.dc_at = 8 * (at + 4 * count);
        head.index_at = head.dc_at + dc_bits;
        head.masks_at = (head.index_at + index_bits).div_ceil(8);
        if head.masks_at > bytes.len() {
            return Err(SHORT);
        }
        Ok(head)
    }
}

/// Decodes a segment of `shape`; indexes of profiles have `index_bits` bits, at most
/// [`super::book::MAX_INDEX_BITS`].
///
/// # Errors
/// [`DctError::Corrupt`] where lengths or positions are not consistent.
pub(crate) fn decode(
    level: Level,
    coded: Coded<'_>,
    shape: &Shape,
    index_bits: [u32; 2],
    out: &mut Blocks,
) -> Result<(), DctError> {
    assert!(shape.blocks() <= MAX_BLOCKS);
    assert!(index_bits.iter().all(|&bits| bits <= super::book::MAX_INDEX_BITS));
    let bytes = coded.bytes();
    let head = Head::read(bytes, shape, index_bits)?;
    let decoded = match level.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level of this kind exists only where its instructions were found;
        // PAD bytes follow the segment (`Coded::new`), whose front lies inside it
        // (`Head::read`); the shape and index bits were checked above.
        Kind::Avx512 => unsafe { avx512::body(coded, &head, shape, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx2 => unsafe { avx2::body(coded, &head, shape, out) },
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => words::body(coded, &head, shape, out),
        Kind::Scalar => scalar::body(bytes, &head, shape, out),
    };
    decoded.ok_or(DctError::Corrupt("segment's length"))?;
    apply_exceptions(bytes, &head, shape.blocks(), out)
}

/// Coefficients of the narrow bands that are beyond [`NARROW_LIMIT`].
fn apply_exceptions(
    bytes: &[u8],
    head: &Head,
    blocks: usize,
    out: &mut Blocks,
) -> Result<(), DctError> {
    let (at, count) = head.exceptions;
    let listed = bytes.get(at..at + 4 * count).ok_or(SHORT)?;
    for exception in listed.chunks_exact(4) {
        let (block, position) = (usize::from(exception[0]), exception[1]);
        let value = i16::from_le_bytes([exception[2], exception[3]]);
        if block >= blocks || !(8..64).contains(&position) {
            return Err(DctError::Corrupt("place of a large coefficient"));
        }
        if (-NARROW_LIMIT..=NARROW_LIMIT).contains(&value) {
            return Err(DctError::Corrupt("size of a large coefficient"));
        }
        out.blocks[block].0[usize::from(ZIGZAG[usize::from(position)])] = value;
        out.spans[block] = out.spans[block].max(position + 1);
    }
    Ok(())
}

/// The number of a profile's mask bytes as a mask of the block's positions; the
/// DC coefficient's bit means nothing.
fn mask_of(profile: &Profile) -> u64 {
    let bits = 8 * u32::from(profile.mask_bytes);
    (if bits == 64 { u64::MAX } else { (1 << bits) - 1 }) & !1
}

#[cfg(test)]
mod tests {
    use super::super::book::CLASSES;
    use super::super::choose::Outline;
    use super::super::pack::{Member, pack};
    use super::*;
    use crate::rng::Rng;

    /// A block that is zero from the span on, most of its coefficients small.
    fn random_block(rng: &mut Rng) -> (Block, u8) {
        let most = [12, 64][usize::from(rng.chance(0.5))];
        let span = 1 + rng.below(most) as u8;
        let mut block = Block([0; 64]);
        for (position, &natural) in ZIGZAG[..usize::from(span)].iter().enumerate() {
            let most = match position {
                0..8 => [3, 1023][usize::from(rng.chance(0.1))],
                _ => [1, 64, 300][[0, 0, 0, 0, 1, 1, 1, 2][rng.below(8) as usize]],
            };
            block.0[usize::from(natural)] = rng.below(2 * most + 1) as i16 - most as i16;
        }
        (block, span)
    }

    fn same(found: &Blocks, expected: &Blocks, count: usize) -> bool {
        let mut blocks = found.blocks.iter().zip(&expected.blocks[..count]);
        blocks.all(|(found, expected)| found.0 == expected.0)
            && found.spans[..count] == expected.spans[..count]
    }

    #[test]
    fn every_body_equals_scalar_for_whole_and_damaged_segments() {
        let mut rng = Rng::keyed(6, 0, 0, 0);
        let (mut expected, mut found) = (Blocks::new(), Blocks::new());
        let mut decoded = 0;
        for case in 0..3000 {
            let shape = Shape::of([1 + rng.below(32) as usize, 1 + rng.below(16) as usize]);
            let index_bits = [2 + rng.below(11) as u32, 2 + rng.below(11) as u32];
            let blocks: Vec<_> = (0..shape.blocks()).map(|_| random_block(&mut rng)).collect();
            let outlines: Vec<_> = blocks.iter().map(|(block, s)| Outline::of(block, *s)).collect();
            let classes = shape.parts().iter().enumerate();
            let classes: Vec<_> = classes.flat_map(|(c, part)| vec![c; part.blocks()]).collect();
            let members = classes.iter().zip(blocks.iter().zip(&outlines));
            let members: Vec<_> = members
                .map(|(&class, ((block, _), outline))| Member {
                    component: class,
                    class,
                    block,
                    outline,
                })
                .collect();
            let mut data = Vec::new();
            pack(&members, CLASSES, index_bits, &mut data);
            let mut length = data.len();
            if case % 2 == 1 {
                let at = rng.below(length as u64) as usize;
                data[at] ^= 1 << rng.below(8);
                length -= usize::from(case % 4 == 3);
            }
            data.extend((0..PAD).map(|_| rng.below(256) as u8));
            let coded = Coded::new(&data, 0, length).unwrap();
            let Ok(head) = Head::read(coded.bytes(), &shape, index_bits) else { continue };
            let whole = scalar::body(coded.bytes(), &head, &shape, &mut expected);
            assert_eq!(words::body(coded, &head, &shape, &mut found), whole, "case {case}");
            assert!(whole.is_none() || same(&found, &expected, shape.blocks()), "case {case}");
            let whole = decode(Level::SCALAR, coded, &shape, index_bits, &mut expected);
            for level in Level::available() {
                let result = decode(level, coded, &shape, index_bits, &mut found);
                assert_eq!(result.is_ok(), whole.is_ok(), "case {case}, {level}");
                assert!(
                    whole.is_err() || same(&found, &expected, shape.blocks()),
                    "case {case}, {level}"
                );
            }
            if case % 2 == 0 {
                let all = expected.blocks.iter().zip(&blocks);
                assert!(all.clone().all(|(found, (block, _))| found.0 == block.0), "case {case}");
                decoded += 1;
            }
        }
        assert_eq!(decoded, 1500);
    }
}
