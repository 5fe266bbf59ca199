//! Huffman decoding of a long stream that has no other beside it.
//!
//! One stream waits for each symbol's length, whatever else the CPU could do; so several symbols are
//! taken at a step. Half of a photograph's are followed, within the bits looked at, by the whole of the
//! next one: [`SoloTable::pairs`] holds both coefficients. Where blocks are only passed over, the values'
//! bits need not be looked at, and [`SoloTable::skips`] holds up to four. The tables take some
//! microseconds to make ([`WORTHWHILE`]).
//!
//! [`Lane::decode`] with single symbols is the specification: blocks, spans and positions are the same.
//!
//! ```text
//! an entry of `pairs`                                an entry of `skips`
//! bits  0..6   bits to consume, of both symbols      bits  0..6   bits to consume, of all symbols
//! bits  6..10  zeros before the first coefficient    bits  8..12  of these the last code's and before
//! bits 10..16  advance behind the second             bits 16..24  advance behind the last
//! bits 16..24  the first coefficient
//! bits 24..32  the second
//! ```
//!
//! 0 is a code that reaches beyond the bits looked at (a pair's first value, too). A symbol alone stands
//! in both places of a pair. A coefficient at the last place ends a block without a code: what was looked
//! up behind it belongs to another table and is not taken ([`Pair::end`]).

use super::bits::Bits;
use super::entropy::{Lane, MAX_BATCH, cold, dc_symbol, store};
use super::error::JpegError;
use super::huffman::{END_OF_BLOCK, LOOKUP_BITS, SLOW, Table};
use super::idct::Block;
use super::simd::Simd;

/// Blocks from which on the tables are worth making. A fuzzer's pictures are small.
pub(crate) const WORTHWHILE: usize = if cfg!(fuzzing) { 1 } else { 1000 };

const ENTRIES: usize = 1 << LOOKUP_BITS;
/// A pair's advance at the end of a block: from position 1 on to 64 or beyond.
const LAST: u32 = 63;
/// Pairs that 56 bits suffice for.
const PAIRS: usize = 5;
/// Entries of `skips` that 56 bits suffice for: a code within the look-up, and 10 bits of its value.
const SKIPS: usize = 2;
const _: () =
    assert!(PAIRS * LOOKUP_BITS as usize <= 56 && SKIPS * (LOOKUP_BITS as usize + 10) <= 56);

/// AC codes, several at a step; see the module's text.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct SoloTable {
    pairs: [u32; ENTRIES],
    skips: [u32; ENTRIES],
    /// The [`Table::version`] that either was made from; 0 for none.
    paired: u64,
    skipping: u64,
}

/// The tables of one block: DC, AC, AC.
pub(crate) type SoloTables<'a> = (&'a Table, &'a Table, &'a SoloTable);

impl SoloTable {
    /// A table without codes.
    pub fn new() -> Box<SoloTable> {
        Box::new(SoloTable { pairs: [0; ENTRIES], skips: [0; ENTRIES], paired: 0, skipping: 0 })
    }

    /// Takes up the codes of `table`; free when it has.
    pub fn set(&mut self, simd: Simd, table: &Table, skips: bool) {
        if self.paired != table.version() {
            self.paired = table.version();
            fill_pairs(simd, &table.lut, &mut self.pairs);
        }
        if skips && self.skipping != table.version() {
            self.skipping = table.version();
            fill_skips(simd, &table.lut, &mut self.skips);
        }
    }
}

/// Where to look behind `bits` of the look-up that found `next`. Zeros are shifted in: what is found there is
/// right only where it takes no more bits than there were.
#[inline(always)]
fn shifted(next: usize, bits: u32) -> usize {
    ((next as u32) << (bits & 31)) as usize & (ENTRIES - 1)
}

