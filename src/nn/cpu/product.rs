//! The blocked product: gathered rows (A, packed on the fly) x packed panels (B), scattered to
//! pixels.
//!
//! Blocks: k is cut so that a B panel stays in the first-level cache while the A panels of a tile
//! of rows, which stay in the second, pass by. Each element of the result is summed in one order,
//! over k blocks that depend on the depth alone, so neither tiles nor threads show in it.

use std::cell::RefCell;
use std::ops::Range;

use super::gather::Gather;
use super::micro::{CHUNK, Isa, MAX_MR, Tile};
use super::{Buffer, Shared, each, elements};

/// Most chunks of k in a block: 20 x 16 x 32 columns are 40 KB.
const K_CHUNKS: usize = 20;
/// Floats of A that a tile packs at once: 256 KB.
const TILE_FLOATS: usize = 64 * 1024;

/// Packed operand B: panels of `Isa::nr` columns (the last may be narrower), `[k][width]` each.
#[derive(Default)]
pub struct Panels {
    data: Buffer,
    cols: usize,
    chunks: usize,
}

/// Where row m of the result goes: grid position (y, x) to pixel (y * stride + oy, x * stride +
/// ox).
#[derive(Clone, Debug)]
pub struct Scatter {
    /// Destination height and width.
    pub size: (usize, usize),
    /// Destination pixels from one grid position to the next.
    pub stride: usize,
    /// Destination pixel of grid position (0, 0).
    pub origin: (usize, usize),
}

impl Panels {
    /// Packs the transpose of `w`, `[cols][runs][run]`: `B[k][j] = w[j][k]`, each run filled up to
    /// whole chunks.
    ///
    /// A column's 16 k of a chunk at a time: one line of `w`, read once. The other order, k by k
    /// over a panel's columns, comes back to each of 32 lines 16 times, and where columns lie a
    /// power of two apart they all want the same few places in the first-level cache.
    pub fn pack_transposed(&mut self, isa: Isa, w: &[f32], cols: usize, runs: usize, run: usize) {
        let in_run = run.div_ceil(CHUNK);
        self.fill(isa, cols, runs * in_run, |chunk, columns, width, block| {
            let (r, i) = (chunk / in_run, chunk % in_run * CHUNK);
            let len = CHUNK.min(run - i);
            if len < CHUNK || columns.len() < width {
                block.fill(0.0);
            }
            for (j, column) in columns.enumerate() {
                let at = (column * runs + r) * run + i;
                for (line, v) in block.chunks_exact_mut(width).zip(&w[at..at + len]) {
                    line[j] = *v;
                }
            }
        });
    }

    /// Packs, for an input gradient, the chosen `taps` of `w`, `[o][kernel][i]`: row (t, o) of B is
    /// `w[o][taps[t]]`.
    pub fn pack_taps(
        &mut self,
        isa: Isa,
        w: &[f32],
        (o, kernel, i): (usize, usize, usize),
        taps: &[usize],
    ) {
        let depth = taps.len() * o;
        self.fill(isa, i, depth.div_ceil(CHUNK), |chunk, columns, width, block| {
            for (k, line) in (chunk * CHUNK..).zip(block.chunks_exact_mut(width)) {
                let (values, rest) = line.split_at_mut(if k < depth { columns.len() } else { 0 });
                if k < depth {
                    let at = (k % o * kernel + taps[k / o]) * i + columns.start;
                    values.copy_from_slice(&w[at..at + values.len()]);
                }
                rest.fill(0.0);
            }
        });
    }

    /// Makes panels of `to` taps from another's of `from` taps: `f` gets all taps of a panel, one
    /// after the other, and a place for those it makes.
    pub(super) fn derive(
        &mut self,
        isa: Isa,
        other: &Panels,
        (from, to): (usize, usize),
        f: impl Fn(&[f32], &mut [f32]) + Sync + Send,
    ) {
        let chunks = other.chunks / from * to;
        (self.cols, self.chunks) = (other.cols, chunks);
        let panels = self.cols.div_ceil(isa.nr());
        let last = isa.width(self.cols - (panels - 1) * isa.nr());
        let width = (panels - 1) * isa.nr() + last;
        let data = Shared(self.data.get(width * chunks * CHUNK).as_mut_ptr());
        each(panels, |j| {
            let (j0, cols, taps) = other.panel(isa, j, 0..other.chunks);
            let len = chunks * CHUNK * isa.width(cols);
            // SAFETY: as in `fill`, panel j begins where those before it, all `nr` wide, end.
            let made = unsafe { std::slice::from_raw_parts_mut(data.at(j0 * chunks * CHUNK), len) };
            f(taps, made);
        });
    }

