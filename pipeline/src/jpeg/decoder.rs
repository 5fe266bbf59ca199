//! [`JpegDecoder`]: a header, a region and perhaps a side index to pixels.
//!
//! Entropy-coded bytes are unstuffed once; runs of MCUs are decoded in batches,
//! two at a time where two are independent; wanted blocks go through the
//! inverse DCT into planes of a few rows; and a row of pixels is made as soon as its
//! samples are there, while they are in the cache.

use super::entropy::SymbolStream;
use super::error::{JpegError, check_pixels};
use super::header::{HuffmanSpec, Jpeg, Scans};
use super::huffman::{Class, Table};
use super::index::{Entry, SideIndex};
use super::pass::{BlockOrder, Pass, RunStream};
use super::plan::{Grid, IN_ORDER, MOST_ROWS, Plan, Region};
use super::raster::{Raster, RasterBuffers};
use super::runs::{Run, Runs};
use super::scans;
use super::solo::{SoloTable, WORTHWHILE};
use crate::Image;
use crate::level::Level;

/// Pixels that are decoded or indexed at once where nobody says how many may be.
pub(crate) const MAX_PIXELS: u64 = 1 << 28;

/// A reusable decoder: the tables and buffers of one thread.
///
/// After a few images it allocates nothing more.
pub struct JpegDecoder {
    level: Level,
    max_pixels: u64,
    dc: [Box<Table>; 4],
    ac: [Box<Table>; 4],
    solo: [Box<SoloTable>; 4],
    streams: [RunStream; 2],
    runs: Runs,
    plan: Plan,
    raster: RasterBuffers,
    used_index: bool,
}

impl std::fmt::Debug for JpegDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JpegDecoder")
            .field("level", &self.level)
            .field("max_pixels", &self.max_pixels)
            .finish_non_exhaustive()
    }
}

impl Default for JpegDecoder {
    fn default() -> Self {
        JpegDecoder::new()
    }
}

impl JpegDecoder {
    /// A decoder with the best instructions of this machine.
    pub fn new() -> JpegDecoder {
        JpegDecoder::with_level(Level::detect())
    }

    /// A decoder with given instructions, for tests and benchmarks.
    pub fn with_level(level: Level) -> JpegDecoder {
        JpegDecoder {
            level,
            max_pixels: MAX_PIXELS,
            dc: std::array::from_fn(|_| Table::new(Class::Dc)),
            ac: std::array::from_fn(|_| Table::new(Class::Ac)),
            solo: std::array::from_fn(|_| SoloTable::new()),
            streams: [RunStream::new(), RunStream::new()],
            runs: Runs::default(),
            plan: Plan::default(),
            raster: RasterBuffers::default(),
            used_index: false,
        }
    }

    /// Refuses to decode more than `limit` pixels at once; 2^28 by default.
    pub fn max_pixels(mut self, limit: u64) -> JpegDecoder {
        self.max_pixels = limit;
        self
    }

    /// Decodes the whole picture.
    ///
    /// # Errors
    /// [`JpegError`]; `out` is then unspecified.
    pub fn decode_into(&mut self, jpeg: &Jpeg<'_>, out: &mut Image) -> Result<(), JpegError> {
        self.decode_region_into(jpeg, Region::full(jpeg), None, out)
    }

    /// Decodes `region`: exactly what cropping the whole picture would give.
    ///
    /// With `index`, decoding enters each row of MCUs near the region's left
    /// edge. An index of other bytes is not used, and one that leads to an
    /// error is given up for decoding from the start.
    ///
    /// # Errors
    /// [`JpegError`]; `out` is then unspecified. Damage that the region does
    /// not depend on may go unnoticed.
    pub fn decode_region_into(
        &mut self,
        jpeg: &Jpeg<'_>,
        region: Region,
        index: Option<&SideIndex>,
        out: &mut Image,
    ) -> Result<(), JpegError> {
        self.decode_regions_into(jpeg, &[region], index, out).map(|_| ())
    }

    /// Decodes some regions, one at least, into the place that each has in the smallest that
    /// contains all, which `out` becomes and which is returned. Its other pixels are unspecified.
    ///
    /// # Errors
    /// As [`JpegDecoder::decode_region_into`].
    pub fn decode_regions_into(
        &mut self,
        jpeg: &Jpeg<'_>,
        regions: &[Region],
        index: Option<&SideIndex>,
        out: &mut Image,
    ) -> Result<Region, JpegError> {
        let union = Region::checked_union(regions, jpeg)?;
        check_pixels(union.width, union.height, self.max_pixels)?;
        if jpeg.scans != Scans::One {
            self.used_index = false;
            return self.several_scans(jpeg, regions, union, out).map(|()| union);
        }
        let grid = checked_grid(jpeg)?;
        set_tables(&mut self.dc, &mut self.ac, jpeg)?;
        self.used_index = false;
        if let Some(index) = index
            && index.fits(grid.columns, grid.rows, jpeg.components().len())
            && index.belongs_to(jpeg.bytes)
        {
            self.plan.set(jpeg, regions, rows_for_runs(1));
            if self.runs.set_from_index(self.level, jpeg, &grid, &self.plan, index).is_ok()
                && self.pass(jpeg, union, grid, out).is_ok()
            {
                self.used_index = true;
                return Ok(union);
            }
        }
        let mcu_rows = match jpeg.restart_interval() {
            0 => IN_ORDER,
            // One that begins in the middle of a row ends in a row more.
            interval => rows_for_runs(interval.div_ceil(grid.columns) + 1),
        };
        self.plan.set(jpeg, regions, mcu_rows);
        self.runs.set_from_start(self.level, jpeg, &grid, &self.plan)?;
        self.pass(jpeg, union, grid, out).map(|()| union)
    }

