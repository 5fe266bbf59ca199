//! [`JpegDecoder`]: a header, a region and perhaps a side index to pixels.
//!
//! Entropy-coded bytes are unstuffed once; runs of MCUs are decoded in batches;
//! wanted blocks go through the inverse DCT into small planes; and a row of
//! pixels is made as soon as its samples are there, while they are in the cache.

use super::bits::Bits;
use super::color;
use super::entropy::{Lane, MAX_BATCH, PAD, Tables};
use super::error::JpegError;
use super::header::{Color, Jpeg};
use super::huffman::{Class, Table};
use super::idct::{Block, idct_pair};
use super::plan::{Grid, Plan, Region, Window};
use super::simd::Simd;
use super::unstuff::{SLACK, unstuff};
use super::upsample::{self, Upsample};
use crate::Image;

/// Consecutive MCUs that can be decoded from a known state.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number of the first MCU, row by row, and how many are decoded.
    first: usize,
    count: usize,
    /// Bits of the unstuffed data.
    start_bit: usize,
    end_bit: usize,
    /// DC predictors before the first MCU.
    dc: [i16; 3],
}

/// A reusable decoder: the tables and buffers of one thread.
///
/// After a few images it allocates nothing more.
pub struct JpegDecoder {
    simd: Simd,
    max_pixels: u64,
    dc: [Box<Table>; 4],
    ac: [Box<Table>; 4],
    lane: Lane,
    scratch: Scratch,
}

/// Buffers that grow to the largest image seen.
#[derive(Default)]
struct Scratch {
    /// Unstuffed data, with [`PAD`] bytes after its end.
    data: Vec<u8>,
    runs: Vec<Run>,
    plan: Plan,
    planes: Vec<u8>,
    /// One upsampled row of each component.
    rows: [Vec<u8>; 3],
}

impl Default for JpegDecoder {
    fn default() -> Self {
        JpegDecoder::new()
    }
}

impl JpegDecoder {
    /// A decoder with the best instructions of this machine.
    pub fn new() -> JpegDecoder {
        JpegDecoder::with_simd(Simd::detect())
    }

