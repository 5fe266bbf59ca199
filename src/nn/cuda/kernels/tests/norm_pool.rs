//! Batch normalisation and max pool in one against the two of them, one after the other.

use candle_core::DType;

use super::{Memory, TYPES, close, noise, on_device, rounded, within};
use crate::nn::cpu::pool::PoolShape;
use crate::nn::cuda::kernels::norm::*;
use crate::nn::cuda::kernels::norm_pool::*;
use crate::nn::cuda::kernels::pool::{max_pool, max_pool_backward};
use crate::nn::cuda::{Backend, Span};

/// One layer's memory, for either way.
struct Layer {
    s: NormPoolShape,
    x: Memory,
    y: Memory,
    winner: Memory,
    vectors: [Memory; 4],
    grads: [Memory; 2],
    saved: Memory,
    scratch: Memory,
}

fn shape(n: usize, h: usize, w: usize, c: usize, groups: usize) -> NormPoolShape {
    let (kernel, stride, pad) = WINDOW;
    NormPoolShape { pool: PoolShape { n, h, w, c, kernel, stride, pad }, groups }
}

/// The normalisation alone.
fn norm_shape(s: &NormPoolShape) -> NormShape {
    let PoolShape { n, h, w, c, .. } = s.pool;
    NormShape { rows: n * h * w, channels: c, groups: s.groups }
}

fn out_len(s: &NormPoolShape) -> usize {
    let (oh, ow) = s.pool.out();
    s.pool.n * oh * ow * s.pool.c
}

impl Layer {
    fn new(s: NormPoolShape, x: &[f32], dtype: DType, odd: usize) -> Self {
        let (c, out) = (s.pool.c, out_len(&s));
        let gamma: Vec<f32> = noise(c, 4).iter().map(|v| 1.0 + 0.5 * v).collect();
        let of = |v: &[f32]| Memory::of(v, DType::F32);
        let vector = || Memory::unwritten(c, DType::F32);
        Self {
            s,
            x: Memory::of_at(odd, x, dtype),
            y: Memory::unwritten_at(odd, out, dtype),
            winner: Memory::unwritten_at(odd, out, DType::U8),
            vectors: [of(&gamma), of(&noise(c, 5)), of(&vec![0.1; c]), of(&vec![0.7; c])],
            grads: [vector(), vector()],
            saved: Memory::unwritten(2 * s.groups * c, DType::F32),
            scratch: Memory::unwritten(norm_pool_scratch(s), DType::F32),
        }
    }

    fn params(&self) -> NormParams {
        let [gamma, beta, running_mean, running_var] = self.vectors.each_ref().map(Memory::span);
        NormParams { gamma, beta, running_mean, running_var, moves: true, eps: 1e-5, momentum: 0.1 }
    }

    fn train(&self, b: &dyn Backend) {
        self.train_with(b, Some(self.winner.span()));
    }

    fn train_with(&self, b: &dyn Backend, winner: Option<Span>) {
        let (x, y) = (self.x.span(), self.y.span());
        let (saved, scratch) = (self.saved.span(), self.scratch.span());
        norm_pool_train(b, self.s, &self.params(), x, y, winner, saved, scratch).unwrap();
    }

    fn backward(&self, b: &dyn Backend, dy: Span, dx: Span) {
        let p = self.params();
        norm_pool_backward(
            b,
            self.s,
            [p.gamma, p.beta],
            self.x.span(),
            self.winner.span(),
            dy,
            dx,
            self.grads.each_ref().map(Memory::span),
            self.saved.span(),
            self.scratch.span(),
        )
        .unwrap();
    }
}

/// Few values, so that windows have equal maxima.
fn coarse(len: usize) -> Vec<f32> {
    noise(len, 1).iter().map(|v| (v * 3.0).round() * 0.5 + 0.25).collect()
}

fn check(b: &dyn Backend, s: NormPoolShape, x: &[f32], dtype: DType, odd: usize) {
    let name = format!("{s:?} {dtype:?}");
    let (plain, fused) = (Layer::new(s, x, dtype, odd), Layer::new(s, x, dtype, odd));
    let between = Memory::unwritten_at(odd, x.len(), dtype);
    let (saved, scratch) = (plain.saved.span(), plain.scratch.span());
    let (of, p) = (norm_shape(&s), plain.params());
    let (from, mid) = (plain.x.span(), between.span());
    norm_train(b, of, &p, from, None, mid, None, saved, scratch, true).unwrap();
    max_pool(b, &s.pool, mid, plain.y.span(), Some(plain.winner.span())).unwrap();
    fused.train(b);
    assert_eq!(fused.y.floats(), plain.y.floats(), "y of {name}");
    // Where no backward pass comes, nobody asks which taps won.
    let alone = Layer::new(s, x, dtype, odd);
    alone.train_with(b, None);
    assert_eq!(alone.y.floats(), plain.y.floats(), "y alone of {name}");
    assert_eq!(fused.winner.floats(), plain.winner.floats(), "winners of {name}");
    assert_eq!(fused.saved.floats(), plain.saved.floats());
    for i in [2, 3] {
        assert_eq!(fused.vectors[i].floats(), plain.vectors[i].floats());
    }

    let dy = Memory::of_at(odd, &noise(out_len(&s), 2), dtype);
    max_pool_backward(b, &s.pool, dy.span(), plain.winner.span(), mid).unwrap();
    let (mask, [dgamma, dbeta]) = (Mask::Input(p.beta), plain.grads.each_ref().map(Memory::span));
    norm_backward(b, of, p.gamma, from, mask, mid, None, dgamma, dbeta, saved, scratch).unwrap();
    let apart = Memory::unwritten_at(odd, x.len(), dtype);
    fused.backward(b, dy.span(), apart.span());
    // The same terms, added in another order.
    let stretch = plain.saved.floats().iter().fold(1f32, |most, v| most.max(v.abs()));
    for (got, want) in fused.grads.iter().zip(&plain.grads) {
        close(&name, &got.floats(), &want.floats(), DType::F32, 2e-6 * stretch);
    }
    let (got, want) = (apart.floats(), between.floats());
    within(&format!("dx of {name}"), &got, &want, dtype, 2e-6 * stretch * stretch);
    // As in the network: over the input.
    fused.backward(b, dy.span(), fused.x.span());
    assert_eq!(fused.x.floats(), got, "in place: {name}");
}

