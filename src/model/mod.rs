//! The twin network: backbone (ResNet) and projector.

mod bench;
mod config;
mod export;
mod init;
mod projector;
mod resnet;
mod state;
#[cfg(test)]
mod tests;
mod twin_net;

pub use bench::{StepBench, StepTime, StepTimings, bench_step};
pub use config::{Arch, ModelConfig, ProjectorWidths, Stem};
pub use export::export_backbone;
pub use projector::Projector;
pub use resnet::ResNet;
pub use twin_net::TwinNet;
