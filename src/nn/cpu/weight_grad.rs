//! A weight's gradient: `dW[o][k] = sum over rows m of dY[m][o] * gathered[m][k]`.
//!
//! The reduction over rows runs in blocks, in row order. Where the weight is small and the rows are
//! many, they are cut into `splits` parts, each with a partial sum of its own, added in order at
//! the end; the number of splits is a function of the shape alone.

use std::cell::RefCell;
use std::ops::Range;

use super::direct::Direct;
use super::gather::Gather;
use super::micro::{BLOCK, BLOCKS, Isa, Outer, vectorised};
use super::{Buffer, Shared, each, elements};

/// Rows of a block: 128 x 48 gathered columns stay in the first-level cache, where all rows of dW
/// read them.
const ROWS: usize = 128;
/// Weights up to this many elements are worth partial sums.
const SMALL: usize = 64 * 1024;
/// The most splits.
const SPLITS: usize = 8;
/// Columns of one call of the kernel.
const WIDE: usize = BLOCK * BLOCKS;

#[derive(Default)]
struct Scratch {
    dy: Buffer,
    gathered: Buffer,
    columns: Buffer,
    offsets: Vec<Option<usize>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
    static PARTIAL: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// The fixed part, shared by the tasks.
struct Job<'a> {
    isa: Isa,
    gather: &'a Gather,
    src: &'a [f32],
    dy: &'a [f32],
    o: usize,
    splits: usize,
}

/// Runs `part(split, target)` for the splits of a sum into `dw`, and adds the parts in order.
/// `part` has to overwrite its target.
pub(super) fn in_splits(splits: usize, dw: &mut [f32], run: impl FnOnce(Shared)) {
    let len = dw.len();
    if splits == 1 {
        return run(Shared(dw.as_mut_ptr()));
    }
    // Taken, not borrowed: while it waits, a rayon thread may run another weight's gradient.
    let mut buffer = PARTIAL.take();
    let partial = buffer.get(splits * len);
    run(Shared(partial.as_mut_ptr()));
    let (first, rest) = partial.split_at(len);
    dw.copy_from_slice(first);
    for part in rest.chunks_exact(len) {
        dw.iter_mut().zip(part).for_each(|(d, p)| *d += p);
    }
    PARTIAL.set(buffer);
}

/// Splits of a sum over `rows` for a weight of `len` elements: a function of the shape.
pub(super) fn splits(rows: usize, len: usize) -> usize {
    if len <= SMALL { (rows / 1024).clamp(1, SPLITS) } else { 1 }
}

/// Overwrites `dw`, `[o][gather.depth()]`, with dY^T x gathered rows, the direct way where there is
/// one; `dy` is `[gather.rows()][o]`.
///
/// # Panics
/// When a slice is too short.
pub fn weight_grad(
    isa: Isa,
    (gather, direct): (&Gather, Option<&Direct>),
    src: &[f32],
    dy: &[f32],
    o: usize,
    dw: &mut [f32],
) {
    let (rows, depth) = (gather.rows(), gather.depth());
    let source = gather.source;
    assert!(src.len() >= elements(&[gather.n, source.0, source.1, gather.c]));
    assert!(dy.len() >= elements(&[rows, o]) && dw.len() == elements(&[o, depth]));
    if let Some(direct) = direct {
        return direct.weight_grad(isa, src, dy, o, dw);
    }
    let splits = splits(rows, o * depth);
    let job = Job { isa, gather, src, dy, o, splits };
    let triples = depth.div_ceil(WIDE);
    let groups = rayon::current_num_threads().div_ceil(splits).min(triples);
    in_splits(splits, dw, |target| {
        each(splits * groups, |task| {
            let (split, group) = (task / groups, task % groups);
            let triples = group * triples / groups..(group + 1) * triples / groups;
            job.part(split, triples, target.at(split * o * depth));
        });
    });
}

