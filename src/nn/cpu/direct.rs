//! Convolution without packing patches: the source laid out in lines of 16 channels with its border.
//!
//! A band of grid rows of one image is copied once, as `[c / 16][phase][row][column][16]`, border
//! included; with a stride s the pixels are sorted into s x s phases, so that neighbours on the grid
//! are neighbours in memory whatever the stride. Then `mr` consecutive positions of any tap are `mr`
//! consecutive lines, which is just what the micro-kernels want: where [`super::product`] copies every
//! pixel once for each tap, here it is copied once. Positions run through the border at the end of
//! each row; what they compute goes to waste, so this pays for wide grids only ([`pays`]).

use std::cell::RefCell;
use std::ops::Range;

use super::gather::Gather;
use super::micro::{BLOCK, BLOCKS, CHUNK, Isa, MAX_MR, Outer, Tile, vectorised};
use super::product::{Panels, Scatter};
use super::weight_grad::{in_splits, splits};
use super::{Buffer, Shared, each};

/// Floats of a band, about: 192 KB.
const BAND_FLOATS: usize = 48 * 1024;
/// Floats of packed weights up to which all of them pass by each tile of positions.
const PANEL_FLOATS: usize = 144 * 1024;

#[derive(Default)]
struct Scratch {
    band: Buffer,
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
    /// Columns of a phase: the grid's and the border's.
    columns: usize,
    /// Rows of a phase beyond the band's.
    extra_rows: usize,
    /// Bands of an image, and the grid rows of each (fewer in the last).
    bands: usize,
    band_rows: usize,
    /// Where chunk i (tap, then channels) of position 0 lies in the band.
    offsets: Vec<usize>,
}

impl Direct {
    /// The layout, where it can be had and pays: whole lines of channels, several taps, and a grid so
    /// wide that the border is little.
    pub fn new(g: &Gather) -> Option<Self> {
        if !g.c.is_multiple_of(CHUNK) || g.taps.len() < 2 || g.rows() == 0 {
            return None;
        }
        let s = g.stride as isize;
        let least = |f: fn(&(isize, isize)) -> isize| g.taps.iter().map(f).min().unwrap_or(0);
        let most = |f: fn(&(isize, isize)) -> isize| g.taps.iter().map(f).max().unwrap_or(0);
        let first = (least(|t| t.0), least(|t| t.1));
        let extra = |span: isize| (span / s) as usize;
        let extra_rows = extra(most(|t| t.0) - first.0);
        let columns = g.grid.1 + extra(most(|t| t.1) - first.1);
        if (columns - g.grid.1) * 7 > g.grid.1 {
            return None;
        }
        let row = columns * g.stride * g.stride * g.c;
        let most_rows = (BAND_FLOATS / row).saturating_sub(extra_rows).clamp(4, g.grid.0.max(4));
        let bands = g.grid.0.div_ceil(most_rows);
        let band_rows = g.grid.0.div_ceil(bands);
        let mut this = Self {
            gather: g.clone(),
            first,
            columns,
            extra_rows,
            bands: g.grid.0.div_ceil(band_rows),
            band_rows,
            offsets: Vec::new(),
        };
        for tap in &g.taps {
            let (ey, ex) = (tap.0 - first.0, tap.1 - first.1);
            let phase = (ey % s * s + ex % s) as usize;
            let at = (ey / s) as usize * columns + (ex / s) as usize;
            let (phases, lines) = (g.stride * g.stride, this.phase_lines());
            let chunk = |cb: usize| ((cb * phases + phase) * lines + at) * CHUNK;
            this.offsets.extend((0..g.c / CHUNK).map(chunk));
        }
        Some(this)
    }

    /// Lines of one phase of one block of channels.
    fn phase_lines(&self) -> usize {
        (self.band_rows + self.extra_rows) * self.columns
    }

    /// Floats of a band, and of what the last positions may read behind it.
    fn band_len(&self) -> (usize, usize) {
        let g = &self.gather;
        let len = self.phase_lines() * g.stride * g.stride * g.c;
        (len, (MAX_MR + self.columns) * CHUNK)
    }

    /// The grid rows of a band.
    fn rows(&self, band: usize) -> Range<usize> {
        band * self.band_rows..((band + 1) * self.band_rows).min(self.gather.grid.0)
    }

