//! The twin network: backbone (ResNet) and projector; the predictor that some objectives put behind
//! it.

mod config;
mod graph;
mod init;
mod predictor;
mod projector;
mod resnet;
mod state;
#[cfg(test)]
mod tests;
mod twin_net;

pub(crate) use config::MOST_WIDTH;
pub use config::{Arch, ModelConfig, ProjectorWidths, Stem};
pub use graph::{Graph, Node, Op, Value};
pub use predictor::Predictor;
pub use projector::{Projector, ProjectorLayers};
pub use resnet::ResNet;
pub(crate) use twin_net::BACKBONE;
pub use twin_net::TwinNet;
