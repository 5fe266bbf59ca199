//! Geometry: which blocks a segment holds, in which order.
//!
//! A segment is a few MCUs of one row of MCUs, and can be decoded alone. Its
//! blocks go component by component, in each row by row from left to right, so
//! that the blocks of a class follow each other.

use super::book::CLASSES;
use super::error::DctError;
use crate::jpeg::{Color, Grid, Jpeg};

/// The most blocks of a segment.
pub(crate) const MAX_BLOCKS: usize = 64;

/// Blocks that a segment is given, about: a smaller one costs more bytes beside
/// its blocks, a larger one makes the decoder decode more that is not needed.
const BLOCKS: usize = 24;

/// One component's part of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Blocks in a row.
    pub columns: usize,
    /// Rows of blocks.
    pub rows: usize,
    /// Which profiles its blocks use.
    pub class: usize,
}

impl Part {
    /// Blocks of the part.
    pub fn blocks(&self) -> usize {
        self.columns * self.rows
    }
}

/// What a segment of some MCUs holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    parts: [Part; 3],
    count: usize,
}

impl Shape {
    /// A row of blocks of each class, so many.
    #[cfg(test)]
    pub fn of(blocks: [usize; CLASSES]) -> Shape {
        let part = |class: usize| Part { columns: blocks[class], rows: 1, class };
        Shape { parts: [part(0), part(1), Part::default()], count: CLASSES }
    }

    /// The parts, by component.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }

    /// Blocks of the segment.
    pub fn blocks(&self) -> usize {
        self.parts().iter().map(Part::blocks).sum()
    }
}

/// The picture in segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    pub grid: Grid,
    /// MCUs of each segment but the last of a row.
    pub mcus: usize,
    /// Segments in a row of MCUs.
    pub per_row: usize,
    /// By component: blocks of an MCU in a row, rows of them, class.
    parts: [Part; 3],
    count: usize,
}

impl Segments {
    /// Segments of `mcus` MCUs.
    ///
    /// # Errors
    /// [`DctError::Corrupt`] where that is none, or more than [`MAX_BLOCKS`] blocks.
    pub fn new(jpeg: &Jpeg<'_>, mcus: usize) -> Result<Segments, DctError> {
        let grid = Grid::new(jpeg);
        if mcus == 0 || mcus.saturating_mul(grid.blocks) > MAX_BLOCKS {
            return Err(DctError::Corrupt("MCUs of a segment"));
        }
        let mut parts = [Part::default(); 3];
        for (number, (part, c)) in parts.iter_mut().zip(jpeg.components()).enumerate() {
            let chroma = number > 0 && jpeg.color() == Color::YCbCr;
            let class = if chroma { CLASSES - 1 } else { 0 };
            *part = Part { columns: usize::from(c.h), rows: usize::from(c.v), class };
        }
        let per_row = grid.columns.div_ceil(mcus);
        Ok(Segments { grid, mcus, per_row, parts, count: jpeg.components().len() })
    }

    /// MCUs of a segment that suit a picture.
    pub fn suitable(jpeg: &Jpeg<'_>) -> usize {
        let grid = Grid::new(jpeg);
        (BLOCKS / grid.blocks).clamp(1, MAX_BLOCKS / grid.blocks).min(grid.columns.max(1))
    }

    /// Segments of the picture.
    pub fn count(&self) -> usize {
        self.per_row * self.grid.rows
    }

    /// First MCU column of a segment of a row, and how many MCUs it has.
    pub fn span(&self, at: usize) -> (usize, usize) {
        let first = at * self.mcus;
        (first, self.mcus.min(self.grid.columns - first))
    }

    /// What a segment of `mcus` MCUs holds.
    pub fn shape(&self, mcus: usize) -> Shape {
        let wide = |part: Part| Part { columns: part.columns * mcus, ..part };
        Shape { parts: self.parts.map(wide), count: self.count }
    }
}
