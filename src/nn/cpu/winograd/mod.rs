//! 3 x 3 convolutions of stride 1 with 16 products where the definition has 36: Winograd's minimal
//! filtering F(2 x 2, 3 x 3), as Lavin and Gray have it (arXiv 1509.09308).
//!
//! A tile is 2 x 2 pixels of the output with the 4 x 4 pixels d of the source that they take from.
//! With the matrices of `transform`, Y = A^T [(G g G^T) * (B^T d B)] A, where * goes element by
//! element: for each of the 16 places a product of tiles x channels with channels x channels. The
//! gradient of the input is the same with the kernel turned around; that of the weight goes back
//! through the transforms, dg = G^T [sum over tiles of (A dY A^T) * (B^T d B)] G.
//!
//! Tiles lie as `direct` has pixels, in lines of 16 channels, `[place][c / 16][tile][16]`, and the
//! micro-kernels are the same. The factors of A and B are 1, those of G halves: a result's rounding
//! error stays within a few times the definition's.

mod transform;

use std::cell::RefCell;
use std::ops::Range;

use super::conv::ConvShape;
use super::micro::{BLOCKS, CHUNK, Isa, MAX_MR, Outer, Tile};
use super::product::Panels;
use super::weight_grad::in_splits;
use super::{Buffer, Shared, each, each_mut, elements};

/// Places of a transformed tile.
pub const PLACES: usize = 16;

/// Floats of transformed tiles, source and result, that a task of a product holds, about: 512 KB.
const TASK_FLOATS: usize = 128 * 1024;
/// Fewer tiles than this do not make up for passing the weights by.
const LEAST_TILES: usize = 96;
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

#[derive(Default)]
struct Scratch {
    source: Buffer,
    result: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
    /// A weight's gradient before it is transformed back.
    static GRADIENT: RefCell<Buffer> = RefCell::new(Buffer::default());
    /// The blocks of a round, the tiles of the source and of dY in turns.
    static ROUND: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
    static OFFSETS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The tiles of a convolution whose output is as large as its source.
#[derive(Clone, Copy, Debug)]
pub struct Winograd {
    /// Images.
    n: usize,
    /// Height and width of source and output.
    size: (usize, usize),
    /// Rows and columns of tiles of an image.
    tiles: (usize, usize),
}

/// Transformed tiles of a run of tile rows.
#[derive(Clone, Copy)]
struct Block {
    tiles: usize,
    /// Floats from one place to the next.
    pitch: usize,
}

impl Block {
    /// A line more than the tiles take, so that places do not fall on the same sets of the cache.
    fn new(tiles: usize, channels: usize) -> Self {
        Self { tiles, pitch: tiles * channels + CHUNK }
    }

    /// Floats of all places, and of what a kernel may read behind them.
    fn len(&self) -> usize {
        PLACES * self.pitch + MAX_MR * CHUNK
    }
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
    /// The tiles of `s`, where it has this form and products are saved: small odd outputs fill
    /// their tiles badly.
    pub fn new(s: &ConvShape) -> Option<Self> {
        let form = (s.kernel, s.stride, s.pad) == (3, 1, 1);
        let lines = s.c.is_multiple_of(CHUNK) && s.o.is_multiple_of(CHUNK);
        let tiles = (s.h.div_ceil(2), s.w.div_ceil(2));
        let saves = 9 * s.h * s.w * 2 >= PLACES * tiles.0 * tiles.1 * 3;
        (form && lines && saves && s.n > 0).then_some(Self { n: s.n, size: (s.h, s.w), tiles })
    }

    /// dst (+)= `src`, of `c` channels, by weights that [`pack`] has made; NHWC, as many channels
    /// as the weights have columns.
    ///
    /// # Panics
    /// When `src` is too short.
    pub(super) fn product(
        &self,
        isa: Isa,
        src: &[f32],
        c: usize,
        weights: &Panels,
        dst: Shared,
        accumulate: bool,
    ) {
        let o = weights.cols();
        assert!(src.len() >= elements(&[self.n, self.size.0, self.size.1, c]));
        // Each tile is summed by itself: the tasks may depend on the number of threads.
        let most = (TASK_FLOATS / (PLACES * (c + o))).max(LEAST_TILES).next_multiple_of(isa.mr());
        let rows = (most / self.tiles.1).max(1);
        let all = self.n * self.tiles.0;
        let rows = rows.min(all.div_ceil(rayon::current_num_threads()));
        each(all.div_ceil(rows), |task| {
            let rows = task * rows..((task + 1) * rows).min(all);
            SCRATCH.with_borrow_mut(|s| {
                let tiles = rows.len() * self.tiles.1;
                let (source, result) = (Block::new(tiles, c), Block::new(tiles, o));
                let from = s.source.get(source.len());
                self.source(isa, src, c, rows.clone(), source, from);
                let to = Shared(s.result.get(result.len()).as_mut_ptr());
                for place in 0..PLACES {
                    place_product(isa, weights, place, (source, from), (result, to));
                }
                let summed = s.result.filled(result.len());
                for (nth, row) in rows.enumerate() {
                    let out = self.output_rows(row, o, dst);
                    transform::result(
                        isa,
                        summed,
                        result.pitch,
                        nth * self.tiles.1,
                        accumulate,
                        out,
                        self.size.1,
                    );
                }
            });
        });
    }

