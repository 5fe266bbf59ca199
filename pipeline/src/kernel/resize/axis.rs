//! The filter's weights along one axis: Pillow's `precompute_coeffs`.

use crate::kernel::Level;
use crate::kernel::level::multiversion;

/// Fractional bits of a weight. Where the border cuts off negative weights the
/// others sum to more than one, so that 15 bits would not fit.
pub(super) const WEIGHT_BITS: u32 = 14;

/// Weights that are computed together.
const LANES: usize = 8;

/// A resize filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Cubic convolution, a = -0.5.
    Bicubic,
    /// Triangle.
    Bilinear,
    /// Windowed sinc of three lobes. For what is made once: its sines cost more
    /// than the resize of a view.
    Lanczos3,
}

impl Filter {
    /// Half the filter's width, in output pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Bilinear => 1.0,
            Filter::Lanczos3 => 3.0,
        }
    }
}

/// Keys, "Cubic convolution interpolation for digital image processing" (1981),
/// eq. 15, a = -1/2, in factors: the outer piece, and what the inner one has beyond
/// it. Like the others 0 outside the support; without a branch, which would keep
/// the compiler from making vectors of it.
#[inline(always)]
fn bicubic(x: f32) -> f32 {
    let (outer, inner) = (x.abs().min(2.0), x.abs().min(1.0));
    let beyond = (inner - 1.0) * (inner - 1.0) * (2.0 * inner - 1.0);
    -0.5 * (outer - 1.0) * (outer - 2.0) * (outer - 2.0) + beyond
}

#[inline(always)]
fn bilinear(x: f32) -> f32 {
    1.0 - x.abs().min(1.0)
}

fn lanczos3(x: f32) -> f32 {
    let sinc = |x: f32| {
        let angle = x * std::f32::consts::PI;
        if x.abs() < 1e-4 { 1.0 } else { angle.sin() / angle }
    };
    if x.abs() < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// `input` pixels become `total`, of which `count` from `first` on are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct AxisRange {
    pub input: usize,
    pub total: usize,
    pub first: usize,
    pub count: usize,
}

/// For each output pixel: the first input pixel it draws from, and weights.
#[derive(Debug, Default)]
pub(super) struct Axis {
    starts: Vec<u32>,
    lengths: Vec<u32>,
    /// Twice each weight, `taps` of them for each output pixel, zeros after its
    /// own: a vector of one weight is then a plain load. Some unused ones follow.
    weights: Vec<u32>,
    taps: usize,
    lowest: usize,
    end: usize,
    /// Weights of one output pixel before they are rounded, whole vectors.
    exact: Vec<[f32; LANES]>,
}

multiversion! {
    fn fill(axis: &mut Axis, filter: Filter, range: AxisRange, flip: bool) = fill_inner
}

#[inline(always)]
fn fill_inner(axis: &mut Axis, filter: Filter, range: AxisRange, flip: bool) {
    let support = filter.support();
    match filter {
        Filter::Bicubic => axis.fill(bicubic, support, range, flip),
        Filter::Bilinear => axis.fill(bilinear, support, range, flip),
        Filter::Lanczos3 => axis.fill(lanczos3, support, range, flip),
    }
}

impl Axis {
    /// Computes the tables; weights sum to one.
    pub fn build(&mut self, level: Level, filter: Filter, range: AxisRange, flip: bool) {
        fill(level, self, filter, range, flip);
    }