    /// Gives back what a picture far larger than others took.
    pub(crate) fn trim(&mut self) {
        crate::scratch::trim(&mut self.runs.data);
        self.raster.trim();
    }

    /// Whether the last picture was decoded with its side index.
    pub fn used_index(&self) -> bool {
        self.used_index
    }

    /// Decodes all coefficients, and `regions`, whose union is `union`, from them.
    fn several_scans(
        &mut self,
        jpeg: &Jpeg<'_>,
        regions: &[Region],
        union: Region,
        out: &mut Image,
    ) -> Result<(), JpegError> {
        // Of the whole picture, whatever the region.
        check_pixels(jpeg.width(), jpeg.height(), self.max_pixels)?;
        let coefficients = scans::decode(self.level, jpeg)?;
        self.plan.set(jpeg, regions, IN_ORDER);
        let raster = Raster::new(self.level, jpeg, union, &self.plan, &mut self.raster, out);
        let mut raster = raster.with_tables(&coefficients.quant);
        let lines = self.plan.rows.clone().zip(self.plan.lines());
        for (row, line) in lines.filter(|(_, line)| !line.columns.is_empty()) {
            for (component, (plane, c)) in
                coefficients.planes().iter().zip(jpeg.components()).enumerate()
            {
                for y in row * usize::from(c.v)..(row + 1) * usize::from(c.v) {
                    raster.block_row(row, component, y, &coefficients, plane);
                }
            }
            raster.mcus_done(row, line.columns.len())?;
        }
        Ok(())
    }

    /// Decodes the runs; `union` is that of the regions.
    fn pass(
        &mut self,
        jpeg: &Jpeg<'_>,
        union: Region,
        grid: Grid,
        out: &mut Image,
    ) -> Result<(), JpegError> {
        let mut order = BlockOrder::new(jpeg, grid, &self.dc, &self.ac);
        if let [run] = &self.runs.runs[..]
            && run.count * grid.blocks >= WORTHWHILE
        {
            let wanted: usize = self.plan.lines().iter().map(|line| line.columns.len()).sum();
            let skips = run.count.saturating_sub(wanted) * grid.blocks >= WORTHWHILE;
            for component in jpeg.components() {
                let number = usize::from(component.ac_table);
                self.solo[number].set(self.level, &self.ac[number], skips);
            }
            order = order.with_solo(&self.solo, skips);
        }
        let mut pass = Pass {
            level: self.level,
            order,
            data: &self.runs.data,
            runs: &self.runs.runs,
            raster: Raster::new(self.level, jpeg, union, &self.plan, &mut self.raster, out),
        };
        pass.run(&mut self.streams)
    }
}

/// Rows of MCUs in memory for two runs at once that are as many rows long: the rows of both, and
/// some more for the one that is ahead.
fn rows_for_runs(rows: usize) -> usize {
    (2 * rows + 4).min(MOST_ROWS)
}

/// The grid of a picture that its bytes may hold.
pub(super) fn checked_grid(jpeg: &Jpeg<'_>) -> Result<Grid, JpegError> {
    let grid = Grid::new(jpeg);
    // A block takes two bits at least. This bounds memory by the input.
    let coded = jpeg.bytes.len() - jpeg.scan_start;
    if grid.mcus() * grid.blocks > coded * 4 {
        return Err(JpegError::Truncated("fewer bits than blocks"));
    }
    // Pillow refuses a file without an end. What follows the end is ignored.
    if !jpeg.bytes[jpeg.scan_start..].windows(2).rev().any(|pair| pair == [0xFF, 0xD9]) {
        return Err(JpegError::Truncated("no end marker"));
    }
    Ok(grid)
}

/// Tables without codes: DC, AC.
pub(super) fn new_tables() -> ([Box<Table>; 4], [Box<Table>; 4]) {
    let of = |class| std::array::from_fn(|_| Table::new(class));
    (of(Class::Dc), of(Class::Ac))
}

