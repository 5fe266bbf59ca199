//! Huffman decoding of batches of MCUs, by one stream or two in lock-step.
//!
//! A batch is a handful of MCUs whose coefficients stay in the first-level
//! cache; there is no buffer for the coefficients of an image. Decoding one
//! symbol waits for the length of the one before, some eight cycles through
//! the look-up table; two independent streams fill each other's waits. A
//! stream keeps its place inside a block, so neither waits for the other's
//! batch to end.
//!
//! The loop over two streams has as much state as there are registers: `cold`
//! keeps the compiler from spilling what each symbol needs.

use super::bits::{Bits, load_be};
use super::error::JpegError;
use super::header::ZIGZAG;
use super::huffman::{LOOKUP_BITS, MAX_SYMBOL_BITS, SLOW, Table};
use super::idct::Block;
#[cfg(target_arch = "x86_64")]
use crate::level::Kind;
use crate::level::Level;

/// The most blocks of one batch; an MCU has at most 10.
pub(crate) const MAX_BATCH: usize = 24;

/// Bytes that must be readable after the end of the coded data: what a whole
/// batch can take, and the bit reader's look-ahead. Ends are only checked
/// between batches.
pub(crate) const PAD: usize = MAX_BATCH * 64 * MAX_SYMBOL_BITS / 8 + 64;

/// Look-ups that 56 bits suffice for.
const LOOKUPS: usize = 5;
const _: () = assert!(LOOKUPS * LOOKUP_BITS as usize <= 56 && MAX_SYMBOL_BITS <= 56);

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

/// One stream of Huffman symbols: where it is, and the blocks that it decodes into.
pub(crate) struct SymbolStream {
    /// Position in the data, in bits.
    pub at: usize,
    /// Coefficients of the batch, row-major, DC as a difference; one block more,
    /// whose first value takes what lies beyond the block before.
    pub blocks: Box<[Block; MAX_BATCH + 1]>,
    /// For each block, the zig-zag position after its last coefficient.
    pub spans: [u8; MAX_BATCH],
    /// Blocks of the batch, and the one being decoded.
    pub(super) count: usize,
    pub(super) block: usize,
    /// Zig-zag position of the next coefficient; 0 between blocks.
    pub(super) position: u32,
}

impl SymbolStream {
    pub fn new() -> SymbolStream {
        SymbolStream {
            at: 0,
            blocks: Box::new([Block([0; 64]); MAX_BATCH + 1]),
            spans: [0; MAX_BATCH],
            count: 0,
            block: 0,
            position: 0,
        }
    }

    /// Starts a batch of `count` blocks.
    ///
    /// # Panics
    /// When that is more than [`MAX_BATCH`].
    pub fn begin(&mut self, count: usize) {
        assert!(count <= MAX_BATCH);
        (self.count, self.block, self.position) = (count, 0, 0);
    }

    /// Whether the batch is decoded.
    pub fn done(&self) -> bool {
        self.block == self.count
    }

    /// Decodes what is left of the batch, `tables` telling the tables of each
    /// block. Without STORE only the DC differences are written.
    ///
    /// # Safety
    /// When the batch began, [`PAD`] bytes of `data` followed the position.
    ///
    /// # Errors
    /// [`JpegError::Corrupt`] at a code that does not exist.
    pub unsafe fn decode<const STORE: bool>(
        &mut self,
        level: Level,
        data: &[u8],
        tables: &[Tables<'_>; MAX_BATCH],
    ) -> Result<(), JpegError> {
        let decoded = match level.kind() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level of these kinds exists only where AVX2, BMI1 and BMI2 were found;
            // the caller's promise.
            Kind::Avx2 | Kind::Avx512 => unsafe { one_bmi2::<STORE>(self, data.as_ptr(), tables) },
            // SAFETY: the caller's promise.
            _ => unsafe { one::<STORE>(self, data.as_ptr(), tables) },
        };
        decoded.ok_or(JpegError::Corrupt("no such Huffman code"))
    }

    /// Decodes two streams of the same data until the batch of one of them is
    /// done.
    ///
    /// # Safety
    /// As [`SymbolStream::decode`], for both.
    ///
    /// # Errors
    /// As [`SymbolStream::decode`].
    pub unsafe fn decode_two(
        level: Level,
        data: &[u8],
        a: &mut SymbolStream,
        b: &mut SymbolStream,
        tables: &[Tables<'_>; MAX_BATCH],
    ) -> Result<(), JpegError> {
        let decoded = match level.kind() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level of these kinds exists only where AVX2, BMI1 and BMI2 were found;
            // the caller's promise.
            Kind::Avx2 | Kind::Avx512 => unsafe { two_bmi2(a, b, data.as_ptr(), tables) },
            // SAFETY: the caller's promise.
            _ => unsafe { two(a, b, data.as_ptr(), tables) },
        };
        decoded.ok_or(JpegError::Corrupt("no such Huffman code"))
    }

