//! Every layer's gradients against finite differences along random directions, at awkward sizes.
//!
//! The objective is <r, y> for a random r; its derivative along v must be <gradient, v>.

use candle_core::{Device, Result, Tensor};

use super::*;

const CPU: Device = Device::Cpu;

/// Reproducible values in [-1, 1).
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = bt_pipeline::rng::Rng::keyed(seed, 0, 0, 0);
    let len = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (storage::read(a)?, storage::read(b)?);
    assert_eq!(a.len(), b.len());
    Ok(a.iter().zip(&*b).map(|(a, b)| *a as f64 * *b as f64).sum())
}

fn add_scaled(to: &Tensor, v: &Tensor, t: f64) -> Result<()> {
    let v = storage::read(v)?;
    storage::with_mut(to, |to| {
        to.iter_mut().zip(&*v).for_each(|(a, v)| *a += (t * *v as f64) as f32)
    })
}

/// Checks `grad` against the central difference of `objective` along directions of `at`, in place.
fn check(
    what: &str,
    at: &Tensor,
    grad: &Tensor,
    step: f64,
    tolerance: f64,
    mut objective: impl FnMut() -> Result<f64>,
) -> Result<()> {
    let original = at.force_contiguous()?;
    for seed in 100..103 {
        let v = noise(at.dims(), seed);
        let mut ends = [0.0; 2];
        for (end, sign) in ends.iter_mut().zip([1.0, -1.0]) {
            add_scaled(at, &v, sign * step)?;
            *end = objective()?;
            let original = storage::read(&original)?;
            storage::with_mut(at, |at| at.copy_from_slice(&original))?;
        }
        let (numeric, analytic) = ((ends[0] - ends[1]) / (2.0 * step), dot(grad, &v)?);
        // Relative to the size that a random direction would have, not to a chance cancellation.
        let size = dot(grad, grad)?.sqrt().max(1e-3);
        let off = (numeric - analytic).abs() / size;
        assert!(off < tolerance, "{what}: {numeric} by differences, {analytic} by the layer");
    }
    Ok(())
}

#[test]
fn convolution_gradients_are_the_derivatives() -> Result<()> {
    for (h, w, input, output, kernel, stride, padding) in [
        (7, 5, 3, 6, 3, 1, 1),
        (6, 5, 3, 6, 3, 1, 2),
        (6, 5, 16, 32, 3, 1, 2),
        (9, 6, 16, 20, 3, 2, 1),
        (13, 11, 3, 16, 7, 2, 3),
        (5, 4, 32, 8, 1, 2, 0),
        (4, 3, 16, 48, 1, 1, 0),
    ] {
        let config = Conv2dConfig { input, output, kernel, stride, padding };
        let mut conv = Conv2d::new("conv", config, &CPU)?;
        let weight = noise(conv.weight.value.dims(), 1);
        conv.weight.set(&storage::read(&weight)?)?;
        let x = noise(&[2, h, w, input], 2);
        let mut ws = Workspace::new(&CPU)?;
        let r = noise(conv.forward(&x, &mut ws)?.dims(), 3);
        conv.backward_weight(&r)?;
        let dx = noise(x.dims(), 4);
        conv.backward_input(&r, &dx, false)?;
        let (value, grad) = (conv.weight.value.clone(), conv.weight.grad.clone());
        let mut objective = || dot(&conv.forward(&x, &mut ws)?, &r);
        check("dW", &value, &grad, 0.5, 1e-4, &mut objective)?;
        check("dX", &x, &dx, 0.5, 1e-4, &mut objective)?;
    }
    Ok(())
}

#[test]
fn linear_gradients_are_the_derivatives() -> Result<()> {
    let mut linear = Linear::new("linear", 37, 19, true, &CPU)?;
    for (seed, p) in linear.params().enumerate() {
        let values = noise(p.value.dims(), seed as u64);
        p.set(&storage::read(&values)?)?;
    }
    let (x, mut ws) = (noise(&[5, 37], 2), Workspace::new(&CPU)?);
    let r = noise(linear.forward(&x, &mut ws)?.dims(), 3);
    let dx = noise(x.dims(), 4);
    linear.backward(&r, Some(&dx), false)?;
    let params: Vec<Param> = linear.params().map(|p| p.clone()).collect();
    let mut objective = || dot(&linear.forward(&x, &mut ws)?, &r);
    for p in &params {
        check(&p.name, &p.value, &p.grad, 0.5, 1e-4, &mut objective)?;
    }
    check("dX", &x, &dx, 0.5, 1e-4, &mut objective)
}

