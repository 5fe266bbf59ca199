//! Huffman decoding of a long stream that has no other beside it.
//!
//! One stream waits for each symbol's length, whatever else the CPU could do; so several symbols
//! are taken at a step. Half of a photograph's are followed, within the bits looked at, by the
//! whole of the next one: [`SoloTable::pairs`] holds both coefficients. Where blocks are only
//! passed over, the values' bits need not be looked at, and [`SoloTable::skips`] holds up to four.
//! The tables take some microseconds to make ([`WORTHWHILE`]).
//!
//! [`SymbolStream::decode`] with single symbols is the specification: blocks, spans and positions
//! are the same.

mod table;

use super::bits::Bits;
use super::entropy::{MAX_BATCH, SymbolStream, cold, dc_symbol, store};
use super::error::JpegError;
use super::huffman::{END_OF_BLOCK, LOOKUP_BITS, Table};
use super::idct::Block;
#[cfg(target_arch = "x86_64")]
use crate::level::Kind;
use crate::level::Level;
use table::End;
pub(crate) use table::SoloTable;

/// Blocks from which on the tables are worth making. A fuzzer's pictures are small.
pub(crate) const WORTHWHILE: usize = if cfg!(fuzzing) { 1 } else { 1000 };

/// Pairs that 56 bits suffice for.
const PAIRS: usize = 5;
/// Entries of `skips` that 56 bits suffice for: a code within the look-up, and 10 bits of its
/// value.
const SKIPS: usize = 2;
const _: () =
    assert!(PAIRS * LOOKUP_BITS as usize <= 56 && SKIPS * (LOOKUP_BITS as usize + 10) <= 56);

/// The tables of one block: DC, AC, AC.
pub(crate) type SoloTables<'a> = (&'a Table, &'a Table, &'a SoloTable);

impl SymbolStream {
    /// Decodes what is left of the batch, as [`SymbolStream::decode`] does.
    ///
    /// # Safety
    /// As [`SymbolStream::decode`].
    ///
    /// # Errors
    /// As [`SymbolStream::decode`].
    pub unsafe fn decode_solo<const STORE: bool>(
        &mut self,
        level: Level,
        data: &[u8],
        tables: &[SoloTables<'_>; MAX_BATCH],
    ) -> Result<(), JpegError> {
        let data = data.as_ptr();
        let decoded = match level.kind() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level of these kinds exists only where AVX2, BMI1 and BMI2 were found;
            // the caller's promise.
            Kind::Avx2 | Kind::Avx512 => unsafe { solo_bmi2::<STORE>(self, data, tables) },
            // SAFETY: the caller's promise.
            _ => unsafe { solo::<STORE>(self, data, tables) },
        };
        decoded.ok_or(JpegError::Corrupt("no such Huffman code"))
    }
}