#[inline(always)]
fn fill_pairs_inner(lut: &[u32; ENTRIES], pairs: &mut [u32; ENTRIES]) {
    // Without branches, for gathers: an entry costs a few instructions.
    for (next, pair) in pairs.iter_mut().enumerate() {
        let first = lut[next];
        let (bits, advance, value) = (first & 63, first >> 8 & 0xFF, first as i32 >> 16);
        let second = lut[shifted(next, bits)];
        let (bits2, advance2, value2) = (second & 63, second >> 8 & 0xFF, second as i32 >> 16);
        let narrow = |value: i32| value << 24 >> 24 == value;
        let fast = first & SLOW == 0 && narrow(value);
        // A first value of 0 tells an end of block that is alone.
        let both =
            second & SLOW == 0 && narrow(value2) && bits + bits2 <= LOOKUP_BITS && value != 0;
        let run = if advance == END_OF_BLOCK { 0 } else { advance.wrapping_sub(1) };
        let alone = if advance == END_OF_BLOCK { LAST } else { advance };
        let after = if advance2 == END_OF_BLOCK { LAST } else { advance + advance2 };
        let (low, high) = (value as u32 & 0xFF, value2 as u32 & 0xFF);
        let one = bits | run << 6 | alone << 10 | low << 16 | low << 24;
        let two = (bits + bits2) | run << 6 | after << 10 | low << 16 | high << 24;
        let entry = if both { two } else { one };
        *pair = if fast { entry } else { 0 };
    }
}

#[inline(always)]
fn fill_skips_inner(lut: &[u32; ENTRIES], skips: &mut [u32; ENTRIES]) {
    let mut one = [0; ENTRIES];
    for (to, &entry) in one.iter_mut().zip(lut) {
        let (bits, advance, value) = (entry & 63, entry >> 8 & 0xFF, entry as i32 >> 16);
        // A value's size is that of its magnitude; a slow entry tells it.
        let size = 32 - value.unsigned_abs().leading_zeros();
        let fast = bits | (bits.wrapping_sub(size) & 15) << 8 | advance << 16;
        let slow = bits.wrapping_add(value as u32) | bits << 8 | advance << 16;
        let known = if entry & SLOW == 0 { fast } else { slow };
        *to = if entry == SLOW { 0 } else { known };
    }
    let mut two = [0; ENTRIES];
    for (next, to) in two.iter_mut().enumerate() {
        *to = followed(one[next], one[shifted(next, one[next] & 63)]).unwrap_or(one[next]);
    }
    for (next, to) in skips.iter_mut().enumerate() {
        let (first, at) = (two[next], shifted(next, two[next] & 63));
        let further = followed(first, one[at]).unwrap_or(first);
        *to = followed(first, two[at]).unwrap_or(further);
    }
}

/// What `first` and `second` are together, if the second one's codes are within the look-up.
#[inline(always)]
fn followed(first: u32, second: u32) -> Option<u32> {
    let looked = (first & 63) + (second >> 8 & 15);
    let open = first != 0 && second != 0 && first >> 16 < END_OF_BLOCK;
    let (bits, advance) = ((first & 63) + (second & 63), (first >> 16) + (second >> 16));
    (open && looked <= LOOKUP_BITS).then_some(bits | looked << 8 | advance << 16)
}

/// An entry of [`SoloTable::pairs`].
#[derive(Clone, Copy)]
struct Pair(u32);

/// How a block ended.
enum End {
    /// With all bits of the pair, at a position as [`END_OF_BLOCK`] has it.
    Pair(u32),
    /// With the first symbol: at a position of 64 or beyond.
    First(u32),
}

impl Pair {
    /// Advance of both symbols, at most [`LAST`].
    #[inline(always)]
    fn advance(self) -> u32 {
        self.0 >> 10 & 63
    }

    /// Advance of the first symbol.
    #[inline(always)]
    fn first_advance(self) -> u32 {
        (self.0 >> 6 & 15) + 1
    }

