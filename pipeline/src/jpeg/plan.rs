//! Geometry: which MCUs, blocks and samples regions of the picture need.

use std::ops::Range;

use super::error::JpegError;
use super::header::Jpeg;
use super::upsample::Upsample;

/// A rectangle of the picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
}

impl Region {
    /// The whole picture.
    pub fn full(jpeg: &Jpeg<'_>) -> Region {
        Region { left: 0, top: 0, width: jpeg.width(), height: jpeg.height() }
    }

    /// The smallest region that contains both.
    pub fn union(self, other: Region) -> Region {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Region { left, top, width: right - left, height: bottom - top }
    }

    /// The smallest region that contains all of some.
    ///
    /// # Errors
    /// [`JpegError::Region`] as [`Region::check`], and an empty one where there are none.
    pub(crate) fn checked_union(regions: &[Region], jpeg: &Jpeg<'_>) -> Result<Region, JpegError> {
        let none = Region { left: 0, top: 0, width: 0, height: 0 };
        regions.iter().try_for_each(|region| region.check(jpeg))?;
        let union = regions.iter().copied().reduce(Region::union).unwrap_or(none);
        union.check(jpeg).map(|()| union)
    }

    /// # Errors
    /// [`JpegError::Region`] when it is empty or not inside the picture.
    pub(crate) fn check(self, jpeg: &Jpeg<'_>) -> Result<(), JpegError> {
        let inside = |start: usize, length: usize, limit: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= limit)
        };
        if inside(self.left, self.width, jpeg.width())
            && inside(self.top, self.height, jpeg.height())
        {
            return Ok(());
        }
        let Region { left, top, width, height } = self;
        Err(JpegError::Region { left, top, width, height })
    }

    fn columns(self) -> Range<usize> {
        self.left..self.left + self.width
    }

    fn rows(self) -> Range<usize> {
        self.top..self.top + self.height
    }
}

/// The picture as a grid of MCUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// MCUs in a row.
    pub columns: usize,
    /// Rows of MCUs.
    pub rows: usize,
    /// Blocks of one MCU, at most 10.
    pub blocks: usize,
}

impl Grid {
    pub fn new(jpeg: &Jpeg<'_>) -> Grid {
        let (h, v) = jpeg.max_factors();
        Grid {
            columns: jpeg.width().div_ceil(8 * usize::from(h)),
            rows: jpeg.height().div_ceil(8 * usize::from(v)),
            blocks: jpeg.components().iter().map(|c| usize::from(c.h * c.v)).sum(),
        }
    }

    /// MCUs of the picture.
    pub fn mcus(&self) -> usize {
        self.columns * self.rows
    }
}

/// Bytes to the left of a plane's rows, for the copy of the edge: a cache line, so
/// that blocks keep to lines.
const PAD_LEFT: usize = 64;
/// Bytes to the right, for the copy of the edge.
const PAD_RIGHT: usize = 16;

/// Rows of MCUs in memory where they are taken in one after the other: a row, and the one before
/// it, whose last samples the first pixels of the row need.
pub(crate) const IN_ORDER: usize = 2;

/// The most rows of MCUs in memory, whatever the distance of streams that are decoded at once.
pub(crate) const MOST_ROWS: usize = 32;

/// The part of one component that a region needs, as a plane of which the last rows are in memory.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Sampling factors.
    pub h: usize,
    pub v: usize,
    /// Samples of the whole component.
    pub columns: usize,
    pub rows: usize,
    /// Needed blocks.
    pub block_columns: Range<usize>,
    pub block_rows: Range<usize>,
    /// How it gets to full size.
    pub upsample: Upsample,
    /// Bytes from row to row, and of the first needed sample.
    pub stride: usize,
    offset: usize,
    /// Rows of blocks in memory; and the bits of a row's number, from the first needed one, that
    /// tell its place among them.
    held: usize,
    mask: usize,
}