    /// Overwrites `dw`, `[o][9][c]`, with the weight's gradient.
    ///
    /// # Panics
    /// When a slice has another length than the shape's.
    pub(super) fn weight_grad(&self, isa: Isa, src: &[f32], dy: &[f32], dw: &mut [f32]) {
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
        in_splits(splits, gradient, |target| match groups {
            1 => each(splits, |split| self.part(&sum, split, target.at(split * len))),
            _ => self.rounds(&sum, groups, target),
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

    /// One split by one task, which transforms what it sums.
    fn part(&self, sum: &Sum, split: usize, out: *mut f32) {
        SCRATCH.with_borrow_mut(|s| {
            for nth in 0..sum.blocks() {
                let rows = sum.block(split, nth);
                self.source_block(sum, rows.clone(), &mut s.source);
                self.gradient_block(sum, rows.clone(), &mut s.result);
                self.places(sum, rows, 0..PLACES, (&s.source, &s.result), out, nth > 0);
            }
        });
    }

    /// Fewer splits than threads: some blocks are transformed, each half by a task of its own, then
    /// summed by `groups` tasks for each split, which have some of the places each, and so on. A
    /// task that transforms what it sums would repeat what the others do: with 16 threads the step
    /// of a ResNet-18 took 1.4 times the CPU time that it takes with two.
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

    /// Transforms the source's tiles of some rows of tiles.
    fn source(
        &self,
        isa: Isa,
        src: &[f32],
        c: usize,
        rows: Range<usize>,
        block: Block,
        out: &mut [f32],
    ) {
        for (nth, row) in rows.enumerate() {
            let lines = self.rows_of(src, c, row, 1);
            let place = transform::Place {
                tile: nth * self.tiles.1,
                tiles: block.tiles,
                pitch: block.pitch,
            };
            transform::source(isa, lines, c, self.tiles.1, place, out);
        }
    }

    /// Four rows of pixels from `above` rows above a row of tiles on, empty outside of the image.
    fn rows_of<'a>(&self, src: &'a [f32], c: usize, row: usize, above: usize) -> [&'a [f32]; 4] {
        let (image, first) = (row / self.tiles.0, row % self.tiles.0 * 2);
        std::array::from_fn(|i| {
            let y = (first + i).checked_sub(above).filter(|y| *y < self.size.0);
            let line = |y| {
                let at = (image * self.size.0 + y) * self.size.1 * c;
                &src[at..at + self.size.1 * c]
            };
            y.map_or(&[][..], line)
        })
    }

    /// The two rows of the output of a row of tiles; the second is empty where there is none.
    fn output_rows<'a>(&self, row: usize, o: usize, dst: Shared) -> [&'a mut [f32]; 2] {
        let (image, first) = (row / self.tiles.0, row % self.tiles.0 * 2);
        let len = self.size.1 * o;
        std::array::from_fn(|i| {
            let y = first + i;
            let len = if y < self.size.0 { len } else { 0 };
            let at = (image * self.size.0 + y.min(self.size.0 - 1)) * self.size.1 * o;
            // SAFETY: pixels of the output, in rows that belong to this row of tiles alone.
            unsafe { std::slice::from_raw_parts_mut(dst.at(at), len) }
        })
    }
}

/// Transforms the weights of nine taps, the first of `all`, to the second: for the output those of
/// [`Panels::pack_transposed`] in 9 runs, for the input's gradient those of [`Panels::pack_taps`],
/// the taps from the last to the first.
///
/// # Panics
/// When there is no second.
pub(super) fn pack(isa: Isa, all: &mut [Panels]) -> &Panels {
    let [nine, out, ..] = all else { panic!("panels of taps and of places") };
    out.derive(isa, nine, (9, PLACES), |nine, out| transform::weight(isa, nine, out));
    out
}

/// One place's product: tiles x weights.
fn place_product(
    isa: Isa,
    weights: &Panels,
    place: usize,
    (source, from): (Block, &[f32]),
    (result, to): (Block, Shared),
) {
    let (mr, o) = (isa.mr(), weights.cols());
    let lines = weights.chunks() / PLACES;
    OFFSETS.with_borrow_mut(|offsets| {
        offsets.clear();
        offsets.extend((0..lines).map(|line| line * source.tiles * CHUNK));
        let from = &from[place * source.pitch..];
        let to = to.at(place * result.pitch);
        for j in 0..o.div_ceil(isa.nr()) {
            let (j0, cols, b) = weights.panel(isa, j, place * lines..(place + 1) * lines);
            for q in (0..source.tiles).step_by(mr) {
                let n_rows = mr.min(source.tiles - q);
                let mut rows = [std::ptr::null_mut(); MAX_MR];
                let mut next = to.wrapping_add(q * o + j0);
                for row in rows.iter_mut().take(n_rows) {
                    *row = next;
                    next = next.wrapping_add(o);
                }
                let tile = Tile {
                    chunks: lines,
                    a: from[q * CHUNK..].as_ptr(),
                    offsets: offsets.as_ptr(),
                    b: b.as_ptr(),
                    rows: rows.as_ptr(),
                    n_rows,
                    cols,
                    accumulate: false,
                };
                // SAFETY: the last tile's lines are in the block, and `mr` lines from there on in
                // it or in the slack behind it; `b` is a whole panel of this place. The rows are
                // tiles of the result block, which is this thread's.
                unsafe { isa.tile(&tile) };
            }
        }
    });
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
