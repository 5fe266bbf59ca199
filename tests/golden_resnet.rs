//! ResNet-18 and ResNet-50 with projector and loss against PyTorch in f64
//! (`tests/golden/README.md`): one training pass of both views, its gradients and running
//! statistics, then evaluation.
//!
//! Names, shapes, seeds and widths come from the files; `BT_GOLDEN_DIR` may hold others of the
//! form. `BT_DEVICE=cuda:0` runs them on a GPU, in f32 or with `BT_PRECISION=bf16` (then loss and
//! features in evaluation are compared).

use std::collections::HashMap;
use std::path::PathBuf;

use bt_stream::config::TrainConfig;
use bt_stream::intake::images_to;
use bt_stream::loss::{BarlowConfig, barlow_twins};
use bt_stream::model::{ModelConfig, ProjectorWidths, Stem, TwinNet};
use bt_stream::nn::{Precision, storage};
use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

/// f32 against f64 through up to 50 layers on a batch of 6; relative to the reference's norm.
const TOLERANCE: f64 = 1e-3;

/// The gradients of a 50-layer network on a batch of 6 hang on which side of zero single
/// activations fall: rounding parameters and images to f32 and computing in f64 moves them by up to
/// 3.4e-3, and PyTorch's own f32 pass is 2.6e-2 away from its f64 one (in the parameters where this
/// engine is).
const DEEP_GRADIENT_TOLERANCE: f64 = 5e-2;

/// Other vectors' gradients, of any depth. Of twenty such networks of 18 layers PyTorch's own f32
/// gradients are beyond 1e-3 of its f64 ones in eight, and this engine's in nine (by at most
/// 1.7e-2), where a single activation falls on the other side of zero; the committed one has none
/// so near.
const OTHER_GRADIENT_TOLERANCE: f64 = 5e-2;

/// Other vectors' gradients through 50 layers: of five such networks (batches of 3 to 64) this
/// engine's were 2.4e-2 to 5.5e-2 away, PyTorch's f32 ones 2.0e-2 to 4.0e-2; losses, features and
/// statistics of both were within 1.6e-4.
const OTHER_DEEP_GRADIENT_TOLERANCE: f64 = 1e-1;

/// What the loss may be off by in bfloat16.
const HALF_TOLERANCE: f64 = 2e-2;

/// The same through 50 layers, on a batch of 6, where it is chance: PyTorch's autocast on an H200
/// is 11.7% off for these images, 21.6% root mean square and 31.7% at most for ten others
/// (`tools/golden/bfloat16.py`), and two runs of this engine there were 11.3% and 17.5% off.
const DEEP_HALF_TOLERANCE: f64 = 3.2e-1;

/// What features in evaluation, where no statistics of six images blow rounding up, may be off by
/// in bfloat16.
const HALF_FEATURES_TOLERANCE: f64 = 4e-2;

#[derive(Deserialize)]
struct Reference {
    /// Whether this is a committed one, wherever the folder is.
    #[serde(skip)]
    own: bool,
    arch: String,
    input: [usize; 4],
    projector: Vec<usize>,
    loss: f64,
    seed: u64,
    params: Vec<Computed>,
    grad_norm: HashMap<String, f64>,
    /// Absent from the committed vectors: the paper's value. `losses.json` has it with the
    /// underscore.
    #[serde(alias = "lambda_")]
    lambda: Option<f64>,
}

#[derive(Deserialize)]
struct Computed {
    index: u64,
    name: String,
    shape: Vec<usize>,
}

/// The README's generator: element `i` of tensor `index`, uniform in [-1, 1).
fn signed_unit(index: u64, i: u64) -> f64 {
    let mut x = (index << 40).wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    2.0 * ((x >> 11) as f64 / (1u64 << 53) as f64) - 1.0
}