impl Window {
    fn new(jpeg: &Jpeg<'_>, component: usize, region: Region, mcu_rows: usize) -> Window {
        let (h_max, v_max) = jpeg.max_factors();
        let (h_max, v_max) = (usize::from(h_max), usize::from(v_max));
        let c = &jpeg.components()[component];
        let (h, v) = (usize::from(c.h), usize::from(c.v));
        let columns = (jpeg.width() * h).div_ceil(h_max);
        let rows = (jpeg.height() * v).div_ceil(v_max);
        let upsample = Upsample::choose(h_max / h, v_max / v, columns);
        let (block_columns, block_rows) = needed_blocks(region, upsample, (columns, rows));
        let stride = (PAD_LEFT + block_columns.len() * 8 + PAD_RIGHT).next_multiple_of(64);
        let ring = (mcu_rows * v).next_power_of_two();
        let (held, mask) = match ring < block_rows.len() {
            true => (ring, ring * 8 - 1),
            false => (block_rows.len(), usize::MAX),
        };
        Window {
            h,
            v,
            columns,
            rows,
            block_columns,
            block_rows,
            upsample,
            stride,
            offset: 0,
            held,
            mask,
        }
    }

    /// Columns and rows of blocks that a region needs.
    fn needed(&self, region: Region) -> (Range<usize>, Range<usize>) {
        needed_blocks(region, self.upsample, (self.columns, self.rows))
    }

    fn bytes(&self) -> usize {
        self.held * 8 * self.stride
    }

    /// Where a sample of the component lies in the planes. `x` may be one
    /// beyond the needed samples on either side.
    pub fn at(&self, x: isize, y: usize) -> usize {
        let row = (y - self.block_rows.start * 8) & self.mask;
        let row = self.offset + row * self.stride + PAD_LEFT;
        (row as isize + x - (self.block_columns.start * 8) as isize) as usize
    }

    /// Copies the component's left and right edges outwards in the eight rows
    /// of a block row, where the window touches them.
    pub fn extend_edges(&self, planes: &mut [u8], block_row: usize) {
        let end = self.columns as isize;
        for y in block_row * 8..block_row * 8 + 8 {
            if self.block_columns.start == 0 {
                planes[self.at(-1, y)] = planes[self.at(0, y)];
            }
            if self.block_columns.end * 8 >= self.columns {
                planes[self.at(end, y)] = planes[self.at(end - 1, y)];
            }
        }
    }
}

/// Columns and rows of blocks that a region needs of a component of so many samples.
fn needed_blocks(
    region: Region,
    upsample: Upsample,
    (columns, rows): (usize, usize),
) -> (Range<usize>, Range<usize>) {
    let ((h_ratio, v_ratio), (reach_x, reach_y)) = (upsample.ratios(), upsample.reach());
    let blocks = |pixels: Range<usize>, ratio: usize, reach: usize, limit: usize| {
        let first = (pixels.start / ratio).saturating_sub(reach);
        let last = ((pixels.end - 1) / ratio + reach).min(limit - 1);
        first / 8..last / 8 + 1
    };
    (
        blocks(region.columns(), h_ratio, reach_x, columns),
        blocks(region.rows(), v_ratio, reach_y, rows),
    )
}

/// What the regions that need a row of MCUs need of it, from the first to the last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    /// MCUs; none between regions.
    pub columns: Range<usize>,
    /// Columns of blocks, by component.
    pub blocks: [Range<usize>; 3],
}

/// What is needed to decode some regions, which are mostly the crops of two views: of each row what
/// is between the first and the last pixel that one of them has. All that the smallest rectangle
/// around both has would be a twentieth more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    regions: Vec<Region>,
    /// By needed row of MCUs.
    lines: Vec<Line>,
    /// Needed MCUs: the smallest rectangle.
    pub columns: Range<usize>,
    pub rows: Range<usize>,
    /// By component, in the order of the frame.
    pub windows: Vec<Window>,
    /// Bytes of all planes, as far as they are in memory.
    pub plane_bytes: usize,
    /// Rows of MCUs in memory, at least; all of them where they are no more than that.
    pub mcu_rows: usize,
}

