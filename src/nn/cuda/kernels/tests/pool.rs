//! Pools against the CPU's.

use candle_core::DType;

use super::{Memory, TYPES, close, noise, on_device, rounded};
use crate::nn::cpu::micro::Isa;
use crate::nn::cpu::pool::{self, PoolShape};
use crate::nn::cuda::kernels::pool::*;

fn shapes() -> Vec<PoolShape> {
    [
        (2, 7, 5, 3, 3, 2, 1),
        (2, 6, 9, 24, 3, 2, 1),
        (1, 4, 4, 8, 2, 2, 0),
        (3, 3, 3, 1, 3, 1, 1),
        (1, 11, 6, 16, 5, 3, 2),
        (2, 14, 14, 64, 3, 2, 1),
        (1, 5, 5, 8, 2, 3, 1),
    ]
    .into_iter()
    .map(|(n, h, w, c, kernel, stride, pad)| PoolShape { n, h, w, c, kernel, stride, pad })
    .collect()
}

#[test]
fn max_pool_and_its_gradient_are_the_cpus() {
    on_device(|b| {
        for dtype in TYPES {
            for (s, odd) in shapes().into_iter().flat_map(|s| [(s, 0), (s, 1)]) {
                let (oh, ow) = s.out();
                let (len, out) = (s.n * s.h * s.w * s.c, s.n * oh * ow * s.c);
                // Few values, so that windows have equal maxima.
                let mut x: Vec<f32> = noise(len, 1).iter().map(|v| (v * 6.0).round()).collect();
                x[len / 2] = f32::NAN;
                let (mut want, mut winner) = (vec![0.0; out], vec![0; out]);
                pool::max_forward(Isa::best(), &s, &x, &mut want, &mut winner);
                let x = Memory::of_at(odd, &x, dtype);
                let y = Memory::unwritten_at(odd, out, dtype);
                let won = Memory::unwritten_at(odd, out, DType::U8);
                max_pool(b, &s, x.span(), y.span(), Some(won.span())).unwrap();
                close(&format!("{s:?}"), &y.floats(), &want, dtype, 0.0);
                assert!(want.iter().any(|v| v.is_nan()));
                let taps: Vec<f32> = winner.iter().map(|tap| f32::from(*tap)).collect();
                assert_eq!(won.floats(), taps, "{s:?}");
                let alone = Memory::unwritten_at(odd, out, dtype);
                max_pool(b, &s, x.span(), alone.span(), None).unwrap();
                close(&format!("{s:?}"), &alone.floats(), &want, dtype, 0.0);

                let dy = rounded(&noise(out, 2), dtype);
                let mut want = vec![0.0; len];
                pool::max_backward(Isa::best(), &s, &winner, &dy, &mut want);
                let dy = Memory::of_at(odd, &dy, dtype);
                let dx = Memory::unwritten_at(odd, len, dtype);
                max_pool_backward(b, &s, dy.span(), won.span(), dx.span()).unwrap();
                close(&format!("gradient of {s:?}"), &dx.floats(), &want, dtype, 0.0);
            }
        }
    });
}

#[test]
fn the_average_and_its_gradient_are_the_cpus() {
    on_device(|b| {
        for (of_x, of_y) in
            [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)]
        {
            for (n, pixels, c, odd) in
                [(2, 49, 512, 0), (3, 1, 5, 0), (1, 300, 24, 0), (2, 16, 8, 1), (2, 9, 1, 0)]
            {
                let what = format!("{n} x {pixels} x {c} of {of_x:?} to {of_y:?}");
                let x = rounded(&noise(n * pixels * c, 1), of_x);
                let mut want = vec![0.0; n * c];
                pool::mean_forward(Isa::best(), &x, pixels, c, &mut want);
                let x = Memory::of_at(odd, &x, of_x);
                let y = Memory::unwritten_at(odd, n * c, of_y);
                global_average(b, n, pixels, c, x.span(), y.span()).unwrap();
                close(&what, &y.floats(), &want, of_y, 1e-6);

                let dy = rounded(&noise(n * c, 2), of_y);
                let mut want = vec![0.0; n * pixels * c];
                pool::mean_backward(&dy, pixels, c, &mut want);
                let dy = Memory::of_at(odd, &dy, of_y);
                let dx = Memory::unwritten_at(odd, n * pixels * c, of_x);
                global_average_backward(b, n, pixels, c, dy.span(), dx.span()).unwrap();
                close(&format!("gradient of {what}"), &dx.floats(), &want, of_x, 1e-7);
            }
        }
    });
}

#[test]
fn pools_that_do_not_fit_are_errors() {
    on_device(|b| {
        let s = shapes()[0];
        let (oh, ow) = s.out();
        let x = Memory::unwritten(s.n * s.h * s.w * s.c, DType::F32);
        let y = Memory::unwritten(s.n * oh * ow * s.c, DType::F32);
        let (x, y) = (x.span(), y.span());
        assert!(max_pool(b, &s, x, y.part(1, y.len - 1), None).is_err());
        assert!(max_pool(b, &s, x, y, Some(y)).is_err());
        assert!(max_pool(b, &PoolShape { kernel: 17, ..s }, x, y, None).is_err());
        assert!(max_pool(b, &PoolShape { stride: 0, ..s }, x, y, None).is_err());
        assert!(global_average(b, 2, 0, 3, x, y).is_err());
        assert!(global_average(b, 2, 35, 3, x, y.part(0, 6).cast(DType::BF16)).is_err());
    });
}