impl Job<'_> {
    /// The sum over one split's rows of some triples of column blocks.
    fn part(&self, split: usize, triples: Range<usize>, dw: *mut f32) {
        let rows = self.gather.rows();
        let blocks = rows.div_ceil(ROWS);
        let mine = split * blocks / self.splits..(split + 1) * blocks / self.splits;
        SCRATCH.with_borrow_mut(|s| {
            for block in mine.clone() {
                let rows = block * ROWS..((block + 1) * ROWS).min(rows);
                self.pack_dy(rows.clone(), &mut s.dy);
                self.locate(rows.clone(), s);
                for triple in triples.clone() {
                    self.triple(triple, rows.len(), block > mine.start, s, dw);
                }
            }
        });
    }

    /// dY of a block of rows as panels `[row][outer_mr]`.
    fn pack_dy(&self, rows: Range<usize>, out: &mut Buffer) {
        let (mr, o) = (self.isa.outer_mr(), self.o);
        let packed = out.get(o.div_ceil(mr) * rows.len() * mr);
        for (i, panel) in packed.chunks_exact_mut(rows.len() * mr).enumerate() {
            let used = mr.min(o - i * mr);
            let dy = &self.dy[rows.start * o..rows.end * o];
            for (dst, src) in panel.chunks_exact_mut(mr).zip(dy.chunks_exact(o)) {
                let src = &src[i * mr..i * mr + used];
                if let (Ok(dst), Ok(src)) =
                    (<&mut [f32; 8]>::try_from(&mut *dst), <&[f32; 8]>::try_from(src))
                {
                    *dst = *src;
                    continue;
                }
                dst[..used].copy_from_slice(src);
                dst[used..].fill(0.0);
            }
        }
    }

    /// Finds the source pixels of a block of rows; lays the rows out where lines are not whole.
    fn locate(&self, rows: Range<usize>, s: &mut Scratch) {
        let g = self.gather;
        s.offsets.clear();
        if g.c.is_multiple_of(BLOCK) {
            for &tap in &g.taps {
                s.offsets.extend(rows.clone().map(|m| g.offset(g.place(m), tap)));
            }
        } else {
            let width = g.chunks() * BLOCK;
            let gathered = s.gathered.get(rows.len() * width);
            for (m, row) in rows.zip(gathered.chunks_exact_mut(width)) {
                g.row_into(self.src, g.place(m), row);
            }
        }
    }

    /// All rows of dW in the columns of one triple of blocks.
    fn triple(&self, t: usize, rows: usize, accumulate: bool, s: &mut Scratch, dw: *mut f32) {
        let (mr, depth) = (self.isa.outer_mr(), self.gather.depth());
        let first = t * WIDE;
        let blocks = (depth - first).div_ceil(BLOCK).min(BLOCKS);
        self.pack_columns(first, blocks, rows, s);
        let columns = s.columns.filled(rows * WIDE);
        let at = |i: usize| i.min(blocks - 1) * BLOCK;
        let mut outer = Outer {
            count: rows,
            a: std::ptr::null(),
            b: std::array::from_fn(|i| columns[at(i)..].as_ptr()),
            b_stride: WIDE,
            c: [std::ptr::null_mut(); BLOCKS],
            cols: std::array::from_fn(|i| BLOCK.min(depth - first - at(i))),
            blocks,
            stride: depth,
            n_rows: 0,
            accumulate,
        };
        let packed = s.dy.filled(self.o.div_ceil(mr) * rows * mr);
        for (i, a) in packed.chunks_exact(rows * mr).enumerate() {
            outer.a = a.as_ptr();
            outer.c = std::array::from_fn(|b| dw.wrapping_add(i * mr * depth + first + at(b)));
            outer.n_rows = mr.min(self.o - i * mr);
            // SAFETY: `columns` has `rows` rows of WIDE, `a` `rows` rows of `mr`; c stays inside
            // `[o][depth]`, in columns of this triple, which one task alone writes.
            unsafe { self.isa.outer(&outer) };
        }
    }

    /// Copies the columns of `blocks` blocks from `first` on to `[row][WIDE]`.
    fn pack_columns(&self, first: usize, blocks: usize, rows: usize, s: &mut Scratch) {
        let (g, columns) = (self.gather, s.columns.get(rows * WIDE));
        for b in 0..blocks {
            let column = first + b * BLOCK;
            let target = &mut columns[b * BLOCK..];
            if g.c.is_multiple_of(BLOCK) {
                let (tap, channel) = (column / g.c, column % g.c);
                let offsets = &s.offsets[tap * rows..(tap + 1) * rows];
                copy_lines(self.isa, self.src, channel, offsets, target);
            } else {
                let width = g.chunks() * BLOCK;
                let gathered = &s.gathered.filled(rows * width)[column..];
                copy_blocks(self.isa, gathered, width, target);
            }
        }
    }
}

vectorised! {
    fn copy_lines(src: &[f32], channel: usize, offsets: &[Option<usize>], out: &mut [f32]) {
        for (out, at) in out.chunks_mut(WIDE).zip(offsets) {
            let out: &mut [f32; BLOCK] = out.first_chunk_mut().expect("rows of WIDE");
            *out = match at {
                Some(at) => *src[at + channel..].first_chunk().expect("a pixel's channels"),
                None => [0.0; BLOCK],
            };
        }
    }

    fn copy_blocks(src: &[f32], width: usize, out: &mut [f32]) {
        for (out, src) in out.chunks_mut(WIDE).zip(src.chunks(width)) {
            let out: &mut [f32; BLOCK] = out.first_chunk_mut().expect("rows of WIDE");
            *out = *src.first_chunk().expect("rows of whole blocks");
        }
    }
}
