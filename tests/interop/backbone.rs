//! Backbones in torchvision, timm and onnxruntime, and theirs here.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use bt_stream::config::RunConfig;
use bt_stream::exchange::{
    export_classifier, export_onnx, export_safetensors, export_timm, import,
};
use bt_stream::model::{Arch, ModelConfig, Stem, TwinNet};
use candle_core::{Device, Tensor};

use crate::{python, script, text};

fn net(arch: Arch) -> Result<TwinNet> {
    let projector = "8".parse().map_err(anyhow::Error::msg)?;
    let config = ModelConfig { arch, zero_init: false, projector, ..Default::default() };
    Ok(TwinNet::new(&config, 3, &Device::Cpu)?)
}

/// Exports a network with `export` and has `library` compare the features.
fn there(
    library: &str,
    modules: &str,
    out: &str,
    export: impl Fn(&mut TwinNet, &std::path::Path) -> Result<()>,
) -> Result<()> {
    there_with(library, modules, out, |net, path, features| {
        export(net, path)?;
        Ok(features)
    })
}

/// As [`there`]; `export` makes of the features what the library's network is to give.
fn there_with(
    library: &str,
    modules: &str,
    out: &str,
    export: impl Fn(&mut TwinNet, &std::path::Path, Tensor) -> Result<Tensor>,
) -> Result<()> {
    let Some(python) = python(modules) else { return Ok(()) };
    for arch in [Arch::ResNet18, Arch::ResNet50] {
        let dir = tempfile::tempdir()?;
        let (model, sample) = (dir.path().join(out), dir.path().join("sample"));
        let mut net = net(arch)?;
        // A training pass, so that the running statistics are not those of a new network.
        net.forward_train(&Tensor::randn(0.3f32, 1.2, (4, 64, 64, 3), &Device::Cpu)?, 2)?;
        let images = Tensor::randn(0f32, 1.0, (3, 64, 64, 3), &Device::Cpu)?;
        let features = net.features(&images)?.force_contiguous()?;
        let features = export(&mut net, &model, features)?;
        candle_core::safetensors::save(
            &HashMap::from([("images", images), ("features", features)]),
            &sample,
        )?;
        let arch = arch.to_string();
        let arguments = ["check", library, text(&model), text(&sample), "--arch", &arch];
        script(&python, "backbone.py", &arguments)?;
    }
    Ok(())
}

#[test]
fn an_exported_backbone_gives_the_same_features_in_torchvision() -> Result<()> {
    there("torchvision", "torch, torchvision, safetensors", "backbone.safetensors", |net, path| {
        export_safetensors(net, path)
    })
}

#[test]
fn an_exported_classifier_gives_the_same_answers_in_torchvision() -> Result<()> {
    let modules = "torch, torchvision, safetensors";
    there_with("torchvision", modules, "classifier.safetensors", |net, path, features| {
        let weight = Tensor::randn(0f32, 0.1, (7, net.feature_dim()), &Device::Cpu)?;
        let bias = Tensor::randn(0f32, 0.1, 7, &Device::Cpu)?;
        export_classifier(net, &[weight.clone(), bias.clone()], path)?;
        Ok(features.matmul(&weight.t()?)?.broadcast_add(&bias)?)
    })
}

#[test]
fn an_exported_backbone_gives_the_same_features_in_timm() -> Result<()> {
    there("timm", "torch, timm, safetensors", "backbone", |net, path| {
        export_timm(net, &RunConfig::default(), path)
    })
}

#[test]
fn an_exported_backbone_gives_the_same_features_in_onnxruntime() -> Result<()> {
    there("onnx", "torch, onnx, onnxruntime, safetensors", "backbone.onnx", |net, path| {
        export_onnx(net, path)
    })
}

#[test]
fn torchvisions_and_timms_state_dicts_give_the_same_features_here() -> Result<()> {
    let Some(python) = python("torch, torchvision, timm, safetensors") else { return Ok(()) };
    let sources = [
        ("torchvision", Arch::ResNet18, "model.pth"),
        ("torchvision", Arch::ResNet50, "model.safetensors"),
        ("timm", Arch::ResNet34, "model.safetensors"),
        ("timm", Arch::ResNet50, "model.pth"),
    ];
    for (library, arch, file) in sources {
        let dir = tempfile::tempdir()?;
        let (model, sample) = (dir.path().join(file), dir.path().join("sample"));
        let name = arch.to_string();
        let arguments = ["make", library, text(&model), text(&sample), "--arch", &name];
        script(&python, "backbone.py", &arguments)?;
        let tensors = import::read(&model)?;
        ensure!(import::describe(&tensors, &ModelConfig::default(), Stem::Cifar)?.arch == arch);
        let mut net = net(arch)?;
        net.load_backbone(&tensors)?;
        let sample = candle_core::safetensors::load(&sample, &Device::Cpu)?;
        let (got, want) = (net.features(&sample["images"])?, &sample["features"]);
        let largest = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
        let error = largest(&(got - want)?)? / largest(want)?;
        println!("{arch} from {library} ({file}): features differ by {error:.1e} of the largest");
        ensure!(error < 1e-4, "{arch}: features differ by {error:.1e}");
    }
    Ok(())
}
