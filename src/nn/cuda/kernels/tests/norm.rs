//! Batch normalisation against the layer on the CPU.

use candle_core::{DType, Device, Result, Tensor};

use super::{Memory, TYPES, close, noise, on_device, rounded, within};
use crate::nn::cuda::kernels::norm::*;
use crate::nn::cuda::{Backend, Span};
use crate::nn::{BatchNorm, Mode, Workspace, storage};

/// One layer's data, F32 values that `dtype` can hold.
#[derive(Clone)]
struct Case {
    shape: NormShape,
    dtype: DType,
    relu: bool,
    /// How far behind a boundary activations begin.
    odd: usize,
    x: Vec<f32>,
    residual: Option<Vec<f32>>,
    dout: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

impl Case {
    fn new(
        (rows, channels, groups): (usize, usize, usize),
        dtype: DType,
        relu: bool,
        residual: bool,
        odd: usize,
    ) -> Self {
        let len = rows * channels;
        let x: Vec<f32> = noise(len, 1).iter().map(|v| 1.5 * v + 0.7).collect();
        Self {
            shape: NormShape { rows, channels, groups },
            dtype,
            relu,
            odd,
            x: rounded(&x, dtype),
            residual: residual.then(|| rounded(&noise(len, 2), dtype)),
            dout: rounded(&noise(len, 3), dtype),
            gamma: noise(channels, 4).iter().map(|v| 1.0 + 0.5 * v).collect(),
            beta: noise(channels, 5),
        }
    }

    fn name(&self) -> String {
        let residual = self.residual.is_some();
        format!("{:?} {:?} relu {} residual {residual}", self.shape, self.dtype, self.relu)
    }
}

/// What the CPU makes of it.
struct Expected {
    y: Vec<f32>,
    running: [Vec<f32>; 2],
    evaluated: Vec<f32>,
    dx: Vec<f32>,
    masked: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
}

fn expected(case: &Case) -> Result<Expected> {
    let NormShape { rows, channels, groups } = case.shape;
    let tensor = |v: &[f32]| Tensor::from_slice(v, (rows, channels), &Device::Cpu);
    let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let mut norm = BatchNorm::new("bn", channels, case.relu, &Device::Cpu)?;
    norm.weight.set(&case.gamma)?;
    norm.bias.set(&case.beta)?;
    let mut ws = Workspace::new(&Device::Cpu)?;
    ws.groups = groups;
    let (x, dout) = (tensor(&case.x)?, tensor(&case.dout)?);
    let residual = case.residual.as_ref().map(|r| tensor(r)).transpose()?;
    let y = values(&norm.forward(&x, residual.as_ref(), &mut ws)?)?;
    let dx = storage::zeros((rows, channels), &Device::Cpu)?;
    norm.backward(&dout, Some(&dx))?;
    ws.mode = Mode::Evaluation;
    let evaluated = values(&norm.forward(&x, residual.as_ref(), &mut ws)?)?;
    Ok(Expected {
        y,
        running: [values(&norm.running_mean)?, values(&norm.running_var)?],
        evaluated,
        dx: values(&dx)?,
        masked: values(&dout)?,
        dgamma: values(&norm.weight.grad)?,
        dbeta: values(&norm.bias.grad)?,
    })
}

/// A case's memory on the device.
struct OnDevice {
    x: Memory,
    residual: Option<Memory>,
    y: Memory,
    open: Memory,
    gamma: Memory,
    beta: Memory,
    running: [Memory; 2],
    saved: Memory,
    scratch: Memory,
}

impl OnDevice {
    fn new(case: &Case) -> Self {
        let NormShape { channels, groups, .. } = case.shape;
        let activations = |v: &[f32]| Memory::of_at(case.odd, v, case.dtype);
        let of = |v: &[f32]| Memory::of(v, DType::F32);
        let x = activations(&case.x);
        let mask = mask_len(case.shape, &[x.span()]).unwrap();
        Self {
            x,
            open: Memory::unwritten(mask, DType::U8),
            residual: case.residual.as_ref().map(|r| activations(r)),
            y: Memory::unwritten_at(case.odd, case.x.len(), case.dtype),
            gamma: of(&case.gamma),
            beta: of(&case.beta),
            running: [of(&vec![0.0; channels]), of(&vec![1.0; channels])],
            saved: Memory::unwritten(2 * groups * channels, DType::F32),
            scratch: Memory::unwritten(norm_scratch(case.shape), DType::F32),
        }
    }