    /// A decoder with given instructions, for tests and benchmarks.
    pub fn with_simd(simd: Simd) -> JpegDecoder {
        JpegDecoder {
            simd,
            max_pixels: 1 << 28,
            dc: std::array::from_fn(|_| Table::new(Class::Dc)),
            ac: std::array::from_fn(|_| Table::new(Class::Ac)),
            lane: Lane::new(),
            scratch: Scratch::default(),
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
        self.decode_region_into(jpeg, Region::full(jpeg), out)
    }

    /// Decodes `region`: exactly what cropping the whole picture would give.
    ///
    /// # Errors
    /// [`JpegError`]; `out` is then unspecified. Damage that the region does
    /// not depend on may go unnoticed.
    pub fn decode_region_into(
        &mut self,
        jpeg: &Jpeg<'_>,
        region: Region,
        out: &mut Image,
    ) -> Result<(), JpegError> {
        region.check(jpeg)?;
        let pixels = region.width as u64 * region.height as u64;
        if pixels > self.max_pixels {
            return Err(JpegError::TooLarge { pixels, limit: self.max_pixels });
        }
        let grid = Grid::new(jpeg);
        // A block takes two bits at least. This bounds memory by the input.
        let coded = jpeg.bytes.len() - jpeg.scan_start;
        if grid.mcus() * grid.blocks > coded * 4 {
            return Err(JpegError::Truncated("fewer bits than blocks"));
        }
        self.set_tables(jpeg)?;
        let scratch = &mut self.scratch;
        scratch.plan.set(jpeg, region);
        if scratch.planes.len() < scratch.plan.plane_bytes {
            scratch.planes.resize(scratch.plan.plane_bytes, 0);
        }
        scratch.runs_from_start(self.simd, jpeg, &grid)?;
        out.reset(region.width, region.height);
        Pass::new(self.simd, jpeg, region, grid, &self.dc, &self.ac, scratch, out)
            .run(&mut self.lane)
    }

    fn set_tables(&mut self, jpeg: &Jpeg<'_>) -> Result<(), JpegError> {
        let pairs = self.dc.iter_mut().zip(&jpeg.dc).chain(self.ac.iter_mut().zip(&jpeg.ac));
        for (table, spec) in pairs {
            if let Some(spec) = spec {
                table.set(spec)?;
            }
        }
        Ok(())
    }
}

impl Scratch {
    /// Runs from the start of the scan, one for each restart interval that the
    /// plan needs.
    fn runs_from_start(
        &mut self,
        simd: Simd,
        jpeg: &Jpeg<'_>,
        grid: &Grid,
    ) -> Result<(), JpegError> {
        self.runs.clear();
        let mut coded = &jpeg.bytes[jpeg.scan_start..];
        if self.data.len() < coded.len() + SLACK + PAD {
            self.data.resize(coded.len() + SLACK + PAD, 0);
        }
        let needed = (self.plan.rows.end - 1) * grid.columns + self.plan.columns.end;
        let interval = match jpeg.restart_interval() {
            0 => needed,
            interval => interval,
        };
        let (mut first, mut written, mut restarts) = (0, 0, 0);
        loop {
            let (read, more) = unstuff(simd, coded, &mut self.data[written..]);
            let count = interval.min(needed - first);
            let (start_bit, end_bit) = (written * 8, (written + more) * 8);
            if self.plan.touches(first, count, grid.columns) {
                self.runs.push(Run { first, count, start_bit, end_bit, dc: [0; 3] });
            }
            first += count;
            written += more;
            if first == needed {
                return Ok(());
            }
            coded = &coded[read..];
            match coded {
                [0xFF, code, rest @ ..] if *code == 0xD0 + restarts % 8 => coded = rest,
                [0xFF, 0xD0..=0xD7, ..] => return Err(JpegError::Corrupt("restart marker order")),
                _ => return Err(JpegError::Truncated("missing restart interval")),
            }
            restarts += 1;
        }
    }
}

impl Plan {
    /// Whether any of `count` MCUs from `first` on is needed.
    fn touches(&self, first: usize, count: usize, columns: usize) -> bool {
        let last = first + count - 1;
        let (first_row, last_row) = (first / columns, last / columns);
        if last_row < self.rows.start || first_row >= self.rows.end {
            return false;
        }
        first_row != last_row
            || (first % columns < self.columns.end && last % columns >= self.columns.start)
    }
}

/// Consecutive MCUs of one row that are decoded at once.
#[derive(Clone, Copy)]
struct Batch {
    column: usize,
    row: usize,
    mcus: usize,
    wanted: bool,
}

/// One decode: everything that does not change while it runs, and the output.
struct Pass<'a> {
    simd: Simd,
    grid: Grid,
    region: Region,
    color: Color,
    /// Tables of the blocks of a batch, in the order of the scan.
    tables: [Tables<'a>; MAX_BATCH],
    batch_mcus: usize,
    /// Component and first block in the MCU, in the order of the scan.
    order: [(usize, usize); 3],
    quant: [Block; 3],
    plan: &'a Plan,
    data: &'a [u8],
    runs: &'a [Run],
    planes: &'a mut [u8],
    rows: &'a mut [Vec<u8>; 3],
    out: &'a mut Image,
    /// Pixel rows already made (exclusive end).
    made: usize,
}

impl<'a> Pass<'a> {
    fn new(
        simd: Simd,
        jpeg: &Jpeg<'_>,
        region: Region,
        grid: Grid,
        dc: &'a [Box<Table>; 4],
        ac: &'a [Box<Table>; 4],
        scratch: &'a mut Scratch,
        out: &'a mut Image,
    ) -> Pass<'a> {
        let batch_mcus = (12 / grid.blocks).max(1);
        let mut tables: [Tables<'a>; MAX_BATCH] = [(&dc[0], &ac[0]); MAX_BATCH];
        let mut order = [(0, 0); 3];
        let mut block = 0;
        let count = jpeg.components().len();
        for (place, &c) in order.iter_mut().zip(&jpeg.scan_order[..count]) {
            let component = &jpeg.components()[usize::from(c)];
            *place = (usize::from(c), block);
            for _ in 0..component.h * component.v {
                let pair = (usize::from(component.dc_table), usize::from(component.ac_table));
                tables[block] = (&dc[pair.0], &ac[pair.1]);
                block += 1;
            }
        }
        for at in block..batch_mcus * block {
            tables[at] = tables[at - block];
        }
        let mut quant = [Block([0; 64]); 3];
        for (steps, component) in quant.iter_mut().zip(jpeg.components()) {
            if let Some(table) = jpeg.quant_of(component) {
                // Products wrap to 16 bits, so steps above 32767 may as well.
                steps.0 = table.map(|step| step as i16);
            }
        }
        let Scratch { data, runs, plan, planes, rows } = scratch;
        let (color, made) = (jpeg.color(), region.top);
        Pass {
            simd,
            grid,
            region,
            color,
            tables,
            batch_mcus,
            order,
            quant,
            plan,
            data,
            runs,
            planes,
            rows,
            out,
            made,
        }
    }

