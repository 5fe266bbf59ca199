//! The transforms of F(2 x 2, 3 x 3), on 16 channels at a time:
//!
//! ```text
//!        1  0 -1  0          1    0    0
//! B^T =  0  1  1  0     G =  1/2  1/2  1/2    A^T = 1  1  1  0
//!        0 -1  1  0          1/2 -1/2  1/2          0  1 -1 -1
//!        0  1  0 -1          0    0    1
//! ```

#![allow(
    clippy::needless_range_loop,
    reason = "columns of matrices are indexed, so that the loops unroll"
)]

use super::PLACES;
use crate::nn::cpu::micro::{CHUNK, vectorised};

type Line = [f32; CHUNK];

/// Where a row of tiles goes.
#[derive(Clone, Copy)]
pub struct Place {
    /// The first tile's number.
    pub tile: usize,
    /// Tiles of each line of channels.
    pub tiles: usize,
    /// Floats from one place to the next.
    pub pitch: usize,
}

// Loops and functions that are always inlined, no closures: what is left out of line has the
// instructions of the crate, not those of the caller.

#[inline(always)]
fn add(a: &Line, b: &Line) -> Line {
    let mut sum = *a;
    for i in 0..CHUNK {
        sum[i] += b[i];
    }
    sum
}

#[inline(always)]
fn sub(a: &Line, b: &Line) -> Line {
    let mut difference = *a;
    for i in 0..CHUNK {
        difference[i] -= b[i];
    }
    difference
}

#[inline(always)]
fn scaled(a: &Line, by: f32) -> Line {
    let mut product = *a;
    for i in 0..CHUNK {
        product[i] *= by;
    }
    product
}

/// B^T of four lines.
#[inline(always)]
fn spread([a, b, c, d]: &[Line; 4]) -> [Line; 4] {
    [sub(a, c), add(b, c), sub(c, b), sub(b, d)]
}

/// A^T of four lines.
#[inline(always)]
fn gather([a, b, c, d]: &[Line; 4]) -> [Line; 2] {
    [add(&add(a, b), c), sub(&sub(b, c), d)]
}

/// A of two lines.
#[inline(always)]
fn spread_back([a, b]: &[Line; 2]) -> [Line; 4] {
    [*a, add(a, b), sub(a, b), scaled(b, -1.0)]
}

/// G of three lines.
#[inline(always)]
fn widen([a, b, c]: &[Line; 3]) -> [Line; 4] {
    let ends = add(a, c);
    [*a, scaled(&add(&ends, b), 0.5), scaled(&sub(&ends, b), 0.5), *c]
}

/// G^T of four lines.
#[inline(always)]
fn narrow([a, b, c, d]: &[Line; 4]) -> [Line; 3] {
    let sum = scaled(&add(b, c), 0.5);
    [add(a, &sum), scaled(&sub(b, c), 0.5), add(&sum, d)]
}

#[inline(always)]
fn line(from: &[f32], at: usize) -> Line {
    *from[at..].first_chunk().expect("whole lines")
}

/// 16 channels of pixel `x` of a row, zeros outside.
#[inline(always)]
fn pixel(row: &[f32], x: usize, c: usize, channel: usize) -> Line {
    let at = x.wrapping_mul(c).wrapping_add(channel);
    // Before the first pixel `x` has wrapped around.
    match row.get(at..at.wrapping_add(CHUNK)).and_then(|line| line.first_chunk()) {
        Some(line) => *line,
        None => [0.0; CHUNK],
    }
}

/// B^T of pixel `x` of four rows.
#[inline(always)]
fn column(rows: &[&[f32]; 4], x: usize, c: usize, channel: usize) -> [Line; 4] {
    spread(&[
        pixel(rows[0], x, c, channel),
        pixel(rows[1], x, c, channel),
        pixel(rows[2], x, c, channel),
        pixel(rows[3], x, c, channel),
    ])
}

#[inline(always)]
fn store(out: &mut [f32], at: usize, line: &Line) {
    out[at..at + CHUNK].copy_from_slice(line);
}

