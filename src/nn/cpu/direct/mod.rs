//! Convolution without packing patches: the source laid out in lines of 16 channels with its
//! border.
//!
//! A band of grid rows of one image is copied once, as `[c / 16][phase][row][column][16]`, border
//! included; with a stride s the pixels are sorted into s x s phases, so that neighbours on the
//! grid are neighbours in memory whatever the stride. Then `mr` consecutive positions of any tap
//! are `mr` consecutive lines, which is just what the micro-kernels want: where [`super::product`]
//! copies every pixel once for each tap, here it is copied once. Positions run through the border
//! at the end of each row; what they compute goes to waste, so this pays for wide grids only.
//!
//! A stem's three channels do not fill a line. There a line holds a whole row of the kernel
//! instead, which is contiguous in the source: 9 floats of a 3x3, 21 of a 7x7 (two lines). Each is
//! then one tap for a row of the kernel, and a row has no border.

mod product;
mod weight_grad;

use std::cell::RefCell;
use std::ops::Range;

use super::Buffer;
use super::gather::Gather;
use super::micro::{CHUNK, Isa, MAX_MR, vectorised};
pub(super) use product::Part;

/// Floats of a band, about: 192 KB.
const BAND_FLOATS: usize = 48 * 1024;
#[derive(Default)]
struct Scratch {
    band: Buffer,
    row: Buffer,
    dy: Buffer,
    waste: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// The layout of a gather's bands.
#[derive(Clone, Debug)]
pub struct Direct {
    gather: Gather,
    /// Least dy and dx of the taps.
    first: (isize, isize),
    /// Whether a tap is a whole row of the kernel.
    by_rows: bool,
    /// Floats of a tap: channels, or of a row of the kernel.
    run: usize,
    /// Phases of rows and of columns.
    phases: (usize, usize),
    /// Columns of a phase: the grid's and the border's.
    columns: usize,
    /// Rows of a phase beyond the band's.
    extra_rows: usize,
    /// Bands of an image, and the grid rows of each (fewer in the last).
    bands: usize,
    band_rows: usize,
    /// Where each chunk (tap, then lines of its run) of position 0 lies in the band.
    offsets: Vec<usize>,
    /// The chunks, by threes of one line of the taps: the taps of a row of a 3x3 kernel share
    /// lines.
    triples: Vec<Vec<usize>>,
}

impl Direct {
    /// The layout, where it can be had and pays: several taps, and a grid so wide that the border
    /// is little. `kernel_width` allows taps that are rows of the kernel, for taps in row-major
    /// order.
    pub fn new(g: &Gather, kernel_width: Option<usize>) -> Option<Self> {
        let by_rows = !g.c.is_multiple_of(CHUNK);
        let width = if by_rows { kernel_width? } else { 1 };
        if g.taps.len() < 2 || g.rows() == 0 || (by_rows && width * g.c < CHUNK / 2) {
            return None;
        }
        let least = |f: fn(&(isize, isize)) -> isize| g.taps.iter().map(f).min().unwrap_or(0);
        let most = |f: fn(&(isize, isize)) -> isize| g.taps.iter().map(f).max().unwrap_or(0);
        let first = (least(|t| t.0), least(|t| t.1));
        let extra = |span: isize| span as usize / g.stride;
        let extra_rows = extra(most(|t| t.0) - first.0);
        let border = if by_rows { 0 } else { extra(most(|t| t.1) - first.1) };
        if border * 7 > g.grid.1 {
            return None;
        }
        let run = width * g.c;
        let phases = (g.stride, if by_rows { 1 } else { g.stride });
        let columns = g.grid.1 + border;
        let row = columns * phases.0 * phases.1 * run.next_multiple_of(CHUNK);
        let most_rows = (BAND_FLOATS / row).saturating_sub(extra_rows).clamp(4, g.grid.0.max(4));
        let band_rows = g.grid.0.div_ceil(g.grid.0.div_ceil(most_rows));
        let bands = g.grid.0.div_ceil(band_rows);
        let gather = g.clone();
        let mut this = Self {
            gather,
            first,
            by_rows,
            run,
            phases,
            columns,
            extra_rows,
            bands,
            band_rows,
            offsets: Vec::new(),
            triples: Vec::new(),
        };
        this.offsets = g.taps.iter().step_by(width).flat_map(|&tap| this.chunks_of(tap)).collect();
        this.triples = this.by_threes();
        Some(this)
    }

    /// Lines of a tap.
    fn lines(&self) -> usize {
        self.run.div_ceil(CHUNK)
    }

    /// Chunks of all taps.
    pub(super) fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Number and length of the runs: what the panels of weights have to be packed for.
    pub(super) fn runs(&self) -> (usize, usize) {
        (self.offsets.len() / self.lines(), self.run)
    }

