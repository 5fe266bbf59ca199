//! The back end of every decode: rows of blocks of coefficients to planes of
//! samples, and these to rows of pixels as soon as they are complete, while
//! they are in the cache. It knows nothing of how the coefficients were coded.

use super::coefficients::{BlockPlane, Coefficients};
use super::color;
use super::error::JpegError;
use super::header::{Color, Jpeg};
use super::idct::{Block, idct_row};
use super::plan::{Plan, Region, Window};
use super::upsample::{self, Upsample};
use crate::Image;
use crate::level::Level;
use crate::scratch::Scratch;

/// The back end's buffers, kept between pictures: rows of them, no more of a large picture than of
/// a small one as wide.
#[derive(Default)]
pub(crate) struct RasterBuffers {
    planes: Scratch,
    /// One upsampled row of each component.
    rows: [Vec<u8>; 3],
    /// For each needed row of MCUs, those still to come.
    left: Vec<usize>,
}

impl RasterBuffers {
    /// Gives back what a picture far wider than others took.
    pub fn trim(&mut self) {
        self.planes.trim();
    }
}

/// One decode's back end: what does not change while it runs, how far it is,
/// and the output.
pub(crate) struct Raster<'a> {
    level: Level,
    region: Region,
    color: Color,
    quant: [Block; 3],
    pub plan: &'a Plan,
    buffers: &'a mut RasterBuffers,
    out: &'a mut Image,
    /// Rows of MCUs before this one are complete.
    complete: usize,
    /// Pixel rows before this one are made.
    made: usize,
}

impl<'a> Raster<'a> {
    /// Prepares for the pixels of `region`, the union of those that `plan` was made for, in `out`.
    /// Those that [`Plan::pixels`] has not are left as they are.
    pub fn new(
        level: Level,
        jpeg: &Jpeg<'_>,
        region: Region,
        plan: &'a Plan,
        buffers: &'a mut RasterBuffers,
        out: &'a mut Image,
    ) -> Raster<'a> {
        buffers.left.clear();
        buffers.left.extend(plan.lines().iter().map(|line| line.columns.len()));
        out.reset(region.width, region.height);
        Raster {
            level,
            region,
            color: jpeg.color(),
            quant: quantisation(jpeg),
            plan,
            buffers,
            out,
            complete: plan.rows.start,
            made: region.top,
        }
    }

    /// Takes these quantisation tables of components, where there are some, in place of the
    /// header's.
    pub fn with_tables(mut self, tables: &[Option<[u16; 64]>; 3]) -> Raster<'a> {
        for (block, table) in self.quant.iter_mut().zip(tables) {
            if let Some(table) = table {
                *block = steps(table);
            }
        }
        self
    }

    /// Whether blocks of MCU row `row`, or before it, may be taken in now.
    pub fn has_room(&self, row: usize) -> bool {
        self.plan.has_room(row.min(self.plan.rows.end - 1), self.complete)
    }

    /// Takes in neighbouring blocks of one component: `blocks[numbers[i]]` with
    /// `spans[numbers[i]]` lies at (`column + i`, `row`) in the component's grid of
    /// blocks, in row `mcu_row` of MCUs. Those that no pixel needs are passed over.
    pub fn blocks(
        &mut self,
        mcu_row: usize,
        component: usize,
        (column, row): (usize, usize),
        blocks: &[Block],
        spans: &[u8],
        numbers: &[u8],
    ) {
        let window = &self.plan.windows[component];
        let Some(line) = self.plan.line(mcu_row) else { return };
        if !window.block_rows.contains(&row) {
            return;
        }
        let needed = &line.blocks[component];
        let from = needed.start.saturating_sub(column);
        let to = numbers.len().min(needed.end.saturating_sub(column));
        if from >= to {
            return;
        }
        let at = window.at((column + from) as isize * 8, row * 8);
        idct_row(
            self.level,
            blocks,
            spans,
            &numbers[from..to],
            &self.quant[component],
            &mut self.buffers.planes.get(self.plan.plane_bytes)[at..],
            window.stride,
        );
    }

    /// Takes in those blocks of row `y` of one component, in row `mcu_row` of MCUs, that pixels need.
    pub fn block_row(
        &mut self,
        mcu_row: usize,
        component: usize,
        y: usize,
        coefficients: &Coefficients,
        plane: &BlockPlane,
    ) {
        const ALL: [u8; 256] = {
            let mut numbers = [0; 256];
            let mut at = 0;
            while at < 256 {
                numbers[at] = at as u8;
                at += 1;
            }
            numbers
        };
        let columns = self.plan.windows[component].block_columns.clone();
        for first in columns.clone().step_by(ALL.len()) {
            let count = (columns.end - first).min(ALL.len());
            let from = plane.at(first, y);
            let (blocks, spans) = (&coefficients.blocks[from..], &coefficients.spans[from..]);
            self.blocks(mcu_row, component, (first, y), blocks, spans, &ALL[..count]);
        }
    }

    /// Counts `mcus` needed MCUs of a needed row as taken in, and makes the pixel
    /// rows that became complete.
    ///
    /// # Errors
    /// [`JpegError::Corrupt`] for more MCUs than the row has.
    pub fn mcus_done(&mut self, row: usize, mcus: usize) -> Result<(), JpegError> {
        let first = self.plan.rows.start;
        let left = row.checked_sub(first).and_then(|at| self.buffers.left.get_mut(at));
        let left = left.ok_or(JpegError::Corrupt("MCU outside the picture"))?;
        *left = left.checked_sub(mcus).ok_or(JpegError::Corrupt("MCU twice"))?;
        if *left > 0 {
            return Ok(());
        }
        let planes = self.buffers.planes.get(self.plan.plane_bytes);
        for window in &self.plan.windows {
            for y in row * window.v..(row + 1) * window.v {
                if window.block_rows.contains(&y) {
                    window.extend_edges(planes, y);
                }
            }
        }
        let before = self.complete;
        while self.buffers.left.get(self.complete - first) == Some(&0) {
            self.complete += 1;
        }
        if self.complete > before {
            let ready = self.plan.ready(self.complete, self.region);
            for y in self.made..ready {
                self.make_row(y);
            }
            self.made = self.made.max(ready);
        }
        Ok(())
    }

    /// Makes what is needed of pixel row `y`.
    fn make_row(&mut self, y: usize) {
        let pixels = self.plan.pixels(y);
        if pixels.is_empty() {
            return;
        }
        let (left, width) = (pixels.start, pixels.len());
        let mut components: [&[u8]; 3] = [&[]; 3];
        let RasterBuffers { planes, rows, .. } = &mut *self.buffers;
        let planes = planes.get(self.plan.plane_bytes);
        for ((component, window), buffer) in
            components.iter_mut().zip(&self.plan.windows).zip(rows.iter_mut())
        {
            *component = full_row(self.level, window, planes, y, left, width, buffer);
        }
        let [a, b, c] = components;
        let start = ((y - self.region.top) * self.region.width + left - self.region.left) * 3;
        let rgb = &mut self.out.pixels_hwc[start..start + width * 3];
        match self.color {
            Color::Gray => color::gray_row(a, rgb),
            Color::YCbCr => color::ycc_row(self.level, a, b, c, rgb),
            Color::Rgb => color::rgb_row(a, b, c, rgb),
        }
    }
}

