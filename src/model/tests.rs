//! The network as a whole: names, loading, threads.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};

use super::*;

fn small(arch: Arch, stem: Stem) -> ModelConfig {
    let projector = ProjectorWidths(vec![24, 16]);
    ModelConfig { arch, width: 8, stem, zero_init: false, projector, ..Default::default() }
}

fn images(n: usize, h: usize, w: usize) -> Tensor {
    let mut rng = bt_pipeline::rng::Rng::keyed(3, 0, 0, 0);
    let values: Vec<f32> = (0..n * h * w * 3).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
    Tensor::from_vec(values, (n, h, w, 3), &Device::Cpu).unwrap()
}

fn state(net: &mut TwinNet) -> HashMap<String, Tensor> {
    net.state_dict().unwrap().into_iter().collect()
}

#[test]
fn a_state_dict_loads_into_another_network_and_gives_the_same_features() -> Result<()> {
    for (arch, stem) in [(Arch::ResNet18, Stem::Cifar), (Arch::ResNet50, Stem::Imagenet)] {
        let config = small(arch, stem);
        let mut a = TwinNet::new(&config, 1, &Device::Cpu)?;
        let mut b = TwinNet::new(&config, 2, &Device::Cpu)?;
        let x = images(4, 33, 38);
        a.forward_train(&x, 2)?;
        let want = a.features(&x)?.to_vec2::<f32>()?;
        b.load_state_dict(&state(&mut a))?;
        assert_eq!(want, b.features(&x)?.to_vec2::<f32>()?);
        let mut c = TwinNet::new(&config, 3, &Device::Cpu)?;
        c.load_backbone(&a.backbone_state_dict()?.into_iter().collect())?;
        assert_eq!(want, c.features(&x)?.to_vec2::<f32>()?);
        c.load_backbone(&state(&mut b))?;
    }
    Ok(())
}

#[test]
fn a_tensor_that_differs_is_named_and_nothing_is_changed() -> Result<()> {
    let config = small(Arch::ResNet18, Stem::Cifar);
    let mut net = TwinNet::new(&config, 1, &Device::Cpu)?;
    let good = state(&mut net);
    let mut other = TwinNet::new(&config, 2, &Device::Cpu)?;
    let mut error = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut bad = good.clone();
        change(&mut bad);
        other.load_state_dict(&bad).unwrap_err().to_string()
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    let name = "backbone.layer2.0.downsample.0.weight";
    let text = error(&|m| drop(m.remove(name)));
    assert!(text.contains(name) && text.contains("missing"), "{text}");
    let text = error(&|m| drop(m.insert(name.into(), zeros(&[16, 8, 3, 3]).unwrap())));
    assert!(text.contains(name) && text.contains("[16, 8, 1, 1]"), "{text}");
    let text = error(&|m| drop(m.insert("backbone.layer5.x".into(), zeros(&[1]).unwrap())));
    assert!(text.contains("backbone.layer5.x"), "{text}");
    let untouched = TwinNet::new(&config, 2, &Device::Cpu)?.state_dict()?;
    for ((name, a), (_, b)) in untouched.iter().zip(other.state_dict()?) {
        if a.dtype() == candle_core::DType::F32 {
            let (a, b) = (a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
            assert_eq!(a, b, "{name}");
        }
    }
    Ok(())
}

#[test]
fn gradients_have_the_same_bits_on_1_2_and_5_threads() -> Result<()> {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| -> Result<Vec<Vec<f32>>> {
            let mut net = TwinNet::new(&small(Arch::ResNet18, Stem::Imagenet), 1, &Device::Cpu)?;
            let z = net.forward_train(&images(6, 41, 35), 2)?;
            net.backward(&z.force_contiguous()?)?;
            net.params().into_iter().map(|p| p.grad.flatten_all()?.to_vec1()).collect()
        })
    };
    let one = run(1)?;
    assert!(one.iter().flatten().any(|v| *v != 0.0));
    assert!(one == run(2)? && one == run(5)?);
    Ok(())
}

#[test]
fn initialisation_has_pytorchs_spread_and_follows_the_seed() -> Result<()> {
    let config = ModelConfig { zero_init: true, ..small(Arch::ResNet50, Stem::Imagenet) };
    let values = |seed, name: &str| -> Result<Vec<f32>> {
        let mut net = TwinNet::new(&config, seed, &Device::Cpu)?;
        state(&mut net)[name].flatten_all()?.to_vec1()
    };
    let conv = values(1, "backbone.layer4.1.conv2.weight")?;
    let std = (conv.iter().map(|v| (v * v) as f64).sum::<f64>() / conv.len() as f64).sqrt();
    let want = (2.0f64 / (64.0 * 9.0)).sqrt(); // fan out: 64 channels, 3 x 3
    assert!((std / want - 1.0).abs() < 0.02, "{std} {want}");
    assert_ne!(conv, values(2, "backbone.layer4.1.conv2.weight")?);
    assert_eq!(conv, values(1, "backbone.layer4.1.conv2.weight")?);
    assert!(values(1, "backbone.layer3.2.bn3.weight")?.iter().all(|w| *w == 0.0));
    assert!(values(1, "backbone.layer3.2.bn2.weight")?.iter().all(|w| *w == 1.0));
    let linear = values(1, "projector.0.weight")?;
    let bound = 1.0 / 256f32.sqrt();
    assert!(
        linear.iter().all(|w| w.abs() <= bound) && linear.iter().any(|w| w.abs() > 0.9 * bound)
    );
    Ok(())
}

#[test]
fn passes_give_back_every_buffer_that_they_took() -> Result<()> {
    for widths in [vec![], vec![8], vec![16, 12, 8]] {
        let config = ModelConfig {
            projector: ProjectorWidths(widths),
            ..small(Arch::ResNet18, Stem::Cifar)
        };
        let mut net = TwinNet::new(&config, 1, &Device::Cpu)?;
        let images = Tensor::randn(0f32, 1.0, (4, 12, 12, 3), &Device::Cpu)?;
        for _ in 0..3 {
            let features = net.features(&images)?;
            let z = net.embeddings(&images)?;
            assert_eq!((features.dims()[0], z.dims()[0], net.in_use()), (4, 4, 0));
        }
        let z = net.forward_train(&images, 2)?;
        net.backward(&z.force_contiguous()?)?;
        assert_eq!(net.in_use(), 0);
    }
    Ok(())
}

#[test]
fn features_are_a_tensor_of_their_own() -> Result<()> {
    let mut net = TwinNet::new(&small(Arch::ResNet18, Stem::Cifar), 1, &Device::Cpu)?;
    let images = |seed: f64| Tensor::full(seed as f32, (2, 12, 12, 3), &Device::Cpu);
    let first = net.features(&images(0.5)?)?;
    let before = first.to_vec2::<f32>()?;
    net.features(&images(-2.0)?)?;
    assert_eq!(first.to_vec2::<f32>()?, before);
    Ok(())
}
