//! Weight gradients from bands.

use std::cell::RefCell;

use super::{Direct, SCRATCH, Scratch};
use crate::nn::cpu::micro::{BLOCKS, CHUNK, Isa, Outer, vectorised};
use crate::nn::cpu::weight_grad::{in_splits, splits};
use crate::nn::cpu::{Buffer, each, each_mut};

thread_local! {
    /// Bands that several tasks sum.
    static ROUND: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}

impl Direct {
    /// Overwrites `dw`, `[o][depth]`; as [`super::weight_grad::weight_grad`], whose checks hold.
    pub(in crate::nn::cpu) fn weight_grad(
        &self,
        isa: Isa,
        src: &[f32],
        dy: &[f32],
        o: usize,
        dw: &mut [f32],
    ) {
        let g = &self.gather;
        let splits = splits(g.rows(), dw.len()).min(g.n);
        let triples = &self.triples;
        let groups = rayon::current_num_threads().div_ceil(splits).min(triples.len());
        let len = dw.len();
        // The bands of all images, one after the other, of which each split has those of some.
        let bands = |split: usize| {
            split * g.n / splits * self.bands..(split + 1) * g.n / splits * self.bands
        };
        let lay_out = |band: usize, s: &mut Scratch| {
            let (image, band) = (band / self.bands, band % self.bands);
            self.fill(isa, src, image, band, s);
            self.pack_dy(isa, dy, o, image, band, &mut s.dy);
        };
        let add = |triples: &[Vec<usize>], band: usize, first: usize, s: &Scratch, dw: *mut f32| {
            self.band_grad(isa, triples, band % self.bands, o, band > first, s, dw);
        };
        in_splits(splits, dw, |target| {
            if groups == 1 {
                return each(splits, |split| {
                    SCRATCH.with_borrow_mut(|s| {
                        for band in bands(split) {
                            lay_out(band, s);
                            add(triples, band, bands(split).start, s, target.at(split * len));
                        }
                    });
                });
            }
            // Fewer splits than threads: in rounds some bands are laid out, then tasks with some of
            // the triples each sum them, so that no two lay out the same. Taken, not borrowed: while
            // it waits, a rayon thread may run another weight's gradient.
            let longest = g.n.div_ceil(splits) * self.bands;
            let depth = rayon::current_num_threads().div_ceil(splits).min(longest);
            let mut round = ROUND.take();
            round.resize_with(round.len().max(splits * depth), Scratch::default);
            for first in (0..longest).step_by(depth) {
                let band = |split: usize, nth: usize| bands(split).nth(first + nth);
                each_mut(&mut round[..splits * depth], |i, s| {
                    if let Some(band) = band(i / depth, i % depth) {
                        lay_out(band, s);
                    }
                });
                each(splits * groups, |task| {
                    let (split, group) = (task / groups, task % groups);
                    let mine = group * triples.len() / groups..(group + 1) * triples.len() / groups;
                    let laid_out = (0..depth).filter_map(|nth| Some((nth, band(split, nth)?)));
                    for (nth, band) in laid_out {
                        let (s, dw) = (&round[split * depth + nth], target.at(split * len));
                        add(&triples[mine.clone()], band, bands(split).start, s, dw);
                    }
                });
            }
            ROUND.set(round);
        });
    }

    /// [`Direct::triples`].
    pub(super) fn by_threes(&self) -> Vec<Vec<usize>> {
        let per_tap = self.lines();
        let taps: Vec<usize> = (0..self.runs().0).collect();
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
            // A chunk's column of dW, and how many of its 16 are there.
            let column = |i: usize| {
                let (tap, line) = (chunk(i) / self.lines(), chunk(i) % self.lines());
                (tap * self.run + line * CHUNK, CHUNK.min(self.run - line * CHUNK))
            };
            for (i, a) in dy.chunks_exact(positions * mr).enumerate() {
                let row = dw.wrapping_add(i * mr * depth);
                let outer = Outer {
                    count: positions,
                    a: a.as_ptr(),
                    b: std::array::from_fn(|b| lines[self.offsets[chunk(b)]..].as_ptr()),
                    b_stride: CHUNK,
                    c: std::array::from_fn(|b| row.wrapping_add(column(b).0)),
                    cols: std::array::from_fn(|b| column(b).1),
                    blocks: chunks.len(),
                    stride: depth,
                    n_rows: mr.min(o - i * mr),
                    accumulate,
                };
                // SAFETY: the last position of the last chunk lies at most `columns` lines behind
                // the band, which `fill` has; `a` is a whole panel; c stays inside `[o][depth]`, in
                // columns of this task's triples, which it alone writes.
                unsafe { isa.outer(&outer) };
            }
        }
    }
}

vectorised! {
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
