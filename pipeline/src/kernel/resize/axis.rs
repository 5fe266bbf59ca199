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

    /// The filter's value; 0 outside the support. Without a branch that depends
    /// on `x`, for it is called some thousand times a view.
    #[inline(always)]
    fn at(self, x: f64) -> f64 {
        match self {
            // Keys, "Cubic convolution interpolation for digital image
            // processing" (1981), eq. 15, a = -1/2.
            Filter::Bicubic => {
                let x = x.abs().min(2.0);
                let inner = (1.5 * x - 2.5) * x * x + 1.0;
                let outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
                if x < 1.0 { inner } else { outer }
            }
            Filter::Bilinear => 1.0 - x.abs().min(1.0),
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
    /// Twice each weight, `taps` of them for each output pixel, zeros after its
    /// own: a vector of one weight is then a plain load.
    weights: Vec<[i16; 2]>,
    taps: usize,
    lowest: usize,
    end: usize,
    exact: Vec<f64>,
}

impl Axis {
    /// Computes the tables; weights sum to one.
    pub fn build(&mut self, filter: Filter, range: AxisRange, flip: bool) {
        let scale = range.input as f64 / range.total as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        // No window is longer: it is at most 2 * support + 1 wide.
        self.taps = ((2.0 * support + 1.0 + 1e-9) as usize).min(range.input);
        (self.lowest, self.end) = (range.input, 0);
        self.starts.clear();
        self.lengths.clear();
        self.weights.clear();
        self.exact.resize(self.taps, 0.0);
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
            let first = start as f64 - center + 0.5;
            match filter {
                Filter::Bicubic => {
                    self.weigh(end - start, |tap| Filter::Bicubic.at((first + tap) / stretch))
                }
                Filter::Bilinear => {
                    self.weigh(end - start, |tap| Filter::Bilinear.at((first + tap) / stretch))
                }
            }
            // The input pixel that the centre lies in has the largest weight.
            let largest = (center as i64 as usize).min(end - 1) - start;
            self.push_weights(end - start, largest);
        }
    }

    #[inline(always)]
    fn weigh(&mut self, len: usize, at: impl Fn(f64) -> f64) {
        for (tap, weight) in self.exact[..len].iter_mut().enumerate() {
            *weight = at(tap as f64);
        }
    }

    /// Rounds the first `len` of `exact`; the largest weight takes what rounding
    /// left over.
    fn push_weights(&mut self, len: usize, largest: usize) {
        let exact = &self.exact[..len];
        let scale = f64::from(1u32 << WEIGHT_BITS) / exact.iter().sum::<f64>();
        let at = self.weights.len();
        let mut left = 1i32 << WEIGHT_BITS;
        for exact in exact {
            // Rounded: the cast truncates, so it is kept positive.
            let weight = (exact * scale + 32768.5) as i32 - 32768;
            left -= weight;
            self.weights.push([weight as i16; 2]);
        }
        let corrected = i32::from(self.weights[at + largest][0]) + left;
        self.weights[at + largest] = [corrected as i16; 2];
        self.weights.resize(at + self.taps, [0; 2]);
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
        &self.weights[index * self.taps..][..self.taps]
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
