//! One decode: runs of coefficients to planes, planes to rows of pixels.

use super::color;
use super::entropy::{Lane, MAX_BATCH, Tables};
use super::error::JpegError;
use super::header::{Color, Jpeg};
use super::huffman::Table;
use super::idct::{Block, idct_row};
use super::plan::{Grid, Plan, Region, Window};
use super::runs::Run;
use super::simd::Simd;
use super::upsample::{self, Upsample};
use crate::Image;

/// Blocks of a batch, about: enough that its end costs little, few enough that
/// two batches, their tables and their rows of samples stay in 32 KiB.
const BATCH_BLOCKS: usize = 12;

/// Consecutive MCUs of one row that are decoded at once.
#[derive(Clone, Copy, Default)]
struct Batch {
    column: usize,
    row: usize,
    mcus: usize,
    wanted: bool,
}

/// One of two streams: its run, how far it is, and its batch.
pub(crate) struct Stream {
    lane: Lane,
    run: Run,
    mcu: usize,
    batch: Batch,
    dc: [i16; 3],
}

impl Stream {
    pub fn new() -> Stream {
        Stream {
            lane: Lane::new(),
            run: Run::default(),
            mcu: 0,
            batch: Batch::default(),
            dc: [0; 3],
        }
    }
}

/// One row of one component's blocks in a batch.
#[derive(Clone, Copy, Default)]
struct BlockRow {
    component: u8,
    /// Row of blocks within the MCU.
    y: u8,
    /// Places in the batch of the blocks from left to right.
    numbers: [u8; MAX_BATCH],
}

/// The order of the blocks in a batch.
pub(crate) struct Scan<'a> {
    pub grid: Grid,
    /// Tables of the blocks.
    pub tables: [Tables<'a>; MAX_BATCH],
    /// Components of the blocks.
    pub components: [u8; MAX_BATCH],
    rows: [BlockRow; 10],
    row_count: usize,
}

impl<'a> Scan<'a> {
    pub fn new(
        jpeg: &Jpeg<'_>,
        grid: Grid,
        dc: &'a [Box<Table>; 4],
        ac: &'a [Box<Table>; 4],
    ) -> Scan<'a> {
        let tables: [Tables<'a>; MAX_BATCH] = [(&dc[0], &ac[0]); MAX_BATCH];
        let (components, rows) = ([0; MAX_BATCH], [BlockRow::default(); 10]);
        let mut scan = Scan { grid, tables, components, rows, row_count: 0 };
        let mut block = 0;
        for &c in &jpeg.scan_order[..jpeg.components().len()] {
            let component = &jpeg.components()[usize::from(c)];
            let (d, a) = (usize::from(component.dc_table), usize::from(component.ac_table));
            let h = usize::from(component.h);
            for y in 0..component.v {
                let mut row = BlockRow { component: c, y, numbers: [0; MAX_BATCH] };
                for (x, number) in row.numbers.iter_mut().enumerate() {
                    // Beyond the largest batch this wraps, and is not used.
                    *number = (x / h * grid.blocks + block + x % h) as u8;
                }
                scan.rows[scan.row_count] = row;
                scan.row_count += 1;
                for _ in 0..h {
                    scan.tables[block] = (&dc[d], &ac[a]);
                    scan.components[block] = c;
                    block += 1;
                }
            }
        }
        for at in block..MAX_BATCH {
            scan.tables[at] = scan.tables[at - block];
            scan.components[at] = scan.components[at - block];
        }
        scan
    }

    /// Turns the DC differences of a batch into DC coefficients.
    pub fn add_differences(&self, lane: &mut Lane, count: usize, dc: &mut [i16; 3]) {
        let mut sums = [dc[0], dc[1], dc[2], 0];
        for (block, &component) in lane.blocks[..count].iter_mut().zip(&self.components) {
            let sum = &mut sums[usize::from(component & 3)];
            *sum = sum.wrapping_add(block.0[0]);
            block.0[0] = *sum;
        }
        dc.copy_from_slice(&sums[..3]);
    }
}

/// One decode: everything that does not change while it runs, and the output.
pub(crate) struct Pass<'a> {
    pub simd: Simd,
    pub scan: Scan<'a>,
    pub region: Region,
    pub color: Color,
    pub quant: [Block; 3],
    pub plan: &'a Plan,
    pub data: &'a [u8],
    pub runs: &'a [Run],
    pub planes: &'a mut [u8],
    /// One upsampled row of each component.
    pub rows: &'a mut [Vec<u8>; 3],
    /// For each needed row of MCUs, those still to come.
    pub left: &'a mut Vec<usize>,
    pub out: &'a mut Image,
}

/// How far a pass is.
struct Progress {
    next_run: usize,
    /// Rows of MCUs before this one are complete.
    complete: usize,
    /// Pixel rows before this one are made.
    made: usize,
}

/// The quantisation tables of the components.
pub(crate) fn quantisation(jpeg: &Jpeg<'_>) -> [Block; 3] {
    let mut quant = [Block([0; 64]); 3];
    for (steps, component) in quant.iter_mut().zip(jpeg.components()) {
        if let Some(table) = jpeg.quant_of(component) {
            // Products wrap to 16 bits, so steps above 32767 may as well.
            steps.0 = table.map(|step| step as i16);
        }
    }
    quant
}