impl Computed {
    fn tensor(&self) -> Result<Tensor> {
        let len: usize = self.shape.iter().product();
        let fan_in: usize = self.shape[1..].iter().product();
        let value = |s: f64| match self.shape.len() {
            1 if self.name.ends_with(".bias") => 0.1 * s,
            1 => 1.0 + 0.1 * s,
            _ => s * 3f64.sqrt() * (2.0 / fan_in as f64).sqrt(),
        };
        let values: Vec<f32> =
            (0..len).map(|i| value(signed_unit(self.index, i as u64)) as f32).collect();
        Tensor::from_vec(values, self.shape.as_slice(), &Device::Cpu)
    }
}

impl Reference {
    /// View a, then view b, `[2N, H, W, 3]`.
    fn images(&self) -> Result<Tensor> {
        let len: usize = self.input.iter().product();
        let base = self.seed * 1000;
        let a: Vec<f64> = (0..len).map(|i| signed_unit(base + 900, i as u64)).collect();
        let b = (0..len).map(|i| 0.7 * a[i] + 0.3 * signed_unit(base + 901, i as u64));
        let views = [a.iter().map(|&v| v as f32).collect(), b.map(|v| v as f32).collect()];
        let view = |v: Vec<f32>| Tensor::from_vec(v, &self.input, &Device::Cpu);
        let [a, b] = views.map(view);
        Tensor::cat(&[a?, b?], 0)?.permute((0, 2, 3, 1))?.contiguous()
    }

    fn config(&self) -> ModelConfig {
        let stem = self.params.iter().find(|p| p.name == "backbone.conv1.weight").unwrap();
        ModelConfig {
            arch: self.arch.parse().unwrap(),
            width: stem.shape[0],
            stem: if stem.shape[3] == 7 { Stem::Imagenet } else { Stem::Cifar },
            zero_init: false,
            projector: ProjectorWidths(self.projector.clone()),
            ..Default::default()
        }
    }
}

/// Norm of the difference over the norm of the reference.
fn distance(got: &Tensor, want: &Tensor) -> Result<f64> {
    assert_eq!(got.dims(), want.dims());
    let want = want.to_dtype(DType::F64)?;
    let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>();
    let difference = norm(&(got.to_dtype(DType::F64)? - &want)?)?;
    Ok((difference / norm(&want)?.max(1e-60)).sqrt())
}

fn folder() -> PathBuf {
    match std::env::var_os("BT_GOLDEN_DIR") {
        Some(dir) => dir.into(),
        None => [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect(),
    }
}

/// Every network in the folder.
fn references() -> Vec<(Reference, HashMap<String, Tensor>)> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("resnet"))
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no resnet*.json in {}", folder().display());
    let own: [&[u8]; 2] =
        [include_bytes!("golden/resnet18_64.json"), include_bytes!("golden/resnet50_64.json")];
    let read = |path: PathBuf| {
        let json = std::fs::read(&path).unwrap();
        let mut reference: Reference = serde_json::from_slice(&json).unwrap();
        reference.own = own.contains(&json.as_slice());
        let tensors = path.with_extension("safetensors");
        (reference, candle_core::safetensors::load(tensors, &Device::Cpu).unwrap())
    };
    names.into_iter().map(read).collect()
}

/// Where the networks run, and whether in bfloat16.
fn place() -> (Device, bool) {
    let half = std::env::var("BT_PRECISION").is_ok_and(|precision| precision == "bf16");
    let config = TrainConfig {
        device: std::env::var("BT_DEVICE").unwrap_or_else(|_| "cpu".into()),
        precision: if half { Precision::Bf16 } else { Precision::F32 },
        ..Default::default()
    };
    (bt_stream::device::device(&config).unwrap(), half)
}

fn check(what: &str, distance: f64) {
    check_within(TOLERANCE, what, distance);
}

fn check_within(tolerance: f64, what: &str, distance: f64) {
    assert!(distance < tolerance, "{what}: relative distance {distance:.2e}");
}

#[test]
fn a_training_pass_and_evaluation_agree_with_pytorch() -> Result<()> {
    let (device, half) = place();
    agree(&device, half)
}

