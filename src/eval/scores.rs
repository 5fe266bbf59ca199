//! `evaluation.json`: what was measured of a run's checkpoints.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Accuracy;
use crate::files::{optional_json, write_atomically};

/// File in the run's folder that holds its evaluation: a list of [`Score`]s, each with the step of
/// its checkpoint.
pub const SCORES_FILE: &str = "evaluation.json";

/// How well one kind of features tells the classes apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Whose features.
    pub name: String,
    /// Weighted kNN, share of right answers, 0 to 1.
    pub knn: Option<f64>,
    /// The linear probe.
    pub linear: Option<Accuracy>,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    /// Steps of the checkpoint that was measured: the run may go on meanwhile.
    #[serde(default)]
    step: u64,
    #[serde(flatten)]
    score: Score,
}

/// Puts scores of the checkpoint after `step` into the run's [`SCORES_FILE`]: what was measured of
/// the same features before is replaced, all else stays. A file that is torn is replaced, which is
/// warned of.
///
/// # Errors
/// A file that cannot be written.
pub fn record(dir: &Path, step: u64, fresh: &[Score]) -> Result<()> {
    let path = dir.join(SCORES_FILE);
    let mut scores: Vec<Recorded> = optional_json(&path).unwrap_or_default();
    for score in fresh {
        let same = |known: &&mut Recorded| known.step == step && known.score.name == score.name;
        match scores.iter_mut().find(same) {
            Some(Recorded { score: known, .. }) => {
                known.knn = score.knn.or(known.knn);
                known.linear = score.linear.or(known.linear);
            }
            None => scores.push(Recorded { step, score: score.clone() }),
        }
    }
    write_atomically(&path, &serde_json::to_vec_pretty(&scores)?)
}

/// Takes out what was measured after `step`, before a run goes on from there: those weights are no
/// more.
///
/// # Errors
/// A file that cannot be written.
pub fn forget_after(dir: &Path, step: u64) -> Result<()> {
    let path = dir.join(SCORES_FILE);
    let Some(mut scores) = optional_json::<Vec<Recorded>>(&path) else { return Ok(()) };
    let before = scores.len();
    scores.retain(|known| known.step <= step);
    if scores.len() == before {
        return Ok(());
    }
    write_atomically(&path, &serde_json::to_vec_pretty(&scores)?)
}

/// What the run's [`SCORES_FILE`] tells of the checkpoint after `step`; nothing where it is torn,
/// which is warned of.
pub fn of_step(dir: &Path, step: u64) -> Vec<Score> {
    let scores: Option<Vec<Recorded>> = optional_json(&dir.join(SCORES_FILE));
    let of_it = |recorded: Recorded| (recorded.step == step).then_some(recorded.score);
    scores.into_iter().flatten().filter_map(of_it).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_is_measured_again_replaces_the_old_one_and_those_of_other_checkpoints_stay() {
        let dir = tempfile::tempdir().unwrap();
        let knn = |name: &str, knn: f64| Score { name: name.into(), knn: Some(knn), linear: None };
        record(dir.path(), 6, &[knn("trained", 0.5), knn("untrained", 0.1)]).unwrap();
        let linear = Some(Accuracy { top1: 0.7, top5: 0.9 });
        record(dir.path(), 6, &[Score { name: "trained".into(), knn: None, linear }]).unwrap();
        record(dir.path(), 6, &[knn("untrained", 0.2)]).unwrap();
        let trained = Score { name: "trained".into(), knn: Some(0.5), linear };
        let six = [trained, knn("untrained", 0.2)];
        assert_eq!(of_step(dir.path(), 6), six);
        assert_eq!(of_step(dir.path(), 12), []);

        record(dir.path(), 12, &[knn("trained", 0.6)]).unwrap();
        assert_eq!(of_step(dir.path(), 6), six);
        assert_eq!(of_step(dir.path(), 12), [knn("trained", 0.6)]);
        forget_after(dir.path(), 12).unwrap();
        assert_eq!(of_step(dir.path(), 12), [knn("trained", 0.6)]);
        forget_after(dir.path(), 11).unwrap();
        assert_eq!((of_step(dir.path(), 6), of_step(dir.path(), 12)), (six.into(), vec![]));

        std::fs::write(dir.path().join(SCORES_FILE), "[{\"name\": ").unwrap();
        record(dir.path(), 12, &[knn("trained", 0.7)]).unwrap();
        assert_eq!(of_step(dir.path(), 12), [knn("trained", 0.7)]);
    }
}
