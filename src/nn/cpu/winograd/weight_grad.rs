//! Weight gradients from tiles.

use std::cell::RefCell;
use std::ops::Range;

use super::{Block, PLACES, SCRATCH, Winograd, transform};
use crate::nn::cpu::micro::{BLOCKS, CHUNK, Isa, Outer};
use crate::nn::cpu::weight_grad::in_splits;
use crate::nn::cpu::{Buffer, Shared, each, each_mut, elements};

/// Tiles of a block of a weight's gradient.
const GRAD_TILES: usize = 128;
/// Tiles that a part of a weight's gradient sums, at least.
const SPLIT_TILES: usize = 1024;
/// The most parts, and the most floats that they take together.
const SPLITS: usize = 8;
const SPLIT_FLOATS: usize = 8 << 20;
/// Floats of transformed tiles that the tasks of a round share, at most: 48 MB. Tests have several
/// rounds.
const ROUND_FLOATS: usize = if cfg!(test) { 1 << 16 } else { 12 << 20 };

thread_local! {
    /// A weight's gradient before it is transformed back.
    static GRADIENT: RefCell<Buffer> = RefCell::new(Buffer::default());
    /// The blocks of a round, the tiles of the source and of dY in turns.
    static ROUND: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// What a weight's gradient sums: tiles of the source times tiles of dY, in splits of their rows, each
/// in blocks.
struct Sum<'a> {
    isa: Isa,
    /// Pixels, and the channels of each.
    src: (&'a [f32], usize),
    dy: (&'a [f32], usize),
    /// Rows of tiles of all images.
    all: usize,
    splits: usize,
    /// Rows of tiles of a block.
    step: usize,
}

impl Sum<'_> {
    /// Blocks of a split, at most.
    fn blocks(&self) -> usize {
        self.all.div_ceil(self.splits).div_ceil(self.step)
    }

    /// The rows of tiles of a split's block number `nth`; none behind the last.
    fn block(&self, split: usize, nth: usize) -> Range<usize> {
        let end = (split + 1) * self.all / self.splits;
        let start = (split * self.all / self.splits + nth * self.step).min(end);
        start..(start + self.step).min(end)
    }

    /// The layout of dY's panels.
    fn panels(&self, tiles: usize) -> Block {
        Block::new(tiles, self.dy.1.next_multiple_of(self.isa.outer_mr()))
    }
}

impl Winograd {
    /// Overwrites `dw`, `[o][9][c]`, with the weight's gradient.
    ///
    /// # Panics
    /// When a slice has another length than the shape's.
    pub(in crate::nn::cpu) fn weight_grad(
        &self,
        isa: Isa,
        src: &[f32],
        dy: &[f32],
        dw: &mut [f32],
    ) {
        let pixels = elements(&[self.n, self.size.0, self.size.1]);
        let (c, o) = (src.len() / pixels, dy.len() / pixels);
        let lens = [[pixels, c, 1], [pixels, o, 1], [9, o, c]].map(|sides| elements(&sides));
        assert_eq!([src.len(), dy.len(), dw.len()], lens);
        let len = PLACES * o * c;
        let all = self.n * self.tiles.0;
        let splits = (all * self.tiles.1 / SPLIT_TILES).min(SPLIT_FLOATS / len).clamp(1, SPLITS);
        let splits = splits.min(all);
        let groups = rayon::current_num_threads().div_ceil(splits).min(PLACES);
        // Taken, not borrowed: while it waits, a rayon thread may run another weight's gradient.
        let mut buffer = GRADIENT.take();
        let gradient = buffer.get(len);
        let sum = Sum { isa, src: (src, c), dy: (dy, o), all, splits, step: self.block_rows() };
        in_splits(splits, gradient, |target| {
            match groups == 1 || rayon::current_num_threads() == 2 {
                true => each(splits * groups, |task| {
                    let (split, group) = (task / groups, task % groups);
                    let places = group * PLACES / groups..(group + 1) * PLACES / groups;
                    self.part(&sum, split, places, target.at(split * len));
                }),
                false => self.rounds(&sum, groups, target),
            }
        });
        let target = Shared(dw.as_mut_ptr());
        let gradient = &*gradient;
        each(o, |row| {
            // SAFETY: row `row` of `[o][9 * c]`, this task's alone.
            let dw = unsafe { std::slice::from_raw_parts_mut(target.at(row * 9 * c), 9 * c) };
            transform::weight_back(isa, &gradient[row * c..], o * c, c, dw);
        });
        GRADIENT.set(buffer);
    }

    /// Rows of tiles of a block of a weight's gradient.
    fn block_rows(&self) -> usize {
        (GRAD_TILES / self.tiles.1).max(1)
    }

    /// Some places of one split by one task, which transforms what it sums.
    fn part(&self, sum: &Sum, split: usize, places: Range<usize>, out: *mut f32) {
        SCRATCH.with_borrow_mut(|s| {
            for nth in 0..sum.blocks() {
                let rows = sum.block(split, nth);
                self.source_block(sum, rows.clone(), &mut s.source);
                self.gradient_block(sum, rows.clone(), &mut s.result);
                self.places(sum, rows, places.clone(), (&s.source, &s.result), out, nth > 0);
            }
        });
    }

    /// Fewer splits than threads: some blocks are transformed, each half by a task of its own, then
    /// summed by `groups` tasks for each split, which have some of the places each, and so on. A
    /// task that transforms what it sums would repeat what the others do: with 16 threads the step
    /// of a ResNet-18 took 1.4 times the CPU time that it takes with two. With two the caches
    /// count more than what is done twice: rounds took 9% longer.
    fn rounds(&self, sum: &Sum, groups: usize, target: Shared) {
        let (splits, blocks) = (sum.splits, sum.blocks());
        let tiles = sum.step * self.tiles.1;
        let (c, o) = (sum.src.1, sum.dy.1);
        let floats = splits * (Block::new(tiles, c).len() + sum.panels(tiles).len());
        let depth = (ROUND_FLOATS / floats).clamp(1, blocks);
        // Taken, not borrowed, as the gradient.
        let mut halves = ROUND.take();
        halves.resize_with(halves.len().max(2 * splits * depth), Buffer::default);
        for first in (0..blocks).step_by(depth) {
            each_mut(&mut halves[..2 * splits * depth], |i, half| {
                let rows = sum.block(i / 2 / depth, first + i / 2 % depth);
                match i % 2 {
                    0 => self.source_block(sum, rows, half),
                    _ => self.gradient_block(sum, rows, half),
                }
            });
            each(splits * groups, |task| {
                let (split, group) = (task / groups, task % groups);
                let places = group * PLACES / groups..(group + 1) * PLACES / groups;
                let out = target.at(split * PLACES * o * c);
                for nth in 0..depth {
                    let rows = sum.block(split, first + nth);
                    let at = 2 * (split * depth + nth);
                    let pair = (&halves[at], &halves[at + 1]);
                    self.places(sum, rows, places.clone(), pair, out, first + nth > 0);
                }
            });
        }
        ROUND.set(halves);
    }

    /// The tiles of the source of a block.
    fn source_block(&self, sum: &Sum, rows: Range<usize>, out: &mut Buffer) {
        let (src, c) = sum.src;
        let block = Block::new(rows.len() * self.tiles.1, c);
        self.source(sum.isa, src, c, rows, block, out.get(block.len()));
    }

    /// The tiles of dY of a block, as panels.
    fn gradient_block(&self, sum: &Sum, rows: Range<usize>, out: &mut Buffer) {
        let (dy, o) = sum.dy;
        let tiles = rows.len() * self.tiles.1;
        let panels = sum.panels(tiles);
        let out = out.get(panels.len());
        for (nth, row) in rows.enumerate() {
            let rows = self.rows_of(dy, o, row, 0);
            let place = transform::Place { tile: nth * self.tiles.1, tiles, pitch: panels.pitch };
            let channels = (o, sum.isa.outer_mr());
            transform::gradient(sum.isa, [rows[0], rows[1]], channels, self.tiles.1, place, out);
        }
    }

    /// Adds a block's products at some of the places to `out`; `accumulate` is false for the first.
    fn places(
        &self,
        sum: &Sum,
        rows: Range<usize>,
        places: Range<usize>,
        (source, dy): (&Buffer, &Buffer),
        out: *mut f32,
        accumulate: bool,
    ) {
        let tiles = rows.len() * self.tiles.1;
        if tiles == 0 {
            return;
        }
        let (c, o) = (sum.src.1, sum.dy.1);
        let (block, panels) = (Block::new(tiles, c), sum.panels(tiles));
        let (source, dy) = (source.filled(block.len()), dy.filled(panels.len()));
        for place in places {
            let source = (&source[place * block.pitch..], c);
            let dy = (&dy[place * panels.pitch..], o);
            place_gradient(sum.isa, tiles, source, dy, out.wrapping_add(place * o * c), accumulate);
        }
    }
}

/// One place's sum over tiles of dY x source, `[o][c]`.
fn place_gradient(
    isa: Isa,
    tiles: usize,
    (source, c): (&[f32], usize),
    (dy, o): (&[f32], usize),
    out: *mut f32,
    accumulate: bool,
) {
    let mr = isa.outer_mr();
    let lines = c / CHUNK;
    for first in (0..lines).step_by(BLOCKS) {
        let blocks = BLOCKS.min(lines - first);
        let line = |i: usize| first + i.min(blocks - 1);
        let panels = dy.chunks_exact(tiles * mr).take(o.div_ceil(mr));
        for (i, a) in panels.enumerate() {
            let row = out.wrapping_add(i * mr * c);
            let outer = Outer {
                count: tiles,
                a: a.as_ptr(),
                b: std::array::from_fn(|b| source[line(b) * tiles * CHUNK..].as_ptr()),
                b_stride: CHUNK,
                c: std::array::from_fn(|b| row.wrapping_add(line(b) * CHUNK)),
                cols: [CHUNK; BLOCKS],
                blocks,
                stride: c,
                n_rows: mr.min(o - i * mr),
                accumulate,
            };
            // SAFETY: `a` is a whole panel, each of b `tiles` lines of the block; c are rows of
            // this place's `[o][c]`, which this task alone writes.
            unsafe { isa.outer(&outer) };
        }
    }
}