    #[inline(always)]
    fn first(self) -> i16 {
        i16::from((self.0 >> 16) as i8)
    }

    #[inline(always)]
    fn second(self) -> i16 {
        (self.0 as i32 >> 24) as i16
    }

    /// What a pair ends that led to `position`, 64 or more.
    #[inline(always)]
    fn end(self, position: u32) -> End {
        let before = position - self.advance();
        let first = before + self.first_advance();
        match self.advance() {
            LAST if self.first() == 0 => End::Pair(END_OF_BLOCK + before),
            _ if first >= 64 => End::First(first),
            LAST => End::Pair(END_OF_BLOCK + first),
            _ => End::Pair(position),
        }
    }
}

impl Lane {
    /// Decodes what is left of the batch, as [`Lane::decode`] does.
    ///
    /// # Safety
    /// As [`Lane::decode`].
    ///
    /// # Errors
    /// As [`Lane::decode`].
    pub unsafe fn decode_solo<const STORE: bool>(
        &mut self,
        simd: Simd,
        data: &[u8],
        tables: &[SoloTables<'_>; MAX_BATCH],
    ) -> Result<(), JpegError> {
        let data = data.as_ptr();
        let decoded = match simd {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::Avx2` exists only where BMI2 was detected; the caller's promise.
            Simd::Avx2(_) => unsafe { solo_bmi2::<STORE>(self, data, tables) },
            // SAFETY: the caller's promise.
            Simd::Scalar => unsafe { solo::<STORE>(self, data, tables) },
        };
        decoded.ok_or(JpegError::Corrupt("no such Huffman code"))
    }
}

/// See [`Lane::decode_solo`]; portable.
///
/// # Safety
/// As [`Lane::decode`].
#[inline(always)]
unsafe fn solo<const STORE: bool>(
    lane: &mut Lane,
    data: *const u8,
    tables: &[SoloTables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise, here and below: a batch takes less than PAD bytes, so every load
    // lies within the data.
    let mut bits = unsafe { Bits::new(data, lane.at) };
    debug_assert_eq!(lane.position, 0, "a stream alone is between blocks");
    while lane.block < lane.count {
        let (dc, ac, table) = tables[lane.block];
        // SAFETY: as above.
        unsafe { bits.refill() };
        let (length, value) = dc_symbol(dc, bits.buffer)?;
        bits.consume(length);
        if STORE {
            lane.blocks[lane.block] = Block([0; 64]);
        }
        lane.blocks[lane.block].0[0] = value;
        // SAFETY: as above; the block is below the count.
        let position = unsafe {
            match STORE {
                true => stored(lane.block_ptr(), data, &mut bits, ac, table)?,
                false => skipped(data, &mut bits, ac, table)?,
            }
        };
        lane.end_block(position)?;
    }
    lane.at = bits.position(data);
    Some(())
}

/// Decodes a block's AC coefficients and gives the position behind them.
///
/// # Safety
/// As [`Lane::decode`]; `to` must point to a block followed by another.
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
            let pair = Pair(table.pairs[(bits.buffer >> (64 - LOOKUP_BITS)) as usize]);
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
            bits.consume(pair.0 & 63);
            // SAFETY: the position is below 64, and a block follows. The end of a block stores a 0: beyond
            // it, or, from position 1, at the last place, which is 0 then.
            unsafe {
                store(to, position + pair.first_advance(), pair.first());
                position += pair.advance();
                store(to, position, pair.second());
            }
            if position >= 64 {
                match pair.end(position) {
                    End::Pair(position) => return Some(position),
                    End::First(position) => {
                        let at = bits.position(data) - (pair.0 & 63) as usize;
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
/// As [`Lane::decode`].
#[inline(always)]
unsafe fn skipped(data: *const u8, bits: &mut Bits, ac: &Table, table: &SoloTable) -> Option<u32> {
    let mut position = 1;
    'next: loop {
        // SAFETY: the caller's promise, here and below.
        unsafe { bits.refill() };
        'single: {
            for _ in 0..SKIPS {
                let entry = table.skips[(bits.buffer >> (64 - LOOKUP_BITS)) as usize];
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

/// Declares `name(simd, ..)`, which runs `inner(..)` with the instructions of `simd`.
macro_rules! with_simd {
    ($name:ident, $inner:ident) => {
        fn $name(simd: Simd, lut: &[u32; ENTRIES], to: &mut [u32; ENTRIES]) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi1,bmi2")]
            fn vectors(lut: &[u32; ENTRIES], to: &mut [u32; ENTRIES]) {
                $inner(lut, to);
            }
            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Simd::Avx2` exists only where these were detected.
                Simd::Avx2(_) => unsafe { vectors(lut, to) },
                Simd::Scalar => $inner(lut, to),
            }
        }
    };
}
with_simd!(fill_pairs, fill_pairs_inner);
with_simd!(fill_skips, fill_skips_inner);

