//! `[checkpoint]`: what is saved on the way.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checks::at_least;

/// `[checkpoint]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints, counted from the run's first; 0 saves only between epochs.
    pub every_steps: u64,
    /// Epochs between checkpoints, beside those of `every_steps`.
    pub every_epochs: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// `stop` ends the run when a checkpoint cannot be written, `warn` goes on; the last one must
    /// be written.
    pub on_error: OnCheckpointError,
}

impl CheckpointConfig {
    /// Checks each value by itself.
    pub(super) fn check(&self) -> Result<()> {
        at_least("`checkpoint.every_epochs`", self.every_epochs, 1)?;
        at_least("`checkpoint.keep`", self.keep, 1)
    }
}

/// What a failed checkpoint does to the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnCheckpointError {
    /// Ends it.
    #[default]
    Stop,
    /// Says so and goes on to the next one.
    Warn,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig { every_steps: 0, every_epochs: 1, keep: 3, on_error: Default::default() }
    }
}
