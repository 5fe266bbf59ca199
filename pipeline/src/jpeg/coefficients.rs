//! [`Coefficients`]: all quantised coefficients of a JPEG at once, for those who
//! store them in another form.

use std::ops::Range;

use super::decoder::{checked_grid, new_tables, set_tables};
use super::entropy::{MAX_BATCH, SymbolStream};
use super::error::JpegError;
use super::header::{Jpeg, Scans};
use super::idct::Block;
use super::pass::BlockOrder;
use super::plan::{Grid, IN_ORDER, Plan, Region};
use super::runs::{Run, Runs};
use super::scans;
use crate::level::Level;

/// Where one component's blocks are: row by row, those of whole MCUs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockPlane {
    first: usize,
    columns: usize,
    rows: usize,
}

impl BlockPlane {
    /// The number of a block.
    pub fn at(&self, column: usize, row: usize) -> usize {
        self.first + row * self.columns + column
    }

    /// The numbers of all blocks.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.rows * self.columns
    }
}

/// The coefficients of a picture.
pub(crate) struct Coefficients {
    /// Row-major, with DC coefficients, component by component.
    pub blocks: Vec<Block>,
    /// For each block, the zig-zag position after its last coefficient.
    pub spans: Vec<u8>,
    /// Of each component, the quantisation table that was in force at the first of several scans of
    /// it; none where that is the header's.
    pub quant: [Option<[u16; 64]>; 3],
    planes: [BlockPlane; 3],
    components: usize,
}

impl Coefficients {
    /// The components' blocks, in the order of the frame.
    pub fn planes(&self) -> &[BlockPlane] {
        &self.planes[..self.components]
    }

    pub(super) fn new(jpeg: &Jpeg<'_>, grid: &Grid) -> Coefficients {
        let mut planes = [BlockPlane::default(); 3];
        let mut first = 0;
        for (plane, c) in planes.iter_mut().zip(jpeg.components()) {
            let (columns, rows) = (grid.columns * usize::from(c.h), grid.rows * usize::from(c.v));
            *plane = BlockPlane { first, columns, rows };
            first += columns * rows;
        }
        let blocks = vec![Block([0; 64]); first];
        let (spans, components) = (vec![1; first], jpeg.components().len());
        Coefficients { blocks, spans, quant: [None; 3], planes, components }
    }

    /// Decodes all blocks, those of the padding to whole MCUs included where the
    /// picture has them.
    ///
    /// # Errors
    /// As [`super::JpegDecoder::decode_into`].
    pub fn decode(jpeg: &Jpeg<'_>) -> Result<Coefficients, JpegError> {
        let level = Level::detect();
        if jpeg.scans != Scans::One {
            return scans::decode(level, jpeg);
        }
        // Bounds the blocks by the bytes.
        let grid = checked_grid(jpeg)?;
        let (mut dc, mut ac) = new_tables();
        set_tables(&mut dc, &mut ac, jpeg)?;
        let order = BlockOrder::new(jpeg, grid, &dc, &ac);
        let mut plan = Plan::default();
        plan.set(jpeg, &[Region::full(jpeg)], IN_ORDER);
        let mut runs = Runs::default();
        runs.set_from_start(level, jpeg, &grid, &plan)?;
        let mut coefficients = Coefficients::new(jpeg, &grid);
        let mut stream = SymbolStream::new();
        for run in &runs.runs {
            coefficients.take_run(level, &order, &runs.data, run, &mut stream)?;
        }
        Ok(coefficients)
    }

    fn take_run(
        &mut self,
        level: Level,
        order: &BlockOrder<'_>,
        data: &[u8],
        run: &Run,
        stream: &mut SymbolStream,
    ) -> Result<(), JpegError> {
        let columns = order.grid.columns;
        let (mut mcu, mut dc) = (run.first, run.dc);
        let end = run.first + run.count;
        stream.at = run.start_bit;
        while mcu < end {
            let most = (MAX_BATCH / order.grid.blocks).max(1);
            let mcus = most.min(end - mcu).min(columns - mcu % columns);
            let count = mcus * order.grid.blocks;
            stream.begin(count);
            // SAFETY: the position is in or at the end of the data, as checked below,
            // and PAD bytes follow it.
            unsafe { stream.decode::<true>(level, data, &order.tables)? };
            if stream.at > run.end_bit {
                return Err(JpegError::Truncated("in the entropy-coded data"));
            }
            order.add_differences(stream, count, &mut dc);
            self.take_batch(order, (mcu % columns, mcu / columns), mcus, stream);
            mcu += mcus;
        }
        Ok(())
    }

    /// Takes over the blocks of MCUs from (column, row) on.
    fn take_batch(
        &mut self,
        order: &BlockOrder<'_>,
        (column, row): (usize, usize),
        mcus: usize,
        stream: &SymbolStream,
    ) {
        for part in order.rows() {
            let plane = self.planes[usize::from(part.component)];
            let (h, v) = (plane.columns / order.grid.columns, plane.rows / order.grid.rows);
            let first = plane.at(column * h, row * v + usize::from(part.y));
            for (to, &number) in (first..).zip(&part.numbers[..mcus * h]) {
                self.blocks[to] = stream.blocks[usize::from(number)];
                self.spans[to] = stream.spans[usize::from(number)];
            }
        }
    }
}
