//! A backbone as a file that other programs load: safetensors with torchvision's names.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::TwinNet;
use crate::files::write_atomically;

/// Writes the backbone's weights and running statistics to `path` under torchvision's names
/// (`conv1.weight`, ..) and in its layouts. torchvision's network loads them with `strict=True`
/// once its `fc` is an `Identity`.
///
/// # Errors
/// When `path` cannot be written; a file that was there is then intact.
pub fn export_backbone(net: &mut TwinNet, path: &Path) -> Result<()> {
    let tensors = net.backbone_state_dict()?;
    // Some loaders refuse files that do not say whose layouts they are in.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .with_context(|| format!("cannot write {}", path.display()))?;
    write_atomically(path, &bytes)
}
