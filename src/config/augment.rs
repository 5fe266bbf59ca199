//! `[augment]`: where the views are made.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[augment]`
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Where colours are changed and views blurred and solarized: `cpu`, by the loader's threads,
    /// or `cuda`, on the CUDA device that trains. Decoding, crop, resize and flip are the loader's
    /// either way, and so are the draws: the views are the same.
    pub device: AugmentDevice,
}

/// Who finishes the views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AugmentDevice {
    /// The loader's threads.
    #[default]
    Cpu,
    /// The device that trains.
    Cuda,
}