    /// The first coefficient of the present block, with the right to those of all blocks: a store
    /// may reach the block after.
    ///
    /// # Safety
    /// The block must be in the array.
    #[inline(always)]
    pub(super) unsafe fn block_ptr(&mut self) -> *mut i16 {
        // SAFETY: the caller's promise.
        unsafe { self.blocks.as_mut_ptr().add(self.block).cast() }
    }

    /// Notes a block's span and goes to the next block. None where a run left
    /// the block.
    #[inline(always)]
    pub(super) fn end_block(&mut self, position: u32) -> Option<()> {
        // 64: the last coefficient was coded; from 128: end of block; between: a
        // run that leaves the block.
        if position > 64 && position < 128 {
            return None;
        }
        self.spans[self.block] = (position & 127) as u8;
        self.block += 1;
        Some(())
    }
}

/// Looks up a DC difference: (bits, value). Needs [`MAX_SYMBOL_BITS`] bits.
#[inline(always)]
pub(super) fn dc_symbol(table: &Table, buffer: u64) -> Option<(u32, i16)> {
    let entry = table.lut[(buffer >> (64 - LOOKUP_BITS)) as usize];
    if entry & SLOW == 0 {
        return Some((entry & 63, (entry >> 16) as i16));
    }
    let (length, _, value) = table.beyond(entry, buffer)?;
    Some((length, value as i16))
}

/// Stores a coefficient after an advance to `position`.
///
/// # Safety
/// `to` must point to a block followed by another; before the advance, of at
/// most 128, `position` must have been in 1..64.
#[inline(always)]
pub(super) unsafe fn store(to: *mut i16, position: u32, value: i16) {
    // SAFETY: `PLACE` has an entry for the position, none is beyond 64, and the
    // caller's promise.
    unsafe {
        let place = *PLACE.get_unchecked(position as usize - 1);
        to.add(usize::from(place)).write(value);
    }
}

/// Marks a path as seldom taken.
#[cold]
#[inline]
pub(super) fn cold() {}

/// See [`SymbolStream::decode`]; portable.
///
/// # Safety
/// As [`SymbolStream::decode`].
#[inline(always)]
unsafe fn one<const STORE: bool>(
    stream: &mut SymbolStream,
    data: *const u8,
    tables: &[Tables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise, here and below: a batch takes less than PAD
    // bytes, so every load lies within the data.
    let mut bits = unsafe { Bits::new(data, stream.at) };
    let mut position = stream.position;
    while stream.block < stream.count {
        let (dc, ac) = tables[stream.block];
        if position == 0 {
            // SAFETY: as above.
            unsafe { bits.refill() };
            let (length, value) = dc_symbol(dc, bits.buffer)?;
            bits.consume(length);
            if STORE {
                stream.blocks[stream.block] = Block([0; 64]);
            }
            stream.blocks[stream.block].0[0] = value;
            position = 1;
        }
        // After the block was written by its name, which would end the pointer's right to it.
        // SAFETY: the block is below the count, and the array has one more than the most.
        let to = unsafe { stream.block_ptr() };
        'block: loop {
            // SAFETY: as above.
            unsafe { bits.refill() };
            for _ in 0..LOOKUPS {
                let entry = ac.lut[(bits.buffer >> (64 - LOOKUP_BITS)) as usize];
                if entry & SLOW != 0 {
                    cold();
                    // SAFETY: as above.
                    unsafe { bits.refill() };
                    let (length, advance, value) = ac.beyond(entry, bits.buffer)?;
                    bits.consume(length);
                    position += advance;
                    if STORE {
                        // SAFETY: the position was below 64; a block follows each.
                        unsafe { store(to, position, value as i16) };
                    }
                    if position >= 64 {
                        break 'block;
                    }
                    continue 'block;
                }
                bits.consume(entry & 63);
                position += entry >> 8 & 0xFF;
                if STORE {
                    // SAFETY: the position was below 64; a block follows each.
                    unsafe { store(to, position, (entry >> 16) as i16) };
                }
                if position >= 64 {
                    break 'block;
                }
            }
        }
        stream.end_block(position)?;
        position = 0;
    }
    stream.position = 0;
    stream.at = bits.position(data);
    Some(())
}

/// What each symbol of one stream needs, in registers.
struct Hot<'a> {
    /// The next bits, as far as they are loaded.
    buffer: u64,
    /// Their position in the data.
    at: usize,
    position: u32,
    to: *mut i16,
    table: &'a Table,
}

impl<'a> Hot<'a> {
    /// Takes up a stream whose batch is not done.
    ///
    /// # Safety
    /// As [`SymbolStream::decode`].
    #[inline(always)]
    unsafe fn resume(
        stream: &mut SymbolStream,
        data: *const u8,
        tables: &[Tables<'a>; MAX_BATCH],
    ) -> Option<Hot<'a>> {
        // SAFETY: the batch is not done, so the block is below the count.
        let to = unsafe { stream.block_ptr() };
        let table = tables[stream.block].1;
        let mut hot = Hot { buffer: 0, at: stream.at, position: stream.position, to, table };
        if hot.position == 0 {
            // SAFETY: the caller's promise; the block is below the count.
            unsafe { hot.start_block(stream, data, tables)? };
        }
        Some(hot)
    }

