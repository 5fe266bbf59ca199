//! The optimizers against the CPU's and the reference vectors; the teacher; what is not finite.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use half::bf16;

use super::{Memory, close, noise, rounded};
use crate::nn::cuda::kernels::optim::*;
use crate::nn::cuda::{Backend, Span};
use crate::nn::{Param, storage};
use crate::optim::{
    AdamW, AdamWConfig, Lars, LarsConfig, OptimConfig, Optimizer, OptimizerKind, Sgd, SgdConfig,
};

/// An optimizer on either side.
#[derive(Clone, Debug)]
enum Kind {
    Lars(LarsConfig),
    Sgd(SgdConfig),
    AdamW(AdamWConfig),
}

impl Kind {
    fn on_cpu(&self) -> Box<dyn Optimizer> {
        match self.clone() {
            Kind::Lars(c) => Box::new(Lars::new(c)),
            Kind::Sgd(c) => Box::new(Sgd::new(c)),
            Kind::AdamW(c) => Box::new(AdamW::new(c)),
        }
    }

    fn moments(&self) -> usize {
        if matches!(self, Kind::AdamW(_)) { 2 } else { 1 }
    }

    fn rates(&self, step: usize, (weights, biases): (f64, f64)) -> [f32; RATES] {
        match self {
            Kind::Lars(_) => lars_rates(weights, biases),
            Kind::Sgd(_) => sgd_rates(weights, biases),
            Kind::AdamW(c) => adamw_rates(c, step as i64 + 1, weights, biases),
        }
    }

    fn step(&self, b: &dyn Backend, tensors: &Tensors, rates: Span) {
        match self {
            Kind::Lars(c) => lars_step(b, tensors, c, rates),
            Kind::Sgd(c) => sgd_step(b, tensors, c, rates),
            Kind::AdamW(c) => adamw_step(b, tensors, c, rates),
        }
        .unwrap();
    }
}

/// A parameter on the device.
struct Held {
    value: Memory,
    grad: Memory,
    moments: [Memory; 2],
    half: Memory,
    is_weight: bool,
}

impl Held {
    fn new(value: &[f32], is_weight: bool, grads: DType, odd: usize) -> Self {
        let len = value.len();
        let zeros = || Memory::of_at(odd, &vec![0.0; len], DType::F32);
        Self {
            value: Memory::of_at(odd, value, DType::F32),
            grad: Memory::of_at(odd, &vec![0.0; len], grads),
            moments: [zeros(), zeros()],
            half: Memory::unwritten_at(odd, len, DType::BF16),
            is_weight,
        }
    }

    fn tensor(&self, moments: usize) -> OptimTensor {
        OptimTensor {
            value: self.value.span(),
            grad: Some(self.grad.span()),
            moments: [0, 1].map(|i| (i < moments).then(|| self.moments[i].span())),
            // Not every parameter has one.
            half: self.is_weight.then(|| self.half.span()),
            is_weight: self.is_weight,
        }
    }
}

fn tables(b: &dyn Backend, held: &[Held], moments: usize) -> (Tensors, Memory) {
    let list: Vec<_> = held.iter().map(|held| held.tensor(moments)).collect();
    let table = Memory::unwritten(Tensors::table_bytes(&list), DType::U8);
    (Tensors::new(b, &list, table.span()).unwrap(), table)
}

fn set(b: &dyn Backend, to: Span, values: &[f32]) {
    let memory = Memory::of(values, to.dtype);
    b.copy(memory.span(), to).unwrap();
}

