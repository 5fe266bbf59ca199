//! Values and gradients of every objective: reference vectors and finite differences.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use toml::toml;

use super::*;

/// Two correlated random matrices of embeddings, the same for a seed.
pub(crate) fn pair_of(batch: usize, dim: usize, seed: u64) -> (Tensor, Tensor) {
    let noise = |stream: u64| -> Vec<f32> {
        let mut rng = bt_pipeline::rng::Rng::keyed(seed, 0, stream, 0);
        (0..batch * dim).map(|_| rng.uniform(-1.7, 1.7) as f32).collect()
    };
    let (a, other) = (noise(1), noise(2));
    let b = a.iter().zip(&other).map(|(a, o)| 0.8 * a + 0.5 * o + 0.1).collect::<Vec<_>>();
    let tensor = |v| Tensor::from_vec(v, (batch, dim), &Device::Cpu).unwrap();
    (tensor(a), tensor(b))
}

/// The largest difference over the largest magnitude.
pub(crate) fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let differences = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs()));
    // What is no number is the largest.
    let larger = |most: f64, now: f64| if most.is_nan() || now <= most { most } else { now };
    let difference = differences.fold(0.0, larger);
    difference / want.iter().map(|w| f64::from(w.abs())).fold(1e-30, f64::max)
}

fn to_vec(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn golden_dir() -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("BT_GOLDEN_DIR").map_or_else(default, PathBuf::from)
}

/// The objective that a name of `losses.json` stands for; eps and ridge are 0 in the vectors.
fn golden_objective(name: &str, lambda: f64, temperature: f64) -> Box<dyn Objective> {
    let barlow = |extra: toml::Table| {
        let mut options = toml! { lambda = lambda eps = 0.0 temperature = temperature };
        options.extend(extra);
        build("barlow", options)
    };
    match name {
        "barlow" => barlow(toml::Table::new()),
        "invariance" => barlow(toml! { terms = "invariance" }),
        "redundancy" => barlow(toml! { terms = "redundancy" }),
        "feature_normalized" => barlow(toml! { normalize = "feature" }),
        "cross_entropy" => barlow(toml! { loss = "cross_entropy" }),
        "infonce" | "ntxent" => build(name, toml! { temperature = temperature }),
        "imax" => build(name, toml! { ridge = 0.0 }),
        other => build(other, toml::Table::new()),
    }
    .unwrap()
}

/// What is less is nothing: NT-Xent's loss and gradients where a low temperature tells all samples
/// apart.
const SMALLEST: f64 = 1e-6;

