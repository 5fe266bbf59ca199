//! The front end of a Huffman-coded decode: runs of MCUs to blocks of
//! coefficients, which go to the [`Raster`].

use super::entropy::{MAX_BATCH, SymbolStream, Tables};
use super::error::JpegError;
use super::header::Jpeg;
use super::huffman::Table;
use super::plan::Grid;
use super::raster::Raster;
use super::runs::Run;
use super::solo::{SoloTable, SoloTables};
use crate::level::Level;

/// Blocks of a batch, about: enough that its end costs little and that four MCUs' chroma fill the
/// vectors of the transform, few enough that two batches, their tables and their rows of samples
/// stay in 32 KiB.
const BATCH_BLOCKS: usize = 24;

/// Consecutive MCUs of one row that are decoded at once.
#[derive(Clone, Copy, Default)]
struct McuBatch {
    column: usize,
    row: usize,
    mcus: usize,
    wanted: bool,
}

/// One of two streams: its run, how far it is, and its batch.
pub(crate) struct RunStream {
    symbols: SymbolStream,
    run: Run,
    mcu: usize,
    batch: McuBatch,
    dc: [i16; 3],
}

impl RunStream {
    pub fn new() -> RunStream {
        RunStream {
            symbols: SymbolStream::new(),
            run: Run::default(),
            mcu: 0,
            batch: McuBatch::default(),
            dc: [0; 3],
        }
    }
}

/// One row of one component's blocks in a batch.
#[derive(Clone, Copy, Default)]
pub(super) struct BlockRow {
    pub component: u8,
    /// Row of blocks within the MCU.
    pub y: u8,
    /// Places in the batch of the blocks from left to right.
    pub numbers: [u8; MAX_BATCH],
}

/// The order of the blocks in a batch.
pub(crate) struct BlockOrder<'a> {
    pub grid: Grid,
    /// Tables of the blocks.
    pub tables: [Tables<'a>; MAX_BATCH],
    /// Numbers of their AC tables.
    ac: [u8; MAX_BATCH],
    /// The same tables, with the tables of a stream alone where they were made.
    solo: Option<[SoloTables<'a>; MAX_BATCH]>,
    /// Whether these can pass over blocks.
    skips: bool,
    /// Components of the blocks.
    pub components: [u8; MAX_BATCH],
    rows: [BlockRow; 10],
    row_count: usize,
}

impl<'a> BlockOrder<'a> {
    pub fn new(
        jpeg: &Jpeg<'_>,
        grid: Grid,
        dc: &'a [Box<Table>; 4],
        ac: &'a [Box<Table>; 4],
    ) -> BlockOrder<'a> {
        let tables: [Tables<'a>; MAX_BATCH] = [(&dc[0], &ac[0]); MAX_BATCH];
        let (components, rows) = ([0; MAX_BATCH], [BlockRow::default(); 10]);
        let (ac_numbers, solo, skips) = ([0; MAX_BATCH], None, false);
        let mut order = BlockOrder {
            grid,
            tables,
            ac: ac_numbers,
            solo,
            skips,
            components,
            rows,
            row_count: 0,
        };
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
                order.rows[order.row_count] = row;
                order.row_count += 1;
                for _ in 0..h {
                    order.tables[block] = (&dc[d], &ac[a]);
                    order.ac[block] = component.ac_table;
                    order.components[block] = c;
                    block += 1;
                }
            }
        }
        for at in block..MAX_BATCH {
            order.tables[at] = order.tables[at - block];
            order.ac[at] = order.ac[at - block];
            order.components[at] = order.components[at - block];
        }
        order
    }

    /// Takes the tables of a stream alone, made of the AC tables of [`BlockOrder::new`]; `skips`
    /// tells whether they can pass over blocks.
    pub fn with_solo(mut self, solo: &'a [Box<SoloTable>; 4], skips: bool) -> BlockOrder<'a> {
        self.skips = skips;
        self.solo = Some(std::array::from_fn(|at| {
            let (dc, ac) = self.tables[at];
            (dc, ac, &*solo[usize::from(self.ac[at])])
        }));
        self
    }

    /// The rows of blocks of a batch.
    pub(super) fn rows(&self) -> &[BlockRow] {
        &self.rows[..self.row_count]
    }

    /// Turns the DC differences of a batch into DC coefficients.
    pub fn add_differences(&self, symbols: &mut SymbolStream, count: usize, dc: &mut [i16; 3]) {
        let mut sums = [dc[0], dc[1], dc[2], 0];
        for (block, &component) in symbols.blocks[..count].iter_mut().zip(&self.components) {
            let sum = &mut sums[usize::from(component & 3)];
            *sum = sum.wrapping_add(block.0[0]);
            block.0[0] = *sum;
        }
        dc.copy_from_slice(&sums[..3]);
    }
}

/// One decode: everything that does not change while it runs, and the back end.
pub(crate) struct Pass<'a> {
    pub level: Level,
    pub order: BlockOrder<'a>,
    pub data: &'a [u8],
    pub runs: &'a [Run],
    pub raster: Raster<'a>,
}