    /// Lays out one band of one image; zeros in the border and behind the end.
    fn fill(&self, isa: Isa, src: &[f32], image: usize, band: usize, out: &mut Buffer) {
        let (len, slack) = self.band_len();
        let out = out.get(len + slack);
        out[len..].fill(0.0);
        let (g, s) = (&self.gather, self.gather.stride);
        let (h, w) = g.source;
        let block = self.phase_lines() * s * s * CHUNK;
        for phase in 0..s * s {
            let x0 = self.first.1 + (phase % s) as isize;
            for r in 0..self.band_rows + self.extra_rows {
                let y = ((self.rows(band).start + r) * s + phase / s) as isize + self.first.0;
                let at = (phase * self.phase_lines() + r * self.columns) * CHUNK;
                let inside = (y as usize) < h;
                let row = if inside { (image * h + y as usize) * w } else { 0 };
                let width = if inside { w } else { 0 };
                let src = &src[row * g.c..(row + width) * g.c];
                fill_row(isa, src, g.c, s, x0, self.columns, block, &mut out[at..]);
            }
        }
    }

    /// dst (+)= gathered rows x panels; as [`super::product::product`], whose checks hold.
    pub(super) fn product(
        &self,
        isa: Isa,
        src: &[f32],
        panels: &Panels,
        scatter: &Scatter,
        dst: Shared,
        accumulate: bool,
    ) {
        each(self.gather.n * self.bands, |task| {
            let (image, band) = (task / self.bands, task % self.bands);
            SCRATCH.with_borrow_mut(|s| {
                self.fill(isa, src, image, band, &mut s.band);
                let to = Target { image, band, panels, scatter, dst, accumulate };
                self.band_product(isa, &to, s);
            });
        });
    }

    fn band_product(&self, isa: Isa, to: &Target<'_>, s: &mut Scratch) {
        let mr = isa.mr();
        let positions = self.rows(to.band).len() * self.columns;
        let panels = to.panels.cols().div_ceil(isa.nr());
        let weights = to.panels.cols() * self.offsets.len() * CHUNK;
        let waste = s.waste.get(isa.nr());
        waste.fill(0.0);
        let waste = waste.as_mut_ptr();
        let (len, slack) = self.band_len();
        let band = s.band.filled(len + slack);
        // Weights that the second-level cache holds pass by every tile; larger ones one panel at a time.
        let group = if weights <= PANEL_FLOATS { panels } else { 1 };
        for first in (0..panels).step_by(group) {
            for q in (0..positions).step_by(mr) {
                let rows = self.destinations(q, positions, mr, to, waste);
                for j in first..first + group {
                    let (j0, cols, b) = to.panels.panel(isa, j, 0..self.offsets.len());
                    let rows = rows.map(|r| if r == waste { r } else { r.wrapping_add(j0) });
                    let tile = Tile {
                        chunks: self.offsets.len(),
                        a: band[q * CHUNK..].as_ptr(),
                        offsets: self.offsets.as_ptr(),
                        b: b.as_ptr(),
                        rows: rows.as_ptr(),
                        n_rows: mr,
                        cols,
                        accumulate: to.accumulate,
                    };
                    // SAFETY: position q + mr - 1 of the last chunk ends at most MAX_MR + columns
                    // lines behind the band, which `fill` has; `b` is a whole panel. The rows are
                    // pixels of this band, which this task alone writes, or this thread's waste.
                    unsafe { isa.tile(&tile) };
                }
            }
        }
    }

    /// Destinations of `mr` positions from `q` on; the border's go to waste.
    fn destinations(
        &self,
        q: usize,
        positions: usize,
        mr: usize,
        to: &Target<'_>,
        waste: *mut f32,
    ) -> [*mut f32; MAX_MR] {
        let (s, width) = (to.scatter, self.gather.grid.1);
        let first_row = self.rows(to.band).start;
        let (mut y, mut x) = (q / self.columns, q % self.columns);
        let mut out = [waste; MAX_MR];
        for (q, out) in (q..positions.min(q + mr)).zip(&mut out) {
            debug_assert_eq!(q, y * self.columns + x);
            if x < width {
                let py = (first_row + y) * s.stride + s.origin.0;
                let px = x * s.stride + s.origin.1;
                let pixel = (to.image * s.size.0 + py) * s.size.1 + px;
                *out = to.dst.at(pixel * to.panels.cols());
            }
            x += 1;
            if x == self.columns {
                (x, y) = (0, y + 1);
            }
        }
        out
    }