    fn run(&mut self, lane: &mut Lane) -> Result<(), JpegError> {
        for run in self.runs {
            let mut dc = run.dc;
            // SAFETY: PAD bytes follow the end of the data, and runs start in it.
            lane.bits = unsafe {
                Bits::new(self.data.as_ptr().add(run.start_bit / 8), run.start_bit as u32 % 8)
            };
            let (mut mcu, end) = (run.first, run.first + run.count);
            while mcu < end {
                let batch = self.batch(mcu, end - mcu);
                let tables = &self.tables[..batch.mcus * self.grid.blocks];
                // SAFETY: the position is not beyond the run's end, checked below,
                // and PAD bytes follow the last run's end.
                unsafe {
                    if batch.wanted {
                        lane.decode::<true>(self.simd, tables)?;
                    } else {
                        lane.decode::<false>(self.simd, tables)?;
                    }
                }
                if lane.bits.position(self.data.as_ptr()) > run.end_bit {
                    return Err(JpegError::Truncated("in the entropy-coded data"));
                }
                self.finish(batch, lane, &mut dc);
                mcu += batch.mcus;
            }
        }
        Ok(())
    }

    /// The next batch from MCU number `mcu` on, of at most `limit` MCUs.
    fn batch(&self, mcu: usize, limit: usize) -> Batch {
        let (row, column) = (mcu / self.grid.columns, mcu % self.grid.columns);
        let columns = &self.plan.columns;
        let needed_row = self.plan.rows.contains(&row);
        let (wanted, end) = if needed_row && columns.contains(&column) {
            (true, columns.end)
        } else if needed_row && column < columns.start {
            (false, columns.start)
        } else {
            (false, self.grid.columns)
        };
        let mcus = (end - column).min(self.batch_mcus).min(limit);
        Batch { column, row, mcus, wanted }
    }

    /// Adds up the DC differences, transforms what is wanted and makes rows.
    fn finish(&mut self, batch: Batch, lane: &mut Lane, dc: &mut [i16; 3]) {
        let per_mcu = self.grid.blocks;
        for mcu in 0..batch.mcus {
            for &(component, first) in &self.order[..self.plan.windows.len()] {
                let window = &self.plan.windows[component];
                for block in first..first + window.h * window.v {
                    let value = &mut lane.blocks[mcu * per_mcu + block].0[0];
                    dc[component] = dc[component].wrapping_add(*value);
                    *value = dc[component];
                }
            }
        }
        if !batch.wanted {
            return;
        }
        for at in 0..self.plan.windows.len() {
            let (component, first) = self.order[at];
            self.transform(batch, lane, component, first);
        }
        if batch.column + batch.mcus == self.plan.columns.end {
            for window in &self.plan.windows {
                for y in batch.row * window.v..(batch.row + 1) * window.v {
                    if window.block_rows.contains(&y) {
                        window.extend_edges(self.planes, y);
                    }
                }
            }
            self.make_rows(batch.row + 1);
        }
    }

