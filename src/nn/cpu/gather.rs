//! Where a convolution's patches lie: the rows of its (never built) im2col matrix.
//!
//! Row m belongs to grid position (image, y, x); its columns are, for each tap (dy, dx), the
//! channels of source pixel (y * stride + dy, x * stride + dx), zeros outside the image. A forward
//! pass, the phases of an input gradient and a weight gradient differ in grid, stride and taps
//! alone.

use super::elements;
use super::micro::{CHUNK, Isa, MAX_MR, vectorised};

/// An im2col matrix, described: `rows()` x `depth()`, taken from an NHWC source.
#[derive(Clone, Debug)]
pub struct Gather {
    /// Images.
    pub n: usize,
    /// Source height and width.
    pub source: (usize, usize),
    /// Source channels.
    pub c: usize,
    /// Grid height and width.
    pub grid: (usize, usize),
    /// Source pixels from one grid position to the next.
    pub stride: usize,
    /// Source pixel of each tap relative to `grid position * stride`, (dy, dx).
    pub taps: Vec<(isize, isize)>,
}

/// A row's image and its grid position times the stride.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    image: usize,
    y: isize,
    x: isize,
}

impl Gather {
    /// Grid positions of all images.
    ///
    /// # Panics
    /// When no memory has as many.
    pub fn rows(&self) -> usize {
        elements(&[self.n, self.grid.0, self.grid.1])
    }

    /// Columns: taps times channels.
    pub fn depth(&self) -> usize {
        self.taps.len() * self.c
    }

    /// Columns in packed chunks, the last filled up with zeros.
    pub fn chunks(&self) -> usize {
        self.depth().div_ceil(CHUNK)
    }

    pub(super) fn place(&self, row: usize) -> Place {
        let (h, w) = self.grid;
        let (image, rest) = (row / (h * w), row % (h * w));
        Place { image, y: (rest / w * self.stride) as isize, x: (rest % w * self.stride) as isize }
    }

    /// Index of a tap's first channel in the source, `None` outside the image.
    #[inline(always)]
    pub(super) fn offset(&self, place: Place, tap: (isize, isize)) -> Option<usize> {
        let (y, x) = (place.y + tap.0, place.x + tap.1);
        let (h, w) = self.source;
        let inside = (y as usize) < h && (x as usize) < w; // negative ones wrap to huge ones
        inside.then(|| ((place.image * h + y as usize) * w + x as usize) * self.c)
    }

    /// Writes columns `chunk0 * 16 ..` of rows `row0 ..` as an A panel of `mr` rows; rows beyond
    /// the matrix are zeros. `out` has `chunks * mr * 16` elements.
    pub(super) fn pack(
        &self,
        isa: Isa,
        src: &[f32],
        row0: usize,
        chunk0: usize,
        mr: usize,
        out: &mut [f32],
    ) {
        let mut places = [Place::default(); MAX_MR];
        let rows = self.rows().saturating_sub(row0).min(mr);
        for (r, p) in places.iter_mut().enumerate().take(rows) {
            *p = self.place(row0 + r);
        }
        if self.c.is_multiple_of(CHUNK) {
            pack_lines(isa, self, src, &places[..rows], chunk0, mr, out);
        } else {
            pack_ragged(isa, self, src, &places[..rows], chunk0, mr, out);
        }
    }

    /// Writes row `row` of the matrix to `out`, zeros behind its `depth()` columns.
    #[inline(always)]
    pub(super) fn row_into(&self, src: &[f32], place: Place, out: &mut [f32]) {
        let (row, rest) = out.split_at_mut(self.depth());
        for (dst, &tap) in row.chunks_exact_mut(self.c).zip(&self.taps) {
            match self.offset(place, tap) {
                Some(at) => {
                    let from = &src[at..at + self.c];
                    // A loop: a call of memcpy costs more than the three channels of a stem.
                    dst.iter_mut().zip(from).for_each(|(d, s)| *d = *s);
                }
                None => dst.fill(0.0),
            }
        }
        rest.fill(0.0);
    }
}

vectorised! {
    /// Channels are a multiple of a chunk: whole lines are copied.
    fn pack_lines(
        g: &Gather,
        src: &[f32],
        places: &[Place],
        chunk0: usize,
        mr: usize,
        out: &mut [f32],
    ) {
        let per_tap = g.c / CHUNK;
        let (mut chunk, mut out) = (chunk0, out);
        while !out.is_empty() {
            let (tap, first) = (g.taps[chunk / per_tap], chunk % per_tap);
            let count = (per_tap - first).min(out.len() / (mr * CHUNK));
            let (now, later) = out.split_at_mut(count * mr * CHUNK);
            for r in 0..mr {
                let at = places.get(r).and_then(|&p| g.offset(p, tap));
                let lines = now[r * CHUNK..].chunks_mut(mr * CHUNK);
                match at {
                    Some(at) => {
                        let from = &src[at + first * CHUNK..at + (first + count) * CHUNK];
                        for (dst, src) in lines.zip(from.as_chunks::<CHUNK>().0) {
                            dst[..CHUNK].copy_from_slice(src);
                        }
                    }
                    None => lines.for_each(|dst| dst[..CHUNK].copy_from_slice(&[0.0; CHUNK])),
                }
            }
            chunk += count;
            out = later;
        }
    }

    /// Any number of channels: each row is laid out in full, then cut into chunks.
    fn pack_ragged(
        g: &Gather,
        src: &[f32],
        places: &[Place],
        chunk0: usize,
        mr: usize,
        out: &mut [f32],
    ) {
        ROW.with_borrow_mut(|row| {
            row.resize(g.chunks() * CHUNK, 0.0);
            for r in 0..mr {
                match places.get(r) {
                    Some(&p) => g.row_into(src, p, row),
                    None => row.fill(0.0),
                }
                let lines = out[r * CHUNK..].chunks_mut(mr * CHUNK);
                for (dst, src) in lines.zip(row[chunk0 * CHUNK..].as_chunks::<CHUNK>().0) {
                    dst[..CHUNK].copy_from_slice(src);
                }
            }
        });
    }
}

thread_local! {
    /// One row of the matrix, for `pack_ragged`.
    static ROW: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}