    /// Overwrites `dw`, `[o][depth]`; as [`super::weight_grad::weight_grad`], whose checks hold.
    pub(super) fn weight_grad(&self, isa: Isa, src: &[f32], dy: &[f32], o: usize, dw: &mut [f32]) {
        let g = &self.gather;
        let splits = splits(g.rows(), dw.len()).min(g.n);
        let triples = self.triples();
        let groups = rayon::current_num_threads().div_ceil(splits).min(triples.len());
        let len = dw.len();
        in_splits(splits, dw, |target| {
            each(splits * groups, |task| {
                let (split, group) = (task / groups, task % groups);
                let images = split * g.n / splits..(split + 1) * g.n / splits;
                let mine = group * triples.len() / groups..(group + 1) * triples.len() / groups;
                let dw = target.at(split * len);
                SCRATCH.with_borrow_mut(|s| {
                    for (image, band) in
                        images.clone().flat_map(|n| (0..self.bands).map(move |b| (n, b)))
                    {
                        self.fill(isa, src, image, band, &mut s.band);
                        self.pack_dy(isa, dy, o, image, band, &mut s.dy);
                        let accumulate = image > images.start || band > 0;
                        self.band_grad(isa, &triples[mine.clone()], band, o, accumulate, s, dw);
                    }
                });
            });
        });
    }

    /// The chunks, by threes of one block of channels: the taps of a row of a 3x3 kernel share lines.
    fn triples(&self) -> Vec<Vec<usize>> {
        let per_tap = self.gather.c / CHUNK;
        let taps: Vec<usize> = (0..self.gather.taps.len()).collect();
        let of = |cb: usize| {
            taps.chunks(BLOCKS).map(move |t| t.iter().map(|t| t * per_tap + cb).collect())
        };
        (0..per_tap).flat_map(of).collect()
    }

    /// dY of a band as panels `[position][outer_mr]`, zeros in the border.
    fn pack_dy(&self, isa: Isa, dy: &[f32], o: usize, image: usize, band: usize, out: &mut Buffer) {
        let (mr, rows) = (isa.outer_mr(), self.rows(band));
        let (gh, gw) = self.gather.grid;
        let positions = rows.len() * self.columns;
        let packed = out.get(o.div_ceil(mr) * positions * mr);
        for (i, panel) in packed.chunks_exact_mut(positions * mr).enumerate() {
            let used = mr.min(o - i * mr);
            for (y, panel) in rows.clone().zip(panel.chunks_exact_mut(self.columns * mr)) {
                let row = &dy[(image * gh + y) * gw * o..][..gw * o];
                let (inside, border) = panel.split_at_mut(gw * mr);
                copy_part(isa, &row[i * mr..], o, used, mr, inside);
                border.fill(0.0);
            }
        }
    }

    fn band_grad(
        &self,
        isa: Isa,
        triples: &[Vec<usize>],
        band: usize,
        o: usize,
        accumulate: bool,
        s: &Scratch,
        dw: *mut f32,
    ) {
        let (mr, depth) = (isa.outer_mr(), self.gather.depth());
        let positions = self.rows(band).len() * self.columns;
        let dy = s.dy.filled(o.div_ceil(mr) * positions * mr);
        let (len, slack) = self.band_len();
        let lines = s.band.filled(len + slack);
        for chunks in triples {
            let chunk = |i: usize| chunks[i.min(chunks.len() - 1)];
            for (i, a) in dy.chunks_exact(positions * mr).enumerate() {
                let row = dw.wrapping_add(i * mr * depth);
                let outer = Outer {
                    count: positions,
                    a: a.as_ptr(),
                    b: std::array::from_fn(|b| lines[self.offsets[chunk(b)]..].as_ptr()),
                    b_stride: CHUNK,
                    c: std::array::from_fn(|b| row.wrapping_add(chunk(b) * CHUNK)),
                    cols: [BLOCK; BLOCKS],
                    blocks: chunks.len(),
                    stride: depth,
                    n_rows: mr.min(o - i * mr),
                    accumulate,
                };
                // SAFETY: the last position of the last chunk lies at most `columns` lines behind the
                // band, which `fill` has; `a` is a whole panel; c stays inside `[o][depth]`, in
                // columns of this task's triples, which it alone writes.
                unsafe { isa.outer(&outer) };
            }
        }
    }
}

/// Where a band's product goes.
struct Target<'a> {
    image: usize,
    band: usize,
    panels: &'a Panels,
    scatter: &'a Scatter,
    dst: Shared,
    accumulate: bool,
}

vectorised! {
    /// One row of one phase: pixels x0, x0 + stride, .. of `src`, block b of channels `block * b` in.
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

    /// `used` of every `from` floats of `src` to every `to` of `out`, zeros behind them.
    fn copy_part(src: &[f32], from: usize, used: usize, to: usize, out: &mut [f32]) {
        for (out, src) in out.chunks_exact_mut(to).zip(src.chunks(from)) {
            if let (Ok(out), Some(src)) = (<&mut [f32; 8]>::try_from(&mut *out), src.first_chunk())
                && used == 8
            {
                *out = *src;
                continue;
            }
            out[..used].copy_from_slice(&src[..used]);
            out[used..].fill(0.0);
        }
    }
}