    /// Chunks of k.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Columns.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Panel `j`: its first column, its number of columns, and lines of its chunks.
    pub(super) fn panel(&self, isa: Isa, j: usize, chunks: Range<usize>) -> (usize, usize, &[f32]) {
        let (j0, cols) = (j * isa.nr(), isa.nr().min(self.cols - j * isa.nr()));
        let line = CHUNK * isa.width(cols);
        let at = j0 * self.chunks * CHUNK + chunks.start * line;
        let end = at + chunks.len() * line;
        (j0, cols, &self.data.filled(end)[at..end])
    }

    /// Makes panels of `chunks` chunks over `cols` columns. `f` writes one chunk of a panel, all of
    /// it: it gets the chunk, the panel's columns, the width that they are filled up to, and
    /// `[CHUNK][width]`.
    fn fill(
        &mut self,
        isa: Isa,
        cols: usize,
        chunks: usize,
        f: impl Fn(usize, Range<usize>, usize, &mut [f32]) + Sync + Send,
    ) {
        let nr = isa.nr();
        let panels = cols.div_ceil(nr);
        let last = isa.width(cols - (panels - 1) * nr);
        let len = ((panels - 1) * nr + last) * chunks * CHUNK;
        let data = Shared(self.data.get(len).as_mut_ptr());
        (self.cols, self.chunks) = (cols, chunks);
        each(panels, |p| {
            let (j0, used) = (p * nr, nr.min(cols - p * nr));
            let width = isa.width(used);
            // SAFETY: panel p is `chunks * CHUNK` lines of `width` from `j0 * chunks * CHUNK` on;
            // all panels before it are `nr` wide, so they end there.
            let panel = unsafe {
                let at = data.at(j0 * chunks * CHUNK);
                std::slice::from_raw_parts_mut(at, chunks * CHUNK * width)
            };
            for (chunk, block) in panel.chunks_exact_mut(CHUNK * width).enumerate() {
                f(chunk, j0..j0 + used, width, block);
            }
        });
    }
}

thread_local! {
    static PACKED_A: RefCell<Buffer> = RefCell::new(Buffer::default());
    static ROWS: RefCell<Vec<*mut f32>> = const { RefCell::new(Vec::new()) };
    static OFFSETS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The fixed part of a product, shared by its tasks.
struct Product<'a> {
    isa: Isa,
    gather: &'a Gather,
    src: &'a [f32],
    panels: &'a Panels,
    scatter: &'a Scatter,
    dst: Shared,
    accumulate: bool,
}

/// dst (+)= gathered rows x panels. `dst` is NHWC with as many channels as the panels have columns.
///
/// # Panics
/// When the panels' depth is not the gather's or a slice is too short.
pub fn product(
    isa: Isa,
    gather: &Gather,
    src: &[f32],
    panels: &Panels,
    scatter: &Scatter,
    dst: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(panels.chunks, gather.chunks(), "panels packed for another depth");
    let (source, size) = (gather.source, scatter.size);
    assert!(src.len() >= elements(&[gather.n, source.0, source.1, gather.c]));
    assert!(dst.len() >= elements(&[gather.n, size.0, size.1, panels.cols]));
    let (gh, gw) = gather.grid;
    if gather.rows() == 0 {
        return;
    }
    let last = |grid: usize, origin: usize| {
        (grid - 1).checked_mul(scatter.stride).and_then(|last| last.checked_add(origin))
    };
    assert!(last(gh, scatter.origin.0).is_some_and(|last| last < size.0));
    assert!(last(gw, scatter.origin.1).is_some_and(|last| last < size.1));
    let this =
        Product { isa, gather, src, panels, scatter, dst: Shared(dst.as_mut_ptr()), accumulate };
    let (tile, column_groups) = this.partition(rayon::current_num_threads());
    let row_panels = gather.rows().div_ceil(isa.mr());
    let tiles = row_panels.div_ceil(tile);
    each(tiles * column_groups, |task| {
        let (t, g) = (task / column_groups, task % column_groups);
        this.tile(t * tile..((t + 1) * tile).min(row_panels), g, column_groups);
    });
}

/// Chunks of k in a block: a function of the depth alone, for it shows in the rounding.
fn k_block(chunks: usize) -> usize {
    chunks.div_ceil(chunks.div_ceil(K_CHUNKS))
}

