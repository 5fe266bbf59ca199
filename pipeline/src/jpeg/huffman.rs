//! Huffman tables whose look-up gives length, run and value in one step.
//!
//! An entry of [`Table::lut`], found with the next [`LOOKUP_BITS`] bits:
//!
//! ```text
//! bits  0..6   bits to consume: code and value bits (fast), code alone (slow)
//! bit   7      SLOW: the value's bits, or the code itself, reach beyond the look-up
//! bits  8..16  advance: run + 1 coefficients, or END_OF_BLOCK
//! bits 16..32  the coefficient, extended to its sign (fast); its size (slow)
//! ```
//!
//! An entry of [`SLOW`] alone is a code longer than the look-up, or no code, or a shorter one whose
//! symbol no encoder writes.

use super::error::JpegError;
use super::header::HuffmanSpec;

/// Bits looked at in one step.
pub(crate) const LOOKUP_BITS: u32 = 11;
/// Flag of entries that need [`Table::slow`].
pub(crate) const SLOW: u32 = 0x80;
/// Advance of the end-of-block symbol. Any other advance leaves a position
/// below 64 + 16, so positions of 128 and more can only come from this.
pub(crate) const END_OF_BLOCK: u32 = 128;
/// The most bits one symbol and its value take: 16 + 11.
pub(crate) const MAX_SYMBOL_BITS: usize = 27;

/// Which symbols a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Sizes of DC differences.
    Dc,
    /// Runs and sizes of AC coefficients.
    Ac,
    /// Symbols as they are: the advance is the symbol, no value belongs to it.
    Plain,
}

/// A Huffman table made for decoding.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct Table {
    /// See the module's text.
    pub lut: [u32; 1 << LOOKUP_BITS],
    /// For each length, the first 16-bit prefix that is beyond its codes.
    limit: [u32; 17],
    /// For each length, what turns a code into its symbol's number.
    offset: [i32; 17],
    symbols: [u8; 256],
    class: Class,
    /// The DHT bytes this was made from; the next image often has the same.
    counts: [u8; 16],
    total: usize,
    /// Counts the changes, from 1.
    version: u64,
}

/// What a symbol means: (advance, size of the value), None if no encoder of
/// 8-bit samples writes it.
fn meaning(class: Class, symbol: u8) -> Option<(u32, u32)> {
    let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
    match class {
        Class::Dc => (symbol <= 11).then_some((1, size)),
        Class::Plain => Some((u32::from(symbol), 0)),
        Class::Ac if size > 10 => None,
        Class::Ac if size == 0 && run != 15 => Some((END_OF_BLOCK, 0)),
        Class::Ac => Some((run + 1, size)),
    }
}

/// T.81's EXTEND: `size` bits to the value they stand for.
#[inline(always)]
pub(crate) fn extend(bits: u32, size: u32) -> i32 {
    if size == 0 || bits >> (size - 1) != 0 { bits as i32 } else { bits as i32 - (1 << size) + 1 }
}

impl Table {
    /// A table without codes.
    pub fn new(class: Class) -> Box<Table> {
        Box::new(Table {
            lut: [SLOW; 1 << LOOKUP_BITS],
            limit: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
            class,
            counts: [0; 16],
            total: 0,
            version: 1,
        })
    }

    /// Makes this the table of `spec`; free when it already is.
    ///
    /// # Errors
    /// [`JpegError::Corrupt`] when the code lengths fit no prefix code.
    pub fn set(&mut self, spec: &HuffmanSpec<'_>) -> Result<(), JpegError> {
        let total = spec.symbols.len();
        let known = self.total == total && self.counts == spec.counts;
        if known && total > 0 && self.symbols[..total] == *spec.symbols {
            return Ok(());
        }
        self.total = 0;
        self.version += 1;
        if total > 256 {
            return Err(JpegError::Corrupt("more than 256 Huffman codes"));
        }
        self.symbols[..total].copy_from_slice(spec.symbols);
        self.lut.fill(SLOW);
        let (mut code, mut first) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = usize::from(spec.counts[length as usize - 1]);
            // T.81 reserves the code of all ones; as libjpeg, let it pass.
            if code + count as u32 > 1 << length {
                return Err(JpegError::Corrupt("Huffman code lengths overflow"));
            }
            self.offset[length as usize] = first as i32 - code as i32;
            if length <= LOOKUP_BITS {
                for i in 0..count {
                    self.fill(code + i as u32, length, spec.symbols[first + i]);
                }
            }
            first += count;
            code += count as u32;
            self.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        self.counts.copy_from_slice(spec.counts);
        self.total = total;
        Ok(())
    }

    /// Enters one code of at most LOOKUP_BITS bits.
    fn fill(&mut self, code: u32, length: u32, symbol: u8) {
        let Some((advance, size)) = meaning(self.class, symbol) else { return };
        let free = LOOKUP_BITS - length;
        let first = (code << free) as usize;
        let slots = &mut self.lut[first..first + (1 << free)];
        if size > free {
            slots.fill(SLOW | length | advance << 8 | size << 16);
            return;
        }
        let same = 1 << (free - size);
        for (bits, chunk) in slots.chunks_exact_mut(same).enumerate() {
            let value = extend(bits as u32, size) as u16;
            chunk.fill((length + size) | advance << 8 | u32::from(value) << 16);
        }
    }

