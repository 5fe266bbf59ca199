//! What a representation is worth: features, weighted kNN, linear probe, and
//! the floor beneath them (an untrained network, raw pixels, colours).
//!
//! It stands after the flow: a checkpoint's network reads the eval view of each
//! sample once, and everything here works on the [`Features`] that come out.
//!
//! - [`features`]: the matrix of features with labels and keys.
//! - [`encode`]: shard set -> loader -> features, by a network or from pixels.
//! - [`compare`]: a checkpoint beside the floor, as the commands print it.
//! - [`knn`]: the weighted nearest-neighbour classifier.
//! - [`probe`]: the linear classifier on stored features.
//! - [`online`]: a linear classifier that learns beside the training.
//! - [`linear`]: the authors' protocols: linear on augmented views, few labels, fine-tuning.
//! - [`progress`]: what `linear` continues from when its process ended.
//! - `classify`, `head`: cross-entropy and ranks, for both; a linear classifier with its SGD.
//! - [`scores`]: what was measured of a run's checkpoints, in its folder.
//! - [`baseline`]: raw pixels and colour histograms.
//! - [`npy`]: features to files.

pub mod baseline;
mod classify;
pub mod compare;
pub mod encode;
pub mod features;
mod head;
pub mod knn;
mod lbfgs;
pub mod linear;
pub mod npy;
pub mod online;
pub mod probe;
pub mod progress;
pub mod scores;

pub use encode::knn_during_training;
pub use features::Features;
pub use knn::{KnnConfig, knn_accuracy};
pub use online::OnlineProbe;
pub use probe::{Accuracy, Probe, ProbeConfig};
pub use scores::Score;
