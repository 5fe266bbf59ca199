//! Optimizers and schedule against the reference vectors, and their state through a checkpoint.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::Value;

use super::*;
use crate::loss::tests::relative;

fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How far a parameter may be from LARS's vectors, as a share of the largest. The repository's own
/// are kept to better than 1e-6; a LARS that left the decay out of its norms would be 3e-6 off.
fn tolerance() -> f64 {
    if std::env::var_os("BT_GOLDEN_DIR").is_some() { 1e-5 } else { 1e-6 }
}

fn golden_dir() -> PathBuf {
    std::env::var_os("BT_GOLDEN_DIR")
        .map_or_else(|| manifest_dir().join("tests/golden"), PathBuf::from)
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(json: &Value, key: &str) -> Vec<f64> {
    json[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Vectors of an optimizer: `init.NAME`, `stepN.grad.NAME`, `stepN.param.NAME`.
struct Vectors(HashMap<String, Tensor>);

impl Vectors {
    fn load(path: PathBuf) -> Self {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let to_f32 = |(name, t): (String, Tensor)| (name, t.to_dtype(DType::F32).unwrap());
        Self(tensors.into_iter().map(to_f32).collect())
    }

    fn slice(&self, name: &str) -> Vec<f32> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn params(&self) -> Vec<Param> {
        let mut names: Vec<_> = self.0.keys().filter_map(|key| key.strip_prefix("init.")).collect();
        names.sort();
        let param = |name: &&str| {
            let init = format!("init.{name}");
            let mut param = Param::zeros(*name, self.0[&init].dims(), &Device::Cpu).unwrap();
            param.set(&self.slice(&init)).unwrap();
            param
        };
        names.iter().map(param).collect()
    }

    fn set_grads(&self, params: &mut [Param], step: usize) {
        for param in params {
            let grad = self.slice(&format!("step{step}.grad.{}", param.name));
            crate::nn::storage::with_mut(&param.grad, |g| g.copy_from_slice(&grad)).unwrap();
        }
    }

    /// Steps through the vectors; returns the largest relative error of any parameter.
    fn follow(&self, optimizer: &mut dyn Optimizer, rates: &[(f64, f64)]) -> f64 {
        let mut params = self.params();
        let mut worst = 0f64;
        for (step, &(lr_weights, lr_biases)) in rates.iter().enumerate() {
            self.set_grads(&mut params, step);
            step_all(optimizer, &mut params, (lr_weights, lr_biases)).unwrap();
            for param in &params {
                let want = self.slice(&format!("step{step}.param.{}", param.name));
                let now = relative(&values(param), &want);
                assert!(!now.is_nan(), "{}", param.name);
                worst = worst.max(now);
            }
        }
        worst
    }
}

fn step_all(optimizer: &mut dyn Optimizer, params: &mut [Param], rates: (f64, f64)) -> Result<()> {
    let mut params: Vec<&mut Param> = params.iter_mut().collect();
    optimizer.step(&mut params, rates.0, rates.1)
}

fn values(param: &Param) -> Vec<f32> {
    param.value.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn lars_follows_the_authors_for_five_steps() {
    let options = json(golden_dir().join("lars.json"));
    let vectors = Vectors::load(golden_dir().join("lars.safetensors"));
    let number = |key: &str| options[key].as_f64().unwrap();
    let mut lars = Lars::new(LarsConfig {
        weight_decay: number("weight_decay"),
        momentum: number("momentum"),
        eta: number("eta"),
        clip_lr: false,
    });
    let (weights, biases) = (numbers(&options, "lr_weights"), numbers(&options, "lr_biases"));
    assert!(!weights.is_empty() && weights.len() == biases.len());
    let rates: Vec<_> = weights.into_iter().zip(biases).collect();
    let error = vectors.follow(&mut lars, &rates);
    println!("LARS off by {error:.1e}");
    assert!(error < tolerance(), "{error}");
}

#[test]
fn sgd_and_adamw_follow_pytorch() {
    let dir = manifest_dir().join("tests/golden_extra");
    let cases = json(dir.join("optimizers.json"));
    for case in cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let vectors = Vectors::load(dir.join(format!("{name}.safetensors")));
        let config: OptimConfig = serde_json::from_value(case["optim"].clone()).unwrap();
        let rates: Vec<_> = numbers(case, "lr").into_iter().map(|lr| (lr, lr)).collect();
        let error = vectors.follow(&mut *config.build().unwrap(), &rates);
        println!("{name} off by {error:.1e}");
        assert!(error < 1e-6, "{name}: {error}");
    }
}

#[test]
fn lars_measures_the_gradient_with_the_decay_in_it() {
    let mut param = Param::zeros("w", &[1, 2], &Device::Cpu).unwrap();
    param.set(&[3.0, 4.0]).unwrap();
    crate::nn::storage::with_mut(&param.grad, |g| g.copy_from_slice(&[0.8, -0.6])).unwrap();
    let config = OptimConfig { weight_decay: 0.1, eta: 0.1, ..Default::default() };
    let mut lars = config.build().unwrap();
    step_all(&mut *lars, std::slice::from_mut(&mut param), (0.5, 0.0)).unwrap();
    // d = [0.8 + 0.3, -0.6 + 0.4] = [1.1, -0.2]; |w| = 5, |d| = sqrt(1.25), where |g| is 1.
    let step = 0.5 * 0.1 * 5.0 / 1.25f64.sqrt();
    for (got, want) in values(&param).iter().zip([3.0 - step * 1.1, 4.0 + step * 0.2]) {
        assert!((f64::from(*got) - want).abs() < 1e-6, "{got} for {want}");
    }
}

#[test]
fn adamw_adds_its_eps_to_the_root_of_the_corrected_moment() {
    let mut param = Param::zeros("w", &[1, 1], &Device::Cpu).unwrap();
    param.set(&[1.0]).unwrap();
    let optimizer = OptimizerKind::AdamW;
    let config = OptimConfig { optimizer, weight_decay: 0.1, eps: 0.1, ..Default::default() };
    let mut adamw = config.build().unwrap();
    // By the formula of torch.optim.AdamW with lr = 0.1:
    // 0.99 * 1 - 0.1 * 0.5 / (0.5 + 0.1), where bias correction leaves the gradient itself; then
    // 0.99 * w - 0.1 * (0.025 / 0.19) / (sqrt(0.00028975 / 0.001999) + 0.1).
    for (grad, want) in [(0.5, 0.9066667), (-0.2, 0.8702288)] {
        crate::nn::storage::with_mut(&param.grad, |g| g[0] = grad).unwrap();
        step_all(&mut *adamw, std::slice::from_mut(&mut param), (0.1, 0.0)).unwrap();
        let got = values(&param)[0];
        assert!((got - want).abs() < 1e-6, "{got} for {want}");
    }
    assert_eq!((OptimConfig::default().eps, AdamWConfig::default().eps), (1e-8, 1e-8));
}

#[test]
fn the_schedule_is_the_authors() {
    let golden = json(golden_dir().join("schedule.json"));
    let integer = |key: &str| golden[key].as_u64().unwrap();
    let config = OptimConfig {
        lr_weights: golden["base_lr_weights"].as_f64().unwrap(),
        lr_biases: golden["base_lr_biases"].as_f64().unwrap(),
        warmup_epochs: golden["warmup_epochs"].as_f64().unwrap(),
        ..Default::default()
    };
    let per_epoch = integer("steps_per_epoch");
    let schedule =
        config.schedule(integer("batch_size") as usize, per_epoch, per_epoch * integer("epochs"));
    let rows = golden["rows"].as_array().unwrap();
    assert!(!rows.is_empty());
    // The repository's own are written with all their digits.
    let tolerance = if std::env::var_os("BT_GOLDEN_DIR").is_some() { 1e-6 } else { 1e-9 };
    for row in rows {
        let (weights, biases) = schedule.rates(row["step"].as_u64().unwrap());
        for (got, key) in [(weights, "lr_weights"), (biases, "lr_biases")] {
            let want = row[key].as_f64().unwrap();
            assert!((got - want).abs() <= tolerance * want.abs(), "{row}: {got}");
        }
    }
}

fn kinds() -> [OptimConfig; 3] {
    [OptimizerKind::Lars, OptimizerKind::Sgd, OptimizerKind::AdamW]
        .map(|optimizer| OptimConfig { optimizer, ..Default::default() })
}

/// A parameter larger than one piece, and a bias.
fn two_params() -> Vec<Param> {
    let mut params = vec![
        Param::zeros("projector.0.weight", &[300, 200], &Device::Cpu).unwrap(),
        Param::zeros("projector.1.bias", &[300], &Device::Cpu).unwrap(),
    ];
    for (seed, param) in params.iter_mut().enumerate() {
        let noise = |stream| -> Vec<f32> {
            let mut rng = bt_pipeline::rng::Rng::keyed(seed as u64, 0, stream, 0);
            (0..param.len()).map(|_| rng.uniform(-1.0, 1.0) as f32).collect()
        };
        let (value, grad) = (noise(1), noise(2));
        param.set(&value).unwrap();
        crate::nn::storage::with_mut(&param.grad, |g| g.copy_from_slice(&grad)).unwrap();
    }
    params
}

#[test]
fn a_run_through_a_checkpoint_equals_one_without_bit_for_bit() {
    for config in kinds() {
        let (mut straight, mut params) = (config.build().unwrap(), two_params());
        for _ in 0..2 {
            step_all(&mut *straight, &mut params, (0.1, 0.01)).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("optimizer.safetensors");
        let state: HashMap<_, _> = straight.state().into_iter().collect();
        assert!(state.keys().all(|name| name.starts_with("optimizer.")));
        candle_core::safetensors::save(&state, &file).unwrap();
        let loaded = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        let mut resumed = config.build().unwrap();
        resumed.load_state(&loaded).unwrap();
        let mut copies = two_params();
        for (copy, param) in copies.iter_mut().zip(&params) {
            copy.set(&values(param)).unwrap();
        }
        for _ in 0..2 {
            step_all(&mut *straight, &mut params, (0.1, 0.01)).unwrap();
            step_all(&mut *resumed, &mut copies, (0.1, 0.01)).unwrap();
        }
        for (a, b) in params.iter().zip(&copies) {
            assert_eq!(values(a), values(b), "{:?}", config.optimizer);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for config in kinds() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut optimizer, mut params) = (config.build().unwrap(), two_params());
                step_all(&mut *optimizer, &mut params, (0.1, 0.01)).unwrap();
                params.iter().map(values).collect::<Vec<_>>()
            })
        };
        let one = run(1);
        assert!(run(2) == one && run(5) == one);
    }
}

#[test]
fn lars_with_clip_lr_never_exceeds_the_learning_rate() {
    // A large weight with a small gradient: the trust ratio alone would be 1000 times the rate.
    let step = |clip_lr| {
        let mut param = Param::zeros("w", &[1, 1], &Device::Cpu).unwrap();
        param.set(&[10.0]).unwrap();
        crate::nn::storage::with_mut(&param.grad, |g| g[0] = 1e-3).unwrap();
        let config = LarsConfig { weight_decay: 0.0, clip_lr, ..Default::default() };
        step_all(&mut Lars::new(config), std::slice::from_mut(&mut param), (0.1, 0.1)).unwrap();
        values(&param)[0]
    };
    // eta |w| / |g| = 10; min(10 / 0.1, 1) = 1.
    assert!((step(false) - (10.0 - 0.1 * 10.0 * 1e-3)).abs() < 1e-6);
    assert!((step(true) - (10.0 - 0.1 * 1e-3)).abs() < 1e-6);
}

#[test]
fn a_weight_without_norm_or_gradient_takes_a_plain_step() {
    let mut param = Param::zeros("w", &[2, 2], &Device::Cpu).unwrap();
    crate::nn::storage::with_mut(&param.grad, |g| g.fill(1.0)).unwrap();
    let mut lars = Lars::new(LarsConfig::default());
    step_all(&mut lars, std::slice::from_mut(&mut param), (0.5, 0.5)).unwrap();
    assert_eq!(values(&param), [-0.5; 4]);
}

#[test]
fn lars_scales_steps_of_small_weights_by_their_norms_too() {
    let mut param = Param::zeros("w", &[1, 2], &Device::Cpu).unwrap();
    param.set(&[3e-3, 4e-3]).unwrap();
    crate::nn::storage::with_mut(&param.grad, |g| g.copy_from_slice(&[6e-4, 8e-4])).unwrap();
    let mut lars = Lars::new(LarsConfig { weight_decay: 0.0, ..Default::default() });
    step_all(&mut lars, std::slice::from_mut(&mut param), (0.5, 0.5)).unwrap();
    // eta |w| / |g| = 0.001 * 5e-3 / 1e-3
    for (got, (w, g)) in values(&param).iter().zip([(3e-3, 6e-4), (4e-3, 8e-4)]) {
        assert!((f64::from(*got) - (w - 0.5 * 5e-3 * g)).abs() < 1e-9, "{got}");
    }
}

#[test]
fn state_that_does_not_fit_is_refused_by_name() {
    let mut sgd = kinds()[1].build().unwrap();
    let mut state = HashMap::from([(
        "optimizer.momentum.projector.0.weight".to_owned(),
        Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap(),
    )]);
    sgd.load_state(&state).unwrap();
    let error = step_all(&mut *sgd, &mut two_params(), (0.1, 0.1)).unwrap_err().to_string();
    assert!(error.contains("projector.0.weight") && error.contains("[2, 2]"), "{error}");
    assert!(kinds()[2].build().unwrap().load_state(&state).is_err());
    state.insert("optimizer.exp_avg.x".to_owned(), state.values().next().unwrap().clone());
    let error = sgd.load_state(&state).unwrap_err().to_string();
    assert!(error.contains("optimizer.exp_avg.x"), "{error}");
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    for text in [
        "lr_weights = -0.1",
        "lr_biases = inf",
        "warmup_epochs = -0.5",
        "final_lr = nan",
        "weight_decay = -1e-6",
        "eta = -0.1",
        "eps = -1e-9",
        "momentum = 1.0",
        "betas = [1.0, 0.9]",
        "betas = [0.9, -0.1]",
    ] {
        let config: OptimConfig = toml::from_str(text).unwrap();
        let error = config.build().err().expect(text).to_string();
        let name = text.split(' ').next().unwrap();
        assert!(error.contains(&format!("optim.{name}")), "{text}: {error}");
    }
}

#[test]
fn a_constant_rate_is_the_predictors_alone_and_goes_through_a_checkpoint() {
    for base in kinds() {
        let config = OptimConfig { constant_predictor: true, scale_lr: false, ..base.clone() };
        let params = || -> Vec<Param> {
            let mut all = two_params();
            for (name, mut param) in
                ["predictor.0.weight", "predictor.1.bias"].iter().zip(two_params())
            {
                param.name = (*name).into();
                all.push(param);
            }
            all
        };
        // The plain optimizer at the scheduled rate, and at the constant one.
        let run = |optimizer: &mut dyn Optimizer, rates: (f64, f64)| {
            let mut all = params();
            (0..2).for_each(|_| step_all(optimizer, &mut all, rates).unwrap());
            all.iter().map(values).collect::<Vec<_>>()
        };
        let (low, peak) = ((1e-4, 1e-5), (config.lr_weights, config.lr_biases));
        let slow = run(&mut *config.build().unwrap(), low);
        let fast = run(&mut *config.build().unwrap(), peak);
        let mut split = config.for_run(64).unwrap();
        let both = run(&mut *split, low);
        assert!(both[..2] == slow[..2] && both[2..] == fast[2..], "{:?}", config.optimizer);
        assert_ne!(slow[2..], fast[2..]);

        // Saved after two steps, and gone on with.
        let state: HashMap<String, Tensor> =
            split.state().into_iter().map(|(n, t)| (n, t.copy().unwrap())).collect();
        assert_eq!(state.len(), split.state().len());
        let mut resumed = config.for_run(64).unwrap();
        resumed.load_state(&state).unwrap();
        assert!(run(&mut *resumed, low) == run(&mut *split, low), "{:?}", config.optimizer);
    }
}