    /// Which codes these are, of all that this table had: 1 or more.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The next symbol of a [`Class::Ac`] table: (bits, advance, value), None where there is no
    /// valid code. `top` holds the next bits, highest first, at least [`MAX_SYMBOL_BITS`] of them.
    #[inline(always)]
    pub fn coefficient(&self, top: u64) -> Option<(u32, u32, i32)> {
        let entry = self.lut[(top >> (64 - LOOKUP_BITS)) as usize];
        if entry & SLOW == 0 {
            return Some((entry & 63, entry >> 8 & 0xFF, entry as i32 >> 16));
        }
        self.beyond(entry, top)
    }

    /// The symbol of a slow `entry` of the look-up: (bits, advance, value), None where there is no
    /// valid code. `top` as for [`Table::slow`].
    #[inline(always)]
    pub fn beyond(&self, entry: u32, top: u64) -> Option<(u32, u32, i32)> {
        if entry == SLOW {
            return self.slow(top);
        }
        // Only the value reaches beyond; its size is not 0.
        let (length, advance, size) = (entry & 63, entry >> 8 & 0xFF, entry >> 16);
        let bits = (top << length >> (64 - size)) as u32;
        Some((length + size, advance, extend(bits, size)))
    }

    /// The next symbol of a [`Class::Plain`] table, with the bits it takes. `top`
    /// holds the next bits, highest first, at least 16 of them.
    #[inline(always)]
    pub fn symbol(&self, top: u64) -> Option<(u32, u8)> {
        let entry = self.lut[(top >> (64 - LOOKUP_BITS)) as usize];
        if entry & SLOW == 0 {
            return Some((entry & 63, (entry >> 8) as u8));
        }
        self.slow(top).map(|(bits, symbol, _)| (bits, symbol as u8))
    }

    /// One symbol whose code is longer than the look-up: `top` holds the next bits, highest first,
    /// at least [`MAX_SYMBOL_BITS`] of them. Gives (bits, advance, value), None where there is no
    /// valid code.
    #[cold]
    #[inline(never)]
    pub fn slow(&self, top: u64) -> Option<(u32, u32, i32)> {
        let next16 = (top >> 48) as u32;
        // A shorter code that `fill` left out: taken for a longer one it would be another symbol's.
        if next16 < self.limit[LOOKUP_BITS as usize] {
            return None;
        }
        let length = (LOOKUP_BITS + 1..=16).find(|&l| next16 < self.limit[l as usize])?;
        let at = (next16 >> (16 - length)) as i32 + self.offset[length as usize];
        let symbol = *self.symbols.get(usize::try_from(at).ok()?)?;
        let (advance, size) = meaning(self.class, symbol)?;
        let bits = if size == 0 { 0 } else { (top << length >> (64 - size)) as u32 };
        Some((length + size, advance, extend(bits, size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes every 27-bit prefix class of a small code bit by bit and by table.
    #[test]
    fn the_table_decodes_as_the_definition_does() {
        // Lengths 1, 2, 12 and 16; sizes that fit the look-up and that do not.
        let mut counts = [0u8; 16];
        (counts[0], counts[1], counts[11], counts[15]) = (1, 1, 1, 2);
        let symbols = [0x01, 0x0A, 0x00, 0xF0, 0x35];
        let mut table = Table::new(Class::Ac);
        table.set(&HuffmanSpec { counts: &counts, symbols: &symbols }).unwrap();
        let codes = [(0u64, 1), (2, 2), (3 << 10, 12), (0xC010, 16), (0xC011, 16)];
        let expected = [(1, 1), (1, 10), (END_OF_BLOCK, 0), (16, 0), (4, 5)];
        for ((code, length), (advance, size)) in codes.into_iter().zip(expected) {
            for pattern in [0u64, 1, 0x155, 0x2AA, 0x3FF] {
                let bits = pattern & ((1 << size) - 1);
                let top = code << (64 - length) | bits << (64 - length - size);
                let value = extend(bits as u32, size);
                assert_eq!(table.coefficient(top), Some((length + size, advance, value)));
            }
        }
        assert_eq!(table.coefficient(u64::MAX), None);
    }

    #[test]
    fn a_code_within_the_look_up_whose_symbol_is_none_is_no_other_symbol() {
        // 10 bits and 12; and, of 11 bits between them, a size beyond those of 8-bit samples.
        let mut counts = [0u8; 16];
        (counts[9], counts[10], counts[11]) = (1, 1, 1);
        for (class, symbols) in [(Class::Ac, [0x01, 0x0F, 0x02]), (Class::Dc, [1, 12, 2])] {
            let mut table = Table::new(class);
            table.set(&HuffmanSpec { counts: &counts, symbols: &symbols }).unwrap();
            let codes = [(0u64, 10), (2, 11), (6, 12)];
            let found = codes.map(|(code, length)| table.coefficient(code << (64 - length)));
            assert_eq!(found, [Some((11, 1, -1)), None, Some((14, 1, -3))], "{class:?}");
            // Whatever bit follows.
            assert_eq!(table.coefficient(5 << (64 - 12)), None, "{class:?}");
        }
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let mut counts = [0u8; 16];
        counts[0] = 3;
        let spec = HuffmanSpec { counts: &counts, symbols: &[1, 2, 3] };
        assert!(Table::new(Class::Dc).set(&spec).is_err());
    }
}