#[test]
fn every_objective_gives_the_reference_values_and_gradients() {
    let text = std::fs::read_to_string(golden_dir().join("losses.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tensors =
        candle_core::safetensors::load(golden_dir().join("losses.safetensors"), &Device::Cpu)
            .unwrap();
    let tensor = |name: &str| tensors[name].to_dtype(DType::F32).unwrap();
    let (z_a, z_b) = (tensor("z_a"), tensor("z_b"));
    let number = |key: &str| json[key].as_f64().unwrap();
    let mut wrong = Vec::new();
    let values = json["value"].as_object().unwrap();
    assert!(!values.is_empty());
    for (name, want) in values {
        let want = want.as_f64().unwrap();
        let mut objective = golden_objective(name, number("lambda_"), number("temperature"));
        let out = objective.evaluate(&Embeddings::of(&z_a, &z_b)).unwrap();
        let gradient = |got: &Tensor, view: &str| {
            let (got, want) = (to_vec(got), to_vec(&tensor(&format!("{name}.grad_{view}"))));
            let zero = |values: &[f32]| values.iter().all(|value| value.abs() < SMALLEST as f32);
            if zero(&got) && zero(&want) { 0.0 } else { relative(&got, &want) }
        };
        let value = (out.loss - want).abs() / want.abs().max(100.0 * SMALLEST);
        let errors = [value, gradient(&out.grad_a, "a"), gradient(&out.grad_b, "b")];
        println!("{name}: value, grad_a, grad_b off by {errors:?}");
        if !errors.iter().all(|&e| e < 1e-4) {
            wrong.push(format!("{name}: {errors:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    let c = cross_correlation(&z_a, &z_b, 0.0).unwrap();
    assert!(relative(&to_vec(&c), &to_vec(&tensor("correlation"))) < 1e-5);
}

/// Every objective and option, as (name, options).
fn variants() -> Vec<(&'static str, toml::Table)> {
    vec![
        ("barlow", toml::Table::new()),
        ("barlow", toml! { scale = 0.1 lambda = 0.5 }),
        ("barlow", toml! { terms = "invariance" }),
        ("barlow", toml! { terms = "redundancy" }),
        ("barlow", toml! { normalize = "feature" }),
        ("barlow", toml! { normalize = "none" }),
        ("barlow", toml! { loss = "cross_entropy" lambda = 0.5 }),
        ("barlow", toml! { loss = "cross_entropy" lambda = 0.5 temperature = 0.01 }),
        ("barlow", toml! { loss = "cross_entropy" normalize = "none" terms = "redundancy" }),
        ("infonce", toml! { temperature = 0.3 }),
        ("ntxent", toml::Table::new()),
        ("cosine", toml! { stop_gradient = false }),
        ("imax", toml! { ridge = 0.1 }),
    ]
}

/// Whatever the pivots of a rounded covariance are.
#[test]
fn imax_without_a_ridge_wants_more_samples_than_dimensions() {
    let mut objective = build("imax", toml! { ridge = 0.0 }).unwrap();
    let mut evaluate = |batch, seed| {
        let (z_a, z_b) = pair_of(batch, 6, seed);
        objective.evaluate(&Embeddings::of(&z_a, &z_b))
    };
    for (batch, seed) in (3..7).flat_map(|batch| (0..10).map(move |seed| (batch, seed))) {
        let error = evaluate(batch, seed).unwrap_err().to_string();
        assert!(error.contains(&format!("{batch} samples in 6 dimensions is singular")), "{error}");
    }
    assert!(evaluate(7, 0).unwrap().loss.is_finite());
    // With a ridge nothing is singular but what has diverged.
    let mut objective = build("imax", toml! { ridge = 0.001 }).unwrap();
    let huge = |z: &Tensor| z.affine(1e15, 0.0).unwrap();
    let losses = (0..10).map(|seed| {
        let (z_a, z_b) = pair_of(3, 6, seed);
        objective.evaluate(&Embeddings::of(&huge(&z_a), &huge(&z_b))).unwrap().loss
    });
    assert!(losses.collect::<Vec<_>>().iter().any(|loss| loss.is_nan()));
}

#[test]
fn imax_is_its_definition_with_fewer_samples_than_dimensions_too() {
    let ridge = 0.3;
    for batch in [2, 3, 5] {
        let (z_a, z_b) = pair_of(batch, 3, 4);
        // log det of the unbiased covariance of a + sign b, with the ridge on its diagonal.
        let log_det = |sign: f64| {
            let (a, b) = (to_vec(&z_a), to_vec(&z_b));
            let at =
                |row: usize, i: usize| f64::from(a[row * 3 + i]) + sign * f64::from(b[row * 3 + i]);
            let mean = |of: &dyn Fn(usize) -> f64| (0..batch).map(of).sum::<f64>() / batch as f64;
            let off = |row, i| at(row, i) - mean(&|row| at(row, i));
            let c = |i: usize, j: usize| {
                let sum: f64 = (0..batch).map(|row| off(row, i) * off(row, j)).sum();
                sum / (batch - 1) as f64 + if i == j { ridge } else { 0.0 }
            };
            let minor = |i: usize, j: usize| c(1, i) * c(2, j) - c(1, j) * c(2, i);
            (c(0, 0) * minor(1, 2) - c(0, 1) * minor(0, 2) + c(0, 2) * minor(0, 1)).ln()
        };
        let mut objective = build("imax", toml! { ridge = ridge }).unwrap();
        let out = objective.evaluate(&Embeddings::of(&z_a, &z_b)).unwrap();
        for (got, want) in [(out.invariance, log_det(-1.0)), (out.redundancy, -log_det(1.0))] {
            assert!((got - want).abs() < 1e-6, "{batch} samples: {got} for {want}");
        }
    }
}

#[test]
fn the_terms_alone_add_up_to_both() {
    let (z_a, z_b) = pair_of(9, 5, 7);
    for loss in ["squared", "cross_entropy"] {
        let of = |terms: &str| {
            let options = toml! { loss = loss terms = terms lambda = 0.3 scale = 0.7 };
            build("barlow", options).unwrap().evaluate(&Embeddings::of(&z_a, &z_b)).unwrap()
        };
        let (both, pull, push) = (of("both"), of("invariance"), of("redundancy"));
        assert_eq!((pull.redundancy, push.invariance), (0.0, 0.0), "{loss}");
        assert_eq!((pull.invariance, push.redundancy), (both.invariance, both.redundancy));
        assert_eq!(both.loss, both.invariance + both.redundancy);
        let grads = [pull, push].map(|out| to_vec(&out.grad));
        let sum: Vec<f32> = grads[0].iter().zip(&grads[1]).map(|(a, b)| a + b).collect();
        assert!(relative(&sum, &to_vec(&both.grad)) < 1e-5, "{loss}");
    }
}

#[test]
fn the_loss_of_views_that_agree_is_minus_one() {
    let (z, _) = pair_of(6, 5, 11);
    let seen = Embeddings {
        predicted: Some((z.clone(), Some(z.clone()))),
        teacher: Some([z.clone(), z.clone()]),
        ..Embeddings::of(&z, &z)
    };
    for name in ["byol", "simsiam"] {
        for predictor in [true, false] {
            let mut objective = build(name, toml! { predictor = predictor }).unwrap();
            let out = objective.evaluate(&seen).unwrap();
            assert!((out.loss + 1.0).abs() < 1e-6, "{name}: {}", out.loss);
            assert_eq!((out.invariance, out.redundancy), (out.loss, 0.0));
        }
    }
    let out = build("cosine", toml::Table::new()).unwrap().evaluate(&seen).unwrap();
    assert!((out.loss + 1.0).abs() < 1e-6, "cosine: {}", out.loss);
}

/// A loss of 1e-5 beside similarities of 20: of the positive alone nothing would be left.
#[test]
fn a_small_contrastive_loss_keeps_its_digits() {
    let (n, dim, t) = (6, 40, 0.05);
    let (z_a, z_b) = pair_of(n, dim, 5);
    let out =
        build("ntxent", toml! { temperature = t }).unwrap().evaluate(&Embeddings::of(&z_a, &z_b));
    let out = out.unwrap();
    let unit = |z: &Tensor| -> Vec<Vec<f64>> {
        let rows = z.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap().into_iter();
        rows.map(|row| {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.into_iter().map(|v| v / norm).collect()
        })
        .collect()
    };
    let all = [unit(&z_a), unit(&z_b)].concat();
    let s = |i: usize, j: usize| all[i].iter().zip(&all[j]).map(|(a, b)| a * b).sum::<f64>() / t;
    let each = (0..2 * n).map(|i| {
        let p = (i + n) % (2 * n);
        let others = (0..2 * n).filter(|j| *j != i && *j != p);
        others.map(|j| (s(i, j) - s(i, p)).exp()).sum::<f64>().ln_1p()
    });
    let want = each.sum::<f64>() / (2 * n) as f64;
    assert!(want < 1e-2, "{want} is not small");
    assert!((out.loss / want - 1.0).abs() < 1e-4, "{} for {want}", out.loss);
}

#[test]
fn gradients_equal_finite_differences() {
    for (batch, dim) in [(9, 5), (6, 12)] {
        for (name, options) in variants() {
            let (z_a, z_b) = pair_of(batch, dim, 3);
            let what = format!("{name} {options} at [{batch}, {dim}]");
            let mut objective = build(name, options).unwrap();
            let out = objective.evaluate(&Embeddings::of(&z_a, &z_b)).unwrap();
            for (grad, first) in [(&out.grad_a, true), (&out.grad_b, false)] {
                // Along the gradient's own direction, where the difference is largest.
                let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                let norm = f64::from(norm).sqrt();
                let step = grad.affine(2e-3 / norm, 0.0).unwrap();
                let mut at = |sign: f64| {
                    let step = step.affine(sign, 0.0).unwrap();
                    let moved = if first { (&z_a + step).unwrap() } else { (&z_b + step).unwrap() };
                    let (a, b) = if first { (&moved, &z_b) } else { (&z_a, &moved) };
                    objective.evaluate(&Embeddings::of(a, b)).unwrap().loss
                };
                let slope = (at(1.0) - at(-1.0)) / 4e-3;
                assert!((slope / norm - 1.0).abs() < 0.01, "{what}: {slope} against {norm}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (z_a, z_b) = pair_of(40, 700, 1);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let outputs = variants().into_iter().map(|(name, options)| {
                let out =
                    build(name, options).unwrap().evaluate(&Embeddings::of(&z_a, &z_b)).unwrap();
                (out.loss.to_bits(), to_vec(&out.grad))
            });
            outputs.collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(5) == one);
}

#[test]
fn tiles_of_the_cross_entropy_join_at_awkward_sizes() {
    // Larger than one tile both ways; eq. and gradient from C as a whole, in f64.
    let (batch, dim, t) = (6, 777, 0.1);
    let (z_a, z_b) = pair_of(batch, dim, 8);
    let c = to_vec(&cross_correlation(&z_a, &z_b, 1e-5).unwrap());
    let mut sum = 0.0;
    for i in 0..dim {
        for j in (0..dim).filter(|&j| j != i) {
            sum += (f64::from(c[i * dim + j]).max(0.0) / t).exp();
        }
    }
    let options = toml! { loss = "cross_entropy" terms = "redundancy" lambda = 1.0 };
    let out =
        build("barlow", options.clone()).unwrap().evaluate(&Embeddings::of(&z_a, &z_b)).unwrap();
    assert!((out.loss / sum.ln() - 1.0).abs() < 1e-6);
    // Exchanging the views exchanges the gradients, which come from different tile loops.
    let swapped = build("barlow", options).unwrap().evaluate(&Embeddings::of(&z_b, &z_a)).unwrap();
    assert!(relative(&to_vec(&out.grad_a), &to_vec(&swapped.grad_b)) < 1e-5);
    assert!(relative(&to_vec(&out.grad_b), &to_vec(&swapped.grad_a)) < 1e-5);
}

#[test]
fn unknown_names_and_options_are_answered_with_the_known_ones() {
    let error = |name, options| format!("{:#}", build(name, options).err().unwrap());
    assert!(error("barlo", toml::Table::new()).contains("known: barlow, infonce"));
    assert!(error("barlow", toml! { lamda = 1.0 }).contains("lambda"));
    assert!(error("ntxent", toml! { temperature = 0.0 }).contains("greater than 0"));
}

#[test]
fn an_option_out_of_range_is_refused_by_its_name() {
    for (name, options) in [
        ("barlow", toml! { lambda = -0.1 }),
        ("barlow", toml! { scale = 0.0 }),
        ("barlow", toml! { eps = -1e-9 }),
        ("barlow", toml! { temperature = 0.0 }),
        ("infonce", toml! { temperature = 0.0 }),
        ("ntxent", toml! { temperature = 0.0 }),
        ("imax", toml! { ridge = -0.1 }),
        ("simsiam", toml! { predictor_hidden = 0 }),
        ("byol", toml! { momentum = 1.1 }),
        ("byol", toml! { final_momentum = -0.1 }),
        ("byol", toml! { predictor_hidden = 0 }),
        ("moco", toml! { temperature = 0.0 }),
        ("moco", toml! { momentum = 1.1 }),
        ("moco", toml! { queue = 0 }),
    ] {
        let key = options.keys().next().unwrap().clone();
        let error = format!("{:#}", build(name, options).err().expect(&key));
        assert!(error.contains(&key), "{name}: {error}");
    }
}

#[test]
fn views_of_different_shape_are_refused() {
    let (a, _) = pair_of(4, 3, 1);
    let (b, _) = pair_of(4, 2, 1);
    let single = a.narrow(0, 0, 1).unwrap();
    for registration in OBJECTIVES {
        let mut objective = (registration.build)(toml::Table::new()).unwrap();
        assert!(objective.evaluate(&Embeddings::of(&a, &b)).is_err());
        assert!(objective.evaluate(&Embeddings::of(&single, &single)).is_err());
    }
}

#[test]
fn embeddings_that_are_not_finite_make_a_loss_that_is_none_and_no_error() {
    for value in [f32::NAN, f32::INFINITY] {
        let (z, b) = pair_of(6, 5, 3);
        let mut values = to_vec(&z);
        values[7] = value;
        let a = Tensor::from_vec(values, (6, 5), &Device::Cpu).unwrap();
        for name in ["barlow", "infonce", "ntxent", "cosine", "imax"] {
            for swapped in [false, true] {
                let seen = if swapped { Embeddings::of(&b, &a) } else { Embeddings::of(&a, &b) };
                let out = build(name, toml::Table::new()).unwrap().evaluate(&seen).unwrap();
                assert!(!out.loss.is_finite(), "{name}: {}", out.loss);
            }
        }
    }
}

#[test]
fn views_of_one_tensor_are_read_in_place_and_give_the_same() {
    let (a, b) = pair_of(8, 16, 2);
    let both = Tensor::cat(&[&a, &b], 0).unwrap();
    let (view_a, view_b) = (both.narrow(0, 0, 8).unwrap(), both.narrow(0, 8, 8).unwrap());
    let config = BarlowConfig::default();
    let (x, y) =
        (barlow_twins(&a, &b, &config).unwrap(), barlow_twins(&view_a, &view_b, &config).unwrap());
    assert_eq!(to_vec(&x.grad), to_vec(&y.grad));
    assert_eq!(x.loss, y.loss);
}

#[test]
fn an_option_that_is_called_idle_changes_nothing() {
    let (z_a, z_b) = pair_of(6, 5, 11);
    let cases = [
        ("barlow", toml! { lambda = 0.1 }, "temperature", 0.7),
        ("barlow", toml! { terms = "invariance" }, "lambda", 0.7),
        ("barlow", toml! { loss = "cross_entropy" terms = "invariance" }, "lambda", 0.7),
        ("barlow", toml! { normalize = "feature" }, "eps", 0.7),
        ("barlow", toml! { normalize = "none" }, "eps", 0.7),
    ];
    for (name, options, key, value) in cases {
        let mut plain = build(name, options.clone()).unwrap();
        assert!(plain.idle().iter().any(|(idle, _)| *idle == key), "{name} {key}");
        let mut other = options.clone();
        other.insert(key.into(), value.into());
        let mut other = build(name, other).unwrap();
        let seen = Embeddings::of(&z_a, &z_b);
        let (one, two) = (plain.evaluate(&seen).unwrap(), other.evaluate(&seen).unwrap());
        assert_eq!(one.loss, two.loss, "{name} {key}");
        assert_eq!(to_vec(&one.grad_a), to_vec(&two.grad_a), "{name} {key}");
    }
    for name in ["byol", "simsiam"] {
        let without = build(name, toml! { predictor = false }).unwrap();
        assert_eq!(without.idle()[0].0, "predictor_hidden");
        assert!(
            without.needs().predictor.is_none()
                && build(name, toml::Table::new()).unwrap().idle().is_empty()
        );
    }
}