#[test]
fn a_pooled_normalisation_is_both_one_after_the_other() {
    on_device(|b| {
        for dtype in TYPES {
            for (s, odd) in [
                (shape(2, 7, 5, 3, 1), 0),
                (shape(4, 6, 9, 24, 2), 0),
                (shape(2, 14, 14, 64, 2), 0),
                (shape(1, 2, 2, 8, 1), 0),
                (shape(2, 1, 3, 8, 2), 0),
                (shape(3, 4, 1, 5, 3), 0),
                (shape(2, 33, 34, 8, 1), 0),
                (shape(2, 8, 6, 16, 2), 1),
                (shape(1, 5, 4, 264, 1), 0),
            ] {
                let len = norm_shape(&s).rows * s.pool.c;
                check(b, s, &rounded(&noise(len, 1), dtype), dtype, odd);
                check(b, s, &coarse(len), dtype, odd);
            }
        }
    });
}

#[test]
fn evaluation_is_both_one_after_the_other_and_lets_nan_through() {
    on_device(|b| {
        for dtype in TYPES {
            for s in [shape(2, 7, 5, 3, 1), shape(2, 6, 8, 16, 1)] {
                let mut x = coarse(norm_shape(&s).rows * s.pool.c);
                let middle = x.len() / 2;
                x[middle] = f32::NAN;
                let (plain, fused) = (Layer::new(s, &x, dtype, 0), Layer::new(s, &x, dtype, 0));
                let between = Memory::unwritten(x.len(), dtype);
                let (p, mid, scratch) = (plain.params(), between.span(), plain.scratch.span());
                let (x, of) = (plain.x.span(), norm_shape(&s));
                norm_eval(b, of, &p, x, None, mid, scratch, true).unwrap();
                max_pool(b, &s.pool, mid, plain.y.span(), None).unwrap();
                let (x, y, scratch) = (fused.x.span(), fused.y.span(), fused.scratch.span());
                norm_pool_eval(b, &s.pool, &fused.params(), x, y, scratch).unwrap();
                let want = plain.y.floats();
                assert!(want.iter().any(|v| v.is_nan()) && !want.iter().all(|v| v.is_nan()));
                within(&format!("{s:?}"), &fused.y.floats(), &want, DType::F32, 0.0);
            }
        }
    });
}

#[test]
fn nan_reaches_the_gradients() {
    on_device(|b| {
        let s = shape(2, 6, 6, 8, 1);
        let layer = Layer::new(s, &coarse(norm_shape(&s).rows * 8), DType::F32, 0);
        layer.train(b);
        let mut dy = noise(out_len(&s), 2);
        // A window whose winner is positive: the ReLU lets its gradient through.
        let open = layer.y.floats().iter().position(|v| *v > 0.0).unwrap();
        dy[open] = f32::NAN;
        let dy = Memory::of(&dy, DType::F32);
        layer.backward(b, dy.span(), layer.x.span());
        for grads in &layer.grads {
            let nan: Vec<bool> = grads.floats().iter().map(|v| v.is_nan()).collect();
            assert!(nan.iter().enumerate().all(|(c, nan)| *nan == (c == open % 8)));
        }
    });
}

#[test]
fn what_there_are_no_kernels_for_is_an_error() {
    on_device(|b| {
        let s = shape(2, 6, 6, 8, 2);
        let layer = Layer::new(s, &coarse(norm_shape(&s).rows * 8), DType::F32, 0);
        let (p, x, y) = (layer.params(), layer.x.span(), layer.y.span());
        let (winner, saved) = (layer.winner.span(), layer.saved.span());
        let scratch = layer.scratch.span();
        let run = |s: NormPoolShape, y: Span, winner: Span, scratch: Span| {
            norm_pool_train(b, s, &p, x, y, Some(winner), saved, scratch)
        };
        run(s, y, winner, scratch).unwrap();
        assert!(run(s, y.part(0, y.len - 1), winner, scratch).is_err());
        assert!(run(s, y, winner.part(0, 5), scratch).is_err());
        assert!(run(s, y, winner, scratch.part(0, scratch.len - 1)).is_err());
        assert!(run(NormPoolShape { groups: 3, ..s }, y, winner, scratch).is_err());
        for pool in [
            PoolShape { kernel: 2, ..s.pool },
            PoolShape { stride: 1, ..s.pool },
            PoolShape { pad: 0, ..s.pool },
        ] {
            assert!(run(NormPoolShape { pool, ..s }, y, winner, scratch).is_err());
        }
    });
}