    /// Where the chunks of a tap begin in the band.
    pub(super) fn chunks_of(&self, tap: (isize, isize)) -> Vec<usize> {
        let (ey, ex) = ((tap.0 - self.first.0) as usize, (tap.1 - self.first.1) as usize);
        let (sy, sx) = self.phases;
        let phase = ey % sy * sx + ex % sx;
        let at = phase * self.phase_lines() + ey / sy * self.columns + ex / sx;
        let block = sy * sx * self.phase_lines();
        (0..self.lines()).map(|line| (line * block + at) * CHUNK).collect()
    }

    /// Lines of one phase of one line of the taps.
    fn phase_lines(&self) -> usize {
        (self.band_rows + self.extra_rows) * self.columns
    }

    /// Floats of a band, and of what the last positions may read behind it.
    fn band_len(&self) -> (usize, usize) {
        let len = self.phase_lines() * self.phases.0 * self.phases.1 * self.lines() * CHUNK;
        (len, (MAX_MR + self.columns) * CHUNK)
    }

    /// The grid rows of a band.
    fn rows(&self, band: usize) -> Range<usize> {
        band * self.band_rows..((band + 1) * self.band_rows).min(self.gather.grid.0)
    }

    /// Lays out one band of one image; zeros in the border and behind the end.
    fn fill(&self, isa: Isa, src: &[f32], image: usize, band: usize, s: &mut Scratch) {
        let (len, slack) = self.band_len();
        let out = s.band.get(len + slack);
        out[len..].fill(0.0);
        let (g, (sy, sx)) = (&self.gather, self.phases);
        let (h, w) = g.source;
        let block = self.phase_lines() * sy * sx * CHUNK;
        for (py, r) in
            (0..sy).flat_map(|p| (0..self.band_rows + self.extra_rows).map(move |r| (p, r)))
        {
            let y = ((self.rows(band).start + r) * sy + py) as isize + self.first.0;
            let inside = (y as usize) < h;
            let row = if inside { (image * h + y as usize) * w } else { 0 };
            let width = if inside { w } else { 0 };
            let src = &src[row * g.c..(row + width) * g.c];
            for px in 0..sx {
                let at = ((py * sx + px) * self.phase_lines() + r * self.columns) * CHUNK;
                if self.by_rows {
                    self.fill_runs(isa, src, block, &mut s.row, &mut out[at..]);
                } else {
                    let x0 = self.first.1 + px as isize;
                    fill_row(isa, src, g.c, sx, x0, self.columns, block, &mut out[at..]);
                }
            }
        }
    }

    /// One row of runs. Behind a run its last line has what follows in the source; weights are zero
    /// there, and gradients are not stored.
    fn fill_runs(&self, isa: Isa, src: &[f32], block: usize, row: &mut Buffer, out: &mut [f32]) {
        let (c, lines) = (self.gather.c, self.lines());
        let step = self.gather.stride * c;
        let needed = (self.columns - 1) * step + lines * CHUNK;
        let (before, skip) =
            ((-self.first.1).max(0) as usize * c, self.first.1.max(0) as usize * c);
        let row = row.get(needed.max(before + src.len()));
        let src = &src[skip.min(src.len())..];
        row[..before].fill(0.0);
        row[before..before + src.len()].copy_from_slice(src);
        row[before + src.len()..].fill(0.0);
        copy_runs(isa, row, step, lines, self.columns, block, out);
    }
}

vectorised! {
    /// One row of one phase: pixels x0, x0 + stride, .. of `src`, block b of channels `block * b`
    /// in.
    fn fill_row(
        src: &[f32],
        c: usize,
        stride: usize,
        x0: isize,
        columns: usize,
        block: usize,
        out: &mut [f32],
    ) {
        for column in 0..columns {
            let x = x0 + (column * stride) as isize;
            let at = (x as usize).wrapping_mul(c);
            let pixel = if x >= 0 && at < src.len() { &src[at..at + c] } else { &[] };
            for cb in 0..c / CHUNK {
                let to = cb * block + column * CHUNK;
                let line: &mut [f32; CHUNK] = out[to..].first_chunk_mut().expect("whole lines");
                *line = match pixel.get(cb * CHUNK..).and_then(|p| p.first_chunk()) {
                    Some(from) => *from,
                    None => [0.0; CHUNK],
                };
            }
        }
    }

    /// `lines` lines from every `step` floats of `row` on, line b `block * b` in.
    fn copy_runs(
        row: &[f32],
        step: usize,
        lines: usize,
        columns: usize,
        block: usize,
        out: &mut [f32],
    ) {
        for column in 0..columns {
            let run = &row[column * step..][..lines * CHUNK];
            for (b, line) in run.as_chunks::<CHUNK>().0.iter().enumerate() {
                out[b * block + column * CHUNK..][..CHUNK].copy_from_slice(line);
            }
        }
    }
}
