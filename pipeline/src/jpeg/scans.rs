//! Progressive JPEGs, and sequential ones of several scans: all scans to
//! coefficients (T.81, F.2 and G.2).
//!
//! Every scan goes over the whole picture, so there is nothing to leave out for a
//! region; and few pictures are of this kind. So this is plain and checked code.

use super::coefficients::Coefficients;
use super::error::JpegError;
use super::header::{HuffmanSpec, Jpeg, ScanHeader, Scans, ZIGZAG};
use super::huffman::{Class, Table, extend};
use super::idct::Block;
use super::plan::Grid;
use super::unstuff::{SLACK, unstuff};
use crate::level::Level;

const CUT: JpegError = JpegError::Truncated("in the entropy-coded data");

/// The most bits a coefficient may be shifted by; libjpeg's limit.
const MAX_SHIFT: u8 = 13;

/// Decodes all scans of `jpeg`, whose header says that there are several.
///
/// # Errors
/// [`JpegError::Unsupported`] for what is left to others, [`JpegError::Truncated`] and
/// [`JpegError::Corrupt`] for damage.
pub(super) fn decode(level: Level, jpeg: &Jpeg<'_>) -> Result<Coefficients, JpegError> {
    let grid = Grid::new(jpeg);
    // A block's DC coefficient takes a bit at least. This bounds memory by the input.
    if grid.mcus() * grid.blocks > (jpeg.bytes.len() - jpeg.scan_start) * 8 {
        return Err(JpegError::Truncated("fewer bits than blocks"));
    }
    let mut coefficients = Coefficients::new(jpeg, &grid);
    let mut data = vec![0; jpeg.bytes.len() - jpeg.scan_start + SLACK];
    let mut tables: [Box<Table>; 6] = std::array::from_fn(|_| Table::new(Class::Plain));
    jpeg.each_scan(|current, scan, start| {
        latch(&mut coefficients.quant, current, scan)?;
        let mut state = ScanState::new(jpeg.scans, current, scan, &mut tables)?;
        let areas = areas(jpeg, &grid, scan);
        // Of the first part: alone, its blocks; interleaved, the MCUs.
        let units = if scan.parts().len() == 1 { areas[0].blocks() } else { grid.mcus() };
        let interval = match current.restart_interval() {
            0 => units,
            interval => interval,
        };
        let (mut at, mut unit) = (start, 0);
        loop {
            let (read, written) = unstuff(level, &jpeg.bytes[at..], &mut data);
            at += read;
            let mut bits = CheckedBits { data: &data, at: 0, end: written * 8 };
            state.restart();
            let end = (unit + interval).min(units);
            while unit < end {
                for (part, area) in areas.iter().enumerate().take(scan.parts().len()) {
                    area.each(&grid, unit, |number| {
                        state.block(&mut bits, part, &mut coefficients.blocks[number])
                    })?;
                }
                if bits.at > bits.end {
                    return Err(CUT);
                }
                unit += 1;
            }
            if unit == units {
                return Ok(at);
            }
            match jpeg.bytes[at..] {
                [0xFF, 0xD0..=0xD7, ..] => at += 2,
                _ => return Err(JpegError::Truncated("missing restart interval")),
            }
        }
    })?;
    for (span, block) in coefficients.spans.iter_mut().zip(&coefficients.blocks) {
        let last = (1..64).rev().find(|&k| block.0[usize::from(ZIGZAG[k])] != 0);
        *span = last.unwrap_or(0) as u8 + 1;
    }
    Ok(coefficients)
}

/// Keeps the quantisation tables of the components that `scan` is the first one of: as libjpeg has
/// it, what comes under the same number later is for others.
fn latch(
    quant: &mut [Option<[u16; 64]>; 3],
    jpeg: &Jpeg<'_>,
    scan: &ScanHeader,
) -> Result<(), JpegError> {
    for &(component, ..) in scan.parts() {
        let component = usize::from(component);
        let table = jpeg.quant_of(&jpeg.components()[component]);
        let table = table.ok_or(JpegError::Corrupt("missing quantisation table"))?;
        quant[component].get_or_insert(*table);
    }
    Ok(())
}

/// The blocks of one component that a scan goes over.
#[derive(Clone, Copy, Default)]
struct Area {
    /// Number of the component's first block, and blocks from row to row.
    first: usize,
    stride: usize,
    /// Blocks of the component alone, without the padding to whole MCUs.
    columns: usize,
    rows: usize,
    /// Its blocks in an MCU; none where it is alone.
    mcu: Option<(usize, usize)>,
}

impl Area {
    fn blocks(&self) -> usize {
        self.columns * self.rows
    }

    /// The numbers of the blocks of a unit, which is an MCU or a single block.
    fn each(
        &self,
        grid: &Grid,
        unit: usize,
        mut take: impl FnMut(usize) -> Result<(), JpegError>,
    ) -> Result<(), JpegError> {
        let Some((h, v)) = self.mcu else {
            return take(self.first + unit / self.columns * self.stride + unit % self.columns);
        };
        let (row, column) = (unit / grid.columns * v, unit % grid.columns * h);
        for y in row..row + v {
            for x in column..column + h {
                take(self.first + y * self.stride + x)?;
            }
        }
        Ok(())
    }
}

