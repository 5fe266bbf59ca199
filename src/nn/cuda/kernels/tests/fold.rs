//! Folding against its definition, and the folded convolution against the stem's.

use candle_core::DType::{BF16, F32};

use super::{Memory, close, noise, on_device, rounded};
use crate::nn::cpu::conv::{Conv, ConvShape};
use crate::nn::cpu::micro::Isa;
use crate::nn::cuda::kernels::fold::*;

fn stem(n: usize, h: usize, w: usize, o: usize) -> ConvShape {
    ConvShape { n, h, w, c: 8, o, kernel: 7, stride: 2, pad: 3 }
}

/// Three channels of noise and five of zeros.
fn pixels(s: ConvShape) -> Vec<f32> {
    let mut x = rounded(&noise(s.input_len(), 1), BF16);
    x.chunks_exact_mut(8).for_each(|pixel| pixel[3..].fill(0.0));
    x
}

#[test]
fn only_stems_of_even_images_are_folded() {
    let s = stem(2, 6, 4, 5);
    assert!(folded(s, 3).is_some_and(|fold| fold.out() == s.out()));
    assert_eq!(folded(stem(2, 224, 224, 64), 3).map(|fold| (fold.h, fold.w)), Some((115, 115)));
    assert_eq!(folded(stem(2, 7, 4, 5), 3), None);
    assert_eq!(folded(stem(2, 6, 5, 5), 3), None);
    assert_eq!(folded(s, 8), None);
    assert_eq!(folded(ConvShape { c: 4, ..s }, 3), None);
    assert_eq!(folded(ConvShape { stride: 1, ..s }, 3), None);
    assert_eq!(folded(ConvShape { kernel: 3, pad: 1, ..s }, 3), None);
}

#[test]
fn the_folded_convolution_is_the_stems() {
    on_device(|b| {
        for s in [stem(1, 2, 2, 3), stem(2, 6, 10, 5), stem(3, 12, 4, 8)] {
            let fold = folded(s, 3).unwrap();
            let x = pixels(s);
            let images_folded = Memory::unwritten(fold.input_len(), BF16);
            images(b, s, Memory::of(&x, BF16).span(), images_folded.span()).unwrap();

            // The weight with zeros behind its three channels, as the stem without folding has it.
            let own = rounded(&noise(s.o * 7 * 7 * 3, 2), BF16);
            let wide: Vec<f32> =
                own.chunks_exact(3).flat_map(|tap| [tap, &[0.0; 5]].concat()).collect();
            let weight_folded = Memory::unwritten(fold.weight_len(), BF16);
            weight(b, s.o, Memory::of(&own, F32).span(), weight_folded.span()).unwrap();

            let [plain, cheap] = [s, fold].map(|shape| Conv::new(Isa::best(), shape));
            let (mut want, mut got) = (vec![0.0; s.output_len()], vec![0.0; s.output_len()]);
            plain.forward(&x, &wide, &mut want);
            cheap.forward(&images_folded.floats(), &weight_folded.floats(), &mut got);
            close(&format!("{s:?}"), &got, &want, F32, 1e-5);

            let dy = noise(s.output_len(), 3);
            let (mut want, mut got) = (vec![0.0; s.weight_len()], vec![0.0; fold.weight_len()]);
            plain.weight_grad(&x, &dy, &mut want);
            cheap.weight_grad(&images_folded.floats(), &dy, &mut got);
            let want: Vec<f32> = want.chunks_exact(8).flat_map(|tap| &tap[..3]).copied().collect();
            let found = Memory::unwritten(own.len(), F32);
            weight_grad(b, s.o, Memory::of(&got, BF16).span(), found.span()).unwrap();
            close(&format!("gradient of {s:?}"), &found.floats(), &want, BF16, 1e-5);
        }
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_device(|b| {
        let s = stem(2, 6, 4, 5);
        let (len, to) = (s.input_len(), folded(s, 3).unwrap().input_len());
        let x = Memory::of(&pixels(s), BF16);
        let odd = Memory::of_at(1, &pixels(s), BF16);
        let out = Memory::unwritten(to, BF16);
        assert!(images(b, s, odd.span(), out.span()).is_err());
        assert!(images(b, s, x.span(), Memory::unwritten(to + 16, BF16).span()).is_err());
        assert!(images(b, s, Memory::unwritten(len, F32).span(), out.span()).is_err());
        assert!(images(b, stem(2, 7, 4, 5), x.span(), out.span()).is_err());
        let (own, wide) = (Memory::unwritten(5 * 147, F32), Memory::unwritten(5 * 256, BF16));
        assert!(weight(b, 4, own.span(), wide.span()).is_err());
        assert!(weight_grad(b, 6, wide.span(), own.span()).is_err());
    });
}
