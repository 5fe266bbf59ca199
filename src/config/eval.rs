//! `[eval]`: what is measured on the way.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checks::{at_least, positive};
use crate::eval::KnnConfig;

/// `[eval]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Epochs between two kNN evaluations on `data.val`; 0 for none.
    pub knn_every: u64,
    /// Neighbours that vote in kNN: 200 for large sets, 20 for small ones.
    pub k: usize,
    /// Temperature t of the votes, each of weight exp(similarity / t). Figures for ImageNet are
    /// often of 0.07.
    pub temperature: f64,
    /// Images of an evaluation batch; fewer where `data.budget_mb` is small.
    pub batch_size: usize,
    /// A linear classifier learns the labels beside the training, from features that it does not
    /// change.
    pub online_probe: bool,
    /// Learning rate of the online probe.
    pub online_lr: f64,
}

impl EvalConfig {
    /// How kNN is measured.
    pub fn knn(&self) -> KnnConfig {
        KnnConfig { k: self.k, temperature: self.temperature }
    }

    /// Checks each value by itself.
    pub(super) fn check(&self) -> Result<()> {
        at_least("`eval.k`", self.k, 1)?;
        at_least("`eval.batch_size`", self.batch_size, 1)?;
        positive("`eval.temperature`", self.temperature)?;
        positive("`eval.online_lr`", self.online_lr)
    }
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig {
            knn_every: 0,
            k: 200,
            temperature: 0.1,
            batch_size: 128,
            online_probe: false,
            online_lr: 0.3,
        }
    }
}
