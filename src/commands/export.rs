//! `bt-stream export`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::checkpoint::{self, Checkpoint};
use crate::exchange::Format;

/// Arguments of `bt-stream export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// A run's folder (its newest checkpoint is taken) or a checkpoint's
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The file to write, or timm's folder; a card (JSON: configuration, data, accuracy) is written
    /// beside it
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Who is to load it [default: by OUT's name: .safetensors for torchvision, .onnx for onnx]
    #[arg(long)]
    format: Option<Format>,
    /// Print the names of the files as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// No such checkpoint, or a file that cannot be written.
pub fn run(args: ExportArgs) -> Result<()> {
    let format = args.format.map_or_else(|| Format::of(&args.out), Ok)?;
    let export = |found: &Checkpoint| format.export(found, &args.out);
    let (_, written) = checkpoint::find_with(&args.checkpoint, export)?;
    if args.json {
        // A name that is no UTF-8 has no JSON of its own.
        let names: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
        println!("{}", serde_json::json!({ "written": names }));
        return Ok(());
    }
    for path in written {
        println!("wrote {}", path.display());
    }
    Ok(())
}