/// The portable code with single-instruction shifts.
///
/// # Safety
/// As [`Lane::decode`]; BMI1 and BMI2 must be there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
unsafe fn solo_bmi2<const STORE: bool>(
    lane: &mut Lane,
    data: *const u8,
    tables: &[SoloTables<'_>; MAX_BATCH],
) -> Option<()> {
    // SAFETY: the caller's promise.
    unsafe { solo::<STORE>(lane, data, tables) }
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
        let (mut whole, mut without_end, mut refused) = (0, 0, 0);
        for _ in 0..300 {
            let (mut dc, mut ac) = (Table::new(Class::Dc), Table::new(Class::Ac));
            let counts = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
            let symbols: Vec<u8> = (0..12).collect();
            dc.set(&HuffmanSpec { counts: &counts, symbols: &symbols }).unwrap();
            let (counts, symbols) = random_code(&mut rng);
            ac.set(&HuffmanSpec { counts: &counts, symbols: &symbols }).unwrap();
            let data: Vec<u8> = (0..4000 + PAD).map(|_| rng.below(256) as u8).collect();
            let tables: [Tables<'_>; MAX_BATCH] = [(&dc, &ac); MAX_BATCH];
            for simd in Simd::all() {
                let mut table = SoloTable::new();
                table.set(simd, &ac, true);
                let solo: [SoloTables<'_>; MAX_BATCH] = [(&dc, &ac, &table); MAX_BATCH];
                let mut at = 0;
                while at < 4000 * 8 {
                    let [mut plain, mut stored, mut skipped] = [(); 3].map(|()| Lane::new());
                    for lane in [&mut plain, &mut stored, &mut skipped] {
                        lane.at = at;
                        lane.begin(1);
                    }
                    // SAFETY: PAD bytes follow the position.
                    let found = unsafe {
                        [
                            plain.decode::<true>(simd, &data, &tables).is_ok(),
                            stored.decode_solo::<true>(simd, &data, &solo).is_ok(),
                            skipped.decode_solo::<false>(simd, &data, &solo).is_ok(),
                        ]
                    };
                    assert_eq!(found, [found[0]; 3], "bit {at}");
                    at += 1;
                    if !found[0] {
                        refused += 1;
                        continue;
                    }
                    assert_eq!((plain.at, plain.spans[0]), (stored.at, stored.spans[0]));
                    assert_eq!((plain.at, plain.spans[0]), (skipped.at, skipped.spans[0]));
                    assert_eq!(plain.blocks[0].0, stored.blocks[0].0, "bit {at}");
                    assert_eq!(plain.blocks[0].0[0], skipped.blocks[0].0[0]);
                    whole += 1;
                    without_end += u32::from(plain.spans[0] == 64);
                    at = plain.at;
                }
            }
        }
        assert!(
            whole > 10_000 && without_end > 100 && refused > 1_000,
            "{whole} {without_end} {refused}"
        );
    }
}
