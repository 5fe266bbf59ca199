//! `bt-stream`: trains Barlow Twins on batches of views from [`bt_pipeline`].
//!
//! # Layout
//!
//! - [`nn`]: layers with explicit forward and backward passes over candle tensors.
//! - [`model`]: the twin network: backbone (ResNet) and projector.
//! - [`loss`]: the objective, equations 1 and 2 of the paper, with its gradient.
//! - [`optim`]: LARS, SGD, AdamW and the learning-rate schedule.
//! - [`eval`]: features, weighted kNN, linear probe.
//! - [`report`]: the self-contained HTML report of a run.

pub mod eval;
pub mod loss;
pub mod model;
pub mod nn;
pub mod optim;
pub mod report;