impl Pass<'_> {
    /// Decodes all runs, two at a time.
    ///
    /// # Errors
    /// [`JpegError::Truncated`] and [`JpegError::Corrupt`].
    pub fn run(&mut self, streams: &mut [RunStream; 2]) -> Result<(), JpegError> {
        let mut next_run = 0;
        let [a, b] = streams;
        let (mut a_live, mut b_live) = (false, false);
        loop {
            a_live = a_live || self.begin_run(a, b_live, &mut next_run);
            b_live = b_live || self.begin_run(b, a_live, &mut next_run);
            match (a_live, b_live) {
                (true, true) => {
                    // SAFETY: batches begin in or at the end of the data, which `end_batch`
                    // checks, and PAD bytes follow it.
                    unsafe {
                        SymbolStream::decode_two(
                            self.level,
                            self.data,
                            &mut a.symbols,
                            &mut b.symbols,
                            &self.order.tables,
                        )?;
                    }
                    if a.symbols.done() {
                        a_live = self.end_batch(a)?;
                    }
                    if b.symbols.done() {
                        b_live = self.end_batch(b)?;
                    }
                }
                (true, false) => a_live = self.alone(a)?,
                (false, true) => b_live = self.alone(b)?,
                (false, false) => return Ok(()),
            }
        }
    }

    /// Decodes what is left of a stream's batch; false at the end of its run.
    fn alone(&mut self, stream: &mut RunStream) -> Result<bool, JpegError> {
        let (level, data, symbols) = (self.level, self.data, &mut stream.symbols);
        // SAFETY: as in `run`.
        unsafe {
            match (&self.order.solo, stream.batch.wanted) {
                (Some(tables), true) => symbols.decode_solo::<true>(level, data, tables)?,
                (Some(tables), false) if self.order.skips => {
                    symbols.decode_solo::<false>(level, data, tables)?;
                }
                (None, true) => symbols.decode::<true>(level, data, &self.order.tables)?,
                (_, false) => symbols.decode::<false>(level, data, &self.order.tables)?,
            }
        }
        self.end_batch(stream)
    }

    /// Gives a stream the next run and its first batch; false when none is left, and while the
    /// other stream lives and is so far behind that the run's samples have no place yet. A stream
    /// alone takes rows in order.
    fn begin_run(&self, stream: &mut RunStream, other_lives: bool, next_run: &mut usize) -> bool {
        let Some(run) = self.runs.get(*next_run) else { return false };
        let last_row = (run.first + run.count - 1) / self.order.grid.columns;
        if other_lives && !self.raster.has_room(last_row) {
            return false;
        }
        *next_run += 1;
        (stream.run, stream.mcu, stream.dc) = (*run, run.first, run.dc);
        stream.symbols.at = run.start_bit;
        self.begin_batch(stream);
        true
    }

    fn begin_batch(&self, stream: &mut RunStream) {
        let end = stream.run.first + stream.run.count;
        stream.batch = self.batch(stream.mcu, end - stream.mcu);
        stream.symbols.begin(stream.batch.mcus * self.order.grid.blocks);
    }

    /// The next batch from MCU number `mcu` on, of at most `limit` MCUs.
    fn batch(&self, mcu: usize, limit: usize) -> McuBatch {
        let grid = &self.order.grid;
        let (row, column) = (mcu / grid.columns, mcu % grid.columns);
        let columns = self.raster.plan.line(row).map_or(0..0, |line| line.columns.clone());
        let (wanted, end) = if columns.contains(&column) {
            (true, columns.end)
        } else if column < columns.start {
            (false, columns.start)
        } else {
            (false, grid.columns)
        };
        let most = (BATCH_BLOCKS / grid.blocks).max(1);
        McuBatch { column, row, mcus: (end - column).min(most).min(limit), wanted }
    }

    /// Takes in a decoded batch and begins the next one of the run; false when
    /// there is none.
    fn end_batch(&mut self, stream: &mut RunStream) -> Result<bool, JpegError> {
        if stream.symbols.at > stream.run.end_bit {
            return Err(JpegError::Truncated("in the entropy-coded data"));
        }
        let batch = stream.batch;
        let count = batch.mcus * self.order.grid.blocks;
        self.order.add_differences(&mut stream.symbols, count, &mut stream.dc);
        if batch.wanted {
            self.transform(batch, &stream.symbols);
            self.raster.mcus_done(batch.row, batch.mcus)?;
        }
        stream.mcu += batch.mcus;
        let more = stream.mcu < stream.run.first + stream.run.count;
        if more {
            self.begin_batch(stream);
        }
        Ok(more)
    }

    /// The inverse DCT of a batch's needed blocks, a row of a component at a time.
    fn transform(&mut self, batch: McuBatch, symbols: &SymbolStream) {
        for row in self.order.rows() {
            let component = usize::from(row.component);
            let window = &self.raster.plan.windows[component];
            let at = (batch.column * window.h, batch.row * window.v + usize::from(row.y));
            let numbers = &row.numbers[..batch.mcus * window.h];
            let (blocks, spans) = (&symbols.blocks[..], &symbols.spans);
            self.raster.blocks(batch.row, component, at, blocks, spans, numbers);
        }
    }
}