/// Steps both through the same gradients: `grads(step, parameter)`.
fn follow_cpu(kind: &Kind, grads_in: DType, odd: usize) {
    let Some(device) = crate::nn::cuda::emulate::Emulator::open() else { return };
    let shapes: [&[usize]; 6] = [&[300, 137], &[33], &[1, 1], &[64, 3, 3, 8], &[16384], &[5, 3]];
    let mut params = Vec::new();
    for (seed, shape) in shapes.iter().enumerate() {
        let mut param = Param::zeros(format!("p{seed}"), shape, &Device::Cpu).unwrap();
        param.set(&noise(param.len(), seed as u64)).unwrap();
        params.push(param);
    }
    let values = |p: &Param| storage::read(&p.value).unwrap().to_vec();
    let held: Vec<_> =
        params.iter().map(|p| Held::new(&values(p), p.value.rank() > 1, grads_in, odd)).collect();
    let (tensors, _table) = tables(&device, &held, kind.moments());
    let rates = Memory::unwritten(RATES, DType::F32);
    let mut optimizer = kind.on_cpu();
    for step in 0..5 {
        let lr = (0.05 * (step + 1) as f64, 0.01);
        for (i, (param, held)) in params.iter_mut().zip(&held).enumerate() {
            let grad = noise(param.len(), (100 * (step + 1) + i) as u64);
            let grad = rounded(&grad, grads_in);
            storage::with_mut(&param.grad, |g| g.copy_from_slice(&grad)).unwrap();
            set(&device, held.grad.span(), &grad);
        }
        let mut all: Vec<&mut Param> = params.iter_mut().collect();
        optimizer.step(&mut all, lr.0, lr.1).unwrap();
        set(&device, rates.span(), &kind.rates(step, lr));
        device.without_waiting(|| kind.step(&device, &tensors, rates.span()));
        for (param, held) in params.iter().zip(&held) {
            let (got, what) = (held.value.floats(), format!("{kind:?} {} {step}", param.name));
            close(&what, &got, &values(param), DType::F32, 2e-6);
            if held.is_weight {
                assert_eq!(held.half.floats(), rounded(&got, DType::BF16), "{what}");
            }
        }
        device.turn_around();
    }
}

#[test]
fn lars_is_the_cpus() {
    for clip_lr in [false, true] {
        // So much decay that it shows in the norms.
        let config = LarsConfig { weight_decay: 0.1, eta: 0.02, clip_lr, ..Default::default() };
        follow_cpu(&Kind::Lars(config.clone()), DType::F32, 0);
        follow_cpu(&Kind::Lars(config), DType::BF16, 1);
    }
}

#[test]
fn sgd_is_the_cpus() {
    for nesterov in [false, true] {
        let config = SgdConfig { weight_decay: 5e-4, nesterov, ..Default::default() };
        follow_cpu(&Kind::Sgd(config.clone()), DType::F32, 0);
        let config = SgdConfig { decay_biases: false, ..config };
        follow_cpu(&Kind::Sgd(config), DType::BF16, 3);
    }
}

#[test]
fn adamw_is_the_cpus() {
    follow_cpu(&Kind::AdamW(AdamWConfig::default()), DType::F32, 0);
    // So large an eps that it shows.
    let config =
        AdamWConfig { decay_biases: false, weight_decay: 0.1, eps: 0.1, ..Default::default() };
    follow_cpu(&Kind::AdamW(config), DType::BF16, 2);
}

