//! Gaussian blur of a view, row by row: a true Gaussian, edge pixels repeated.
//!
//! Rows are pushed in order; each is blurred horizontally into a ring, and a
//! finished row can be taken as soon as the rows below it are there.

use super::level::multiversion;
use super::row::{LANES, Scratch};
use crate::kernel::Level;

/// Fractional bits of a value inside the blur: the sum of two values times 64
/// still fits 16 bits.
const BITS: u32 = 6;

/// The widest kernel's radius.
const MAX_RADIUS: usize = 3 * super::MAX_SIGMA as usize;

/// State of the blur of one view. Reused from view to view.
#[derive(Debug, Default)]
pub struct Blur {
    /// Weights of distance 0, 1, .. radius; 16 fractional bits, without sign.
    weights: Vec<u16>,
    width: usize,
    stride: usize,
    height: usize,
    ring: Scratch,
    line: Scratch,
    pushed: usize,
    taken: usize,
}

impl Blur {
    /// Begins a view of `width` x `height`; `false` when `sigma` is so small
    /// that a blur would change nothing.
    pub fn begin(&mut self, sigma: f32, width: usize, height: usize, stride: usize) -> bool {
        let radius = ((3.0 * sigma).ceil() as usize).min(MAX_RADIUS);
        self.set_weights(sigma, radius);
        (self.width, self.height, self.stride) = (width, height, stride);
        (self.pushed, self.taken) = (0, 0);
        self.weights.len() > 1
    }

    fn set_weights(&mut self, sigma: f32, radius: usize) {
        let exact = |distance: usize| (-0.5 * (distance as f64 / f64::from(sigma)).powi(2)).exp();
        let total: f64 = 1.0 + 2.0 * (1..=radius).map(exact).sum::<f64>();
        self.weights.clear();
        self.weights.push(0);
        for distance in 1..=radius {
            let weight = (exact(distance) / total * 65536.0).round() as u16;
            if weight == 0 {
                break;
            }
            self.weights.push(weight);
        }
        // What is left belongs to the centre, so that a flat area stays flat.
        let others: u32 = self.weights.iter().map(|&w| 2 * u32::from(w)).sum();
        self.weights[0] = (65536 - others).min(65535) as u16;
    }

    fn radius(&self) -> usize {
        self.weights.len() - 1
    }

    /// Rows that the ring holds.
    fn capacity(&self) -> usize {
        2 * self.radius() + 1
    }

    /// Takes the next row, three planes of `stride`.
    pub fn push(&mut self, level: Level, planes: &[i16]) {
        let (radius, width, stride) = (self.radius(), self.width, self.stride);
        let slot = self.pushed % self.capacity();
        let ring = self.ring.get(3 * stride * (2 * radius + 1));
        let line = self.line.get(stride + 2 * radius + LANES);
        for channel in 0..3 {
            let plane = &planes[channel * stride..][..width];
            line[..radius].fill(plane[0] << BITS);
            for (to, from) in line[radius..].iter_mut().zip(plane) {
                *to = from << BITS;
            }
            line[radius + width..][..radius].fill(plane[width - 1] << BITS);
            let out = &mut ring[slot * 3 * stride + channel * stride..][..stride];
            horizontal(level, line, &self.weights, out);
        }
        self.pushed += 1;
    }

    /// Writes the next finished row, if there is one, and returns its number.
    pub fn take(&mut self, level: Level, planes: &mut [i16]) -> Option<usize> {
        let (radius, capacity, stride) = (self.radius(), self.capacity(), self.stride);
        let y = self.taken;
        if y == self.height || (self.pushed < self.height && self.pushed <= y + radius) {
            return None;
        }
        let ring = self.ring.get(3 * stride * capacity);
        let row = |y: usize| &ring[y % capacity * 3 * stride..][..3 * stride];
        planes.fill(1 << (BITS - 1));
        accumulate(level, row(y), row(y), self.weights[0] / 2, planes);
        for (distance, &weight) in self.weights.iter().enumerate().skip(1) {
            let above = row(y.saturating_sub(distance));
            let below = row((y + distance).min(self.height - 1));
            accumulate(level, above, below, weight, planes);
        }
        finish(level, planes);
        self.taken += 1;
        Some(y)
    }
}

/// `(a * b) >> 16` for values without sign.
#[inline(always)]
fn mulhi(a: u16, b: u16) -> u16 {
    ((u32::from(a) * u32::from(b)) >> 16) as u16
}

multiversion! {
    fn horizontal(line: &[i16], weights: &[u16], out: &mut [i16]) = horizontal_inner
}

#[inline(always)]
fn horizontal_inner(line: &[i16], weights: &[u16], out: &mut [i16]) {
    let (radius, n) = (weights.len() - 1, out.len());
    for (to, from) in out.iter_mut().zip(&line[radius..][..n]) {
        *to = mulhi(*from as u16, weights[0]) as i16;
    }
    for (distance, &weight) in weights.iter().enumerate().skip(1) {
        let left = &line[radius - distance..][..n];
        let right = &line[radius + distance..][..n];
        for ((to, left), right) in out.iter_mut().zip(left).zip(right) {
            *to += mulhi((*left + *right) as u16, weight) as i16;
        }
    }
}

multiversion! {
    fn accumulate(above: &[i16], below: &[i16], weight: u16, sum: &mut [i16]) = accumulate_inner
}

#[inline(always)]
fn accumulate_inner(above: &[i16], below: &[i16], weight: u16, sum: &mut [i16]) {
    for ((to, above), below) in sum.iter_mut().zip(above).zip(below) {
        *to += mulhi((*above + *below) as u16, weight) as i16;
    }
}

multiversion! {
    fn finish(planes: &mut [i16]) = finish_inner
}

#[inline(always)]
fn finish_inner(planes: &mut [i16]) {
    for v in planes {
        *v = (*v >> BITS).min(255);
    }
}