/// See [`SymbolStream::decode_solo`]; portable.
///
/// # Safety
/// As [`SymbolStream::decode`].
#[inline(always)]
unsafe fn solo<const STORE: bool>(
    stream: &mut SymbolStream,
    data: *const u8,
    tables: &[SoloTables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise, here and below: a batch takes less than PAD bytes, so every
    // load lies within the data.
    let mut bits = unsafe { Bits::new(data, stream.at) };
    debug_assert_eq!(stream.position, 0, "a stream alone is between blocks");
    while stream.block < stream.count {
        let (dc, ac, table) = tables[stream.block];
        // SAFETY: as above.
        unsafe { bits.refill() };
        let (length, value) = dc_symbol(dc, bits.buffer)?;
        bits.consume(length);
        if STORE {
            stream.blocks[stream.block] = Block([0; 64]);
        }
        stream.blocks[stream.block].0[0] = value;
        // SAFETY: as above; the block is below the count.
        let position = unsafe {
            match STORE {
                true => stored(stream.block_ptr(), data, &mut bits, ac, table)?,
                false => skipped(data, &mut bits, ac, table)?,
            }
        };
        stream.end_block(position)?;
    }
    stream.at = bits.position(data);
    Some(())
}

/// Decodes a block's AC coefficients and gives the position behind them.
///
/// # Safety
/// As [`SymbolStream::decode`]; `to` must point to a block followed by another.
#[inline(always)]
unsafe fn stored(
    to: *mut i16,
    data: *const u8,
    bits: &mut Bits,
    ac: &Table,
    table: &SoloTable,
) -> Option<u32> {
    let mut position = 1;
    loop {
        // SAFETY: the caller's promise, here and below.
        unsafe { bits.refill() };
        for _ in 0..PAIRS {
            let pair = table.pair(bits.buffer);
            if pair.advance() == 0 {
                cold();
                // SAFETY: the position is below 64, and a block follows.
                unsafe {
                    bits.refill();
                    let (length, advance, value) = ac.coefficient(bits.buffer)?;
                    bits.consume(length);
                    position += advance;
                    store(to, position, value as i16);
                }
                break;
            }
            bits.consume(pair.bits());
            // SAFETY: the position is below 64, and a block follows. The end of a block stores a 0:
            // beyond it, or, from position 1, at the last place, which is 0 then.
            unsafe {
                store(to, position + pair.first_advance(), pair.first());
                position += pair.advance();
                store(to, position, pair.second());
            }
            if position >= 64 {
                match pair.end(position) {
                    End::Pair(position) => return Some(position),
                    End::First(position) => {
                        let at = bits.position(data) - pair.bits() as usize;
                        // SAFETY: what lies before was loaded before.
                        *bits = unsafe { Bits::new(data, at) };
                        bits.consume(ac.coefficient(bits.buffer)?.0);
                        return Some(position);
                    }
                }
            }
        }
        if position >= 64 {
            return Some(position);
        }
    }
}

/// Passes over a block's AC coefficients and gives the position behind them.
///
/// # Safety
/// As [`SymbolStream::decode`].
#[inline(always)]
unsafe fn skipped(data: *const u8, bits: &mut Bits, ac: &Table, table: &SoloTable) -> Option<u32> {
    let mut position = 1;
    'next: loop {
        // SAFETY: the caller's promise, here and below.
        unsafe { bits.refill() };
        'single: {
            for _ in 0..SKIPS {
                let entry = table.skip(bits.buffer);
                if entry == 0 {
                    break 'single;
                }
                let before = position;
                bits.consume(entry & 63);
                position += entry >> 16;
                if position >= 64 {
                    // Below 64 there: only the end of the block ended it.
                    if position >= END_OF_BLOCK && position - END_OF_BLOCK < 64 {
                        return Some(position);
                    }
                    // Which of them ended it, they tell one by one.
                    let at = bits.position(data) - (entry & 63) as usize;
                    // SAFETY: what lies before was loaded before.
                    *bits = unsafe { Bits::new(data, at) };
                    position = before;
                    break 'single;
                }
            }
            continue 'next;
        }
        cold();
        // SAFETY: as above.
        unsafe { bits.refill() };
        let (length, advance, _) = ac.coefficient(bits.buffer)?;
        bits.consume(length);
        position += advance;
        if position >= 64 {
            return Some(position);
        }
    }
}

/// The portable code with single-instruction shifts.
///
/// # Safety
/// As [`SymbolStream::decode`]; BMI1 and BMI2 must be there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn solo_bmi2<const STORE: bool>(
    stream: &mut SymbolStream,
    data: *const u8,
    tables: &[SoloTables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise.
    unsafe { solo::<STORE>(stream, data, tables) }
}

#[cfg(test)]
mod tests {
    use super::super::entropy::{PAD, Tables};
    use super::super::header::HuffmanSpec;
    use super::super::huffman::Class;
    use super::*;
    use crate::rng::Rng;

