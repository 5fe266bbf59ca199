//! Huffman decoding of batches of MCUs.
//!
//! A batch is a handful of MCUs whose coefficients stay in the first-level
//! cache; there is no buffer for the coefficients of an image. Whether a run of
//! MCUs is wanted or only passed over is a constant parameter, not a test per
//! coefficient.

use super::bits::Bits;
use super::error::JpegError;
use super::header::ZIGZAG;
use super::huffman::{LOOKUP_BITS, MAX_SYMBOL_BITS, SLOW, Table};
use super::idct::Block;
use super::simd::Simd;

/// The most blocks of one batch; an MCU has at most 10.
pub(crate) const MAX_BATCH: usize = 16;

/// Bytes that must be readable after the end of the coded data: what a whole
/// batch can take, and the bit reader's look-ahead. Ends are only checked
/// between batches.
pub(crate) const PAD: usize = MAX_BATCH * 64 * MAX_SYMBOL_BITS / 8 + 64;

/// Row-major place of coefficient `position - 1` after an advance to
/// `position`; the place after the block for what lies beyond it.
const PLACE: [u8; 192] = {
    let mut places = [64; 192];
    let mut k = 0;
    while k < 64 {
        places[k] = ZIGZAG[k];
        k += 1;
    }
    places
};

/// The tables of one block: DC, AC.
pub(crate) type Tables<'a> = (&'a Table, &'a Table);

/// What one stream decodes into, and where it is.
pub(crate) struct Lane {
    pub bits: Bits,
    /// Coefficients of the batch, row-major, DC as a difference; one block more,
    /// whose first value takes what lies beyond the block before.
    pub blocks: Box<[Block; MAX_BATCH + 1]>,
    /// For each block, the zig-zag position after its last coefficient.
    pub spans: [u8; MAX_BATCH],
}

impl Lane {
    pub fn new() -> Lane {
        Lane {
            bits: Bits::EMPTY,
            blocks: Box::new([Block([0; 64]); MAX_BATCH + 1]),
            spans: [0; MAX_BATCH],
        }
    }

    /// Decodes the blocks of one batch, `tables` telling the tables of each.
    /// Without STORE only the DC differences are written.
    ///
    /// # Safety
    /// [`PAD`] bytes must be readable from the lane's position on.
    ///
    /// # Errors
    /// [`JpegError::Corrupt`] at a code that does not exist.
    pub unsafe fn decode<const STORE: bool>(
        &mut self,
        simd: Simd,
        tables: &[Tables<'_>],
    ) -> Result<(), JpegError> {
        let decoded = match simd {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::Avx2` exists only where BMI2 was detected; the caller's
            // promise.
            Simd::Avx2(_) => unsafe { self.decode_bmi2::<STORE>(tables) },
            // SAFETY: the caller's promise.
            Simd::Scalar => unsafe { self.decode_portable::<STORE>(tables) },
        };
        decoded.ok_or(JpegError::Corrupt("no such Huffman code"))
    }

    /// The portable code with single-instruction shifts.
    ///
    /// # Safety
    /// As [`Lane::decode`]; BMI1 and BMI2 must be there.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2")]
    unsafe fn decode_bmi2<const STORE: bool>(&mut self, tables: &[Tables<'_>]) -> Option<()> {
        // SAFETY: the caller's promise.
        unsafe { self.decode_portable::<STORE>(tables) }
    }

    /// # Safety
    /// As [`Lane::decode`].
    #[inline(always)]
    unsafe fn decode_portable<const STORE: bool>(&mut self, tables: &[Tables<'_>]) -> Option<()> {
        assert!(tables.len() <= MAX_BATCH);
        if STORE {
            self.blocks[..tables.len()].fill(Block([0; 64]));
        }
        let mut bits = self.bits;
        for (block, (dc, ac)) in tables.iter().enumerate() {
            // SAFETY: blocks 0..=block exist, and the caller's promise: a batch
            // takes at most PAD - 8 bytes.
            let span = unsafe {
                let to = self.blocks.as_mut_ptr().add(block).cast::<i16>();
                to.write(decode_dc(&mut bits, dc)?);
                decode_ac::<STORE>(&mut bits, ac, to)?
            };
            self.spans[block] = span;
        }
        self.bits = bits;
        Some(())
    }
}

/// One DC difference.
///
/// # Safety
/// As [`Bits::refill`].
#[inline(always)]
unsafe fn decode_dc(bits: &mut Bits, table: &Table) -> Option<i16> {
    // SAFETY: the caller's promise.
    unsafe { bits.refill() };
    let entry = table.lut[(bits.buffer >> (64 - LOOKUP_BITS)) as usize];
    if entry & SLOW == 0 {
        bits.consume(entry & 63);
        return Some((entry >> 16) as i16);
    }
    let (length, _, value) = table.slow(bits.buffer)?;
    bits.consume(length);
    Some(value as i16)
}

/// The AC coefficients of one block; gives the zig-zag position after the last.
///
/// # Safety
/// As [`Bits::refill`], for as many bits as a block can take; `to` must point to
/// 65 writable values.
#[inline(always)]
unsafe fn decode_ac<const STORE: bool>(bits: &mut Bits, table: &Table, to: *mut i16) -> Option<u8> {
    let mut position = 1u32;
    'block: loop {
        // SAFETY: the caller's promise.
        unsafe { bits.refill() };
        // 56 bits are enough for five look-ups.
        for _ in 0..5 {
            let entry = table.lut[(bits.buffer >> (64 - LOOKUP_BITS)) as usize];
            let value = if entry & SLOW == 0 {
                bits.consume(entry & 63);
                position += entry >> 8 & 0xFF;
                (entry >> 16) as i16
            } else {
                // SAFETY: the caller's promise.
                unsafe { bits.refill() };
                let (length, advance, value) = table.slow(bits.buffer)?;
                bits.consume(length);
                // SAFETY: the caller's promise.
                unsafe { bits.refill() };
                position += advance;
                value as i16
            };
            if STORE {
                // SAFETY: `position` was below 64 and an advance is at most 128, so
                // `PLACE` has the entry, and no entry is beyond 64.
                unsafe {
                    let place = *PLACE.get_unchecked(position as usize - 1);
                    to.add(usize::from(place)).write(value);
                }
            }
            if position >= 64 {
                break 'block;
            }
        }
    }
    // 64: the last coefficient was coded; from 128: end of block; between: a run
    // that leaves the block.
    if position > 64 && position < 128 { None } else { Some((position & 127) as u8) }
}
