//! `bt-stream`: trains Barlow Twins on batches of views from [`bt_pipeline`].
//!
//! # Layout
//!
//! - [`cli`], [`commands`], [`config`]: the command line, its commands, a run's configuration;
//!   [`mod@reference`]: what each of its keys means.
//! - [`data`], [`drawn`]: sets of shards that are named, and the one that the program draws;
//!   [`units`]: figures as text; [`mod@print`]: what reaches the terminal.
//! - [`device`], [`intake`]: which device computes, and how batches reach it.
//! - [`train`]: the loop; [`checkpoint`], [`metrics`], [`files`], [`signals`]: what surrounds it;
//!   [`descriptors`]: how many files may be open.
//! - [`nn`]: layers with explicit forward and backward passes over candle tensors.
//! - [`model`]: the twin network: backbone (ResNet) and projector.
//! - [`loss`]: the objectives with their gradients; [`learner`]: the network with the predictor
//!   or teacher that an objective asks for.
//! - [`optim`]: LARS, SGD, AdamW and the learning-rate schedule.
//! - [`eval`]: features, weighted kNN, linear probe.
//! - [`exchange`]: backbones to and from torchvision, timm, ONNX.
//! - [`tensorboard`], [`prometheus`], [`watch`], [`advice`]: a run seen from outside.
//! - [`picture`]: views and correlation matrices, as pixels.
//! - [`report`]: the self-contained HTML report of a run; [`study`]: many runs as one table.
//! - [`step_bench`]: the training step by itself, timed.

// Tests of the whole program that are run on the emulated device, too, name it so.
#[cfg(test)]
extern crate self as bt_stream;

// First: the others print by its macros.
#[macro_use]
pub mod print;

pub mod advice;
pub mod checkpoint;
mod checks;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod descriptors;
pub mod device;
pub mod drawn;
pub mod eval;
pub mod exchange;
pub mod files;
pub mod intake;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod optim;
pub mod picture;
pub mod prometheus;
pub mod reference;
pub mod report;
pub mod signals;
pub mod step_bench;
pub mod study;
pub mod tensorboard;
pub mod train;
pub mod units;
pub mod watch;
