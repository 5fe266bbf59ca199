//! Convolution over NHWC slices: output, input gradient, weight gradient. Weights are O,KH,KW,I.
//!
//! [`plain`] holds the loops that define them; the fast versions are tested against those.

use std::cell::RefCell;

use super::direct::{Direct, Part};
use super::gather::Gather;
use super::micro::Isa;
use super::product::{Panels, Scatter, product};
use super::weight_grad::weight_grad;
use super::winograd::{self, Winograd};
use super::{Shared, elements};

/// A convolution on one input shape. A linear layer is a 1 x 1 convolution on 1 x 1 images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub c: usize,
    /// Output channels.
    pub o: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zeros on every side.
    pub pad: usize,
}

impl ConvShape {
    /// Output height and width.
    pub fn out(&self) -> (usize, usize) {
        let side = |s: usize| (s + 2 * self.pad - self.kernel) / self.stride + 1;
        (side(self.h), side(self.w))
    }

    /// Elements of the input.
    ///
    /// # Panics
    /// As those below, when no memory has as many.
    pub fn input_len(&self) -> usize {
        elements(&[self.n, self.h, self.w, self.c])
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        let (h, w) = self.out();
        elements(&[self.n, h, w, self.o])
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        elements(&[self.o, self.kernel, self.kernel, self.c])
    }

    /// The input's patches, one row an output pixel.
    fn patches(&self) -> Gather {
        let p = self.pad as isize;
        let k = 0..self.kernel as isize;
        let taps = k.clone().flat_map(|y| k.clone().map(move |x| (y - p, x - p))).collect();
        let source = (self.h, self.w);
        Gather { n: self.n, source, c: self.c, grid: self.out(), stride: self.stride, taps }
    }

    /// The parts of an input gradient: input pixels that share their offset modulo the stride take
    /// from the same taps.
    fn phases(&self) -> Vec<Phase> {
        let s = self.stride;
        let mut phases = Vec::with_capacity(s * s);
        for oy in 0..s.min(self.h) {
            for ox in 0..s.min(self.w) {
                phases.push(self.phase(oy, ox));
            }
        }
        phases
    }

    /// Input pixel y = yy * s + oy takes from output pixel (y + pad - ky) / s where that is whole.
    fn phase(&self, oy: usize, ox: usize) -> Phase {
        let s = self.stride;
        let from = |origin: usize, k: usize| {
            let t = (origin + self.pad) as isize - k as isize;
            (t.rem_euclid(s as isize) == 0).then(|| t.div_euclid(s as isize))
        };
        let (mut taps, mut kernel_taps) = (Vec::new(), Vec::new());
        for ky in 0..self.kernel {
            for kx in 0..self.kernel {
                if let (Some(dy), Some(dx)) = (from(oy, ky), from(ox, kx)) {
                    taps.push((dy, dx));
                    kernel_taps.push(ky * self.kernel + kx);
                }
            }
        }
        let grid = ((self.h - oy).div_ceil(s), (self.w - ox).div_ceil(s));
        let gather = Gather { n: self.n, source: self.out(), c: self.o, grid, stride: 1, taps };
        let scatter = Scatter { size: (self.h, self.w), stride: s, origin: (oy, ox) };
        Phase { gather, scatter, kernel_taps, offsets: Vec::new() }
    }
}

/// One phase of an input gradient.
struct Phase {
    gather: Gather,
    scatter: Scatter,
    kernel_taps: Vec<usize>,
    /// The taps' chunks in the bands, when it goes the direct way.
    offsets: Vec<usize>,
}

thread_local! {
    /// Packed weights, one set for each phase. They serve all convolutions: each use packs anew,
    /// for the weights have changed since. Taken while in use, so that a rayon thread that steals
    /// meanwhile has its own.
    static PANELS: RefCell<Vec<Panels>> = const { RefCell::new(Vec::new()) };
}

/// A convolution's plan on one input shape.
pub struct Conv {
    isa: Isa,
    shape: ConvShape,
    /// Before all others, where it can be had.
    winograd: Option<Winograd>,
    patches: Gather,
    direct: Option<Direct>,
    output: Scatter,
    phases: Vec<Phase>,
    /// The phases' bands: of a gather with the taps of all.
    direct_phases: Option<Direct>,
}

impl Conv {
    /// The plan for `shape`.
    pub fn new(isa: Isa, shape: ConvShape) -> Self {
        let patches = shape.patches();
        let mut phases = shape.phases();
        let direct_phases = all_phases(&phases).and_then(|g| Direct::new(&g, None));
        if let Some(direct) = &direct_phases {
            for p in &mut phases {
                p.offsets = p.gather.taps.iter().flat_map(|&t| direct.chunks_of(t)).collect();
            }
        }
        let direct = Direct::new(&patches, Some(shape.kernel));
        let output = Scatter { size: shape.out(), stride: 1, origin: (0, 0) };
        let winograd = Winograd::new(&shape);
        Self { isa, shape, winograd, patches, direct, output, phases, direct_phases }
    }

