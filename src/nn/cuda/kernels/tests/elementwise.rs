//! Passes over every element against what they stand for.

use candle_core::DType;
use half::bf16;

use super::{Memory, TYPES, close, noise, on_device, rounded};
use crate::nn::cuda::kernels::elementwise::*;

const LENGTHS: [(usize, usize); 6] = [(1, 0), (7, 0), (8, 0), (2051, 0), (4096, 0), (801, 1)];

fn special(len: usize, seed: u64) -> Vec<f32> {
    let mut values = noise(len, seed);
    let odd = [f32::NAN, f32::INFINITY, -0.0, f32::NEG_INFINITY, 0.0];
    values.iter_mut().skip(1).step_by(3).zip(odd).for_each(|(v, o)| *v = o);
    values
}

#[test]
fn relu_lets_nan_pass_and_its_gradient_is_zero_where_the_output_is_not_positive() {
    on_device(|b| {
        for dtype in TYPES {
            for (len, odd) in LENGTHS {
                let x = rounded(&special(len, 1), dtype);
                let want: Vec<f32> = x.iter().map(|&v| if v < 0.0 { 0.0 } else { v }).collect();
                let from = Memory::of_at(odd, &x, dtype);
                let y = Memory::unwritten_at(odd, len, dtype);
                relu(b, from.span(), y.span()).unwrap();
                let got = y.floats();
                let same = |g: &f32, w: &f32| g == w || g.is_nan() && w.is_nan();
                assert!(got.iter().zip(&want).all(|(g, w)| same(g, w)), "{len}");
                relu(b, from.span(), from.span()).unwrap();
                assert!(from.floats().iter().zip(&want).all(|(g, w)| same(g, w)));

                let d = rounded(&noise(len, 2), dtype);
                let want: Vec<f32> =
                    got.iter().zip(&d).map(|(y, d)| if *y > 0.0 { *d } else { 0.0 }).collect();
                let d = Memory::of_at(odd, &d, dtype);
                relu_backward(b, y.span(), d.span()).unwrap();
                assert_eq!(d.floats(), want);
            }
        }
    });
}

#[test]
fn casts_round_to_nearest_even_and_back_is_exact() {
    on_device(|b| {
        for (len, odd) in LENGTHS {
            let mut values = special(len, 1);
            // Halfway between two, towards the even one; and what rounds up to infinity.
            let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x0000_0001];
            values.iter_mut().rev().step_by(2).zip(ties).for_each(|(v, t)| *v = f32::from_bits(t));
            let from = Memory::of_at(odd, &values, DType::F32);
            let half = Memory::unwritten_at(odd, len, DType::BF16);
            cast(b, from.span(), half.span()).unwrap();
            for (got, v) in half.floats().iter().zip(&values) {
                let want = bf16::from_f32(*v).to_f32();
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{v}");
            }
            let back = Memory::unwritten_at(odd, len, DType::F32);
            cast(b, half.span(), back.span()).unwrap();
            let same =
                |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(back.floats().iter().zip(&half.floats()).all(same));
            let copy = Memory::unwritten(len, DType::F32);
            cast(b, from.span(), copy.span()).unwrap();
            assert!(copy.floats().iter().zip(&values).all(same));
        }
    });
}

#[test]
fn biases_are_added_and_columns_summed() {
    on_device(|b| {
        for dtype in TYPES {
            for (rows, columns, odd) in
                [(1, 1, 0), (5, 24, 0), (700, 3, 0), (1030, 8, 0), (3, 8192, 0), (9, 16, 1)]
            {
                let what = format!("[{rows}, {columns}] of {dtype:?}");
                let (y, bias) = (rounded(&noise(rows * columns, 1), dtype), noise(columns, 2));
                let want: Vec<f32> =
                    y.iter().enumerate().map(|(i, y)| y + bias[i % columns]).collect();
                let to = Memory::of_at(odd, &y, dtype);
                let bias = Memory::of(&bias, DType::F32);
                add_bias(b, to.span(), bias.span(), rows, columns).unwrap();
                close(&what, &to.floats(), &want, dtype, 0.0);

                let mut want = vec![0.0; columns];
                for row in y.chunks_exact(columns) {
                    want.iter_mut().zip(row).for_each(|(sum, y)| *sum += f64::from(*y));
                }
                let want: Vec<f32> = want.iter().map(|sum| *sum as f32).collect();
                let d = Memory::of_at(odd, &y, dtype);
                let out = Memory::unwritten(columns, DType::F32);
                let scratch = Memory::unwritten(column_sums_scratch(rows, columns), DType::F32);
                let (d, scratch) = (d.span(), scratch.span());
                column_sums(b, d, out.span(), rows, columns, scratch).unwrap();
                close(&what, &out.floats(), &want, DType::F32, 2e-6);
            }
        }
    });
}

#[test]
fn images_are_normalised_as_the_pipeline_does_it() {
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let scale = std.map(|std| (1.0 / (255.0 * f64::from(std))) as f32);
    let offset = [0, 1, 2].map(|c| (-f64::from(mean[c]) / f64::from(std[c])) as f32);
    on_device(|b| {
        for dtype in TYPES {
            for (channels, odd) in [(3, 0), (4, 0), (8, 0), (8, 1), (5, 0)] {
                let pixels: Vec<f32> = (0..259 * 3).map(|i| ((i * 37) % 256) as f32).collect();
                let mut want = Vec::new();
                for pixel in pixels.chunks_exact(3) {
                    want.extend((0..3).map(|c| pixel[c] * scale[c] + offset[c]));
                    want.extend(vec![0.0; channels - 3]);
                }
                let from = Memory::of(&pixels, DType::U8);
                let out = Memory::unwritten_at(odd, want.len(), dtype);
                normalize_images(b, from.span(), out.span(), channels, mean, std).unwrap();
                assert_eq!(out.floats(), rounded(&want, dtype), "{channels} of {dtype:?}");
            }
        }
        let (from, out) = (Memory::of(&[0.0; 9], DType::U8), Memory::of(&[0.0; 8], DType::F32));
        assert!(normalize_images(b, from.span(), out.span(), 3, mean, std).is_err());
    });
}

#[test]
fn channels_are_padded_and_cut() {
    on_device(|b| {
        for dtype in TYPES {
            let values = noise(7 * 49 * 3, 1);
            let from = Memory::of(&values, DType::F32);
            let wide = Memory::unwritten(7 * 49 * 8, dtype);
            pad_channels(b, from.span(), 3, wide.span(), 8).unwrap();
            for (got, want) in wide.floats().chunks_exact(8).zip(values.chunks_exact(3)) {
                assert_eq!(got[..3], rounded(want, dtype));
                assert_eq!(got[3..], [0.0; 5]);
            }
            let back = Memory::unwritten(values.len(), DType::F32);
            unpad_channels(b, wide.span(), 8, back.span(), 3).unwrap();
            assert_eq!(back.floats(), rounded(&values, dtype));
            assert!(pad_channels(b, from.span(), 3, wide.span(), 7).is_err());
            assert!(unpad_channels(b, wide.span(), 3, back.span(), 8).is_err());
        }
    });
}
