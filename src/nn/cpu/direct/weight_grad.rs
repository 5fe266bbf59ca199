//! Weight gradients from bands.

use std::cell::RefCell;
use std::ops::Range;

use super::{Direct, SCRATCH, Scratch};
use crate::nn::cpu::micro::{BLOCKS, CHUNK, Isa, Outer, vectorised};
use crate::nn::cpu::weight_grad::{in_splits, splits};
use crate::nn::cpu::{Buffer, Shared, each, each_mut};

thread_local! {
    /// Bands that several tasks sum.
    static ROUND: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}

/// What is summed: the source's pixels times dY, of `o` channels, in splits of the images.
struct Sum<'a> {
    isa: Isa,
    src: &'a [f32],
    dy: &'a [f32],
    o: usize,
    splits: usize,
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
        let splits = splits(self.gather.rows(), dw.len()).min(self.gather.n);
        let groups = rayon::current_num_threads().div_ceil(splits).min(self.triples.len());
        let (sum, len) = (Sum { isa, src, dy, o, splits }, dw.len());
        in_splits(splits, dw, |target| match groups == 1 || rayon::current_num_threads() == 2 {
            true => each(splits * groups, |task| {
                let (split, group) = (task / groups, task % groups);
                self.part(&sum, split, self.share(group, groups), target.at(split * len));
            }),
            false => self.rounds(&sum, groups, len, target),
        });
    }

    /// The triples of task number `group` of `groups`.
    fn share(&self, group: usize, groups: usize) -> &[Vec<usize>] {
        let triples = self.triples.len();
        &self.triples[group * triples / groups..(group + 1) * triples / groups]
    }

    /// Some triples of one split by one task, which lays out what it sums.
    fn part(&self, sum: &Sum, split: usize, triples: &[Vec<usize>], dw: *mut f32) {
        SCRATCH.with_borrow_mut(|s| {
            let bands = self.bands_of(sum, split);
            for band in bands.clone() {
                self.lay_out(sum, band, s);
                self.band_grad(sum, triples, band, band > bands.start, s, dw);
            }
        });
    }

    /// Far fewer splits than threads: some bands are laid out, then summed by `groups` tasks for each
    /// split, which have some of the triples each, and so on, so that no two lay out the same.
    fn rounds(&self, sum: &Sum, groups: usize, len: usize, target: Shared) {
        let splits = sum.splits;
        let longest = self.gather.n.div_ceil(splits) * self.bands;
        let depth = rayon::current_num_threads().div_ceil(splits).min(longest);
        // Taken, not borrowed: while it waits, a rayon thread may run another weight's gradient.
        let mut round = ROUND.take();
        round.resize_with(round.len().max(splits * depth), Scratch::default);
        for first in (0..longest).step_by(depth) {
            let band = |split: usize, nth: usize| self.bands_of(sum, split).nth(first + nth);
            each_mut(&mut round[..splits * depth], |i, s| {
                if let Some(band) = band(i / depth, i % depth) {
                    self.lay_out(sum, band, s);
                }
            });
            each(splits * groups, |task| {
                let (split, group) = (task / groups, task % groups);
                let mine = self.share(group, groups);
                for (nth, s) in round[split * depth..][..depth].iter().enumerate() {
                    let Some(band) = band(split, nth) else { break };
                    self.band_grad(sum, mine, band, first + nth > 0, s, target.at(split * len));
                }
            });
        }
        ROUND.set(round);
    }

    /// The bands of a split's images, of those of all images one after the other.
    fn bands_of(&self, sum: &Sum, split: usize) -> Range<usize> {
        let of = |split: usize| split * self.gather.n / sum.splits * self.bands;
        of(split)..of(split + 1)
    }

    /// A band of the source, and its dY.
    fn lay_out(&self, sum: &Sum, band: usize, s: &mut Scratch) {
        let (image, band) = (band / self.bands, band % self.bands);
        self.fill(sum.isa, sum.src, image, band, s);
        self.pack_dy(sum, image, band, &mut s.dy);
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
    fn pack_dy(&self, sum: &Sum, image: usize, band: usize, out: &mut Buffer) {
        let Sum { isa, dy, o, .. } = *sum;
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

    /// Adds what a band gives in the columns of some triples to `dw`; `accumulate` is false for the
    /// first band.
    fn band_grad(
        &self,
        sum: &Sum,
        triples: &[Vec<usize>],
        band: usize,
        accumulate: bool,
        s: &Scratch,
        dw: *mut f32,
    ) {
        let (isa, o, band) = (sum.isa, sum.o, band % self.bands);
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
