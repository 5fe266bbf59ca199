//! Weights to and from torchvision, through `tools/interop/torchvision_backbone.py`. Runs where Python with
//! torch, torchvision and safetensors is (`BT_PYTHON`, else `python3`), and says so where not.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use bt_stream::model::{Arch, ModelConfig, Stem, TwinNet, export_backbone};
use candle_core::{Device, Tensor};

/// Python with the modules that the script needs, or `None` with a line that says what is missing.
fn python() -> Option<String> {
    let python = std::env::var("BT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = "import torch, torchvision, safetensors";
    let works = Command::new(&python).args(["-c", import]).output();
    if works.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!("skipped: `{python}` has no torch, torchvision and safetensors (set BT_PYTHON)");
    None
}

/// Runs the script; its output is the error where it fails.
fn script(python: &str, command: &str, model: &Path, sample: &Path, arch: Arch) -> Result<()> {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/interop/torchvision_backbone.py");
    let mut call = Command::new(python);
    call.arg(script).arg(command).arg(model).arg(sample).args(["--arch", &arch.to_string()]);
    let output = call.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    print!("{text}");
    Ok(())
}

fn net(arch: Arch) -> Result<TwinNet> {
    let config = ModelConfig {
        arch,
        width: 64,
        stem: Stem::Imagenet,
        zero_init: false,
        projector: "8".parse().map_err(anyhow::Error::msg)?,
        ..Default::default()
    };
    Ok(TwinNet::new(&config, 3, &Device::Cpu)?)
}

#[test]
fn an_exported_backbone_gives_the_same_features_in_torchvision() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    for arch in [Arch::ResNet18, Arch::ResNet50] {
        let dir = tempfile::tempdir()?;
        let (model, sample) = (dir.path().join("model.safetensors"), dir.path().join("sample"));
        let mut net = net(arch)?;
        // A training pass, so that the running statistics are not those of a new network.
        net.forward_train(&Tensor::randn(0.3f32, 1.2, (4, 64, 64, 3), &Device::Cpu)?, 2)?;
        export_backbone(&mut net, &model)?;
        let images = Tensor::randn(0f32, 1.0, (3, 64, 64, 3), &Device::Cpu)?;
        let features = net.features(&images)?.force_contiguous()?;
        candle_core::safetensors::save(
            &HashMap::from([("images", images), ("features", features)]),
            &sample,
        )?;
        script(&python, "check", &model, &sample, arch)?;
    }
    Ok(())
}

#[test]
fn a_torchvision_state_dict_gives_the_same_features_here() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    for arch in [Arch::ResNet18, Arch::ResNet50] {
        let dir = tempfile::tempdir()?;
        let (model, sample) = (dir.path().join("model.safetensors"), dir.path().join("sample"));
        script(&python, "make", &model, &sample, arch)?;
        let mut net = net(arch)?;
        net.load_backbone(&candle_core::safetensors::load(&model, &Device::Cpu)?)?;
        let sample = candle_core::safetensors::load(&sample, &Device::Cpu)?;
        let (got, want) = (net.features(&sample["images"])?, &sample["features"]);
        let largest = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
        let error = largest(&(got - want)?)? / largest(want)?;
        println!("{arch}: features differ by {error:.1e} of the largest");
        ensure!(error < 1e-4, "{arch}: features differ by {error:.1e}");
    }
    Ok(())
}