    #[inline(always)]
    fn suspend(&self, stream: &mut SymbolStream) {
        (stream.at, stream.position) = (self.at, self.position);
    }

    /// Loads at least 56 bits.
    ///
    /// # Safety
    /// As [`SymbolStream::decode`].
    #[inline(always)]
    unsafe fn refill(&mut self, data: *const u8) {
        // SAFETY: the caller's promise: a batch takes less than PAD bytes.
        self.buffer = unsafe { load_be(data.add(self.at >> 3)) } << (self.at & 7);
    }

    /// Decodes the DC difference of the stream's block.
    ///
    /// # Safety
    /// As [`SymbolStream::decode`]; the block must be below the count.
    #[inline(always)]
    unsafe fn start_block(
        &mut self,
        stream: &mut SymbolStream,
        data: *const u8,
        tables: &[Tables<'a>; MAX_BATCH],
    ) -> Option<()> {
        // SAFETY: a batch has at most MAX_BATCH blocks, and both arrays as many.
        let (dc, ac) = unsafe {
            self.to = stream.block_ptr();
            *tables.get_unchecked(stream.block)
        };
        self.table = ac;
        // SAFETY: the caller's promise.
        unsafe { self.refill(data) };
        let (length, value) = dc_symbol(dc, self.buffer)?;
        self.at += length as usize;
        // SAFETY: `to` points to a block.
        unsafe {
            self.to.cast::<Block>().write(Block([0; 64]));
            self.to.write(value);
        }
        self.position = 1;
        Some(())
    }
}

/// See [`SymbolStream::decode_two`]; portable.
///
/// # Safety
/// As [`SymbolStream::decode_two`].
#[inline(always)]
unsafe fn two(
    a: &mut SymbolStream,
    b: &mut SymbolStream,
    data: *const u8,
    tables: &[Tables<'_>; MAX_BATCH],
) -> Option<()> {
    if a.done() || b.done() {
        return Some(());
    }
    /// One symbol of one stream; at the end of the other things, back to `$next`.
    macro_rules! step {
        ($next:lifetime, $hot:ident, $stream:ident) => {
            let entry = $hot.table.lut[($hot.buffer >> (64 - LOOKUP_BITS)) as usize];
            if entry & SLOW != 0 {
                cold();
                $hot.refill(data);
                let (length, advance, value) = $hot.table.beyond(entry, $hot.buffer)?;
                $hot.at += length as usize;
                $hot.position += advance;
                store($hot.to, $hot.position, value as i16);
                if $hot.position >= 64 {
                    end_block!($next, $hot, $stream);
                }
                continue $next;
            }
            $hot.buffer <<= entry & 63;
            $hot.at += (entry & 63) as usize;
            $hot.position += entry >> 8 & 0xFF;
            store($hot.to, $hot.position, (entry >> 16) as i16);
            if $hot.position >= 64 {
                cold();
                end_block!($next, $hot, $stream);
            }
        };
    }
    macro_rules! end_block {
        ($next:lifetime, $hot:ident, $stream:ident) => {
            $stream.end_block($hot.position)?;
            $hot.position = 0;
            if $stream.done() {
                break $next;
            }
            $hot.start_block($stream, data, tables)?;
            continue $next;
        };
    }
    // SAFETY: neither batch is done, the position is always in 1..64 before a
    // step, and the caller's promise.
    unsafe {
        let (mut x, mut y) = (Hot::resume(a, data, tables)?, Hot::resume(b, data, tables)?);
        'refill: loop {
            x.refill(data);
            y.refill(data);
            step!('refill, x, a);
            step!('refill, y, b);
            step!('refill, x, a);
            step!('refill, y, b);
            step!('refill, x, a);
            step!('refill, y, b);
            step!('refill, x, a);
            step!('refill, y, b);
            step!('refill, x, a);
            step!('refill, y, b);
        }
        x.suspend(a);
        y.suspend(b);
    }
    Some(())
}

/// The portable code with single-instruction shifts.
///
/// # Safety
/// As [`SymbolStream::decode`]; BMI1 and BMI2 must be there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn one_bmi2<const STORE: bool>(
    stream: &mut SymbolStream,
    data: *const u8,
    tables: &[Tables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise.
    unsafe { one::<STORE>(stream, data, tables) }
}

/// The portable code with single-instruction shifts.
///
/// # Safety
/// As [`SymbolStream::decode_two`]; BMI1 and BMI2 must be there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn two_bmi2(
    a: &mut SymbolStream,
    b: &mut SymbolStream,
    data: *const u8,
    tables: &[Tables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise.
    unsafe { two(a, b, data, tables) }
}