fn areas(jpeg: &Jpeg<'_>, grid: &Grid, scan: &ScanHeader) -> [Area; 3] {
    let (h_max, v_max) = jpeg.max_factors();
    let mut first = 0;
    let mut all = [Area::default(); 3];
    for (area, c) in all.iter_mut().zip(jpeg.components()) {
        let (h, v) = (usize::from(c.h), usize::from(c.v));
        *area = Area {
            first,
            stride: grid.columns * h,
            columns: (jpeg.width() * h).div_ceil(8 * usize::from(h_max)),
            rows: (jpeg.height() * v).div_ceil(8 * usize::from(v_max)),
            mcu: (scan.parts().len() > 1).then_some((h, v)),
        };
        first += grid.mcus() * h * v;
    }
    let mut areas = [Area::default(); 3];
    for (area, &(component, ..)) in areas.iter_mut().zip(scan.parts()) {
        *area = all[usize::from(component)];
    }
    areas
}

/// What a scan says of each of its blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All of it.
    Sequential,
    /// The high bits of the DC coefficient, or one more of them.
    DcFirst,
    DcMore,
    /// The high bits of a band of AC coefficients, or one more of them.
    AcFirst,
    AcMore,
}

/// The state of one scan.
struct ScanState<'a> {
    kind: Kind,
    band: (usize, usize),
    shift: u8,
    /// Of each part of the scan.
    dc: [Option<&'a Table>; 3],
    ac: [Option<&'a Table>; 3],
    predictors: [i32; 3],
    /// Blocks whose band is over without another symbol.
    end_of_band: u32,
}

impl<'a> ScanState<'a> {
    fn new(
        scans: Scans,
        jpeg: &Jpeg<'_>,
        scan: &ScanHeader,
        tables: &'a mut [Box<Table>; 6],
    ) -> Result<ScanState<'a>, JpegError> {
        const BAD: JpegError = JpegError::Corrupt("progression parameters");
        let ((first, last), (high, low)) = (scan.band, scan.bits);
        let alone = scan.parts().len() == 1;
        let kind = match (scans, first, last) {
            (Scans::Progressive, 0, 0) if high == 0 => Kind::DcFirst,
            (Scans::Progressive, 0, 0) => Kind::DcMore,
            (Scans::Progressive, 1..=63, 1..=63) if first <= last && alone => {
                if high == 0 {
                    Kind::AcFirst
                } else {
                    Kind::AcMore
                }
            }
            (Scans::Progressive, ..) => return Err(BAD),
            _ => Kind::Sequential,
        };
        if low > MAX_SHIFT || high != 0 && high != low + 1 {
            return Err(BAD);
        }
        let (needs_dc, needs_ac) = match kind {
            Kind::Sequential => (true, true),
            Kind::DcFirst => (true, false),
            Kind::DcMore => (false, false),
            Kind::AcFirst | Kind::AcMore => (false, true),
        };
        let (dc_tables, ac_tables) = tables.split_at_mut(3);
        let (mut dc, mut ac) = ([None; 3], [None; 3]);
        let slots = dc.iter_mut().zip(&mut ac).zip(dc_tables).zip(ac_tables);
        for ((((dc, ac), dc_table), ac_table), part) in slots.zip(scan.parts()) {
            if needs_dc {
                *dc = Some(table(dc_table, &jpeg.dc, part.1)?);
            }
            if needs_ac {
                *ac = Some(table(ac_table, &jpeg.ac, part.2)?);
            }
        }
        let band = match kind {
            Kind::Sequential => (1, 63),
            _ => (usize::from(first), usize::from(last)),
        };
        let shift = if kind == Kind::Sequential { 0 } else { low };
        Ok(ScanState { kind, band, shift, dc, ac, predictors: [0; 3], end_of_band: 0 })
    }

    fn restart(&mut self) {
        (self.predictors, self.end_of_band) = ([0; 3], 0);
    }

    /// Adds what the scan says of one block of its part `part`.
    fn block(
        &mut self,
        bits: &mut CheckedBits<'_>,
        part: usize,
        block: &mut Block,
    ) -> Result<(), JpegError> {
        match self.kind {
            Kind::Sequential => {
                self.dc_first(bits, part, block)?;
                self.ac_first(bits, part, block)
            }
            Kind::DcFirst => self.dc_first(bits, part, block),
            Kind::DcMore => {
                block.0[0] |= (bits.take(1)? as i16) << self.shift;
                Ok(())
            }
            Kind::AcFirst => self.ac_first(bits, part, block),
            Kind::AcMore => self.ac_more(bits, part, block),
        }
    }

    /// T.81, G.1.2.1.
    fn dc_first(
        &mut self,
        bits: &mut CheckedBits<'_>,
        part: usize,
        block: &mut Block,
    ) -> Result<(), JpegError> {
        let size = u32::from(bits.symbol(self.dc[part])?);
        if size > 11 {
            return Err(JpegError::Corrupt("DC difference of more than 11 bits"));
        }
        let value = bits.take(size)?;
        let predictor = &mut self.predictors[part];
        *predictor = predictor.wrapping_add(extend(value, size));
        block.0[0] = (*predictor << self.shift) as i16;
        Ok(())
    }

    /// T.81, G.1.2.2; of a sequential scan F.1.2.2, in which no run of blocks ends.
    fn ac_first(
        &mut self,
        bits: &mut CheckedBits<'_>,
        part: usize,
        block: &mut Block,
    ) -> Result<(), JpegError> {
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            return Ok(());
        }
        let (mut at, last) = self.band;
        while at <= last {
            let symbol = bits.symbol(self.ac[part])?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && run < 15 {
                if self.kind == Kind::AcFirst {
                    self.end_of_band = (1 << run) - 1 + bits.take(run as u32)?;
                }
                break;
            }
            at += run;
            if size > 0 {
                let value = extend(bits.take(size)?, size);
                let natural = ZIGZAG.get(at).filter(|_| at <= last).ok_or(BEYOND)?;
                block.0[usize::from(*natural)] = (value << self.shift) as i16;
            }
            at += 1;
        }
        Ok(())
    }

    /// T.81, G.1.2.3.
    fn ac_more(
        &mut self,
        bits: &mut CheckedBits<'_>,
        part: usize,
        block: &mut Block,
    ) -> Result<(), JpegError> {
        let (mut at, last) = self.band;
        if self.end_of_band == 0 {
            while at <= last {
                let symbol = bits.symbol(self.ac[part])?;
                let (run, size) = (usize::from(symbol >> 4), symbol & 15);
                let value = match size {
                    0 if run < 15 => {
                        self.end_of_band = (1 << run) + bits.take(run as u32)?;
                        break;
                    }
                    0 => 0,
                    1 if bits.take(1)? == 1 => 1 << self.shift,
                    1 => -1 << self.shift,
                    _ => return Err(JpegError::Corrupt("refinement by more than one bit")),
                };
                at = self.refine(bits, block, at, Some(run))?;
                if value != 0 {
                    let natural = ZIGZAG.get(at).filter(|_| at <= last).ok_or(BEYOND)?;
                    block.0[usize::from(*natural)] = value;
                }
                at += 1;
            }
        }
        if self.end_of_band > 0 {
            self.refine(bits, block, at, None)?;
            self.end_of_band -= 1;
        }
        Ok(())
    }

    /// Gives each coefficient from `at` on that is not zero its next bit, until so
    /// many zeros were passed and one more is met, or to the end of the band. Returns
    /// the position it came to.
    fn refine(
        &self,
        bits: &mut CheckedBits<'_>,
        block: &mut Block,
        mut at: usize,
        zeros: Option<usize>,
    ) -> Result<usize, JpegError> {
        let (mut passed, bit) = (0, 1i16 << self.shift);
        while at <= self.band.1 {
            let value = &mut block.0[usize::from(ZIGZAG[at])];
            if *value == 0 {
                if zeros == Some(passed) {
                    break;
                }
                passed += 1;
            } else if bits.take(1)? == 1 && *value & bit == 0 {
                *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
            }
            at += 1;
        }
        Ok(at)
    }
}

