//! The filter's weights along one axis: Pillow's `precompute_coeffs`.

use crate::Level;
use crate::level::multiversion;

/// Fractional bits of a weight. Where the border cuts off negative weights the
/// others sum to more than one, so that 15 bits would not fit.
pub(super) const WEIGHT_BITS: u32 = 14;

/// Fractional bits of a fine weight; Pillow's have as many.
pub(super) const FINE_BITS: u32 = 22;

/// Above so many taps an axis has fine weights alone, and `fine` adds them up. The other way loses
/// at most half of 2^-6 of a level with each tap: half a level here, and one level in both passes.
const COARSE_TAPS: usize = 64;

/// Two fine weights: `256 * high + low`.
#[derive(Clone, Copy, Debug)]
pub(super) struct FinePair {
    pub high: [i16; 2],
    pub low: [i16; 2],
}

/// Output pixels whose weights are computed together, so that sums over the taps stay
/// in their lanes.
const LANES: usize = 16;

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

/// Along one axis `input` pixels become `total`, of which `count` from `first` on are wanted.
#[derive(Clone, Copy, Debug)]
pub struct AxisRange {
    /// Pixels of the crop.
    pub input: usize,
    /// Pixels of the whole resized crop.
    pub total: usize,
    /// The first pixel that is wanted.
    pub first: usize,
    /// Pixels that are wanted.
    pub count: usize,
}

impl AxisRange {
    /// All of `total` pixels.
    pub fn whole(input: usize, total: usize) -> AxisRange {
        AxisRange { input, total, first: 0, count: total }
    }
}

/// For each output pixel: the first input pixel it draws from, and weights. Tables are made of
/// groups of [`LANES`] output pixels, the last one filled up with its last pixel, and are as long as
/// the longest were.
#[derive(Debug, Default)]
pub(super) struct Axis {
    count: usize,
    starts: Vec<[u32; LANES]>,
    lengths: Vec<[u32; LANES]>,
    /// Twice each weight: a vector of one weight is then a plain load. For each group the first
    /// weights of its pixels, then the second ones, `taps` times; zeros after a pixel's own.
    weights: Vec<[[i16; 2]; LANES]>,
    taps: usize,
    lowest: usize,
    end: usize,
    flip: bool,
    /// Weights before they are rounded: for each tap, those of [`LANES`] output pixels.
    exact: Vec<[f32; LANES]>,
    /// In the place of `weights` where [`Axis::is_fine`]: weights with [`FINE_BITS`], two taps a
    /// pair, zeros after each output pixel's own.
    fine: Vec<FinePair>,
    is_fine: bool,
}

/// The weights of one output pixel, each twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a> {
    group: &'a [[[i16; 2]; LANES]],
    lane: usize,
}

impl<'a> Weights<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        self.group.len()
    }

    /// All of them.
    #[inline(always)]
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [i16; 2]> {
        let lane = self.lane % LANES;
        self.group.iter().map(move |tap| &tap[lane])
    }
}

/// Where the windows of [`LANES`] output pixels lie.
struct Windows {
    /// From the centre to the first input pixel's.
    first: [f32; LANES],
    /// The first input pixel.
    start: [u32; LANES],
    /// Input pixels.
    length: [u32; LANES],
    /// The place of the input pixel that the centre lies in.
    largest: [u32; LANES],
}

/// Where windows lie along an axis.
struct Placed {
    range: AxisRange,
    flip: bool,
    scale: f64,
    support: f64,
}

impl Placed {
    /// The windows of the output pixels from `group` on. Those behind the last are the last one's.
    #[inline(always)]
    fn windows(&self, group: usize) -> Windows {
        let AxisRange { input, first, count, .. } = self.range;
        let none = [0; LANES];
        let mut windows = Windows { first: [0.0; LANES], start: none, length: none, largest: none };
        let most = f64::from(i32::try_from(input).expect("an axis of less than 2^31 pixels"));
        let last = count as i32 - 1;
        let within = |value: f64| {
            let value = if value > 0.0 { value } else { 0.0 };
            let value = if value < most { value } else { most };
            // SAFETY: 0..=`most`, as the comparisons leave no other value, and `most` is an `i32`.
            unsafe { value.to_int_unchecked::<i32>() }
        };
        for lane in 0..LANES {
            let index = (group as i32 + lane as i32).min(last);
            let index = if self.flip { last - index } else { index };
            // Whole numbers, exact below 2^53.
            let center = (first as f64 + f64::from(index) + 0.5) * self.scale;
            let start = within(center - self.support + 0.5);
            let end = within(center + self.support + 0.5);
            windows.first[lane] = (f64::from(start) - center + 0.5) as f32;
            windows.start[lane] = start as u32;
            windows.length[lane] = (end - start) as u32;
            windows.largest[lane] = (within(center).min(end - 1) - start) as u32;
        }
        windows
    }
}