    /// The shape that this plan is for.
    pub fn shape(&self) -> ConvShape {
        self.shape
    }

    /// y = x * w.
    ///
    /// # Panics
    /// When a slice's length is not the shape's.
    pub fn forward(&self, x: &[f32], w: &[f32], y: &mut [f32]) {
        let (isa, s) = (self.isa, self.shape);
        self.check(x.len(), w.len(), y.len());
        let mut all = PANELS.take();
        all.resize_with(all.len().max(2), Panels::default);
        if let Some(winograd) = &self.winograd {
            all[0].pack_transposed(isa, w, s.o, 9, s.c);
            let weights = winograd::pack(isa, &mut all);
            winograd.product(isa, x, s.c, weights, Shared(y.as_mut_ptr()), false);
            return PANELS.set(all);
        }
        let panels = &mut all[0];
        match &self.direct {
            Some(direct) => {
                let (runs, run) = direct.runs();
                panels.pack_transposed(isa, w, s.o, runs, run);
                let part = Part { offsets: direct.offsets(), panels, scatter: &self.output };
                direct.product(isa, x, &[part], Shared(y.as_mut_ptr()), false);
            }
            None => {
                panels.pack_transposed(isa, w, s.o, 1, self.patches.depth());
                product(isa, &self.patches, x, panels, &self.output, y, false);
            }
        }
        PANELS.set(all);
    }

    /// dx (+)= the gradient with respect to the input.
    ///
    /// # Panics
    /// When a slice's length is not the shape's.
    pub fn input_grad(&self, dy: &[f32], w: &[f32], dx: &mut [f32], accumulate: bool) {
        let (isa, s) = (self.isa, self.shape);
        self.check(dx.len(), w.len(), dy.len());
        if self.phases.iter().any(|p| p.kernel_taps.is_empty()) && !accumulate {
            dx.fill(0.0);
        }
        let mut all = PANELS.take();
        all.resize_with(all.len().max(self.phases.len()).max(2), Panels::default);
        if let Some(winograd) = &self.winograd {
            // The same product, with the kernel turned around.
            let turned: [usize; 9] = std::array::from_fn(|tap| 8 - tap);
            all[0].pack_taps(isa, w, (s.o, 9, s.c), &turned);
            let weights = winograd::pack(isa, &mut all);
            winograd.product(isa, dy, s.o, weights, Shared(dx.as_mut_ptr()), accumulate);
            return PANELS.set(all);
        }
        let phases = || self.phases.iter().filter(|p| !p.kernel_taps.is_empty());
        for (phase, panels) in phases().zip(&mut all) {
            panels.pack_taps(isa, w, (s.o, s.kernel * s.kernel, s.c), &phase.kernel_taps);
        }
        match &self.direct_phases {
            Some(direct) => {
                let parts: Vec<Part<'_>> = phases()
                    .zip(&all)
                    .map(|(p, panels)| Part { offsets: &p.offsets, panels, scatter: &p.scatter })
                    .collect();
                direct.product(isa, dy, &parts, Shared(dx.as_mut_ptr()), accumulate);
            }
            None => {
                for (p, panels) in phases().zip(&all) {
                    product(isa, &p.gather, dy, panels, &p.scatter, dx, accumulate);
                }
            }
        }
        PANELS.set(all);
    }

    /// Overwrites `dw` with the gradient with respect to the weight.
    ///
    /// # Panics
    /// When a slice's length is not the shape's.
    pub fn weight_grad(&self, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        self.check(x.len(), dw.len(), dy.len());
        if let Some(winograd) = &self.winograd {
            return winograd.weight_grad(self.isa, x, dy, dw);
        }
        let of = (&self.patches, self.direct.as_ref());
        weight_grad(self.isa, of, x, dy, self.shape.o, dw);
    }

    fn check(&self, x: usize, w: usize, y: usize) {
        let s = &self.shape;
        assert_eq!((x, w, y), (s.input_len(), s.weight_len(), s.output_len()), "{s:?}");
    }
}

/// A gather with the taps of all phases, on the largest of their grids.
fn all_phases(phases: &[Phase]) -> Option<Gather> {
    let mut all = phases.first()?.gather.clone();
    for p in &phases[1..] {
        all.taps.extend(
            p.gather.taps.iter().filter(|t| !all.taps.contains(t)).copied().collect::<Vec<_>>(),
        );
        all.grid = (all.grid.0.max(p.gather.grid.0), all.grid.1.max(p.gather.grid.1));
    }
    Some(all)
}