const BEYOND: JpegError = JpegError::Corrupt("coefficient beyond its band");

/// The table that a scan refers to.
fn table<'a>(
    table: &'a mut Table,
    specs: &[Option<HuffmanSpec<'_>>; 4],
    number: u8,
) -> Result<&'a Table, JpegError> {
    let spec = specs.get(usize::from(number)).and_then(Option::as_ref);
    table.set(spec.ok_or(JpegError::Corrupt("missing Huffman table"))?)?;
    Ok(table)
}

/// A position in unstuffed bytes.
struct CheckedBits<'a> {
    data: &'a [u8],
    at: usize,
    end: usize,
}

impl CheckedBits<'_> {
    /// The next bits, at least 57 of them, highest first; zeros after the end.
    #[inline(always)]
    fn top(&self) -> Result<u64, JpegError> {
        let bytes = self.data.get(self.at / 8..).and_then(|rest| rest.first_chunk()).ok_or(CUT)?;
        Ok(u64::from_be_bytes(*bytes) << (self.at % 8))
    }

    /// The next `count` bits as a number, at most 16.
    #[inline(always)]
    fn take(&mut self, count: u32) -> Result<u32, JpegError> {
        let bits = if count == 0 { 0 } else { (self.top()? >> (64 - count)) as u32 };
        self.at += count as usize;
        Ok(bits)
    }

    #[inline(always)]
    fn symbol(&mut self, table: Option<&Table>) -> Result<u8, JpegError> {
        const NONE: JpegError = JpegError::Corrupt("no such Huffman code");
        let (bits, symbol) = table.ok_or(NONE)?.symbol(self.top()?).ok_or(NONE)?;
        self.at += bits as usize;
        Ok(symbol)
    }
}
