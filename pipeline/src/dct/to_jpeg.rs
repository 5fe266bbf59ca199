//! A re-coded image back to a JPEG: a baseline one with the same coefficients,
//! quantisation tables, sampling and markers, and Huffman codes of its own.

use super::container::DctImage;
use super::decode::{Blocks, decode};
use super::error::DctError;
use super::header::segment;
use super::huffman::Code;
use super::segment::MAX_BLOCKS;
use crate::Level;
use crate::jpeg::{Block, ZIGZAG};

/// Symbols are of DC or AC coefficients, of the first component or the others.
const TABLES: usize = 4;

/// The JPEG that a re-coded image stands for.
///
/// # Errors
/// [`DctError`] for damage, which the checksums tell.
pub fn to_jpeg(bytes: &[u8]) -> Result<Vec<u8>, DctError> {
    let image = DctImage::parse(bytes)?;
    image.verify()?;
    let mut frequencies = Frequencies([[0; 256]; TABLES]);
    each_mcu(&image, &mut frequencies)?;
    let codes = frequencies.0.map(|table| Code::new(&table));
    let header = image.jpeg().bytes();
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
    // The scan header comes last.
    let scan = 2 + 6 + 2 * image.jpeg().components().len();
    let (front, scan) = header.split_at(header.len().saturating_sub(scan));
    out.extend(front);
    let tables = if image.jpeg().components().len() == 1 { 1 } else { 2 };
    for (number, code) in codes.iter().enumerate().filter(|(number, _)| number % 2 < tables) {
        let class_and_place = ((number / 2) << 4) | (number % 2);
        segment(
            &mut out,
            0xC4,
            &[&[class_and_place as u8][..], &code.counts, &code.symbols].concat(),
        );
    }
    out.extend(scan);
    let mut writer = Writer { codes, out, bits: 0, count: 0 };
    each_mcu(&image, &mut writer)?;
    Ok(writer.finish())
}

/// What is done with each symbol.
trait Symbols {
    /// A symbol of a table, and the value bits behind it.
    fn symbol(&mut self, table: usize, symbol: u8, value: u16);
}

struct Frequencies([[u64; 256]; TABLES]);

impl Symbols for Frequencies {
    fn symbol(&mut self, table: usize, symbol: u8, _: u16) {
        self.0[table][usize::from(symbol)] += 1;
    }
}

struct Writer {
    codes: [Code; TABLES],
    out: Vec<u8>,
    /// The last `count` bits.
    bits: u64,
    count: u32,
}

impl Symbols for Writer {
    fn symbol(&mut self, table: usize, symbol: u8, value: u16) {
        let (code, length) = self.codes[table].codes[usize::from(symbol)];
        let size = u32::from(symbol & 15);
        self.put(u64::from(code), u32::from(length));
        self.put(u64::from(value), size);
    }
}

impl Writer {
    fn put(&mut self, bits: u64, length: u32) {
        self.bits = self.bits << length | bits;
        self.count += length;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.bits >> self.count) as u8;
            self.out.push(byte);
            if byte == 0xFF {
                self.out.push(0);
            }
        }
    }

    /// Fills the last byte with ones and ends the picture.
    fn finish(mut self) -> Vec<u8> {
        self.put(0x7F, 7);
        self.out.extend([0xFF, 0xD9]);
        self.out
    }
}

/// Hands on the symbols of all MCUs, in the order of a scan.
fn each_mcu(image: &DctImage<'_>, symbols: &mut impl Symbols) -> Result<(), DctError> {
    let (level, mut blocks) = (Level::detect(), Blocks::new());
    let unit = image.segments.shape(1);
    let mut predictors = [0i16; 3];
    let mut start = 0;
    for row in 0..image.segments.grid.rows {
        for at in 0..image.segments.per_row {
            let (_, mcus) = image.segments.span(at);
            let (shape, length) = (image.segments.shape(mcus), image.length(row, at));
            decode(level, image.coded(start, length)?, &shape, image.index_bits, &mut blocks)?;
            start += length;
            for mcu in 0..mcus {
                let mut first = 0;
                for (component, part) in unit.parts().iter().enumerate() {
                    for y in 0..part.rows {
                        for x in 0..part.columns {
                            let number = first + (y * mcus + mcu) * part.columns + x;
                            debug_assert!(number < MAX_BLOCKS);
                            let dc = &mut predictors[component];
                            let span = blocks.spans[number];
                            block(&blocks.blocks[number], span, dc, component, symbols)?;
                        }
                    }
                    first += part.blocks() * mcus;
                }
            }
        }
    }
    Ok(())
}

/// The size of a value, and its bits (T.81, F.1.2.1).
fn coded(value: i32) -> (u8, u16) {
    let size = 32 - value.unsigned_abs().leading_zeros();
    let bits = if value < 0 { value - 1 } else { value } & ((1 << size) - 1);
    (size as u8, bits as u16)
}

/// Hands on the symbols of one block.
fn block(
    block: &Block,
    span: u8,
    predictor: &mut i16,
    component: usize,
    symbols: &mut impl Symbols,
) -> Result<(), DctError> {
    const LARGE: DctError = DctError::Corrupt("coefficient too large for a JPEG");
    let second = usize::from(component > 0);
    let (size, bits) = coded(i32::from(block.0[0]) - i32::from(*predictor));
    if size > 11 {
        return Err(LARGE);
    }
    *predictor = block.0[0];
    symbols.symbol(second, size, bits);
    let mut run = 0;
    for &natural in &ZIGZAG[1..usize::from(span.clamp(1, 64))] {
        let value = block.0[usize::from(natural)];
        if value == 0 {
            run += 1;
            continue;
        }
        while run > 15 {
            symbols.symbol(2 + second, 0xF0, 0);
            run -= 16;
        }
        let (size, bits) = coded(i32::from(value));
        if size > 10 {
            return Err(LARGE);
        }
        symbols.symbol(2 + second, run << 4 | size, bits);
        run = 0;
    }
    if span < 64 || run > 0 {
        symbols.symbol(2 + second, 0, 0);
    }
    Ok(())
}
