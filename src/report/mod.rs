//! The report of a run: one HTML file that needs nothing else, no network, no
//! other file; readable on a phone and in dark mode.
//!
//! [`collect`] gathers what a run's folder tells into a [`Report`], `page` writes
//! it down; whoever knows more (quickstart: pictures, scores) adds it in between.
//!
//! - [`side_by_side`]: several runs on one page.
//! - [`chart`]: line charts as inline SVG.
//! - [`picture`]: images, contact sheets and C as inline PNG.
//! - [`views`]: samples with their views, as the network sees them.

use std::path::Path;

use bt_pipeline::Image;

use crate::eval::probe::Accuracy;
use crate::metrics::Line;

pub mod chart;
pub mod collect;
mod page;
pub mod picture;
pub mod scores;
pub mod side_by_side;
pub mod views;

pub use page::render;
pub(crate) use page::{charts, foot, head};

/// All that the page shows. What is empty or absent leaves no gap on the page.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The page's heading.
    pub title: String,
    /// One or two sentences under it, plain text.
    pub summary: String,
    /// Figures worth a box of their own: (name, value).
    pub facts: Vec<(String, String)>,
    /// How well features tell the classes apart, the trained network first.
    pub scores: Vec<Score>,
    /// How the scores were measured, plain text.
    pub scores_note: String,
    /// The lines of the metrics file.
    pub metrics: Vec<Line>,
    /// C before and after training.
    pub correlations: Vec<Correlation>,
    /// Samples with their views.
    pub samples: Vec<Sample>,
    /// Test images with what the network finds most alike.
    pub neighbours: Vec<Neighbours>,
    /// Where the time went.
    pub times: Vec<TimeTable>,
    /// The effective configuration, TOML.
    pub config: String,
    /// What to do next: (what it is, command line).
    pub next: Vec<(String, String)>,
}

/// How well one kind of features tells the classes apart.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Score {
    /// Whose features.
    pub name: String,
    /// Weighted kNN, share of right answers, 0 to 1.
    pub knn: Option<f64>,
    /// The linear probe.
    pub linear: Option<Accuracy>,
}

/// The cross-correlation matrix of one batch.
#[derive(Clone, Debug)]
pub struct Correlation {
    /// When it was taken.
    pub name: String,
    /// Rows (and columns).
    pub dim: usize,
    /// `dim * dim` values, row after row, -1 to 1.
    pub values: Vec<f32>,
}

impl Correlation {
    /// Mean of the diagonal.
    pub fn on_diag_mean(&self) -> f64 {
        let diagonal = self.values.iter().step_by(self.dim + 1);
        diagonal.map(|v| f64::from(*v)).sum::<f64>() / self.dim.max(1) as f64
    }

    /// Root mean square of what is not on the diagonal.
    pub fn off_diag_rms(&self) -> f64 {
        let square = |v: &f32| f64::from(*v) * f64::from(*v);
        let all: f64 = self.values.iter().map(square).sum();
        let on: f64 = self.values.iter().step_by(self.dim + 1).map(square).sum();
        let count = self.dim * self.dim - self.dim;
        ((all - on).max(0.0) / count.max(1) as f64).sqrt()
    }
}

/// A sample with its views.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Class or key.
    pub name: String,
    /// As it lies in the shard.
    pub original: Image,
    /// View A, view B, before normalisation.
    pub views: Vec<Image>,
}

/// A query and its nearest images.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// Whose features: `untrained`, `trained`.
    pub name: String,
    /// One row for each query: the query's image, then (image, same class?).
    pub rows: Vec<(Image, Vec<(Image, bool)>)>,
}

/// Seconds by stage.
#[derive(Clone, Debug, Default)]
pub struct TimeTable {
    /// What was timed, and how to read it.
    pub title: String,
    /// (stage, seconds), in the order of the flow.
    pub rows: Vec<(String, f64)>,
}

/// What a JSON file beside the metrics tells, where there is one. The page goes without one that is
/// torn.
fn optional<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let json = std::fs::read(path).ok()?;
    let read = serde_json::from_slice(&json);
    read.inspect_err(|error| tracing::warn!("{}: {error}; going on without it", path.display()))
        .ok()
}

#[cfg(test)]
mod tests;