    fn params(&self) -> NormParams {
        NormParams {
            gamma: self.gamma.span(),
            beta: self.beta.span(),
            running_mean: self.running[0].span(),
            running_var: self.running[1].span(),
            moves: true,
            eps: 1e-5,
            momentum: 0.1,
        }
    }

    fn forward(&self, b: &dyn Backend, case: &Case) -> Result<()> {
        let residual = self.residual.as_ref().map(Memory::span);
        let (x, y, saved, scratch) =
            (self.x.span(), self.y.span(), self.saved.span(), self.scratch.span());
        let open = case.relu.then(|| self.open.span());
        norm_train(b, case.shape, &self.params(), x, residual, y, open, saved, scratch, case.relu)
    }

    fn branch<'a>(&self, params: &'a NormParams) -> Branch<'a> {
        let (x, saved, scratch) = (self.x.span(), self.saved.span(), self.scratch.span());
        Branch { params, x, saved, scratch }
    }

    fn grad_branch(&self, dx: Span, dgamma: &Memory, dbeta: &Memory) -> GradBranch {
        GradBranch {
            gamma: self.gamma.span(),
            x: self.x.span(),
            dx,
            dgamma: dgamma.span(),
            dbeta: dbeta.span(),
            saved: self.saved.span(),
            scratch: self.scratch.span(),
        }
    }

    /// Gradient of x (in `dx`, or over dout), dout afterwards, and the parameters' gradients.
    fn backward(&self, b: &dyn Backend, case: &Case, mask: Mask, apart: bool) -> [Memory; 4] {
        let activations = |v: &[f32]| Memory::of_at(case.odd, v, case.dtype);
        let dout = activations(&case.dout);
        let dx = Memory::unwritten_at(case.odd, case.dout.len(), case.dtype);
        let vector = || Memory::unwritten(case.shape.channels, DType::F32);
        let (dgamma, dbeta) = (vector(), vector());
        norm_backward(
            b,
            case.shape,
            self.gamma.span(),
            self.x.span(),
            mask,
            dout.span(),
            apart.then(|| dx.span()),
            dgamma.span(),
            dbeta.span(),
            self.saved.span(),
            self.scratch.span(),
        )
        .unwrap();
        [dx, dout, dgamma, dbeta]
    }
}

fn check(b: &dyn Backend, case: &Case) {
    let (want, name, dtype) = (expected(case).unwrap(), case.name(), case.dtype);
    let on = OnDevice::new(case);
    on.forward(b, case).unwrap();
    // A mean's last digit weighs as much as a channel is stretched: a lot where two rows are nearly
    // alike.
    let stretch = on.saved.floats().iter().fold(1f32, |most, v| most.max(v.abs()));
    within(&format!("y of {name}"), &on.y.floats(), &want.y, dtype, 1e-6 * stretch);
    close(&format!("mean of {name}"), &on.running[0].floats(), &want.running[0], DType::F32, 1e-6);
    close(&format!("var of {name}"), &on.running[1].floats(), &want.running[1], DType::F32, 2e-6);

    let mask = if case.relu { Mask::Bits(on.open.span()) } else { Mask::None };
    let [dx, dout, dgamma, dbeta] = on.backward(b, case, mask, true);
    // Terms of the square's size cancel.
    let error = 1e-6 * stretch * stretch;
    within(&format!("dx of {name}"), &dx.floats(), &want.dx, dtype, error);
    close(&format!("dout of {name}"), &dout.floats(), &want.masked, DType::F32, 0.0);
    let share = 1e-6 * stretch.max(10.0);
    close(&format!("dgamma of {name}"), &dgamma.floats(), &want.dgamma, DType::F32, share);
    close(&format!("dbeta of {name}"), &dbeta.floats(), &want.dbeta, DType::F32, 1e-5);
    let [untouched, in_place, ..] = on.backward(b, case, mask, false);
    assert!(untouched.floats().iter().all(|v| v.is_nan()));
    assert_eq!(in_place.floats(), dx.floats(), "in place: {name}");
    if case.relu && case.residual.is_none() {
        // The mask from the input is the noted one, bit for bit.
        let by_input = Mask::Input(on.beta.span());
        for apart in [true, false] {
            let [own_dx, own_dout, own_dgamma, own_dbeta] = on.backward(b, case, by_input, apart);
            let own_dx = if apart { own_dx } else { own_dout };
            assert_eq!(own_dx.floats(), dx.floats(), "by input: {name}");
            assert_eq!(own_dgamma.floats(), dgamma.floats());
            assert_eq!(own_dbeta.floats(), dbeta.floats());
        }
    }

    let residual = on.residual.as_ref().map(Memory::span);
    let (x, y, scratch) = (on.x.span(), on.y.span(), on.scratch.span());
    norm_eval(b, case.shape, &on.params(), x, residual, y, scratch, case.relu).unwrap();
    close(&format!("evaluation of {name}"), &on.y.floats(), &want.evaluated, dtype, 1e-5);
}