/// The specification, summed in f64: seven nested loops.
pub mod plain {
    use super::ConvShape;

    /// Calls `f(input index, weight index, output index)` for every product of the convolution.
    pub fn for_each_product(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
        let (oh, ow) = s.out();
        for (n, oy, ox) in
            (0..s.n).flat_map(|n| (0..oh).flat_map(move |oy| (0..ow).map(move |ox| (n, oy, ox))))
        {
            for (ky, kx) in (0..s.kernel).flat_map(|y| (0..s.kernel).map(move |x| (y, x))) {
                let (y, x) = (oy * s.stride + ky, ox * s.stride + kx);
                if y < s.pad || x < s.pad || y - s.pad >= s.h || x - s.pad >= s.w {
                    continue;
                }
                let pixel = ((n * s.h + y - s.pad) * s.w + x - s.pad) * s.c;
                for (o, c) in (0..s.o).flat_map(|o| (0..s.c).map(move |c| (o, c))) {
                    let weight = ((o * s.kernel + ky) * s.kernel + kx) * s.c + c;
                    f(pixel + c, weight, ((n * oh + oy) * ow + ox) * s.o + o);
                }
            }
        }
    }

    /// y = x * w.
    pub fn forward(s: &ConvShape, x: &[f32], w: &[f32]) -> Vec<f64> {
        let mut y = vec![0.0; s.output_len()];
        for_each_product(s, |i, k, o| y[o] += x[i] as f64 * w[k] as f64);
        y
    }

    /// The gradient with respect to the input.
    pub fn input_grad(s: &ConvShape, dy: &[f32], w: &[f32]) -> Vec<f64> {
        let mut dx = vec![0.0; s.input_len()];
        for_each_product(s, |i, k, o| dx[i] += dy[o] as f64 * w[k] as f64);
        dx
    }

