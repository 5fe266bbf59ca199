//! [`Scratch`]: memory that is kept, in whole cache lines.

use bytemuck::{Pod, Zeroable};

/// A cache line. Buffers are made of these: a 512-bit load or store that crosses
/// from one line to the next costs two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Line {
    pub(crate) const ZERO: Line = Line([0; 64]);
}

/// A buffer that grows and is never given back, so that the steady state does
/// not allocate.
#[derive(Debug, Default)]
pub struct Scratch(Vec<Line>);

impl Scratch {
    /// `len` elements of unspecified value, the first of which begins a cache line.
    pub fn get<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line::ZERO);
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }
}