#[test]
fn normalisation_and_its_gradients_are_the_cpus() {
    on_device(|b| {
        for dtype in TYPES {
            for shape in [
                (2, 1, 1),
                (6, 3, 2),
                (700, 1, 1),
                (1500, 5, 2),
                (2300, 16, 1),
                (300, 72, 2),
                (40, 264, 1),
                (70, 33, 2),
            ] {
                for (relu, residual) in [(false, false), (true, false), (true, true)] {
                    check(b, &Case::new(shape, dtype, relu, residual, 0));
                }
            }
            // The widest there is; the device's threads take their time here.
            check(b, &Case::new((4, 8192, 2), dtype, true, false, 0));
            // The same channels on addresses that allow no vectors.
            check(b, &Case::new((96, 16, 2), dtype, true, true, 1));
            check(b, &Case::new((20, 8, 1), dtype, false, true, 3));
        }
    });
}

/// A pair against its layers one after the other, on F32 memory: there nothing is rounded between
/// them, as nothing is within the pair.
fn check_pair(b: &dyn Backend, shape: (usize, usize, usize), dtype: DType, odd: usize) {
    let own = Case::new(shape, dtype, true, false, odd);
    let mut other = Case::new(shape, dtype, false, false, odd);
    other.x = rounded(&noise(other.x.len(), 11), dtype);
    other.gamma = noise(shape.1, 12);
    other.beta = noise(shape.1, 13);
    let name = own.name();

    let [mut first, mut second] =
        [&other, &own].map(|case| Case { dtype: DType::F32, ..case.clone() });
    let there = OnDevice::new(&first);
    there.forward(b, &first).unwrap();
    second.residual = Some(there.y.floats());
    let here = OnDevice::new(&second);
    here.forward(b, &second).unwrap();
    let mask = Mask::Bits(here.open.span());
    let [dx, dout, dgamma, dbeta] = here.backward(b, &second, mask, true);
    first.dout = dout.floats();
    let [_, their_dx, their_dgamma, their_dbeta] = there.backward(b, &first, Mask::None, false);

    let (p, q) = (OnDevice::new(&own), OnDevice::new(&other));
    let (of_p, of_q) = (p.params(), q.params());
    let pair = [p.branch(&of_p), q.branch(&of_q)];
    norm_train_pair(b, own.shape, pair, p.y.span(), Some(p.open.span())).unwrap();
    assert_eq!(p.y.floats(), rounded(&here.y.floats(), dtype), "y of {name}");
    assert!(q.y.floats().iter().all(|v| v.is_nan()), "the other's output is not written");
    assert_eq!(p.open.floats(), here.open.floats(), "mask of {name}");
    for (got, want) in [(&p, &here), (&q, &there)] {
        assert_eq!(got.saved.floats(), want.saved.floats());
        assert_eq!(got.running[0].floats(), want.running[0].floats());
        assert_eq!(got.running[1].floats(), want.running[1].floats());
    }

    let (open, to) = (p.open.span(), Memory::of_at(odd, &own.dout, dtype));
    let vectors: [Memory; 4] = std::array::from_fn(|_| Memory::unwritten(shape.1, DType::F32));
    let [to_gamma, to_beta, to_their_gamma, to_their_beta] = &vectors;
    // Each gradient where the network has it: over the input, and over `dout`.
    let branches = [
        p.grad_branch(p.x.span(), to_gamma, to_beta),
        q.grad_branch(to.span(), to_their_gamma, to_their_beta),
    ];
    norm_backward_pair(b, own.shape, branches, open, to.span()).unwrap();
    assert_eq!(p.x.floats(), rounded(&dx.floats(), dtype), "dx of {name}");
    assert_eq!(to.floats(), rounded(&their_dx.floats(), dtype), "the other's dx of {name}");
    let want = [dgamma, dbeta, their_dgamma, their_dbeta];
    for (got, want) in vectors.iter().zip(want) {
        assert_eq!(got.floats(), want.floats(), "parameters' gradients of {name}");
    }

    let evaluate = |on: &OnDevice, case: &Case, relu| {
        let residual = on.residual.as_ref().map(Memory::span);
        let (x, y, scratch) = (on.x.span(), on.y.span(), on.scratch.span());
        norm_eval(b, case.shape, &on.params(), x, residual, y, scratch, relu).unwrap();
    };
    evaluate(&there, &first, false);
    second.residual = Some(there.y.floats());
    let mut here = OnDevice::new(&second);
    here.running = [
        Memory::of(&p.running[0].floats(), DType::F32),
        Memory::of(&p.running[1].floats(), DType::F32),
    ];
    evaluate(&here, &second, true);
    // Its input was written over.
    let whole = OnDevice { x: Memory::of_at(odd, &own.x, dtype), ..p };
    let pair = [whole.branch(&of_p), q.branch(&of_q)];
    norm_eval_pair(b, own.shape, pair, whole.y.span()).unwrap();
    assert_eq!(whole.y.floats(), rounded(&here.y.floats(), dtype), "evaluation of {name}");
}

