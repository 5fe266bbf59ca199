//! Gaussian blur of a view, row by row: a true Gaussian, edge pixels repeated.
//!
//! Rows are pushed in order; each is blurred horizontally into a ring, and a
//! finished row can be taken as soon as the rows below it are there.

mod pass;

use super::row::padded;
use crate::Level;
use crate::scratch::Scratch;

/// Fractional bits of a value inside the blur: the sum of two values times 64
/// still fits 16 bits.
const BITS: u32 = 6;

/// Where the kernel ends, in sigmas. Of what lies beyond, two thousandths, a black square as large
/// as the kernel on white is moved by one level, half of it by each pass; everything else by less
/// (`tests/blur_accuracy.rs`).
const REACH: f32 = 3.1;

/// The widest kernel's radius.
pub const MAX_RADIUS: usize = (REACH * super::MAX_SIGMA) as usize;

/// The weights of distance 0, 1, .. into `out`, 15 fractional bits: those of both sides and the
/// centre's add up to one. The centre's alone when the blur would change nothing.
pub fn weights(sigma: f32, out: &mut Vec<i16>) {
    let radius = ((REACH * sigma - 0.5).ceil().max(1.0) as usize).min(MAX_RADIUS);
    let exact = |distance: usize| (-0.5 * (distance as f64 / f64::from(sigma)).powi(2)).exp();
    let total: f64 = 1.0 + 2.0 * (1..=radius).map(exact).sum::<f64>();
    out.clear();
    out.push(0);
    let mut center = 1 << 15;
    for distance in 1..=radius {
        let weight = (exact(distance) / total * 32768.0 + 0.5) as i16;
        if weight == 0 {
            break;
        }
        center -= 2 * i32::from(weight);
        out.push(weight);
    }
    // What is left belongs to the centre, so that a flat area stays flat: up to a sigma of about
    // 22. Above, the roundings of very many products add up to a level.
    out[0] = center.min(32767) as i16;
}

/// State of the blur of one view. Reused from view to view.
#[derive(Debug, Default)]
pub struct Blur {
    /// As [`weights`] gives them, each twice.
    weights: Vec<[i16; 2]>,
    drawn: Vec<i16>,
    width: usize,
    stride: usize,
    height: usize,
    /// Rows blurred horizontally, with [`BITS`] fractional bits.
    ring: Scratch,
    /// A row with its edge pixels repeated.
    line: Scratch,
    /// Where the ring has the rows above and below, nearest first.
    rows: Vec<[usize; 2]>,
    pushed: usize,
    taken: usize,
}

impl Blur {
    /// Begins a view of `width` x `height`; `false` when `sigma` is so small
    /// that a blur would change nothing.
    ///
    /// # Panics
    /// When a side is 0.
    pub fn begin(&mut self, sigma: f32, width: usize, height: usize) -> bool {
        assert!(width > 0 && height > 0, "a view has pixels");
        weights(sigma, &mut self.drawn);
        self.weights.clear();
        self.weights.extend(self.drawn.iter().map(|&weight| [weight; 2]));
        (self.width, self.height, self.stride) = (width, height, padded(width));
        (self.pushed, self.taken) = (0, 0);
        self.weights.len() > 1
    }

    fn radius(&self) -> usize {
        self.weights.len().checked_sub(1).expect("a view was begun")
    }

    /// Rows that the ring holds.
    fn capacity(&self) -> usize {
        2 * self.radius() + 1
    }

    /// Takes the next row, three planes of padded length.
    ///
    /// # Panics
    /// When no view was begun, or the planes are too short.
    pub fn push(&mut self, level: Level, planes: &[i16]) {
        let (radius, width, stride) = (self.radius(), self.width, self.stride);
        let slot = self.pushed % self.capacity() * 3 * stride;
        let pitch = stride + 2 * radius;
        let line = self.line.get(3 * pitch);
        for (plane, line) in planes.chunks_exact(stride).zip(line.chunks_exact_mut(pitch)) {
            pass::extend(level, &plane[..width], radius, line);
        }
        let ring = self.ring.get(3 * stride * (2 * radius + 1));
        pass::horizontal(level, line, &self.weights, &mut ring[slot..][..3 * stride]);
        self.pushed += 1;
    }

    /// Writes the next finished row, if there is one, and returns its number.
    ///
    /// # Panics
    /// As [`Blur::push`].
    pub fn take(&mut self, level: Level, planes: &mut [i16]) -> Option<usize> {
        let (radius, capacity, row_len) = (self.radius(), self.capacity(), 3 * self.stride);
        let (y, last) = (self.taken, self.height - 1);
        if y > last || (self.pushed <= last && self.pushed <= y + radius) {
            return None;
        }
        self.rows.clear();
        // Places go around the ring from row y's; one division, not one for each row.
        let (own, end) = (y % capacity * row_len, capacity * row_len);
        let pair = |distance: usize| {
            let above = own + end - distance.min(y) * row_len;
            let below = own + distance.min(last - y) * row_len;
            [above, below].map(|at| if at < end { at } else { at - end })
        };
        self.rows.extend((0..=radius).map(pair));
        let ring = self.ring.get(row_len * capacity);
        pass::vertical(level, ring, &self.rows, &self.weights, planes);
        self.taken += 1;
        Some(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a view was begun")]
    fn nothing_is_taken_of_a_view_that_was_not_begun() {
        Blur::default().take(Level::SCALAR, &mut []);
    }

    #[test]
    #[should_panic(expected = "a view has pixels")]
    fn a_view_without_rows_is_none() {
        Blur::default().begin(1.0, 8, 0);
    }
}