vectorised! {
    /// B^T d B of a row of tiles from four rows of pixels, to `[place][c / 16][tile][16]`.
    pub fn source(rows: [&[f32]; 4], c: usize, tiles: usize, to: Place, out: &mut [f32]) {
        for block in 0..c / CHUNK {
            let channel = block * CHUNK;
            // A tile begins one pixel in front of its output.
            let mut first = column(&rows, usize::MAX, c, channel);
            let mut second = column(&rows, 0, c, channel);
            for tile in 0..tiles {
                let third = column(&rows, 2 * tile + 1, c, channel);
                let fourth = column(&rows, 2 * tile + 2, c, channel);
                let at = (block * to.tiles + to.tile + tile) * CHUNK;
                for i in 0..4 {
                    let row = spread(&[first[i], second[i], third[i], fourth[i]]);
                    for (j, line) in row.iter().enumerate() {
                        store(out, (4 * i + j) * to.pitch + at, line);
                    }
                }
                (first, second) = (third, fourth);
            }
        }
    }

    /// A^T m A of a row of tiles, from `[place][tile][o]` to two rows of pixels; the second may be
    /// empty.
    pub fn result(
        m: &[f32],
        pitch: usize,
        first: usize,
        accumulate: bool,
        rows: [&mut [f32]; 2],
        pixels: usize,
    ) {
        let mut rows = rows;
        let o = rows[0].len() / pixels;
        for tile in 0..pixels.div_ceil(2) {
            for channel in (0..o).step_by(CHUNK) {
                let at = (first + tile) * o + channel;
                let mut columns = [[[0.0; CHUNK]; 2]; 4];
                for j in 0..4 {
                    columns[j] = gather(&[
                        line(m, j * pitch + at),
                        line(m, (4 + j) * pitch + at),
                        line(m, (8 + j) * pitch + at),
                        line(m, (12 + j) * pitch + at),
                    ]);
                }
                for (i, row) in rows.iter_mut().enumerate() {
                    let [a, b, c, d] = &columns;
                    let pair = gather(&[a[i], b[i], c[i], d[i]]);
                    for (dx, value) in pair.iter().enumerate() {
                        let at = (2 * tile + dx) * o + channel;
                        // Beyond an odd edge there is no pixel.
                        if let Some(to) = row.get_mut(at..at + CHUNK) {
                            let to: &mut Line = to.first_chunk_mut().expect("a whole line");
                            *to = if accumulate { add(to, value) } else { *value };
                        }
                    }
                }
            }
        }
    }

    /// A dY A^T of a row of tiles from two rows of pixels, to panels `[place][o / mr][tile][mr]`.
    pub fn gradient(
        rows: [&[f32]; 2],
        channels: (usize, usize),
        tiles: usize,
        to: Place,
        out: &mut [f32],
    ) {
        let (o, mr) = channels;
        for block in 0..o / CHUNK {
            for tile in 0..tiles {
                let mut columns = [[[0.0; CHUNK]; 4]; 2];
                for dx in 0..2 {
                    let x = 2 * tile + dx;
                    columns[dx] = spread_back(&[
                        pixel(rows[0], x, o, block * CHUNK),
                        pixel(rows[1], x, o, block * CHUNK),
                    ]);
                }
                for i in 0..4 {
                    let row = spread_back(&[columns[0][i], columns[1][i]]);
                    for (j, line) in row.iter().enumerate() {
                        let out = &mut out[(4 * i + j) * to.pitch..];
                        panel_store(out, block, mr, to.tiles, to.tile + tile, line);
                    }
                }
            }
        }
    }

    /// G g G^T, element by element: nine taps of as many floats each to 16 places.
    pub fn weight(nine: &[f32], out: &mut [f32]) {
        let len = nine.len() / 9;
        for at in (0..len).step_by(CHUNK) {
            let mut rows = [[[0.0; CHUNK]; 4]; 3];
            for y in 0..3 {
                let at = 3 * y * len + at;
                rows[y] = widen(&[line(nine, at), line(nine, at + len), line(nine, at + 2 * len)]);
            }
            for j in 0..4 {
                let column = widen(&[rows[0][j], rows[1][j], rows[2][j]]);
                for (i, line) in column.iter().enumerate() {
                    store(out, (4 * i + j) * len + at, line);
                }
            }
        }
    }

    /// G^T u G of one output channel: places `pitch` floats apart to `[9][c]`.
    pub fn weight_back(u: &[f32], pitch: usize, c: usize, dw: &mut [f32]) {
        for channel in (0..c).step_by(CHUNK) {
            let mut rows = [[[0.0; CHUNK]; 3]; 4];
            for i in 0..4 {
                let at = 4 * i * pitch + channel;
                rows[i] = narrow(&[
                    line(u, at),
                    line(u, at + pitch),
                    line(u, at + 2 * pitch),
                    line(u, at + 3 * pitch),
                ]);
            }
            for x in 0..3 {
                let column = narrow(&[rows[0][x], rows[1][x], rows[2][x], rows[3][x]]);
                for (y, line) in column.iter().enumerate() {
                    store(dw, (3 * y + x) * c + channel, line);
                }
            }
        }
    }
}

/// A line of channels to the panels of `mr` channels that it falls into.
#[inline(always)]
fn panel_store(out: &mut [f32], block: usize, mr: usize, tiles: usize, tile: usize, line: &Line) {
    if mr == 8 {
        let (low, high) = line.split_at(8);
        let at = (2 * block * tiles + tile) * 8;
        out[at..at + 8].copy_from_slice(low);
        out[at + tiles * 8..at + tiles * 8 + 8].copy_from_slice(high);
        return;
    }
    // Runs of the line up to the end of a panel: no division for each float.
    let (mut panel, mut lane) = (block * CHUNK / mr, block * CHUNK % mr);
    if mr == 6 {
        let row = |at: usize| ((panel + at) * tiles + tile) * 6;
        match lane {
            0 => {
                run::<6>(out, row(0), line, 0);
                run::<6>(out, row(1), line, 6);
                run::<4>(out, row(2), line, 12);
            }
            4 => {
                run::<2>(out, row(0) + 4, line, 0);
                run::<6>(out, row(1), line, 2);
                run::<6>(out, row(2), line, 8);
                run::<2>(out, row(3), line, 14);
            }
            _ => {
                run::<4>(out, row(0) + 2, line, 0);
                run::<6>(out, row(1), line, 4);
                run::<6>(out, row(2), line, 10);
            }
        }
        return;
    }
    for value in line {
        out[(panel * tiles + tile) * mr + lane] = *value;
        lane += 1;
        if lane == mr {
            (panel, lane) = (panel + 1, 0);
        }
    }
}

/// `N` floats of a line to a panel.
#[inline(always)]
fn run<const N: usize>(out: &mut [f32], at: usize, line: &Line, from: usize) {
    let to: &mut [f32; N] = out[at..].first_chunk_mut().expect("a panel's row");
    *to = *line[from..].first_chunk().expect("part of a line");
}

const _: () = assert!(PLACES == 16);
