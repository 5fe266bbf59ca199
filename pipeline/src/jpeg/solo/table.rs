//! Look-ups of several AC symbols at once.
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
//! 0 is a code that reaches beyond the bits looked at (a pair's first value, too). A symbol alone
//! stands in both places of a pair. A coefficient at the last place ends a block without a code:
//! what was looked up behind it belongs to another table and is not taken ([`Pair::end`]).

use crate::jpeg::huffman::{END_OF_BLOCK, LOOKUP_BITS, SLOW, Table};
use crate::level::{Level, multiversion};

const ENTRIES: usize = 1 << LOOKUP_BITS;
/// A pair's advance at the end of a block: from position 1 on to 64 or beyond.
const LAST: u32 = 63;

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

impl SoloTable {
    /// A table without codes.
    pub fn new() -> Box<SoloTable> {
        Box::new(SoloTable { pairs: [0; ENTRIES], skips: [0; ENTRIES], paired: 0, skipping: 0 })
    }

    /// Takes up the codes of `table`; free when it has.
    pub fn set(&mut self, level: Level, table: &Table, skips: bool) {
        if self.paired != table.version() {
            self.paired = table.version();
            fill_pairs(level, &table.lut, &mut self.pairs);
        }
        if skips && self.skipping != table.version() {
            self.skipping = table.version();
            fill_skips(level, &table.lut, &mut self.skips);
        }
    }

    /// The symbols at the top of `buffer`, with their coefficients.
    #[inline(always)]
    pub fn pair(&self, buffer: u64) -> Pair {
        Pair(self.pairs[(buffer >> (64 - LOOKUP_BITS)) as usize])
    }

    /// The symbols at the top of `buffer`, to be passed over.
    #[inline(always)]
    pub fn skip(&self, buffer: u64) -> u32 {
        self.skips[(buffer >> (64 - LOOKUP_BITS)) as usize]
    }
}

/// Where to look behind `bits` of the look-up that found `next`. Zeros are shifted in: what is
/// found there is right only where it takes no more bits than there were.
#[inline(always)]
fn shifted(next: usize, bits: u32) -> usize {
    ((next as u32) << (bits & 31)) as usize & (ENTRIES - 1)
}

/// Makes `pairs` of [`Table::lut`]; portable.
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

/// Makes `skips` of [`Table::lut`]: one symbol, two of these, two of those; portable.
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
pub struct Pair(u32);

/// How a block ended.
pub enum End {
    /// With all bits of the pair, at a position as [`END_OF_BLOCK`] has it.
    Pair(u32),
    /// With the first symbol: at a position of 64 or beyond.
    First(u32),
}

impl Pair {
    /// Bits to consume, of both symbols.
    #[inline(always)]
    pub fn bits(self) -> u32 {
        self.0 & 63
    }

    /// Advance of both symbols, at most [`LAST`].
    #[inline(always)]
    pub fn advance(self) -> u32 {
        self.0 >> 10 & 63
    }

    /// Advance of the first symbol.
    #[inline(always)]
    pub fn first_advance(self) -> u32 {
        (self.0 >> 6 & 15) + 1
    }

    #[inline(always)]
    pub fn first(self) -> i16 {
        i16::from((self.0 >> 16) as i8)
    }

    #[inline(always)]
    pub fn second(self) -> i16 {
        (self.0 as i32 >> 24) as i16
    }

    /// What a pair ends that led to `position`, 64 or more.
    #[inline(always)]
    pub fn end(self, position: u32) -> End {
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

multiversion! {
    fn fill_pairs(lut: &[u32; ENTRIES], to: &mut [u32; ENTRIES]) = fill_pairs_inner
}
multiversion! {
    fn fill_skips(lut: &[u32; ENTRIES], to: &mut [u32; ENTRIES]) = fill_skips_inner
}
