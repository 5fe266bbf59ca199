//! `bt-stream export`

use std::path::PathBuf;

use anyhow::Result;
use candle_core::Device;
use clap::Args;

use crate::checkpoint;

/// Arguments of `bt-stream export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// A run's folder (its newest checkpoint is taken) or a checkpoint's
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The file to write: the backbone's tensors in torchvision's names, safetensors
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// No such checkpoint, or a file that cannot be written.
pub fn run(args: ExportArgs) -> Result<()> {
    let mut net = checkpoint::find(&args.checkpoint)?.network(&Device::Cpu)?;
    crate::model::export_backbone(&mut net, &args.out)?;
    println!("wrote {}", args.out.display());
    Ok(())
}
