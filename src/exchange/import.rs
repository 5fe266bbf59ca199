//! Weights that torchvision, timm, or other programs for self-supervised learning saved, as a
//! network of ours.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};

use super::torch_file;
use crate::model::{Arch, ModelConfig, Stem};

/// The tensors of a safetensors file, or of the state dict in one that `torch.save` wrote.
///
/// # Errors
/// A file that is neither, or damaged.
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let context = || format!("{}: expected the tensors of a state dict", path.display());
    if path.is_dir() {
        bail!(
            "{}: a folder; of a run take checkpoints/step-N/weights.safetensors, of an export for timm \
             model.safetensors",
            path.display()
        );
    }
    if path.extension().is_some_and(|extension| extension == "onnx") {
        bail!(
            "{}: ONNX is written, not read; the run's checkpoint or another export is",
            path.display()
        );
    }
    match torch_file::read(path).with_context(context)? {
        Some(tensors) => Ok(tensors),
        None => candle_core::safetensors::load(path, &Device::Cpu).with_context(context),
    }
}

/// The tensor that a backbone begins with.
pub(super) const STEM: &str = "conv1.weight";

/// What the parts of a backbone are called, and the numbers that they have as the children of an
/// `nn.Sequential` of torchvision's ResNet, with ReLU and max pool between them.
const PARTS: [&str; 6] = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"];
const NUMBERED: [u8; 6] = [0, 1, 4, 5, 6, 7];

/// The same of lightly's ResNet for CIFAR, whose ReLU behind the stem is no child: as an
/// `nn.Sequential` it is another network.
const WITHOUT_RELU: [u8; 6] = [0, 1, 2, 3, 4, 5];

/// Gives backbones of which an `nn.Sequential` was made, as in lightly's examples, the names of
/// torchvision: `0.weight` becomes `conv1.weight`.
///
/// # Errors
/// One without the ReLU behind its stem.
fn with_parts_named(
    tensors: HashMap<String, Tensor>,
    asked: Option<&str>,
) -> Result<HashMap<String, Tensor>> {
    let is_one = |prefix: &str, [conv1, bn1, layer1, .., layer4]: [u8; 6]| {
        [
            format!("{prefix}{conv1}.weight"),
            format!("{prefix}{bn1}.weight"),
            format!("{prefix}{layer1}.0.conv1.weight"),
            format!("{prefix}{layer4}.0.conv1.weight"),
        ]
        .iter()
        .all(|name| tensors.contains_key(name))
    };
    let prefixes = || tensors.keys().filter_map(|name| name.strip_suffix("0.weight"));
    let is_asked = |prefix: &&str| asked.is_none_or(|asked| asked == *prefix);
    if let Some(prefix) = prefixes().filter(is_asked).find(|prefix| is_one(prefix, WITHOUT_RELU)) {
        bail!(
            "the backbone of `{prefix}0.weight` is lightly's ResNet within an nn.Sequential, which has no ReLU behind its \
             first BatchNorm: no ResNet of ours computes the same"
        );
    }
    let found: Vec<String> =
        prefixes().filter(|prefix| is_one(prefix, NUMBERED)).map(str::to_owned).collect();
    let renamed = |name: String| {
        for prefix in &found {
            let inner = name.strip_prefix(prefix).and_then(|inner| inner.split_once('.'));
            let Some((number, rest)) = inner else { continue };
            let part = NUMBERED.iter().position(|n| n.to_string() == number);
            if let Some(part) = part {
                return format!("{prefix}{}.{rest}", PARTS[part]);
            }
        }
        name
    };
    Ok(tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect())
}

