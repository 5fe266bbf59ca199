//! The filter's weights along one axis: Pillow's `precompute_coeffs`.

/// Fractional bits of a weight. Where the border cuts off negative weights the
/// others sum to more than one, so that 15 bits would not fit.
pub(super) const WEIGHT_BITS: u32 = 14;

/// A resize filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Cubic convolution, a = -0.5.
    Bicubic,
    /// Triangle.
    Bilinear,
}

impl Filter {
    /// Half the filter's width, in output pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Bilinear => 1.0,
        }
    }

    #[inline(always)]
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            // Keys, "Cubic convolution interpolation for digital image
            // processing" (1981), eq. 15, a = -1/2.
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            _ => 0.0,
        }
    }
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
    /// `taps` weights for each output pixel, zeros after its own.
    weights: Vec<i16>,
    taps: usize,
    exact: Vec<f64>,
}

impl Axis {
    /// Computes the tables; weights sum to one.
    pub fn build(&mut self, filter: Filter, range: AxisRange, flip: bool) {
        let scale = range.input as f64 / range.total as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        self.taps = (support.ceil() as usize * 2 + 1).min(range.input);
        self.starts.clear();
        self.lengths.clear();
        self.weights.clear();
        for index in 0..range.count {
            let x = range.first + if flip { range.count - 1 - index } else { index };
            let center = (x as f64 + 0.5) * scale;
            // Both are non-negative, so the cast truncates as C's does.
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(range.input);
            self.exact.clear();
            self.exact.extend(
                (start..end).map(|input| filter.at((input as f64 - center + 0.5) / stretch)),
            );
            self.starts.push(start as u32);
            self.lengths.push((end - start) as u32);
            self.push_weights();
        }
    }

    /// Rounds `exact`; the largest weight takes what rounding left over.
    fn push_weights(&mut self) {
        let one = f64::from(1u32 << WEIGHT_BITS);
        let sum: f64 = self.exact.iter().sum();
        let at = self.weights.len();
        let (mut left, mut largest) = (1i32 << WEIGHT_BITS, 0);
        for (index, exact) in self.exact.iter().enumerate() {
            let weight = (exact / sum * one).round() as i32;
            left -= weight;
            if *exact > self.exact[largest] {
                largest = index;
            }
            self.weights.push(weight as i16);
        }
        let corrected = i32::from(self.weights[at + largest]) + left;
        self.weights[at + largest] = corrected as i16;
        self.weights.resize(at + self.taps, 0);
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

    /// The weights of output pixel `index`.
    pub fn weights(&self, index: usize) -> &[i16] {
        &self.weights[index * self.taps..][..self.lengths[index] as usize]
    }
}