/// Vectors of `file`: `init.NAME`, `stepN.grad.NAME`, `stepN.param.NAME`.
fn follow_vectors(kind: &Kind, file: PathBuf, rates: &[(f64, f64)], share: f32) {
    let Some(device) = crate::nn::cuda::emulate::Emulator::open() else { return };
    let all = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let slice = |name: &str| -> Vec<f32> {
        let tensor = all[name].to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    let mut names: Vec<_> = all.keys().filter_map(|key| key.strip_prefix("init.")).collect();
    names.sort_unstable();
    let held: Vec<_> = names
        .iter()
        .map(|name| format!("init.{name}"))
        .map(|name| Held::new(&slice(&name), all[&name].rank() > 1, DType::F32, 0))
        .collect();
    let (tensors, _table) = tables(&device, &held, kind.moments());
    let buffer = Memory::unwritten(RATES, DType::F32);
    for (step, lr) in rates.iter().enumerate() {
        for (name, held) in names.iter().zip(&held) {
            set(&device, held.grad.span(), &slice(&format!("step{step}.grad.{name}")));
        }
        set(&device, buffer.span(), &kind.rates(step, *lr));
        kind.step(&device, &tensors, buffer.span());
        for (name, held) in names.iter().zip(&held) {
            let want = slice(&format!("step{step}.param.{name}"));
            let what = format!("{kind:?} {name} {step}");
            close(&what, &held.value.floats(), &want, DType::F32, share);
        }
        device.turn_around();
    }
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(json: &serde_json::Value, key: &str) -> Vec<f64> {
    json[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn lars_follows_the_authors_for_five_steps() {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let given = std::env::var_os("BT_GOLDEN_DIR").map(PathBuf::from);
    // The repository's own, as on the CPU.
    let share = if given.is_some() { 1e-5 } else { 1e-6 };
    let dir = given.unwrap_or_else(own);
    let options = json(dir.join("lars.json"));
    let number = |key: &str| options[key].as_f64().unwrap();
    let config = LarsConfig {
        weight_decay: number("weight_decay"),
        momentum: number("momentum"),
        eta: number("eta"),
        clip_lr: false,
    };
    let rates: Vec<_> =
        numbers(&options, "lr_weights").into_iter().zip(numbers(&options, "lr_biases")).collect();
    follow_vectors(&Kind::Lars(config), dir.join("lars.safetensors"), &rates, share);
}

#[test]
fn sgd_and_adamw_follow_pytorch() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_extra");
    for case in json(dir.join("optimizers.json"))["cases"].as_array().unwrap() {
        let c: OptimConfig = serde_json::from_value(case["optim"].clone()).unwrap();
        let (weight_decay, decay_biases) = (c.weight_decay, c.decay_biases);
        let kind = match c.optimizer {
            OptimizerKind::AdamW => {
                Kind::AdamW(AdamWConfig { weight_decay, decay_biases, betas: c.betas, eps: c.eps })
            }
            _ => Kind::Sgd(SgdConfig {
                weight_decay,
                decay_biases,
                momentum: c.momentum,
                nesterov: c.nesterov,
            }),
        };
        let rates: Vec<_> = numbers(case, "lr").into_iter().map(|lr| (lr, lr)).collect();
        let file = format!("{}.safetensors", case["name"].as_str().unwrap());
        follow_vectors(&kind, dir.join(file), &rates, 1e-6);
    }
}

#[test]
fn a_weight_without_norm_or_gradient_takes_a_plain_step() {
    let Some(device) = crate::nn::cuda::emulate::Emulator::open() else { return };
    let held =
        [Held::new(&[0.0; 4], true, DType::F32, 0), Held::new(&[2.0; 5], true, DType::F32, 0)];
    set(&device, held[0].grad.span(), &[1.0; 4]);
    let (tensors, _table) = tables(&device, &held, 1);
    let rates = Memory::of(&lars_rates(0.5, 0.5), DType::F32);
    let config = LarsConfig { weight_decay: 0.0, ..Default::default() };
    lars_step(&device, &tensors, &config, rates.span()).unwrap();
    assert_eq!(held[0].value.floats(), [-0.5; 4]);
    assert_eq!(held[1].value.floats(), [2.0; 5]);
}

#[test]
fn a_teacher_follows() {
    with_tables(|b| {
        for odd in [0, 1] {
            let lens = [40_000, 7, 1];
            let make = |seed: u64| -> Vec<Held> {
                let held = lens.iter().enumerate();
                held.map(|(i, len)| {
                    Held::new(&noise(*len, seed + i as u64), i < 2, DType::F32, odd)
                })
                .collect()
            };
            let (own, other) = (make(1), make(50));
            let before: Vec<_> = own.iter().map(|held| held.value.floats()).collect();
            let ((own_tensors, _a), (tensors, _b)) = (tables(b, &own, 0), tables(b, &other, 0));
            let share = Memory::of(&[0.004], DType::F32);
            follow(b, &own_tensors, &tensors, share.span()).unwrap();
            for ((own, other), before) in own.iter().zip(&other).zip(&before) {
                let target = other.value.floats();
                let moved = |(t, x): (&f32, &f32)| t + 0.004 * (x - t);
                let want: Vec<f32> = before.iter().zip(&target).map(moved).collect();
                close("teacher", &own.value.floats(), &want, DType::F32, 1e-7);
                if own.is_weight {
                    assert_eq!(own.half.floats(), rounded(&own.value.floats(), DType::BF16));
                }
            }
            let (short, _c) = tables(b, &other[..2], 0);
            assert!(follow(b, &own_tensors, &short, share.span()).is_err());
        }
    });
}

#[test]
fn gradients_of_three_parts_are_summed() {
    with_tables(|b| {
        for odd in [0, 1] {
            let held: Vec<Held> =
                [40_000, 7, 1].map(|len| Held::new(&vec![0.0; len], true, DType::F32, odd)).into();
            let (tensors, _table) = tables(b, &held, 1);
            let mut sums: Vec<Vec<f32>> = Vec::new();
            for (seed, addend) in
                [Addend::First, Addend::Between, Addend::Last].into_iter().enumerate()
            {
                for (i, held) in held.iter().enumerate() {
                    let grad = noise(held.grad.span().len, (10 * seed + i) as u64);
                    set(b, held.grad.span(), &grad);
                    match sums.get_mut(i) {
                        None => sums.push(grad),
                        Some(sum) => sum.iter_mut().zip(&grad).for_each(|(s, g)| *s += g),
                    }
                }
                sum_gradients(b, &tensors, addend).unwrap();
            }
            for (held, sum) in held.iter().zip(&sums) {
                assert_eq!(&held.grad.floats(), sum);
            }
        }
        let half = [Held::new(&[1.0; 4], true, DType::BF16, 0)];
        let (tensors, _table) = tables(b, &half, 1);
        assert!(sum_gradients(b, &tensors, Addend::First).is_err());
    });
}

#[test]
fn the_first_gradient_that_is_not_finite_is_found() {
    with_tables(|b| {
        for (grads, odd) in [(DType::F32, 0), (DType::BF16, 0), (DType::F32, 1)] {
            let lens = [100, 50_000, 3, 20_001];
            let held: Vec<_> =
                lens.iter().map(|len| Held::new(&vec![1.0; *len], true, grads, odd)).collect();
            let (tensors, _table) = tables(b, &held, 0);
            let out = Memory::unwritten(1, DType::U32);
            let look = || {
                finite_check(b, &tensors, out.span()).unwrap();
                out.numbers()[0]
            };
            let large = if grads == DType::F32 { f32::MAX } else { bf16::MAX.to_f32() };
            set(b, held[0].grad.span(), &vec![-large; 100]);
            assert_eq!(look(), u32::MAX);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for (number, at) in [(3, 20_000), (1, 49_999), (1, 17), (0, 99)] {
                    set(b, held[number].grad.span().part(at, 1), &[bad]);
                    assert_eq!(look(), number as u32, "{bad} at {at} of {number}");
                }
                for held in &held {
                    b.zero(held.grad.span()).unwrap();
                }
                assert_eq!(look(), u32::MAX);
            }
        }
    });
}

#[test]
fn tables_that_do_not_fit_are_errors() {
    with_tables(|b| {
        let held = [Held::new(&[1.0; 4], true, DType::F32, 0)];
        let list = [held[0].tensor(1)];
        let table = Memory::unwritten(Tensors::table_bytes(&list), DType::U8);
        let new = |list: &[OptimTensor], table: Span| Tensors::new(b, list, table);
        let tensors = new(&list, table.span()).unwrap();
        assert!(new(&list, table.span().part(0, 16)).is_err());
        assert!(new(&[], table.span()).is_err());
        let short = OptimTensor { grad: Some(list[0].value.part(0, 3)), ..list[0] };
        assert!(new(&[short], table.span()).is_err());
        let rates = Memory::of(&[0.0; RATES], DType::F32);
        assert!(adamw_step(b, &tensors, &AdamWConfig::default(), rates.span()).is_err());
        let rates = rates.span().part(0, 2);
        assert!(lars_step(b, &tensors, &LarsConfig::default(), rates).is_err());
    });
}

/// As `on_device`, but making tables writes to the device.
fn with_tables(test: impl Fn(&dyn Backend)) {
    let Some(device) = crate::nn::cuda::emulate::Emulator::open() else { return };
    for _ in 0..2 {
        test(&device);
        device.turn_around();
    }
}