    #[inline(always)]
    fn fill(&mut self, at: impl Fn(f32) -> f32, support: f64, range: AxisRange, flip: bool) {
        let scale = range.input as f64 / range.total as f64;
        let stretch = scale.max(1.0);
        let support = support * stretch;
        // No window is longer: it is at most 2 * support + 1 wide.
        self.taps = ((2.0 * support + 1.0 + 1e-9) as usize).min(range.input);
        let padded = self.taps.next_multiple_of(LANES);
        (self.lowest, self.end) = (range.input, 0);
        self.starts.clear();
        self.lengths.clear();
        self.weights.resize(range.count * self.taps + LANES, 0);
        self.exact.resize(padded / LANES, [0.0; LANES]);
        let inverse = (1.0 / stretch) as f32;
        for index in 0..range.count {
            let x = range.first + if flip { range.count - 1 - index } else { index };
            let center = (x as f64 + 0.5) * scale;
            // Both are non-negative, so the cast truncates as C's does.
            let start = (center - support + 0.5).max(0.0) as i64 as usize;
            let end = ((center + support + 0.5) as i64 as usize).min(range.input);
            self.lowest = self.lowest.min(start);
            self.end = self.end.max(end);
            self.starts.push(start as u32);
            self.lengths.push((end - start) as u32);
            let first = (start as f64 - center + 0.5) as f32;
            let sum = weigh(&mut self.exact, end - start, |tap| at((first + tap) * inverse));
            // What this writes beyond `taps` the next output pixel overwrites.
            let weights = &mut self.weights[index * self.taps..][..padded];
            let left = round(&self.exact, f32::from(1i16 << WEIGHT_BITS) / sum, weights);
            // The input pixel that the centre lies in has the largest weight, and
            // takes what rounding left over.
            let largest = (center as i64 as usize).min(end - 1) - start;
            weights[largest] = twice(weights[largest] as i16 as i32 + left);
        }
    }

    /// Output pixels.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The most weights of one output pixel.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// The first input pixel of output pixel `index`.
    pub fn start(&self, index: usize) -> usize {
        self.starts[index] as usize
    }

    /// The weights of output pixel `index`, each twice.
    pub fn weights(&self, index: usize) -> &[[i16; 2]] {
        &self.pairs(index)[..self.lengths[index] as usize]
    }

    /// `taps` weights of output pixel `index`, zeros after its own.
    pub fn pairs(&self, index: usize) -> &[[i16; 2]] {
        bytemuck::cast_slice(&self.weights[index * self.taps..][..self.taps])
    }

    /// The first and one past the last input pixel that any output draws from.
    pub fn bounds(&self) -> (usize, usize) {
        (self.lowest, self.end)
    }

    /// The first input pixel that any output draws from.
    pub fn lowest(&self) -> usize {
        self.lowest
    }
}

/// 0, 1, 2, ..
const RAMP: [f32; LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

/// Ones and zeros: from 8 - n on, n ones are left.
const MASKS: [f32; 2 * LANES] =
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];

/// The first `len` weights into `exact`, zeros after them; returns their sum, which
/// has the same bits with every instruction set: lanes are added in one order.
#[inline(always)]
fn weigh(exact: &mut [[f32; LANES]], len: usize, at: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    for (vector, exact) in exact.iter_mut().enumerate() {
        let base = (vector * LANES) as f32;
        let mask = &MASKS[LANES - len.saturating_sub(vector * LANES).min(LANES)..][..LANES];
        *exact = RAMP.map(|lane| at(base + lane));
        for lane in 0..LANES {
            exact[lane] *= mask[lane];
            sums[lane] += exact[lane];
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// A weight twice, which as `[i16; 2]` is the same in either byte order.
#[inline(always)]
fn twice(weight: i32) -> u32 {
    (weight as u32 & 0xFFFF) * 0x1_0001
}

/// Rounds to [`WEIGHT_BITS`]; returns what is missing from one.
#[inline(always)]
fn round(exact: &[[f32; LANES]], scale: f32, weights: &mut [u32]) -> i32 {
    let mut sums = [0i32; LANES];
    let (vectors, _) = weights.as_chunks_mut::<LANES>();
    for (exact, weights) in exact.iter().zip(vectors) {
        // Added to 1.5 * 2^23 a number is rounded to a whole one, found in the low
        // bits.
        const WHOLE: f32 = 12_582_912.0;
        let whole = exact.map(|weight| (weight * scale + WHOLE).to_bits() as i32);
        *weights = whole.map(twice);
        for (sum, whole) in sums.iter_mut().zip(whole) {
            *sum += whole - WHOLE.to_bits() as i32;
        }
    }
    (1 << WEIGHT_BITS) - sums.iter().sum::<i32>()
}