#[test]
fn a_pair_is_its_layers_one_after_the_other() {
    on_device(|b| {
        for dtype in TYPES {
            for shape in
                [(2, 1, 1), (6, 3, 2), (1500, 5, 2), (2300, 16, 1), (300, 72, 2), (40, 264, 1)]
            {
                check_pair(b, shape, dtype, 0);
            }
            // Addresses that allow no vectors.
            check_pair(b, (96, 16, 2), dtype, 1);
        }
    });
}

#[test]
fn nan_on_either_side_of_a_pair_reaches_the_output() {
    on_device(|b| {
        for side in [0, 1] {
            let mut cases =
                [true, false].map(|relu| Case::new((40, 8, 1), DType::BF16, relu, false, 0));
            cases[side].x[8 + 1] = f32::NAN;
            let [p, q] = [&cases[0], &cases[1]].map(OnDevice::new);
            let (of_p, of_q) = (p.params(), q.params());
            let pair = [p.branch(&of_p), q.branch(&of_q)];
            norm_eval_pair(b, cases[0].shape, pair, p.y.span()).unwrap();
            let nan: Vec<bool> = p.y.floats().iter().map(|v| v.is_nan()).collect();
            assert!(nan.iter().enumerate().all(|(i, nan)| *nan == (i == 9)));
            norm_train_pair(b, cases[0].shape, pair, p.y.span(), Some(p.open.span())).unwrap();
            let nan: Vec<bool> = p.y.floats().iter().map(|v| v.is_nan()).collect();
            assert!(nan.iter().enumerate().all(|(i, nan)| *nan == (i % 8 == 1)));
        }
    });
}

#[test]
fn many_rows_go_in_many_parts() {
    on_device(|b| check(b, &Case::new((20_000, 8, 1), DType::F32, true, false, 0)));
}

#[test]
fn a_mean_far_from_zero_costs_the_variance_nothing() {
    on_device(|b| {
        for (rows, channels) in [(1000, 8), (513, 3)] {
            let mut case = Case::new((rows, channels, 1), DType::F32, false, false, 0);
            case.x = noise(rows * channels, 9).iter().map(|v| 300.0 + 0.25 * v).collect();
            let on = OnDevice::new(&case);
            on.forward(b, &case).unwrap();
            let saved = on.saved.floats();
            for c in 0..channels {
                let column = || case.x.iter().skip(c).step_by(channels).map(|v| f64::from(*v));
                let mean = column().sum::<f64>() / rows as f64;
                let var = column().map(|v| (v - mean) * (v - mean)).sum::<f64>() / rows as f64;
                assert!((f64::from(saved[c]) / mean - 1.0).abs() < 1e-7);
                let inv = 1.0 / (var + 1e-5).sqrt();
                assert!((f64::from(saved[channels + c]) / inv - 1.0).abs() < 2e-6);
            }
        }
    });
}