/// The backbone among `tensors`, under torchvision's names: those behind `prefix`, or, without one,
/// behind the only prefix that a backbone stands behind (`backbone.`, `module.`, ...).
///
/// # Errors
/// No backbone there; several, which the message names.
pub fn backbone(
    tensors: HashMap<String, Tensor>,
    prefix: Option<&str>,
) -> Result<HashMap<String, Tensor>> {
    let tensors = with_parts_named(tensors, prefix)?;
    let is_one = |prefix: &str| {
        [STEM, "bn1.weight", "layer1.0.conv1.weight"]
            .iter()
            .all(|name| tensors.contains_key(&format!("{prefix}{name}")))
    };
    let mut found: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(STEM))
        .filter(|prefix| is_one(prefix))
        .map(str::to_owned)
        .collect();
    found.sort();
    let prefix = match (prefix, &found[..]) {
        (Some(prefix), _) if is_one(prefix) => prefix.to_owned(),
        (Some(prefix), []) => {
            bail!("no backbone stands behind `{prefix}`, nor behind anything else")
        }
        (Some(prefix), found) if found.iter().any(String::is_empty) => {
            bail!(
                "no backbone stands behind `{prefix}`; one does without a prefix: leave --prefix out"
            )
        }
        (Some(prefix), found) => {
            bail!("no backbone stands behind `{prefix}`; one does behind {}", quoted(found))
        }
        (None, [one]) => one.clone(),
        // What it lacks is said by those who look for it.
        (None, []) => return Ok(tensors),
        (None, found) if found[0].is_empty() => String::new(),
        (None, found) => bail!(
            "backbones stand behind {}: `bt-stream import --prefix` takes the one that it names",
            quoted(found)
        ),
    };
    if prefix.is_empty() {
        return Ok(tensors);
    }
    let inside = |name: &str| {
        name.strip_prefix(&prefix).filter(|name| is_backbones(name)).map(str::to_owned)
    };
    Ok(tensors.into_iter().filter_map(|(name, tensor)| Some((inside(&name)?, tensor))).collect())
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Whether torchvision's backbone has such a tensor: not the projector that some put in the
/// classifier's place.
fn is_backbones(name: &str) -> bool {
    name.split_once('.').is_some_and(|(part, _)| PARTS.contains(&part))
}

/// Whether `tensors`, all of a file, are what solo-learn trained with its stem for CIFAR. It pads by
/// 2, which no shape tells: features of the same weights with a padding of 1 are a third off.
pub fn is_padded_by_2(tensors: &HashMap<String, Tensor>) -> bool {
    let small = |prefix: &str| {
        tensors
            .get(&format!("{prefix}{STEM}"))
            .is_some_and(|stem| matches!(stem.dims(), [_, 3, 3, 3]))
    };
    // Until December 2021 backbones were called encoders there.
    tensors.contains_key("classifier.weight") && (small("backbone.") || small("encoder."))
}

/// The backbone that `tensors` belong to, from their names and shapes; all else from `base`. A stem
/// for CIFAR is `base`'s where that has one, else `small`.
///
/// # Errors
/// Tensors that are no ResNet's of ours.
pub fn describe(
    tensors: &HashMap<String, Tensor>,
    base: &ModelConfig,
    small: Stem,
) -> Result<ModelConfig> {
    let shape = |name: &str| tensors.get(name).map(Tensor::dims);
    let (width, stem) = match shape(STEM) {
        Some(&[width, 3, 7, 7]) => (width, Stem::Imagenet),
        Some(&[width, 3, 3, 3]) if base.stem != Stem::Imagenet => (width, base.stem),
        Some(&[width, 3, 3, 3]) => (width, small),
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

/// Checks that the last convolution, the largest, is as wide as the first one promises: a network
/// is allocated by its description, and the first convolution of a small file can tell of any
/// width.
///
/// # Errors
/// One that is missing, or of another shape.
pub fn check_width(tensors: &HashMap<String, Tensor>, model: &ModelConfig) -> Result<()> {
    let (inner, last) = (8 * model.width, model.arch.blocks()[3] - 1);
    let (conv, wanted) = match model.arch.bottleneck() {
        true => ("conv3", [model.arch.expansion() * inner, inner, 1, 1]),
        false => ("conv2", [inner, inner, 3, 3]),
    };
    let name = format!("layer4.{last}.{conv}.weight");
    let found = tensors.get(&name).with_context(|| format!("there is no tensor `{name}`"))?.dims();
    if found != wanted {
        bail!("{name} has shape {found:?}, where conv1.weight asks for {wanted:?}");
    }
    Ok(())
}
