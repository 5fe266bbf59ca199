//! Weights that torchvision or timm saved, as a network of ours.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};

use crate::model::{Arch, ModelConfig, Stem};

/// The tensors of a safetensors file, or of a file that `torch.save` wrote of a state dict (`.pth`,
/// `.pt`, `.bin`).
///
/// # Errors
/// A file that is neither.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let read = match extension {
        Some("pth" | "pt" | "bin") => {
            candle_core::pickle::read_all(path).map(|tensors| tensors.into_iter().collect())
        }
        _ => candle_core::safetensors::load(path, &Device::Cpu),
    };
    read.with_context(|| format!("{}: expected the tensors of a state dict", path.display()))
}

/// The backbone that `tensors` belong to, from their names and shapes; all else from `base`.
///
/// # Errors
/// Tensors that are no ResNet's of ours.
pub fn describe(tensors: &HashMap<String, Tensor>, base: &ModelConfig) -> Result<ModelConfig> {
    let shape = |name: &str| tensors.get(name).map(Tensor::dims);
    let (width, stem) = match shape("conv1.weight") {
        Some(&[width, 3, 7, 7]) => (width, Stem::Imagenet),
        Some(&[width, 3, 3, 3]) => (width, Stem::Cifar),
        Some(other) => bail!("conv1.weight has shape {other:?}: neither 7x7 nor 3x3 of RGB"),
        None => {
            bail!("there is no tensor `conv1.weight`: expected a ResNet in torchvision's names")
        }
    };
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let blocks = |layer: usize| {
        (0..).take_while(|i| shape(&format!("layer{layer}.{i}.conv1.weight")).is_some()).count()
    };
    let blocks = [1, 2, 3, 4].map(blocks);
    let arch = [Arch::ResNet18, Arch::ResNet34, Arch::ResNet50]
        .into_iter()
        .find(|arch| arch.blocks() == blocks && arch.bottleneck() == bottleneck)
        .with_context(|| {
            let kind = if bottleneck { "bottlenecks" } else { "basic blocks" };
            format!("a network of {blocks:?} {kind} is none of resnet18, resnet34, resnet50")
        })?;
    Ok(ModelConfig { arch, width, stem, ..base.clone() })
}