impl Product<'_> {
    /// Row panels in a tile and groups of columns; free to depend on the number of threads.
    fn partition(&self, threads: usize) -> (usize, usize) {
        let (mr, block) = (self.isa.mr(), k_block(self.panels.chunks));
        let row_panels = self.gather.rows().div_ceil(mr);
        let most = (TILE_FLOATS / (mr * block * CHUNK)).max(1);
        // As many tiles as a whole number of rounds over the threads, when there are few.
        let tiles = row_panels.div_ceil(most).next_multiple_of(threads).min(row_panels);
        let column_panels = self.panels.cols.div_ceil(self.isa.nr());
        let groups = if tiles < threads { threads.div_ceil(tiles).min(column_panels) } else { 1 };
        (row_panels.div_ceil(tiles), groups)
    }

    fn tile(&self, row_panels: Range<usize>, group: usize, groups: usize) {
        let (isa, mr) = (self.isa, self.isa.mr());
        let rows = row_panels.start * mr..(row_panels.end * mr).min(self.gather.rows());
        let block = k_block(self.panels.chunks);
        let column_panels = self.panels.cols.div_ceil(isa.nr());
        let columns = group * column_panels / groups..(group + 1) * column_panels / groups;
        PACKED_A.with_borrow_mut(|packed| {
            ROWS.with_borrow_mut(|destinations| {
                self.destinations(rows.clone(), destinations);
                OFFSETS.with_borrow_mut(|offsets| {
                    offsets.clear();
                    offsets.extend((0..block).map(|chunk| chunk * mr * CHUNK));
                });
                for chunk0 in (0..self.panels.chunks).step_by(block) {
                    let chunks = block.min(self.panels.chunks - chunk0);
                    let panel_len = chunks * mr * CHUNK;
                    let packed = packed.get(row_panels.len() * panel_len);
                    for (i, panel) in packed.chunks_exact_mut(panel_len).enumerate() {
                        self.gather.pack(isa, self.src, rows.start + i * mr, chunk0, mr, panel);
                    }
                    for column in columns.clone() {
                        self.column(column, chunk0, chunks, packed, destinations);
                    }
                }
            });
        });
    }

    /// One B panel against all packed A panels of a tile.
    fn column(&self, j: usize, chunk0: usize, chunks: usize, packed: &[f32], rows: &[*mut f32]) {
        let (isa, mr) = (self.isa, self.isa.mr());
        let (j0, cols, b) = self.panels.panel(isa, j, chunk0..chunk0 + chunks);
        let offsets = OFFSETS.take();
        for (a, rows) in packed.chunks_exact(chunks * mr * CHUNK).zip(rows.chunks(mr)) {
            let mut out = [std::ptr::null_mut(); MAX_MR];
            for (o, row) in out.iter_mut().zip(rows) {
                *o = row.wrapping_add(j0);
            }
            let tile = Tile {
                chunks,
                a: a.as_ptr(),
                offsets: offsets.as_ptr(),
                b: b.as_ptr(),
                rows: out.as_ptr(),
                n_rows: rows.len(),
                cols,
                accumulate: self.accumulate || chunk0 > 0,
            };
            // SAFETY: `a` and `b` are slices of the stated extents. The rows are distinct pixels of
            // `dst` (`product` checked its length and that the grid lies inside), columns j0 .. j0
            // + cols of them are written by this task alone, tasks differing in rows or columns.
            unsafe { isa.tile(&tile) };
        }
        OFFSETS.set(offsets);
    }

    /// The pixels that the rows of a tile go to.
    fn destinations(&self, rows: Range<usize>, out: &mut Vec<*mut f32>) {
        let (gh, gw) = self.gather.grid;
        let s = self.scatter;
        out.clear();
        out.extend(rows.map(|m| {
            let (image, y, x) = (m / (gh * gw), m / gw % gh, m % gw);
            let (y, x) = (y * s.stride + s.origin.0, x * s.stride + s.origin.1);
            self.dst.at(((image * s.size.0 + y) * s.size.1 + x) * self.panels.cols)
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths and runs that fill neither panels nor chunks, in a buffer that held something else.
    #[test]
    fn packed_panels_are_the_transpose_with_zeros_around_it() {
        for isa in Isa::all() {
            let mut panels = Panels::default();
            panels.pack_transposed(isa, &vec![f32::NAN; 80 * 96], 80, 2, 48);
            for (cols, runs, run) in [(1, 1, 1), (16, 3, 16), (33, 9, 3), (40, 2, 17), (70, 1, 40)]
            {
                let w: Vec<f32> = (1..=cols * runs * run).map(|v| v as f32).collect();
                panels.pack_transposed(isa, &w, cols, runs, run);
                let padded = run.next_multiple_of(CHUNK);
                assert_eq!(panels.chunks(), runs * padded / CHUNK);
                for p in 0..cols.div_ceil(isa.nr()) {
                    let (j0, used, found) = panels.panel(isa, p, 0..panels.chunks());
                    let width = isa.width(used);
                    assert_eq!(found.len(), runs * padded * width);
                    for (at, found) in found.iter().enumerate() {
                        let (k, j) = (at / width, at % width);
                        let (r, i) = (k / padded, k % padded);
                        let there = j < used && i < run;
                        let wanted = if there { w[((j0 + j) * runs + r) * run + i] } else { 0.0 };
                        assert_eq!(
                            *found, wanted,
                            "{isa:?}, {cols} x {runs} x {run}: {k}, {j0} + {j}"
                        );
                    }
                }
            }
        }
    }
}