impl Plan {
    /// Plans `regions`, one at least, which lie inside the picture, with `mcu_rows` rows of MCUs in
    /// memory, at least [`IN_ORDER`]. Keeps its allocations.
    pub fn set(&mut self, jpeg: &Jpeg<'_>, regions: &[Region], mcu_rows: usize) {
        let union = regions.iter().copied().reduce(Region::union).expect("a region");
        self.regions.clear();
        self.regions.extend(regions);
        self.windows.clear();
        self.mcu_rows = mcu_rows;
        (self.columns, self.rows) = (0..0, 0..0);
        self.plane_bytes = 0;
        for component in 0..jpeg.components().len() {
            let mut window = Window::new(jpeg, component, union, mcu_rows);
            window.offset = self.plane_bytes;
            self.plane_bytes += window.bytes();
            grow(&mut self.columns, &window.block_columns, window.h);
            grow(&mut self.rows, &window.block_rows, window.v);
            self.windows.push(window);
        }
        self.lines.clear();
        self.lines.resize(self.rows.len(), Line::default());
        for &region in regions {
            let (mut line, mut rows) = (Line::default(), 0..0);
            for (blocks, window) in line.blocks.iter_mut().zip(&self.windows) {
                let (block_columns, block_rows) = window.needed(region);
                grow(&mut line.columns, &block_columns, window.h);
                grow(&mut rows, &block_rows, window.v);
                *blocks = block_columns;
            }
            let rows = rows.start - self.rows.start..rows.end - self.rows.start;
            for with in &mut self.lines[rows] {
                cover(&mut with.columns, &line.columns);
                for (with, blocks) in with.blocks.iter_mut().zip(&line.blocks) {
                    cover(with, blocks);
                }
            }
        }
    }

    /// What is needed of each needed row of MCUs.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// What is needed of a row of MCUs, if it is.
    pub fn line(&self, row: usize) -> Option<&Line> {
        self.lines.get(row.checked_sub(self.rows.start)?)
    }

    /// Pixels of row `y` from the first to the last that a region has; none between regions.
    pub fn pixels(&self, y: usize) -> Range<usize> {
        let mut pixels = 0..0;
        for region in self.regions.iter().filter(|region| region.rows().contains(&y)) {
            cover(&mut pixels, &region.columns());
        }
        pixels
    }

    /// Whether samples of MCU row `row` may be written when the rows before `complete` are taken
    /// in: of these only the last is needed still, and no other place is taken twice.
    pub fn has_room(&self, row: usize, complete: usize) -> bool {
        self.rows.len() <= self.mcu_rows || row + 1 < complete + self.mcu_rows
    }

    /// Pixel rows (exclusive end) whose samples are all there once the MCU
    /// rows before `row` are.
    pub fn ready(&self, row: usize, region: Region) -> usize {
        let end = region.top + region.height;
        if row >= self.rows.end {
            return end;
        }
        let ready = |window: &Window| {
            let (ratio, reach) = (window.upsample.ratios().1, window.upsample.reach().1);
            (row * window.v * 8 * ratio).saturating_sub(reach)
        };
        self.windows.iter().map(ready).min().unwrap_or(end).min(end)
    }
}

/// Extends a range of MCUs, empty at first, to cover `blocks`.
fn grow(mcus: &mut Range<usize>, blocks: &Range<usize>, factor: usize) {
    cover(mcus, &(blocks.start / factor..blocks.end.div_ceil(factor)));
}

/// Extends a range, empty at first, to cover another that is not.
fn cover(range: &mut Range<usize>, other: &Range<usize>) {
    *range = match range.start >= range.end {
        true => other.clone(),
        false => range.start.min(other.start)..range.end.max(other.end),
    };
}