/// What else the tables are to have.
#[derive(Clone, Copy)]
struct Asked {
    flip: bool,
    fine: bool,
}

multiversion! {
    fn fill(axis: &mut Axis, filter: Filter, range: AxisRange, asked: Asked) = fill_inner
}

#[inline(always)]
fn fill_inner(axis: &mut Axis, filter: Filter, range: AxisRange, asked: Asked) {
    let support = filter.support();
    match filter {
        Filter::Bicubic => axis.fill(bicubic, support, range, asked),
        Filter::Bilinear => axis.fill(bilinear, support, range, asked),
        Filter::Lanczos3 => axis.fill(lanczos3, support, range, asked),
    }
}

impl Axis {
    /// Computes the tables, [`Axis::fine`] where there are many taps; weights sum to one.
    pub fn build(&mut self, level: Level, filter: Filter, range: AxisRange, flip: bool) {
        fill(level, self, filter, range, Asked { flip, fine: false });
    }

    /// [`Axis::build`] with [`Axis::fine`] for any number of taps.
    pub fn build_fine(&mut self, level: Level, filter: Filter, range: AxisRange) {
        fill(level, self, filter, range, Asked { flip: false, fine: true });
    }

    #[inline(always)]
    fn fill(&mut self, at: impl Fn(f32) -> f32, support: f64, range: AxisRange, asked: Asked) {
        let flip = asked.flip;
        let scale = range.input as f64 / range.total as f64;
        let stretch = scale.max(1.0);
        let support = support * stretch;
        // No window is longer: it is at most 2 * support + 1 wide.
        self.taps = ((2.0 * support + 1.0 + 1e-9) as usize).min(range.input);
        (self.lowest, self.end) = (range.input, 0);
        self.flip = flip;
        self.count = range.count;
        let groups = range.count.div_ceil(LANES);
        at_least(&mut self.starts, groups);
        at_least(&mut self.lengths, groups);
        self.fine.clear();
        self.is_fine = asked.fine || self.taps > COARSE_TAPS;
        if self.is_fine {
            self.fine.reserve(range.count * self.taps.div_ceil(2));
        } else {
            at_least(&mut self.weights, groups * self.taps);
        }
        self.exact.resize(self.taps, [0.0; LANES]);
        let inverse = (1.0 / stretch) as f32;
        let placed = Placed { range, flip, scale, support };
        for (group, first) in (0..range.count).step_by(LANES).enumerate() {
            let windows = placed.windows(first);
            self.starts[group] = windows.start;
            self.lengths[group] = windows.length;
            let sums = weigh(&mut self.exact, &windows, |offset| at(offset * inverse));
            if self.is_fine {
                self.round_fine(&sums[..(range.count - first).min(LANES)]);
            } else {
                let weights = &mut self.weights[group * self.taps..][..self.taps];
                round(&self.exact, &windows, sums, weights);
            }
        }
        // Windows go to one side from pixel to pixel, or stay.
        if let Some(last) = range.count.checked_sub(1) {
            let (left, right) = if flip { (last, 0) } else { (0, last) };
            (self.lowest, self.end) = (self.start(left), self.start(right) + self.length(right));
        }
    }

    /// Scales the weights of a group to a sum of one and rounds them to [`FINE_BITS`].
    #[inline(always)]
    fn round_fine(&mut self, sums: &[f32]) {
        for (lane, sum) in sums.iter().enumerate() {
            let scale = (1u32 << FINE_BITS) as f32 / sum;
            let of = |taps: &[f32; LANES]| (taps[lane] * scale).round_ties_even() as i32;
            self.fine.extend(self.exact.chunks(2).map(|two| {
                let two = [of(&two[0]), two.get(1).map_or(0, of)];
                FinePair { high: two.map(|w| (w >> 8) as i16), low: two.map(|w| (w & 255) as i16) }
            }));
        }
    }

    /// Gives back tables far larger than others.
    pub fn trim(&mut self) {
        crate::scratch::trim(&mut self.weights);
        crate::scratch::trim(&mut self.exact);
        crate::scratch::trim(&mut self.fine);
    }

