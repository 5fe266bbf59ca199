//! Backbones as files that other programs load, and the other way round.
//!
//! - [`Format`]: safetensors for torchvision, a folder for timm, ONNX; each with a [`card`].
//! - [`import`]: torchvision's and timm's weights as a network of ours.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bt_pipeline::augment::{Interpolation, ViewConfig};
use candle_core::Tensor;
use serde_json::json;

use crate::checkpoint::Checkpoint;
use crate::config::{Misconfigured, RunConfig};
use crate::files::write_atomically;
use crate::model::{ModelConfig, Stem, TwinNet};
use crate::nn::storage;

pub mod card;
pub mod import;
pub mod onnx;
mod torch_file;

/// What an exported backbone looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A safetensors file with torchvision's names and layouts
    Torchvision,
    /// A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads
    Timm,
    /// An ONNX file: `images` [batch, 3, height, width] to `features` [batch, dim]
    Onnx,
}

impl Format {
    /// The format that the name of `out` suggests.
    ///
    /// # Errors
    /// A name that suggests none.
    pub fn of(out: &Path) -> Result<Self> {
        match out.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Self::Torchvision),
            Some("onnx") => Ok(Self::Onnx),
            _ => bail!(Misconfigured(format!(
                "{}: expected a name ending in .safetensors or .onnx, or --format",
                out.display()
            ))),
        }
    }

    /// Writes `checkpoint`'s backbone to `out`, and its card; returns the files written.
    ///
    /// # Errors
    /// A checkpoint that cannot be read or is not finite, a network that the format has no name
    /// for, a name that is the card's, a disk that cannot be written.
    pub fn export(self, checkpoint: &Checkpoint, out: &Path) -> Result<Vec<PathBuf>> {
        let card = match self {
            Self::Torchvision | Self::Onnx => out.with_extension("json"),
            Self::Timm => out.join("card.json"),
        };
        if card == out {
            bail!(Misconfigured(format!(
                "{} is where the card goes, the weights need another name: .safetensors or .onnx",
                out.display()
            )));
        }
        let mut net = checkpoint.network(&candle_core::Device::Cpu)?;
        for (name, tensor) in net.backbone_state_dict()? {
            ensure!(
                storage::is_finite(&tensor)?,
                "{}: {name} is not finite: the network is ruined, take an earlier checkpoint",
                checkpoint.path.display()
            );
        }
        let config = &checkpoint.state.config;
        match self {
            Self::Torchvision => export_safetensors(&mut net, out)?,
            Self::Onnx => export_onnx(&mut net, out)?,
            Self::Timm => export_timm(&mut net, config, out)?,
        }
        let text = serde_json::to_vec_pretty(&card::Card::of(checkpoint)?)?;
        write_atomically(&card, &text)?;
        Ok(match self {
            Self::Timm => vec![out.join(TIMM_WEIGHTS), out.join(TIMM_CONFIG), card],
            _ => vec![out.to_path_buf(), card],
        })
    }
}

/// Where timm looks for a folder's weights.
const TIMM_WEIGHTS: &str = "model.safetensors";
/// Where timm looks for a folder's description.
const TIMM_CONFIG: &str = "config.json";

/// Writes the backbone's weights and running statistics to `path` under torchvision's names
/// (`conv1.weight`, ..), which are timm's too, and in its layouts. torchvision's network loads them
/// with `strict=True` once its `fc` is an `Identity`.
///
/// # Errors
/// When `path` cannot be written; a file that was there is then intact.
pub fn export_safetensors(net: &mut TwinNet, path: &Path) -> Result<()> {
    write_safetensors(net.backbone_state_dict()?, path)
}

/// As [`export_safetensors`], with the classifier `fc` on it, its weight `[classes, features]` and
/// then its bias `[classes]`: torchvision's whole network of as many classes.
///
/// # Errors
/// As [`export_safetensors`].
pub fn export_classifier(net: &mut TwinNet, fc: &[Tensor], path: &Path) -> Result<()> {
    let mut tensors = net.backbone_state_dict()?;
    let names = ["fc.weight", "fc.bias"].map(str::to_owned);
    tensors.extend(names.into_iter().zip(fc.iter().cloned()));
    write_safetensors(tensors, path)
}

fn write_safetensors(tensors: Vec<(String, Tensor)>, path: &Path) -> Result<()> {
    // Some loaders refuse files that do not say whose layouts they are in.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .with_context(|| format!("cannot write {}", path.display()))?;
    write_atomically(path, &bytes)
}

/// Writes the backbone as an ONNX model.
///
/// # Errors
/// When `path` cannot be written; a file that was there is then intact.
pub fn export_onnx(net: &mut TwinNet, path: &Path) -> Result<()> {
    let graph = net.backbone_graph();
    let tensors: HashMap<String, Tensor> = net.backbone_state_dict()?.into_iter().collect();
    let name = net.config().arch.to_string();
    write_atomically(path, &onnx::model(&name, &graph, &tensors)?)
}

/// Writes `model.safetensors` and `config.json` into `folder`.
///
/// # Errors
/// A network that timm has under no name, or a folder that cannot be written.
pub fn export_timm(net: &mut TwinNet, config: &RunConfig, folder: &Path) -> Result<()> {
    let ModelConfig { arch, width, stem, .. } = *net.config();
    if !is_standard(net.config()) {
        bail!(
            "timm's {arch} has width 64 and a 7x7 stem, this one width {width} and stem {stem:?}: \
             export it with --format torchvision or onnx"
        );
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    export_safetensors(net, &folder.join(TIMM_WEIGHTS))?;
    let view = config.views.eval_view()?;
    let (height, width) = view.out_size();
    let description = json!({
        "architecture": arch.to_string(),
        "num_classes": 0,
        "num_features": net.feature_dim(),
        "global_pool": "avg",
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, height, width],
            "pool_size": [height.div_ceil(32), width.div_ceil(32)],
            "interpolation": match view.resize.map(|resize| resize.interpolation) {
                Some(Interpolation::Bilinear) => "bilinear",
                _ => "bicubic",
            },
            "crop_pct": crop_share(&view),
            "mean": view.normalize.mean,
            "std": view.normalize.std,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    });
    write_atomically(&folder.join(TIMM_CONFIG), &serde_json::to_vec_pretty(&description)?)
}

/// Whether torchvision and timm have the network under its name.
pub fn is_standard(model: &ModelConfig) -> bool {
    model.width == 64 && model.stem == Stem::Imagenet
}

/// The evaluation view's shorter side, as a share of the resized image's.
fn crop_share(view: &ViewConfig) -> f64 {
    let short = |(height, width): (usize, usize)| height.min(width) as f64;
    let resized = view.resize.map_or(view.out_size(), |resize| resize.size.height_width());
    short(view.out_size()) / short(resized)
}

#[cfg(test)]
mod tests;