    /// The inverse DCT of one component's blocks, in neighbouring pairs.
    fn transform(&mut self, batch: Batch, lane: &Lane, component: usize, first: usize) {
        let window = &self.plan.windows[component];
        let (h, v) = (window.h, window.v);
        let start = batch.column * h;
        let from = window.block_columns.start.saturating_sub(start);
        let to = (batch.mcus * h).min(window.block_columns.end.saturating_sub(start));
        for y in 0..v {
            let block_row = batch.row * v + y;
            if !window.block_rows.contains(&block_row) {
                continue;
            }
            let number = |x: usize| x / h * self.grid.blocks + first + y * h + x % h;
            for x in (from..to).step_by(2) {
                let left = number(x);
                // The last one of an odd number writes its pair into the padding.
                let right = if x + 1 < to { number(x + 1) } else { left };
                let span = lane.spans[left].max(lane.spans[right]);
                let at = window.at((start + x) as isize * 8, block_row * 8);
                idct_pair(
                    self.simd,
                    &lane.blocks[left],
                    &lane.blocks[right],
                    &self.quant[component],
                    span,
                    &mut self.planes[at..],
                    window.stride,
                );
            }
        }
    }

    /// Makes the pixel rows that are complete once the MCU rows before `row` are.
    fn make_rows(&mut self, row: usize) {
        let ready = self.plan.ready(row, self.region);
        let (left, width) = (self.region.left, self.region.width);
        while self.made < ready {
            let y = self.made;
            let mut components: [&[u8]; 3] = [&[]; 3];
            for ((component, window), buffer) in
                components.iter_mut().zip(&self.plan.windows).zip(self.rows.iter_mut())
            {
                *component = full_row(self.simd, window, self.planes, y, left, width, buffer);
            }
            let [a, b, c] = components;
            let start = (y - self.region.top) * width * 3;
            let rgb = &mut self.out.pixels_hwc[start..start + width * 3];
            match self.color {
                Color::Gray => color::gray_row(a, rgb),
                Color::YCbCr => color::ycc_row(self.simd, a, b, c, rgb),
                Color::Rgb => color::rgb_row(a, b, c, rgb),
            }
            self.made += 1;
        }
    }
}

/// Samples `left..left + width` of pixel row `y` at full size: from the plane
/// itself or from `buffer`.
fn full_row<'a>(
    simd: Simd,
    window: &Window,
    planes: &'a [u8],
    y: usize,
    left: usize,
    width: usize,
    buffer: &'a mut Vec<u8>,
) -> &'a [u8] {
    let upsample = window.upsample.unwrap_or(Upsample::None);
    let (h, v) = upsample.ratios();
    let (x, row) = (left / h, y / v);
    // Samples that cover the pixels, and the other row of the triangle filter.
    let samples = (left + width - 1) / h + 1 - x;
    let below = y % v == 1;
    let far = if below { (row + 1).min(window.rows - 1) } else { row.saturating_sub(1) };
    let at = |y: usize, before: isize| &planes[window.at(x as isize - before, y)..];
    if upsample == Upsample::None {
        return at(row, 0);
    }
    if buffer.len() < samples * h {
        buffer.resize(samples * h, 0);
    }
    let out = &mut buffer[..samples * h];
    match upsample {
        Upsample::None => {}
        Upsample::H2 => upsample::h2(simd, at(row, 1), out),
        Upsample::H2V2 => upsample::h2v2(simd, at(row, 1), at(far, 1), out),
        Upsample::V2 => upsample::v2(at(row, 0), at(far, 0), below, out),
        Upsample::Repeat(times, _) => upsample::repeat(at(row, 0), times, out),
    }
    &buffer[left % h..]
}
