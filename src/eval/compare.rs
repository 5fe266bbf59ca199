//! A network's features beside the floor: an untrained network of the same
//! shape, and what the pixels say without one.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bt_pipeline::ShardSet;
use candle_core::Device;

use super::encode::{features, pixel_features, same_classes};
use super::{Accuracy, Features, KnnConfig, Probe, ProbeConfig, Score, knn_accuracy};
use crate::checkpoint::{self, Checkpoint};
use crate::config::RunConfig;
use crate::data::{NOT_FOUND, open_set};
use crate::device::evaluation_device;
use crate::model::TwinNet;
use crate::print::progress;
use crate::units::percent;

/// Features of the two sets that an evaluation compares.
#[derive(Clone)]
pub struct FeaturePair {
    /// Whose they are.
    pub name: String,
    /// References, or what the probe is fitted to.
    pub train: Features,
    /// What is classified.
    pub test: Features,
}

/// What an evaluation compares features of: a run's checkpoint and two shard sets.
pub struct EvaluatedRun {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// References.
    pub train: Arc<ShardSet>,
    /// Queries.
    pub test: Arc<ShardSet>,
    device: Device,
}

impl EvaluatedRun {
    /// Opens the checkpoint that `path` names and two sets; absent ones are those
    /// that the checkpoint was trained and validated on.
    ///
    /// # Errors
    /// What cannot be found or read.
    pub fn open(path: &Path, train: Option<&str>, test: Option<&str>) -> Result<EvaluatedRun> {
        let checkpoint = checkpoint::find(path)?;
        let config = &checkpoint.state.config;
        let set = |given: Option<&str>, usual: &str, hint: &str| {
            let opened = open_set(given.unwrap_or(usual), hint, &config.open_options());
            match given {
                None if !usual.is_empty() => {
                    opened.with_context(|| format!("{NOT_FOUND}, or {hint}"))
                }
                _ => opened,
            }
        };
        let train = set(train, &config.data.train, "name the training shards with --train")?;
        let test = set(test, &config.data.val, "name the test shards with --test")?;
        let device = evaluation_device(&checkpoint.state.config.train)?;
        Ok(EvaluatedRun { checkpoint, train, test, device })
    }

    /// The configuration the checkpoint was made with.
    pub fn config(&self) -> &RunConfig {
        &self.checkpoint.state.config
    }

    /// The trained network's features.
    ///
    /// # Errors
    /// A checkpoint that does not fit its configuration, or unreadable samples.
    pub fn trained(&self) -> Result<FeaturePair> {
        let mut net = self.checkpoint.network(&self.device)?;
        self.encode("trained network", &mut net)
    }

    /// Features of a network of the same shape with the random weights of `train.seed`: what a run
    /// begins with that is given no others (`train.init`, `bt-stream import`).
    ///
    /// # Errors
    /// Unreadable samples.
    pub fn untrained(&self) -> Result<FeaturePair> {
        let config = self.config();
        let mut net = TwinNet::new(&config.model, config.train.seed, &self.device)?;
        self.encode("untrained network", &mut net)
    }

    /// Raw pixels and colour histograms.
    ///
    /// # Errors
    /// Unreadable samples.
    pub fn pixels(&self) -> Result<[FeaturePair; 2]> {
        pixel_pairs(&self.train, &self.test, self.config())
    }

    fn encode(&self, name: &str, net: &mut TwinNet) -> Result<FeaturePair> {
        encode(name, net, [&self.train, &self.test], self.config(), &self.device)
    }
}

/// `net`'s features of both sets, with a progress line on a terminal.
///
/// # Errors
/// Unreadable samples.
pub fn encode(
    name: &str,
    net: &mut TwinNet,
    [train, test]: [&Arc<ShardSet>; 2],
    config: &RunConfig,
    device: &Device,
) -> Result<FeaturePair> {
    same_classes(train, test)?;
    let bar = progress((train.len() + test.len()) as u64, name);
    let mut of = |set: &Arc<ShardSet>, before: usize| {
        features(net, set, config.eval_loader()?, device, |n| bar.set_position((before + n) as u64))
    };
    let pair =
        FeaturePair { name: name.into(), train: of(train, 0)?, test: of(test, train.len())? };
    bar.finish_and_clear();
    Ok(pair)
}

/// Raw pixels and colour histograms of both sets.
///
/// # Errors
/// Unreadable samples.
pub fn pixel_pairs(
    train: &Arc<ShardSet>,
    test: &Arc<ShardSet>,
    config: &RunConfig,
) -> Result<[FeaturePair; 2]> {
    let (raw_train, colour_train) = pixel_features(train, config.eval_loader()?)?;
    let (raw_test, colour_test) = pixel_features(test, config.eval_loader()?)?;
    Ok([
        FeaturePair { name: "raw pixels".into(), train: raw_train, test: raw_test },
        FeaturePair { name: "colour histogram".into(), train: colour_train, test: colour_test },
    ])
}

impl FeaturePair {
    /// The accuracies that `knn` and `probe` ask for. Takes the features, which kNN normalises
    /// where they are, after the probe has seen them as they were.
    ///
    /// # Errors
    /// Missing labels, or options out of range.
    pub fn score(self, knn: Option<KnnConfig>, probe: Option<&ProbeConfig>) -> Result<Score> {
        let fit = |options| Probe::fit(&self.train, options)?.accuracy(&self.test);
        let linear: Option<Accuracy> = probe.map(fit).transpose()?;
        let knn = knn.map(|options| knn_accuracy(self.train, self.test, options)).transpose()?;
        Ok(Score { name: self.name, knn, linear })
    }
}

/// Scores in aligned columns, a line each.
pub fn table(scores: &[Score]) -> String {
    let wide = scores.iter().map(|score| score.name.chars().count()).max().unwrap_or(0).max(8);
    let knn = scores.iter().any(|score| score.knn.is_some());
    let linear = scores.iter().any(|score| score.linear.is_some());
    let mut out = format!("{:wide$}", "features");
    if knn {
        out.push_str("     kNN");
    }
    if linear {
        out.push_str("  linear top-1  top-5");
    }
    for score in scores {
        out.push_str(&format!("\n{:wide$}", score.name));
        if knn {
            out.push_str(&format!("{:>8}", score.knn.map_or("-".into(), percent)));
        }
        if linear {
            let cell = |value: fn(&Accuracy) -> f64| {
                score.linear.as_ref().map_or("-".into(), |accuracy| percent(value(accuracy)))
            };
            out.push_str(&format!("{:>14}{:>7}", cell(|a| a.top1), cell(|a| a.top5)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_columns_that_were_measured() {
        let linear = Some(Accuracy { top1: 0.5, top5: 1.0 });
        let scores = [
            Score { name: "trained network".into(), knn: Some(0.623), linear },
            Score { name: "raw pixels".into(), knn: Some(0.1), linear: None },
        ];
        let expected = "features            kNN  linear top-1  top-5\n\
                        trained network   62.3%         50.0% 100.0%\n\
                        raw pixels        10.0%             -      -";
        assert_eq!(table(&scores), expected);
        assert!(!table(&scores[1..]).contains("linear"));
    }
}