/// The quantisation tables of the components in the header.
fn quantisation(jpeg: &Jpeg<'_>) -> [Block; 3] {
    let mut quant = [Block([0; 64]); 3];
    for (block, component) in quant.iter_mut().zip(jpeg.components()) {
        if let Some(table) = jpeg.quant_of(component) {
            *block = steps(table);
        }
    }
    quant
}

/// Products wrap to 16 bits, so steps above 32767 may as well.
fn steps(table: &[u16; 64]) -> Block {
    Block(table.map(|step| step as i16))
}

/// Samples `left..left + width` of pixel row `y` at full size: from the plane
/// itself or from `buffer`.
fn full_row<'a>(
    level: Level,
    window: &Window,
    planes: &'a [u8],
    y: usize,
    left: usize,
    width: usize,
    buffer: &'a mut Vec<u8>,
) -> &'a [u8] {
    let upsample = window.upsample;
    // Ratios but the odd ones are shifts: this runs for each row.
    let divided = |at: usize, ratio: usize| match ratio {
        1 => at,
        2 => at / 2,
        _ => at / ratio,
    };
    let (h, v) = upsample.ratios();
    let (x, row) = (divided(left, h), divided(y, v));
    // Samples that cover the pixels, and the other row of the triangle filter.
    let samples = divided(left + width - 1, h) + 1 - x;
    let below = y - row * v == 1;
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
        Upsample::H2 => upsample::h2(level, at(row, 1), out),
        Upsample::H2V2 => upsample::h2v2(level, at(row, 1), at(far, 1), out),
        Upsample::V2 => upsample::v2(at(row, 0), at(far, 0), below, out),
        Upsample::Repeat(times, _) => upsample::repeat(at(row, 0), times, out),
    }
    &buffer[left - x * h..]
}