    /// The gradient with respect to the weight.
    pub fn weight_grad(s: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f64> {
        let mut dw = vec![0.0; s.weight_len()];
        for_each_product(s, |i, k, o| dw[k] += dy[o] as f64 * x[i] as f64);
        dw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    #[should_panic(expected = "a tensor fits the memory")]
    fn no_images_are_as_long_as_a_product_that_wraps() {
        let s = ConvShape { n: 1 << 62, h: 2, w: 2, c: 1, o: 1, kernel: 1, stride: 1, pad: 0 };
        s.input_len();
    }

    fn assert_close(got: &[f32], want: &[f64], what: &str) {
        let scale = want.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((*g as f64 - w).abs() <= 2e-6 * scale * 10.0, "{what}: [{i}] {g} {w}");
        }
    }

    /// Non-square, odd, few and many channels, every kernel and stride that a ResNet has.
    fn awkward() -> Vec<ConvShape> {
        let of =
            |n, h, w, c, o, kernel, stride, pad| ConvShape { n, h, w, c, o, kernel, stride, pad };
        vec![
            of(2, 7, 5, 3, 5, 3, 1, 1),
            of(2, 11, 9, 3, 20, 7, 2, 3),
            of(2, 9, 6, 16, 16, 3, 1, 1),
            of(2, 5, 7, 16, 33, 3, 2, 1),
            of(2, 6, 6, 32, 48, 3, 2, 1),
            of(2, 7, 4, 32, 70, 1, 2, 0),
            of(3, 5, 4, 64, 17, 1, 1, 0),
            of(2, 3, 2, 48, 64, 3, 1, 1),
            of(1, 1, 1, 16, 16, 3, 2, 1),
            of(37, 1, 1, 350, 40, 1, 1, 0),
            of(5, 16, 15, 16, 8, 3, 1, 1),
            of(2, 17, 16, 32, 37, 3, 1, 1),
            of(2, 33, 31, 16, 20, 3, 2, 1),
            of(1, 20, 40, 48, 16, 7, 2, 3),
            of(2, 70, 28, 64, 33, 3, 1, 1),
            // By Winograd's tiles, whole and cut, in several parts.
            of(2, 7, 7, 32, 48, 3, 1, 1),
            of(3, 4, 2, 64, 96, 3, 1, 1),
            of(5, 70, 28, 16, 32, 3, 1, 1),
        ]
    }

    #[test]
    fn tiles_round_within_a_few_times_the_direct_ways_error() {
        for (n, side, c) in [(8, 16, 64), (16, 2, 512)] {
            let s = ConvShape { n, h: side, w: side, c, o: c, kernel: 3, stride: 1, pad: 1 };
            let (x, w) = (noise(s.input_len(), 1), noise(s.weight_len(), 2));
            let dy = noise(s.output_len(), 3);
            let want = [
                plain::forward(&s, &x, &w),
                plain::input_grad(&s, &dy, &w),
                plain::weight_grad(&s, &x, &dy),
            ];
            let errors = |conv: &Conv| {
                let mut got = want.each_ref().map(|want| vec![0.0; want.len()]);
                conv.forward(&x, &w, &mut got[0]);
                conv.input_grad(&dy, &w, &mut got[1], false);
                conv.weight_grad(&x, &dy, &mut got[2]);
                let square = |x: f64| x * x;
                std::array::from_fn::<f64, 3, _>(|i| {
                    let pairs = got[i].iter().zip(&want[i]);
                    let off: f64 = pairs.map(|(g, w)| square(f64::from(*g) - w)).sum();
                    (off / want[i].iter().map(|w| square(*w)).sum::<f64>()).sqrt()
                })
            };
            let mut conv = Conv::new(Isa::best(), s);
            let tiles = errors(&conv);
            assert!(conv.winograd.take().is_some());
            for (tiles, direct) in tiles.iter().zip(errors(&conv)) {
                assert!(*tiles < 1e-6 && *tiles < 6.0 * direct, "{s:?}: {tiles:e}, {direct:e}");
            }
        }
    }

    #[test]
    fn tiles_are_taken_where_they_save_products() {
        let taken = |h, w, c, o| {
            let s = ConvShape { n: 2, h, w, c, o, kernel: 3, stride: 1, pad: 1 };
            Conv::new(Isa::best(), s).winograd.is_some()
        };
        assert!(taken(32, 32, 16, 16) && taken(7, 7, 512, 512) && taken(2, 2, 64, 32));
        assert!(!taken(3, 3, 64, 64) && !taken(1, 1, 64, 64), "tiles that are mostly empty");
        assert!(!taken(32, 32, 3, 64) && !taken(32, 32, 64, 40), "channels that fill no line");
        assert!(awkward().iter().filter(|s| Winograd::new(s).is_some()).count() >= 5);
    }

    #[test]
    fn every_instruction_set_agrees_with_the_plain_loops_on_awkward_shapes() {
        for s in awkward() {
            let (x, w) = (noise(s.input_len(), 1), noise(s.weight_len(), 2));
            let dy = noise(s.output_len(), 3);
            let want_y = plain::forward(&s, &x, &w);
            let want_dx = plain::input_grad(&s, &dy, &w);
            let want_dw = plain::weight_grad(&s, &x, &dy);
            for isa in Isa::all() {
                let what = |part| format!("{part} {isa:?} {s:?}");
                let conv = Conv::new(isa, s);
                let mut y = vec![f32::NAN; s.output_len()];
                conv.forward(&x, &w, &mut y);
                assert_close(&y, &want_y, &what("y"));
                let mut dx = vec![f32::NAN; s.input_len()];
                conv.input_grad(&dy, &w, &mut dx, false);
                assert_close(&dx, &want_dx, &what("dx"));
                conv.input_grad(&dy, &w, &mut dx, true);
                let twice: Vec<f64> = want_dx.iter().map(|v| 2.0 * v).collect();
                assert_close(&dx, &twice, &what("dx added"));
                let mut dw = vec![f32::NAN; s.weight_len()];
                conv.weight_grad(&x, &dy, &mut dw);
                assert_close(&dw, &want_dw, &what("dw"));
            }
        }
    }

    #[test]
    fn results_have_the_same_bits_on_1_2_and_5_threads() {
        let strided = ConvShape { n: 6, h: 24, w: 22, c: 16, o: 48, kernel: 3, stride: 2, pad: 1 };
        same_bits(strided);
        same_bits(ConvShape { h: 40, w: 37, stride: 1, ..strided });
        // Fewer splits than threads, several rounds of blocks.
        same_bits(ConvShape { n: 30, h: 6, w: 7, c: 64, o: 96, stride: 1, ..strided });
    }

    fn same_bits(s: ConvShape) {
        let (x, w) = (noise(s.input_len(), 1), noise(s.weight_len(), 2));
        let dy = noise(s.output_len(), 3);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let conv = Conv::new(Isa::best(), s);
                let mut y = vec![0.0; s.output_len()];
                let mut dx = vec![0.0; s.input_len()];
                let mut dw = vec![0.0; s.weight_len()];
                conv.forward(&x, &w, &mut y);
                conv.input_grad(&dy, &w, &mut dx, false);
                conv.weight_grad(&x, &dy, &mut dw);
                (y, dx, dw)
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5));
    }
}
