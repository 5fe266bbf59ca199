//! The report of a run: one HTML file that needs nothing else, no network, no
//! other file; readable on a phone and in dark mode.
//!
//! [`collect`] gathers what a run's folder tells into a [`Report`], `page` writes
//! it down; whoever knows more (quickstart: pictures, scores) adds it in between.
//!
//! - [`side_by_side`]: several runs on one page.
//! - [`chart`]: line charts as inline SVG.
//! - `inline`: images and C as inline PNG.

use bt_pipeline::Image;

use crate::eval::Score;
use crate::metrics::Line;
use crate::picture::{Correlation, Sample};

pub mod chart;
pub mod collect;
mod inline;
mod page;
pub mod side_by_side;

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

#[cfg(test)]
mod tests;
