//! Weight gradients from bands.

use super::{Direct, SCRATCH, Scratch};
use crate::nn::cpu::micro::{BLOCKS, CHUNK, Isa, Outer, vectorised};
use crate::nn::cpu::weight_grad::{in_splits, splits};
use crate::nn::cpu::{Buffer, each};

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
                        self.fill(isa, src, image, band, s);
                        self.pack_dy(isa, dy, o, image, band, &mut s.dy);
                        let accumulate = image > images.start || band > 0;
                        self.band_grad(isa, &triples[mine.clone()], band, o, accumulate, s, dw);
                    }
                });
            });
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
