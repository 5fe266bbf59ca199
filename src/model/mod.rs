//! The twin network: backbone (ResNet) and projector.

mod config;
mod init;
mod projector;
mod resnet;
mod state;
mod twin_net;

pub use config::{Arch, ModelConfig, ProjectorWidths, Stem};
pub use projector::Projector;
pub use resnet::ResNet;
pub use twin_net::TwinNet;