    /// A code of random lengths for some of the AC symbols: short ones, and long ones.
    fn random_code(rng: &mut Rng) -> ([u8; 16], Vec<u8>) {
        let mut symbols: Vec<u8> = (0..=255).filter(|s| s & 15 <= 10).collect();
        rng.shuffle(&mut symbols);
        // An end of block is often a short code.
        let end = symbols.iter().position(|&s| s == 0).unwrap();
        symbols.swap(end, rng.below(4) as usize);
        let (mut counts, mut left, mut used) = ([0; 16], 1u64, 0);
        for (at, count) in counts.iter_mut().enumerate() {
            left *= 2;
            // One code of all ones is left over; so is room for longer ones.
            let most = left.saturating_sub(if at < 15 { 2 } else { 1 }).min(40);
            let some = rng.below(most.min(1 + at as u64 * 2) + 1);
            *count = some.min((symbols.len() - used) as u64) as u8;
            left -= u64::from(*count);
            used += usize::from(*count);
        }
        symbols.truncate(used);
        (counts, symbols)
    }

    #[test]
    fn any_bits_decode_as_symbol_by_symbol() {
        let mut rng = Rng::keyed(3, 0, 0, 0);
        let (mut whole, mut several, mut without_end, mut refused) = (0, 0, 0, 0);
        for _ in 0..300 {
            let mut dc = Table::new(Class::Dc);
            let counts = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
            let symbols: Vec<u8> = (0..12).collect();
            dc.set(&HuffmanSpec { counts: &counts, symbols: &symbols }).unwrap();
            let ac = [(); 2].map(|()| {
                let (mut ac, (counts, symbols)) = (Table::new(Class::Ac), random_code(&mut rng));
                ac.set(&HuffmanSpec { counts: &counts, symbols: &symbols }).unwrap();
                ac
            });
            let data: Vec<u8> = (0..4000 + PAD).map(|_| rng.below(256) as u8).collect();
            // Luminance and chrominance: blocks of one code follow those of the other.
            let tables: [Tables<'_>; MAX_BATCH] =
                std::array::from_fn(|block| (&*dc, &*ac[block / 2 % 2]));
            for level in Level::available() {
                let made = [0, 1].map(|at: usize| {
                    let mut table = SoloTable::new();
                    table.set(level, &ac[at], true);
                    table
                });
                let solo: [SoloTables<'_>; MAX_BATCH] = std::array::from_fn(|block| {
                    let (dc, ac) = tables[block];
                    (dc, ac, &*made[block / 2 % 2])
                });
                let mut at = 0;
                while at < 4000 * 8 {
                    let count = [1, 1, 2, 3, 6, MAX_BATCH][rng.below(6) as usize];
                    let [mut plain, mut stored, mut skipped] =
                        [(); 3].map(|()| SymbolStream::new());
                    for stream in [&mut plain, &mut stored, &mut skipped] {
                        stream.at = at;
                        stream.begin(count);
                    }
                    // SAFETY: PAD bytes follow the position.
                    let found = unsafe {
                        [
                            plain.decode::<true>(level, &data, &tables).is_ok(),
                            stored.decode_solo::<true>(level, &data, &solo).is_ok(),
                            skipped.decode_solo::<false>(level, &data, &solo).is_ok(),
                        ]
                    };
                    assert_eq!(found, [found[0]; 3], "bit {at}");
                    at += 1;
                    if !found[0] {
                        refused += 1;
                        continue;
                    }
                    for stream in [&stored, &skipped] {
                        assert!(plain.at == stream.at && stream.done(), "bit {at}");
                        assert_eq!(plain.spans[..count], stream.spans[..count], "bit {at}");
                    }
                    for block in 0..count {
                        let [plain, stored, skipped] =
                            [&plain, &stored, &skipped].map(|stream| stream.blocks[block].0);
                        assert_eq!(plain, stored, "bit {at}, block {block}");
                        assert_eq!(plain[0], skipped[0], "bit {at}, block {block}");
                    }
                    whole += 1;
                    several += u32::from(count > 1);
                    without_end += u32::from(plain.spans[..count].contains(&64));
                    at = plain.at;
                }
            }
        }
        assert!(
            whole > 10_000 && several > 1_000 && without_end > 100 && refused > 1_000,
            "{whole} {several} {without_end} {refused}"
        );
    }
}