    /// Bytes that its tables take.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let windows = 64 * (self.starts.capacity() + self.lengths.capacity());
        let weights = 64 * self.weights.capacity() + 8 * self.fine.capacity();
        windows + weights + 64 * self.exact.capacity()
    }

    /// Takes so many bytes for fine weights.
    #[cfg(test)]
    pub fn grow_fine(&mut self, bytes: usize) {
        self.fine.reserve_exact(bytes / size_of::<FinePair>());
    }

    /// Whether windows go to the left from one output pixel to the next.
    #[inline]
    pub fn descends(&self) -> bool {
        self.flip
    }

    /// Output pixels.
    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    /// The most weights of one output pixel.
    #[inline]
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// The first input pixel of output pixel `index`.
    #[inline]
    pub fn start(&self, index: usize) -> usize {
        self.starts.as_flattened()[index] as usize
    }

    /// Whether it has [`Axis::fine`], and neither [`Axis::weights`] nor [`Axis::all_weights`].
    pub fn is_fine(&self) -> bool {
        self.is_fine
    }

    /// How many input pixels output pixel `index` draws from.
    #[inline]
    pub fn length(&self, index: usize) -> usize {
        self.lengths.as_flattened()[index] as usize
    }

    /// The weights of output pixel `index`.
    #[inline(always)]
    pub fn weights(&self, index: usize) -> Weights<'_> {
        let Weights { group, lane } = self.all_weights(index);
        Weights { group: &group[..self.length(index)], lane }
    }

    /// `taps` weights of output pixel `index`, zeros after its own.
    #[inline(always)]
    pub fn all_weights(&self, index: usize) -> Weights<'_> {
        let group = &self.weights[index / LANES * self.taps..][..self.taps];
        Weights { group, lane: index % LANES }
    }

    /// The weights of output pixel `index` with [`FINE_BITS`], two taps a pair, and how many taps
    /// there are.
    #[inline]
    pub fn fine(&self, index: usize) -> (&[FinePair], usize) {
        let pairs = self.taps.div_ceil(2);
        let taps = self.length(index);
        (&self.fine[index * pairs..][..taps.div_ceil(2)], taps)
    }

    /// The first and one past the last input pixel that any output draws from.
    pub fn bounds(&self) -> (usize, usize) {
        (self.lowest, self.end)
    }

    /// The first input pixel that any output draws from.
    #[inline]
    pub fn lowest(&self) -> usize {
        self.lowest
    }
}

/// To be called in each turn of a loop over taps. The compiler would make vectors of one lane's taps
/// there, by gathers and scatters, where those of one tap's lanes lie side by side: 2.4 us in place
/// of 0.8 for 224 output pixels with AVX-512. It becomes no instruction.
#[inline(always)]
fn lanes_not_taps() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

/// The weights of a group into `exact`, zeros after each window; returns their sums,
/// which have the same bits with every instruction set: taps are added in order.
#[inline(always)]
fn weigh(exact: &mut [[f32; LANES]], windows: &Windows, at: impl Fn(f32) -> f32) -> [f32; LANES] {
    let mut sums = [0f32; LANES];
    for (tap, exact) in exact.iter_mut().enumerate() {
        lanes_not_taps();
        for lane in 0..LANES {
            let weight = at(windows.first[lane] + tap as f32);
            exact[lane] = if (tap as u32) < windows.length[lane] { weight } else { 0.0 };
            sums[lane] += exact[lane];
        }
    }
    sums
}

/// Scales the weights of a group to a sum of one and rounds them to [`WEIGHT_BITS`].
/// The input pixel that a centre lies in has the largest weight, and takes what
/// rounding left over.
#[inline(always)]
fn round(
    exact: &[[f32; LANES]],
    windows: &Windows,
    sums: [f32; LANES],
    weights: &mut [[[i16; 2]; LANES]],
) {
    // Added to 1.5 * 2^23 a number is rounded to a whole one, found in the low bits.
    const WHOLE: f32 = 12_582_912.0;
    let scale = sums.map(|sum| f32::from(1i16 << WEIGHT_BITS) / sum);
    let whole = |exact: f32, scale: f32| (exact * scale + WHOLE).to_bits() as i32;
    let mut left = [1i32 << WEIGHT_BITS; LANES];
    for exact in exact {
        lanes_not_taps();
        for lane in 0..LANES {
            left[lane] -= whole(exact[lane], scale[lane]) - WHOLE.to_bits() as i32;
        }
    }
    for (tap, (exact, weights)) in exact.iter().zip(weights).enumerate() {
        lanes_not_taps();
        // A weight twice, which as `[i16; 2]` is the same in either byte order.
        let mut twice = [0u32; LANES];
        for lane in 0..LANES {
            let more = if tap as u32 == windows.largest[lane] { left[lane] } else { 0 };
            let weight = (whole(exact[lane], scale[lane]) + more) as u32 & 0xFFFF;
            twice[lane] = weight << 16 | weight;
        }
        *weights = bytemuck::cast(twice);
    }
}

/// Makes a table longer where it is shorter than `len`.
fn at_least<T: Clone + bytemuck::Zeroable>(table: &mut Vec<T>, len: usize) {
    if table.len() < len {
        table.resize(len, T::zeroed());
    }
}
