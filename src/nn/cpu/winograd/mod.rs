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
mod weight_grad;

use std::cell::RefCell;
use std::ops::Range;

use super::conv::ConvShape;
use super::micro::{CHUNK, Isa, MAX_MR, Tile};
use super::product::Panels;
use super::{Buffer, Shared, each, elements};

/// Places of a transformed tile.
pub const PLACES: usize = 16;

/// Floats of transformed tiles, source and result, that a task of a product holds, about: 512 KB.
const TASK_FLOATS: usize = 128 * 1024;
/// Fewer tiles than this do not make up for passing the weights by.
const LEAST_TILES: usize = 96;
#[derive(Default)]
struct Scratch {
    source: Buffer,
    result: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
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