impl Pass<'_> {
    /// Decodes all runs, two at a time.
    ///
    /// # Errors
    /// [`JpegError::Truncated`] and [`JpegError::Corrupt`].
    pub fn run(&mut self, streams: &mut [Stream; 2]) -> Result<(), JpegError> {
        self.left.clear();
        self.left.resize(self.plan.rows.len(), self.plan.columns.len());
        let mut progress =
            Progress { next_run: 0, complete: self.plan.rows.start, made: self.region.top };
        let [a, b] = streams;
        let (mut a_live, mut b_live) = (self.begin_run(a, &mut progress), false);
        if a_live {
            b_live = self.begin_run(b, &mut progress);
        }
        while a_live && b_live {
            // SAFETY: batches begin in or at the end of the data, which `end_batch`
            // checks, and PAD bytes follow it.
            unsafe {
                Lane::decode_two(
                    self.simd,
                    self.data,
                    &mut a.lane,
                    &mut b.lane,
                    &self.scan.tables,
                )?;
            }
            if a.lane.done() {
                a_live = self.end_batch(a, &mut progress)?;
            }
            if b.lane.done() {
                b_live = self.end_batch(b, &mut progress)?;
            }
        }
        let (last, mut live) = if a_live { (a, a_live) } else { (b, b_live) };
        while live {
            // SAFETY: as above.
            unsafe {
                if last.batch.wanted {
                    last.lane.decode::<true>(self.simd, self.data, &self.scan.tables)?;
                } else {
                    last.lane.decode::<false>(self.simd, self.data, &self.scan.tables)?;
                }
            }
            live = self.end_batch(last, &mut progress)?;
        }
        Ok(())
    }

    /// Gives a stream the next run and its first batch; false when none is left.
    fn begin_run(&self, stream: &mut Stream, progress: &mut Progress) -> bool {
        let Some(run) = self.runs.get(progress.next_run) else { return false };
        progress.next_run += 1;
        (stream.run, stream.mcu, stream.dc) = (*run, run.first, run.dc);
        stream.lane.at = run.start_bit;
        self.begin_batch(stream);
        true
    }

    fn begin_batch(&self, stream: &mut Stream) {
        let end = stream.run.first + stream.run.count;
        stream.batch = self.batch(stream.mcu, end - stream.mcu);
        stream.lane.begin(stream.batch.mcus * self.scan.grid.blocks);
    }

    /// The next batch from MCU number `mcu` on, of at most `limit` MCUs.
    fn batch(&self, mcu: usize, limit: usize) -> Batch {
        let grid = &self.scan.grid;
        let (row, column) = (mcu / grid.columns, mcu % grid.columns);
        let columns = &self.plan.columns;
        let needed_row = self.plan.rows.contains(&row);
        let (wanted, end) = if needed_row && columns.contains(&column) {
            (true, columns.end)
        } else if needed_row && column < columns.start {
            (false, columns.start)
        } else {
            (false, grid.columns)
        };
        let most = (BATCH_BLOCKS / grid.blocks).max(1);
        Batch { column, row, mcus: (end - column).min(most).min(limit), wanted }
    }

    /// Takes in a decoded batch and begins the stream's next one; false when
    /// there is none.
    fn end_batch(
        &mut self,
        stream: &mut Stream,
        progress: &mut Progress,
    ) -> Result<bool, JpegError> {
        if stream.lane.at > stream.run.end_bit {
            return Err(JpegError::Truncated("in the entropy-coded data"));
        }
        let batch = stream.batch;
        let count = batch.mcus * self.scan.grid.blocks;
        self.scan.add_differences(&mut stream.lane, count, &mut stream.dc);
        if batch.wanted {
            self.transform(batch, &stream.lane);
            self.note_done(batch, progress);
        }
        stream.mcu += batch.mcus;
        if stream.mcu < stream.run.first + stream.run.count {
            self.begin_batch(stream);
            return Ok(true);
        }
        Ok(self.begin_run(stream, progress))
    }

    /// The inverse DCT of a batch's needed blocks, a row of a component at a time.
    fn transform(&mut self, batch: Batch, lane: &Lane) {
        for row in &self.scan.rows[..self.scan.row_count] {
            let component = usize::from(row.component);
            let window = &self.plan.windows[component];
            let block_row = batch.row * window.v + usize::from(row.y);
            if !window.block_rows.contains(&block_row) {
                continue;
            }
            let start = batch.column * window.h;
            let from = window.block_columns.start.saturating_sub(start);
            let end = batch.mcus * window.h;
            let to = end.min(window.block_columns.end.saturating_sub(start));
            if from >= to {
                continue;
            }
            let at = window.at((start + from) as isize * 8, block_row * 8);
            idct_row(
                self.simd,
                &lane.blocks[..],
                &lane.spans,
                &row.numbers[from..to],
                &self.quant[component],
                &mut self.planes[at..],
                window.stride,
            );
        }
    }

    /// Counts a wanted batch's MCUs as done and makes the pixel rows that became
    /// complete.
    fn note_done(&mut self, batch: Batch, progress: &mut Progress) {
        let left = &mut self.left[batch.row - self.plan.rows.start];
        *left -= batch.mcus;
        if *left > 0 {
            return;
        }
        for window in &self.plan.windows {
            for y in batch.row * window.v..(batch.row + 1) * window.v {
                if window.block_rows.contains(&y) {
                    window.extend_edges(self.planes, y);
                }
            }
        }
        let before = progress.complete;
        while self.left.get(progress.complete - self.plan.rows.start) == Some(&0) {
            progress.complete += 1;
        }
        if progress.complete > before {
            let ready = self.plan.ready(progress.complete, self.region);
            for y in progress.made..ready {
                self.make_row(y);
            }
            progress.made = progress.made.max(ready);
        }
    }

    /// Makes pixel row `y`.
    fn make_row(&mut self, y: usize) {
        let (left, width) = (self.region.left, self.region.width);
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
    let upsample = window.upsample;
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