/// BatchNorm with groups, residual and ReLU. The random inputs keep clear of ReLU's kink at this
/// step.
#[test]
fn batch_norm_gradients_are_the_derivatives() -> Result<()> {
    for (shape, groups, relu, residual) in [
        (vec![4usize, 3, 5, 3], 2, false, false),
        (vec![4, 3, 3, 20], 2, false, true),
        (vec![6, 150], 2, false, false),
        (vec![2, 5, 4, 16], 1, true, true),
        (vec![4, 1, 2, 33], 2, true, false),
    ] {
        let c = *shape.last().unwrap();
        let mut norm = BatchNorm::new("bn", c, relu, &CPU)?;
        for (seed, p) in [&mut norm.weight, &mut norm.bias].into_iter().enumerate() {
            let values = noise(&[c], 7 + seed as u64);
            add_scaled(&p.value, &values, 0.5)?;
        }
        let x = noise(&shape, 1);
        let shortcut = residual.then(|| noise(&shape, 2));
        let mut ws = Workspace::new(&CPU)?;
        ws.groups = groups;
        norm.forward(&x, shortcut.as_ref(), &mut ws)?;
        let r = noise(&shape, 3);
        let (dout, dx) = (r.force_contiguous()?, noise(&shape, 4));
        norm.backward(&dout, Some(&dx))?;
        let in_place = r.force_contiguous()?;
        norm.backward(&in_place, None)?;
        assert_eq!(in_place.flatten_all()?.to_vec1::<f32>()?, dx.flatten_all()?.to_vec1::<f32>()?);
        let params = [norm.weight.clone(), norm.bias.clone()];
        let mut objective = || dot(&norm.forward(&x, shortcut.as_ref(), &mut ws)?, &r);
        // A kink or two inside the step is unavoidable with ReLU.
        let tolerance = if relu { 3e-2 } else { 2e-3 };
        for p in &params {
            check(&p.name, &p.value, &p.grad, 1e-3, tolerance, &mut objective)?;
        }
        check("dX", &x, &dx, 1e-3, tolerance, &mut objective)?;
        if let Some(shortcut) = &shortcut {
            check("residual", shortcut, &dout, 1e-3, tolerance, &mut objective)?;
        }
    }
    Ok(())
}

#[test]
fn groups_equal_separate_passes_and_running_statistics_move_as_pytorchs() -> Result<()> {
    let (x, c) = (noise(&[6, 2, 3, 5], 1), 5);
    let mut together = BatchNorm::new("bn", c, false, &CPU)?;
    let mut apart = BatchNorm::new("bn", c, false, &CPU)?;
    let mut ws = Workspace::new(&CPU)?;
    ws.groups = 2;
    let y = together.forward(&x, None, &mut ws)?.flatten_all()?.to_vec1::<f32>()?;
    ws.groups = 1;
    let mut parts = Vec::new();
    for g in 0..2 {
        let part = x.narrow(0, 3 * g, 3)?;
        parts.extend(apart.forward(&part, None, &mut ws)?.flatten_all()?.to_vec1::<f32>()?);
    }
    assert_eq!(y, parts);
    let running = |n: &BatchNorm| n.running_var.to_vec1::<f32>();
    assert_eq!(running(&together)?, running(&apart)?);
    assert_eq!(together.num_batches_tracked, 2);
    // The first channel by hand: 18 values a group, unbiased variance, momentum 0.1 twice.
    let values = x.narrow(3, 0, 1)?.flatten_all()?.to_vec1::<f32>()?;
    let mut expected = 1.0;
    for part in values.chunks(18) {
        let mean = part.iter().sum::<f32>() / 18.0;
        let var = part.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 17.0;
        expected = 0.9 * expected + 0.1 * var;
    }
    assert!((running(&together)?[0] - expected).abs() < 1e-5);
    Ok(())
}

