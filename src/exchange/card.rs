//! What lies beside an exported backbone: what it is, what it was trained on, how good it is.

use anyhow::Result;
use serde::Serialize;

use crate::checkpoint::{self, Checkpoint};
use crate::config::RunConfig;
use crate::eval::{Score, scores};
use crate::metrics;

/// A backbone's card, JSON.
#[derive(Debug, Serialize)]
pub struct Card {
    /// Who wrote it.
    pub producer: String,
    /// The backbone.
    pub backbone: Backbone,
    /// What it takes.
    pub input: Input,
    /// What it was trained on, and how long.
    pub data: Data,
    /// How good it is, as far as the run's folder tells.
    pub accuracy: Accuracy,
    /// The effective configuration of the run.
    pub configuration: RunConfig,
}

/// The network.
#[derive(Debug, Serialize)]
pub struct Backbone {
    /// `resnet50`, ..
    pub arch: String,
    /// Channels of the first layer; 64 is torchvision's.
    pub width: usize,
    /// `imagenet` (7x7, stride 2, max pool), `cifar` (3x3) or `cifar-pad2` (the same padded by 2).
    pub stem: crate::model::Stem,
    /// Dimensions of a feature.
    pub feature_dim: usize,
    /// Whether torchvision's and timm's network of this name is the same.
    pub standard: bool,
}

/// How an image becomes the network's input.
#[derive(Debug, Serialize)]
pub struct Input {
    /// Order of the dimensions and of the channels.
    pub layout: &'static str,
    /// Height and width that evaluation takes, in pixels.
    pub size: [usize; 2],
    /// `(value / 255 - mean) / std`, red, green, blue.
    pub mean: [f32; 3],
    /// See `mean`.
    pub std: [f32; 3],
}

/// Data and length of the training.
#[derive(Debug, Serialize)]
pub struct Data {
    /// `data.train`.
    pub train: String,
    /// `data.val`.
    pub val: String,
    /// Images of the training set.
    pub samples: u64,
    /// Optimizer steps done.
    pub steps: u64,
    /// Passes over the training set that were finished.
    pub epochs: u64,
}

/// Accuracies, shares of right answers, 0 to 1.
#[derive(Debug, Serialize)]
pub struct Accuracy {
    /// The latest kNN on `data.val` of the training itself, at or before this step.
    pub knn_in_training: Option<f64>,
    /// What `evaluation.json` of the run tells of this checkpoint.
    pub evaluation: Vec<Score>,
}

impl Card {
    /// The card of `checkpoint`; figures come from the run's folder that holds it.
    ///
    /// # Errors
    /// A configuration without views.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let state = &checkpoint.state;
        let (config, model) = (&state.config, &state.config.model);
        let view = config.views.eval_view()?;
        let (height, width) = view.out_size();
        Ok(Card {
            producer: concat!("bt-stream ", env!("CARGO_PKG_VERSION")).into(),
            backbone: Backbone {
                arch: model.arch.to_string(),
                width: model.width,
                stem: model.stem,
                feature_dim: model.feature_dim(),
                standard: super::is_standard(model),
            },
            input: Input {
                layout: "NCHW, RGB",
                size: [height, width],
                mean: view.normalize.mean,
                std: view.normalize.std,
            },
            data: Data {
                train: config.data.train.clone(),
                val: config.data.val.clone(),
                samples: state.samples,
                steps: state.step,
                epochs: state.position.epoch,
            },
            accuracy: accuracy(checkpoint),
            configuration: config.clone(),
        })
    }
}

/// What RUN/metrics.jsonl and RUN/evaluation.json say of RUN/checkpoints/step-N; nothing where the
/// checkpoint lies elsewhere.
fn accuracy(checkpoint: &Checkpoint) -> Accuracy {
    let step = checkpoint.state.step;
    let run = checkpoint::run_of(&checkpoint.path);
    let lines = run.as_deref().and_then(|run| metrics::read(run).ok()).unwrap_or_default();
    Accuracy {
        knn_in_training: lines
            .iter()
            .filter(|line| line.step <= step)
            .filter_map(|line| line.knn)
            .next_back(),
        evaluation: run.map_or_else(Vec::new, |run| scores::of_step(&run, step)),
    }
}