/// Makes the tables those that the components name.
///
/// # Errors
/// [`JpegError::Corrupt`] where one is missing, as it may in the header of a re-coded image, or is
/// none.
pub(super) fn set_tables(
    dc: &mut [Box<Table>; 4],
    ac: &mut [Box<Table>; 4],
    jpeg: &Jpeg<'_>,
) -> Result<(), JpegError> {
    let set = |tables: &mut [Box<Table>; 4], specs: &[Option<HuffmanSpec<'_>>; 4], at: u8| {
        let at = usize::from(at);
        let spec = specs.get(at).copied().flatten();
        let spec = spec.ok_or(JpegError::Corrupt("missing Huffman table"))?;
        tables[at].set(&spec)
    };
    for component in jpeg.components() {
        set(dc, &jpeg.dc, component.dc_table)?;
        set(ac, &jpeg.ac, component.ac_table)?;
    }
    Ok(())
}

/// Where every MCU of a JPEG begins; with the MCUs in a row and the rows.
///
/// # Errors
/// As [`JpegDecoder::decode_into`]; the limit is [`MAX_PIXELS`].
pub(crate) fn entries(jpeg: &Jpeg<'_>) -> Result<(Vec<Entry>, usize, usize), JpegError> {
    if jpeg.scans != Scans::One {
        return Err(JpegError::Unsupported("no entry points where there are several scans"));
    }
    // An entry takes 16 bytes, and a byte of the JPEG may hold four MCUs.
    check_pixels(jpeg.width(), jpeg.height(), MAX_PIXELS)?;
    let level = Level::detect();
    let grid = checked_grid(jpeg)?;
    let (mut dc, mut ac) = new_tables();
    set_tables(&mut dc, &mut ac, jpeg)?;
    let order = BlockOrder::new(jpeg, grid, &dc, &ac);
    let mut plan = Plan::default();
    plan.set(jpeg, &[Region::full(jpeg)], IN_ORDER);
    let mut runs = Runs::default();
    runs.set_from_start(level, jpeg, &grid, &plan)?;
    let mut entries = Vec::with_capacity(grid.mcus());
    let mut stream = SymbolStream::new();
    for run in &runs.runs {
        run_entries(level, jpeg, &order, &runs.data, run, &mut stream, &mut entries)?;
    }
    Ok((entries, grid.columns, grid.rows))
}

/// Where the byte is that follows the fill bytes at `at`, if there are any.
fn after_fill(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at..at + 2) == Some(&[0xFF; 2]) {
        at += 1;
    }
    at
}

fn run_entries(
    level: Level,
    jpeg: &Jpeg<'_>,
    order: &BlockOrder<'_>,
    data: &[u8],
    run: &Run,
    stream: &mut SymbolStream,
    entries: &mut Vec<Entry>,
) -> Result<(), JpegError> {
    let mut dc = run.dc;
    let start = run.start_bit / 8;
    // Bytes of the unstuffed data passed, and where they lie in the JPEG.
    let (mut passed, mut coded_at) = (0, after_fill(jpeg.bytes, run.coded_at));
    stream.at = start * 8;
    for _ in 0..run.count {
        let position = stream.at - start * 8;
        while passed < position / 8 {
            coded_at += if jpeg.bytes[coded_at] == 0xFF { 2 } else { 1 };
            coded_at = after_fill(jpeg.bytes, coded_at);
            passed += 1;
        }
        entries.push(Entry { bit: (coded_at * 8 + position % 8) as u64, dc });
        stream.begin(order.grid.blocks);
        // SAFETY: the position is in or at the end of the data, as checked below,
        // and PAD bytes follow it.
        unsafe { stream.decode::<false>(level, data, &order.tables)? };
        if stream.at > run.end_bit {
            return Err(JpegError::Truncated("in the entropy-coded data"));
        }
        order.add_differences(stream, order.grid.blocks, &mut dc);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::coefficients::Coefficients;
    use super::*;

    #[test]
    fn a_scan_that_names_a_table_which_is_not_there_is_corrupt() {
        let picture = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut bytes = Vec::new();
        picture.write_with_encoder(image::codecs::jpeg::JpegEncoder::new(&mut bytes)).unwrap();
        let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
        // Of the first picture the decoder has tables; marker, length, count and identifier come
        // before the numbers of the first component's.
        let (mut decoder, mut out) = (JpegDecoder::new(), Image::default());
        decoder.decode_into(&Jpeg::parse(&bytes).unwrap(), &mut out).unwrap();
        for tables in [0x02, 0x30, 0x0F, 0xF0, 0xFF] {
            bytes[scan + 6] = tables;
            let jpeg = Jpeg::parse_without_tables(&bytes).unwrap();
            let missing = JpegError::Corrupt("missing Huffman table");
            assert_eq!(decoder.decode_into(&jpeg, &mut out).unwrap_err(), missing, "{tables:x}");
            assert_eq!(entries(&jpeg).unwrap_err(), missing, "{tables:x}");
            assert!(Coefficients::decode(&jpeg).is_err(), "{tables:x}");
        }
    }
}