/// Checks every network in the folder on `device`; `half` where that computes in bfloat16.
pub fn agree(device: &Device, half: bool) -> Result<()> {
    for (reference, tensors) in references() {
        let mut net = TwinNet::new(&reference.config(), 0, device)?;
        let mut state: HashMap<String, Tensor> = net.state_dict()?.into_iter().collect();
        for p in &reference.params {
            assert!(state.insert(p.name.clone(), p.tensor()?).is_some(), "{}", p.name);
        }
        net.load_state_dict(&state)?;

        let n = reference.input[0];
        let images = images_to(&reference.images()?, net.engine())?;
        let z = storage::host(&net.forward_train(&images, 2)?)?;
        let view_a = |t: &Tensor| t.narrow(0, 0, n);
        let config =
            BarlowConfig { lambda: reference.lambda.unwrap_or(0.0051), ..Default::default() };
        let deep = net.config().arch.bottleneck();
        if half {
            let out = barlow_twins(&view_a(&z)?, &z.narrow(0, n, n)?, &config)?;
            let off = (out.loss / reference.loss - 1.0).abs();
            let features = distance(&view_a(&net.last_features()?)?, &tensors["features_a"])?;
            let evaluated = net.features(&view_a(&images)?.contiguous()?)?;
            let evaluated = distance(&evaluated, &tensors["features_eval_a"])?;
            println!(
                "{}: in bf16 the loss is off by {off:.2e}, features by {features:.2e}, in evaluation by \
                 {evaluated:.2e}",
                reference.arch,
            );
            let tolerance = if deep { DEEP_HALF_TOLERANCE } else { HALF_TOLERANCE };
            check_within(tolerance, "loss in bf16", off);
            check_within(HALF_FEATURES_TOLERANCE, "features in bf16", evaluated);
            continue;
        }
        check("features_a", distance(&view_a(&net.last_features()?)?, &tensors["features_a"])?);
        let (z_a, z_b) = (view_a(&z)?.contiguous()?, z.narrow(0, n, n)?.contiguous()?);
        check("projection_a", distance(&z_a, &tensors["projection_a"])?);
        check("projection_b", distance(&z_b, &tensors["projection_b"])?);

        let out = barlow_twins(&z_a, &z_b, &config)?;
        check("loss", (out.loss / reference.loss - 1.0).abs());
        net.backward(&Tensor::cat(&[&out.grad_a, &out.grad_b], 0)?)?;
        let tolerance = match (reference.own, deep) {
            (true, false) => TOLERANCE,
            (true, true) => DEEP_GRADIENT_TOLERANCE,
            (false, false) => OTHER_GRADIENT_TOLERANCE,
            (false, true) => OTHER_DEEP_GRADIENT_TOLERANCE,
        };
        check_within(tolerance, "gradients", worst_gradient(&mut net, &reference, &tensors)?);

        let state: HashMap<String, Tensor> = net.state_dict()?.into_iter().collect();
        for part in ["grad.", "buffer."] {
            assert!(tensors.keys().any(|name| name.starts_with(part)), "no {part}*");
        }
        for (name, want) in &tensors {
            if let Some(name) = name.strip_prefix("buffer.") {
                check(name, distance(&state[name], want)?);
            }
        }
        let features = net.features(&view_a(&images)?.contiguous()?)?;
        check("features_eval_a", distance(&features, &tensors["features_eval_a"])?);
    }
    Ok(())
}

/// The largest distance of a parameter's gradient, or of its norm alone where the file has no more.
fn worst_gradient(
    net: &mut TwinNet,
    reference: &Reference,
    tensors: &HashMap<String, Tensor>,
) -> Result<f64> {
    let mut worst = (0.0, String::new());
    for (name, grad) in net.gradients()? {
        let norm = grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
        let off = (norm / reference.grad_norm[&name] - 1.0).abs();
        let off = match tensors.get(&format!("grad.{name}")) {
            Some(want) => off.max(distance(&grad, want)?),
            None => off,
        };
        assert!(!off.is_nan(), "the gradient of {name}");
        if off > worst.0 {
            worst = (off, name);
        }
    }
    println!("{}: worst gradient {} at {:.2e}", reference.arch, worst.1, worst.0);
    Ok(worst.0)
}
