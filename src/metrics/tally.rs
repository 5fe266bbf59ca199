//! What lines of metrics sum up, across a run's processes.

use serde::{Deserialize, Serialize};

/// What is counted from line to line. A checkpoint keeps it, so that a run which goes on from there
/// writes the lines of one that was not interrupted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Samples left out since the run began.
    pub(super) bad: u64,
    /// Since the last line: steps, and sums over them.
    pub(super) steps: u64,
    #[serde(with = "number")]
    pub(super) loss: f64,
    #[serde(with = "number")]
    pub(super) invariance: f64,
    #[serde(with = "number")]
    pub(super) redundancy: f64,
    /// Steps that had a C.
    pub(super) correlations: u64,
    #[serde(with = "number")]
    pub(super) on_diag: f64,
    #[serde(with = "number")]
    pub(super) off_diag: f64,
    /// Of the online probe: batches, and the sum of their shares of right answers.
    pub(super) probed: u64,
    #[serde(with = "number")]
    pub(super) online: f64,
}

/// Numbers of which JSON has none, as `null`.
mod number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(value).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
    }
}