#[test]
fn max_pool_takes_the_first_maximum_and_routes_its_gradient_there() -> Result<()> {
    for (shape, kernel, stride, padding) in
        [([2, 7, 5, 3], 3, 2, 1), ([2, 6, 9, 17], 3, 2, 1), ([1, 4, 4, 2], 2, 2, 0)]
    {
        let mut pool = MaxPool::new(kernel, stride, padding);
        let (x, mut ws) = (noise(&shape, 1), Workspace::new(&CPU)?);
        let y = pool.forward(&x, &mut ws)?;
        let r = noise(y.dims(), 3);
        let dx = noise(&shape, 4);
        pool.backward(&r, &dx)?;
        let mut objective = || dot(&pool.forward(&x, &mut ws)?, &r);
        check("dX", &x, &dx, 1e-5, 3e-2, &mut objective)?;
    }
    let ties = Tensor::ones((1, 3, 3, 1), candle_core::DType::F32, &CPU)?;
    let (mut pool, mut ws) = (MaxPool::new(3, 2, 0), Workspace::new(&CPU)?);
    let y = pool.forward(&ties, &mut ws)?;
    let dx = noise(&[1, 3, 3, 1], 1);
    pool.backward(&y, &dx)?;
    assert_eq!(dx.flatten_all()?.to_vec1::<f32>()?, [1., 0., 0., 0., 0., 0., 0., 0., 0.]);
    Ok(())
}

#[test]
fn average_pool_and_relu_gradients_are_the_derivatives() -> Result<()> {
    let (x, mut ws) = (noise(&[2, 3, 5, 7], 1), Workspace::new(&CPU)?);
    let (mut pool, mut relu) = (AvgPool::default(), Relu::default());
    let y = pool.forward(&x, &mut ws)?;
    let r = noise(y.dims(), 3);
    let dx = noise(x.dims(), 4);
    pool.backward(&r, &dx)?;
    check("average", &x, &dx, 0.5, 1e-4, || dot(&pool.forward(&x, &mut ws)?, &r))?;
    let mut ws = Workspace::new(&CPU)?;
    storage::with_mut(&x, |x| x[0] = 0.0)?;
    let y = relu.forward(&x, &mut ws)?;
    let dout = Tensor::ones(y.dims(), candle_core::DType::F32, &CPU)?;
    relu.backward(&dout)?;
    let (x, d) = (storage::read(&x)?, storage::read(&dout)?);
    assert!(x.iter().zip(&*d).all(|(x, d)| *d == if *x > 0.0 { 1.0 } else { 0.0 }));
    Ok(())
}

#[test]
fn what_a_failed_pass_took_is_let_go_of() -> Result<()> {
    let mut ws = Workspace::new(&CPU)?;
    let (kept, _lost) = (ws.take(&[5, 3])?, ws.take(&[7])?);
    ws.put_back(kept);
    assert_eq!((ws.kept(), ws.in_use()), (15, 1));
    ws.discard_buffers();
    assert_eq!((ws.kept(), ws.in_use()), (0, 0));
    Ok(())
}

#[test]
fn misuse_is_answered_with_the_layers_name() -> Result<()> {
    let config = Conv2dConfig { input: 3, output: 4, kernel: 3, stride: 1, padding: 1 };
    let mut conv = Conv2d::new("layer1.0.conv1", config, &CPU)?;
    let mut ws = Workspace::new(&CPU)?;
    assert!(conv.backward_weight(&noise(&[1, 2, 2, 4], 1)).is_err());
    let error = conv.forward(&noise(&[1, 5, 5, 4], 1), &mut ws).unwrap_err().to_string();
    assert!(error.contains("layer1.0.conv1.weight") && error.contains("[1, 5, 5, 4]"), "{error}");
    let mut norm = BatchNorm::new("bn1", 3, true, &CPU)?;
    let error = norm.forward(&noise(&[1, 1, 1, 3], 1), None, &mut ws).unwrap_err().to_string();
    assert!(error.contains("more than one value"), "{error}");
    let x = noise(&[4, 3], 1);
    norm.forward(&x, None, &mut ws)?;
    let error = norm.backward(&noise(&[4, 3], 2), Some(&x)).unwrap_err().to_string();
    assert!(error.contains("bn1") && error.contains("beside the input's"), "{error}");
    Ok(())
}