#[test]
fn a_constant_channel_is_its_beta() {
    on_device(|b| {
        let mut case = Case::new((50, 8, 1), DType::F32, false, false, 0);
        case.x.fill(3.25);
        let on = OnDevice::new(&case);
        on.forward(b, &case).unwrap();
        let want: Vec<f32> = case.beta.repeat(50);
        close("constant", &on.y.floats(), &want, DType::F32, 1e-4);
        assert!(on.running[1].floats().iter().all(|v| (v - 0.9).abs() < 1e-6));
    });
}

#[test]
fn nan_passes_through_relu_and_reaches_the_statistics() {
    on_device(|b| {
        for dtype in TYPES {
            for channels in [8, 3] {
                let mut case = Case::new((40, channels, 1), dtype, true, false, 0);
                case.x[channels + 1] = f32::NAN;
                let on = OnDevice::new(&case);
                on.forward(b, &case).unwrap();
                let nan: Vec<bool> = on.y.floats().iter().map(|v| v.is_nan()).collect();
                // All of channel 1, nothing else.
                assert!(nan.iter().enumerate().all(|(i, nan)| *nan == (i % channels == 1)));
                assert!(on.running[0].floats()[1].is_nan() && on.running[1].floats()[1].is_nan());
                // In evaluation the one element.
                let fresh = OnDevice::new(&case);
                let (x, y, scratch) = (fresh.x.span(), fresh.y.span(), fresh.scratch.span());
                norm_eval(b, case.shape, &fresh.params(), x, None, y, scratch, true).unwrap();
                let nan = fresh.y.floats().iter().filter(|v| v.is_nan()).count();
                assert!(nan == 1 && fresh.y.floats()[channels + 1].is_nan());
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_an_error() {
    on_device(|b| {
        let case = Case::new((6, 8, 2), DType::F32, true, false, 0);
        let on = OnDevice::new(&case);
        let open = on.open.span();
        let run = |s: NormShape, x: Span, y: Span, saved: Span, scratch: Span| {
            norm_train(b, s, &on.params(), x, None, y, Some(open), saved, scratch, true)
        };
        let (s, x, y) = (case.shape, on.x.span(), on.y.span());
        let (saved, scratch) = (on.saved.span(), on.scratch.span());
        run(s, x, y, saved, scratch).unwrap();
        assert!(run(s, x.part(0, 47), y, saved, scratch).is_err());
        assert!(run(s, x.cast(DType::BF16).part(0, 48), y, saved, scratch).is_err());
        assert!(run(s, x, y, saved.part(0, 31), scratch).is_err());
        assert!(run(s, x, y, saved, scratch.part(0, scratch.len - 1)).is_err());
        let params = on.params();
        let pair = |y: Span, open: Span, other: Branch<'_>| {
            norm_train_pair(b, s, [on.branch(&params), other], y, Some(open))
        };
        let other = on.branch(&params);
        pair(y, open, other).unwrap();
        assert!(pair(y.part(0, 47), open, other).is_err());
        assert!(pair(y, open.part(0, 5), other).is_err());
        assert!(pair(y, open, Branch { x: x.part(0, 47), ..other }).is_err());
        assert!(pair(y, open, Branch { x: x.cast(DType::BF16).part(0, 48), ..other }).is_err());
        assert!(pair(y, open, Branch { saved: saved.part(0, 31), ..other }).is_err());
        assert!(run(NormShape { groups: 4, ..s }, x, y, saved, scratch).is_err());
        assert!(run(NormShape { groups: 6, ..s }, x, y, saved, scratch).is_err());
        assert!(run(NormShape { groups: 0, ..s }, x, y, saved, scratch).is_err());
        let short = Some(open.part(0, 5));
        assert!(norm_train(b, s, &params, x, None, y, short, saved, scratch, true).is_err());
        // Bytes of an element each, for a pass that goes by vectors of 8.
        let bytes = Memory::unwritten(48, DType::U8);
        let bytes = Some(bytes.span());
        assert!(norm_train(b, s, &params, x, None, y, bytes, saved, scratch, true).is_err());
    });
}
