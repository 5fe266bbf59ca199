//! A weight's gradient: dW[o][k] = sum over rows m of dY[m][o] * gathered[m][k].
//!
//! The reduction over rows runs in blocks, in row order. Where the weight is small and the rows are
//! many, they are cut into `splits` parts, each with a partial sum of its own, added in order at the
//! end; the number of splits is a function of the shape alone.

use std::cell::RefCell;
use std::ops::Range;

use super::gather::Gather;
use super::micro::{BLOCK, Isa, Outer};
use super::{Buffer, Shared, each};

/// Rows of a block: 256 x 32 columns of the source and the packed dY stay in the second-level cache.
const ROWS: usize = 256;
/// Weights up to this many elements are worth partial sums.
const SMALL: usize = 64 * 1024;
/// The most splits.
const SPLITS: usize = 8;

#[derive(Default)]
struct Scratch {
    dy: Buffer,
    gathered: Buffer,
    offsets: Vec<Option<usize>>,
    pointers: [Vec<*const f32>; 2],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
    static PARTIAL: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// What a tap outside the image reads.
static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

/// The fixed part, shared by the tasks.
struct Job<'a> {
    isa: Isa,
    gather: &'a Gather,
    src: &'a [f32],
    dy: &'a [f32],
    o: usize,
    splits: usize,
}

/// Overwrites `dw`, `[o][gather.depth()]`, with dY^T x gathered rows; `dy` is `[gather.rows()][o]`.
///
/// # Panics
/// When a slice is too short.
pub fn weight_grad(isa: Isa, gather: &Gather, src: &[f32], dy: &[f32], o: usize, dw: &mut [f32]) {
    let (rows, depth) = (gather.rows(), gather.depth());
    assert!(src.len() >= gather.n * gather.source.0 * gather.source.1 * gather.c);
    assert!(dy.len() >= rows * o && dw.len() == o * depth);
    let small = o * depth <= SMALL;
    let splits = if small { (rows / (4 * ROWS)).clamp(1, SPLITS) } else { 1 };
    let job = Job { isa, gather, src, dy, o, splits };
    let pairs = depth.div_ceil(BLOCK).div_ceil(2);
    let groups = rayon::current_num_threads().div_ceil(splits).min(pairs);
    let run = |target: Shared| {
        each(splits * groups, |task| {
            let (split, group) = (task / groups, task % groups);
            let pairs = group * pairs / groups..(group + 1) * pairs / groups;
            job.part(split, pairs, target.at(split * o * depth));
        });
    };
    if splits == 1 {
        return run(Shared(dw.as_mut_ptr()));
    }
    // Taken, not borrowed: while it waits, a rayon thread may run another weight's gradient.
    let mut buffer = PARTIAL.take();
    let partial = buffer.get(splits * o * depth);
    run(Shared(partial.as_mut_ptr()));
    let (first, rest) = partial.split_at(o * depth);
    dw.copy_from_slice(first);
    for part in rest.chunks_exact(o * depth) {
        dw.iter_mut().zip(part).for_each(|(d, p)| *d += p);
    }
    PARTIAL.set(buffer);
}

impl Job<'_> {
    /// The sum over one split's rows of some pairs of column blocks.
    fn part(&self, split: usize, pairs: Range<usize>, dw: *mut f32) {
        let rows = self.gather.rows();
        let blocks = rows.div_ceil(ROWS);
        let mine = split * blocks / self.splits..(split + 1) * blocks / self.splits;
        SCRATCH.with_borrow_mut(|s| {
            for block in mine.clone() {
                let rows = block * ROWS..((block + 1) * ROWS).min(rows);
                self.pack_dy(rows.clone(), &mut s.dy);
                self.locate(rows.clone(), s);
                for pair in pairs.clone() {
                    self.pair(pair, rows.len(), block > mine.start, s, dw);
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

    /// All rows of dW in the columns of one pair of blocks.
    fn pair(&self, pair: usize, rows: usize, accumulate: bool, s: &mut Scratch, dw: *mut f32) {
        let (g, mr, depth) = (self.gather, self.isa.outer_mr(), self.gather.depth());
        let (mut b, mut c) = ([std::ptr::null(); 2], [std::ptr::null_mut(); 2]);
        let mut cols = [0; 2];
        for i in 0..2 {
            let column = (pair * 2 + i) * BLOCK;
            if column >= depth {
                continue;
            }
            cols[i] = BLOCK.min(depth - column);
            let pointers = &mut s.pointers[i];
            pointers.clear();
            if g.c.is_multiple_of(BLOCK) {
                let (tap, channel) = (column / g.c, column % g.c);
                let offsets = &s.offsets[tap * rows..(tap + 1) * rows];
                pointers.extend(offsets.iter().map(|at| match at {
                    Some(at) => self.src[at + channel..at + channel + BLOCK].as_ptr(),
                    None => ZEROS.as_ptr(),
                }));
            } else {
                let width = g.chunks() * BLOCK;
                let gathered = s.gathered.filled(rows * width);
                pointers.extend(gathered.chunks_exact(width).map(|r| r[column..].as_ptr()));
            }
            (b[i], c[i]) = (pointers.as_ptr(), dw.wrapping_add(column));
        }
        let packed = s.dy.filled(self.o.div_ceil(mr) * rows * mr);
        for (i, a) in packed.chunks_exact(rows * mr).enumerate() {
            let outer = Outer {
                count: rows,
                a: a.as_ptr(),
                b,
                c: c.map(|c| c.wrapping_add(i * mr * depth)),
                cols,
                stride: depth,
                n_rows: mr.min(self.o - i * mr),
                accumulate,
            };
            // SAFETY: every pointer of b starts a whole block (slices checked above; gathered rows
            // are padded to whole blocks); c stays inside `[o][depth]`, in columns of this pair,
            // which one task alone writes; a null c goes with a null b and is never used.
            unsafe { self.isa.outer(&outer) };
        }
    }
}
