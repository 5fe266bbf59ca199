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

/// Bytes of a thread's buffer that it keeps from sample to sample. Photographs of ten megapixels
/// stay below, so that their steady state allocates nothing; what a larger image took is given
/// back after it, and some such images among others do not cost each of a hundred threads memory for
/// the rest of the run.
pub(crate) const KEPT_BYTES: usize = 32 << 20;

/// Gives a buffer back that is larger than [`KEPT_BYTES`]. What it held is gone.
pub(crate) fn trim<T>(buffer: &mut Vec<T>) {
    if buffer.capacity().saturating_mul(size_of::<T>()) > KEPT_BYTES {
        *buffer = Vec::new();
    }
}

/// A buffer that grows and is kept, so that the steady state does not allocate.
#[derive(Debug, Default)]
pub struct Scratch(Vec<Line>);

impl Scratch {
    /// As [`trim`].
    pub(crate) fn trim(&mut self) {
        trim(&mut self.0);
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Line>()
    }

    /// `len` elements of unspecified value, the first of which begins a cache line.
    pub fn get<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line::ZERO);
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }
}
