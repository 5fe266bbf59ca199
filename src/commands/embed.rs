//! `bt-stream embed`

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use bt_pipeline::ShardSet;
use candle_core::{Device, Tensor};
use clap::Args;

use crate::checkpoint;
use crate::config::Misconfigured;
use crate::data::open_set;
use crate::device::evaluation_device;
use crate::eval::encode::features;
use crate::eval::{Features, npy};
use crate::print::progress;

/// Arguments of `bt-stream embed`.
#[derive(Args, Debug)]
pub struct EmbedArgs {
    /// A run's folder (its newest checkpoint is taken) or a checkpoint's
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The shards
    #[arg(value_name = "SHARDS")]
    shards: String,
    /// The file to write. `.safetensors`: `features` [n, dim], `labels` [n] (-1: none).
    /// `.npy`: the features, and `*.labels.npy` beside it. The keys are written to
    /// `*.keys.txt`, one a line
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read or written; features that are not finite.
pub fn run(args: EmbedArgs) -> Result<()> {
    let extension = args.out.extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned();
    if !["safetensors", "npy"].contains(&extension.as_str()) {
        let out = args.out.display();
        bail!(Misconfigured(format!("{out}: the name must end in .safetensors or .npy")));
    }
    let checkpoint = checkpoint::find(&args.checkpoint)?;
    let config = &checkpoint.state.config;
    let device = evaluation_device(&config.train)?;
    let set =
        open_set(&args.shards, "name the shards after the checkpoint", &config.open_options())?;
    let mut net = checkpoint.network(&device)?;
    let bar = progress(set.len() as u64, "encoded");
    let count = |n| bar.set_position(n as u64);
    let rows = features(&mut net, &set, config.eval_loader()?, &device, count)?;
    bar.finish_and_clear();
    rows.check_finite(&args.shards)?;
    let mut files = vec![args.out.clone()];
    if extension == "npy" {
        files.push(write_npy(&rows, &args.out)?);
    } else {
        write_safetensors(&rows, &args.out)?;
    }
    let keys = args.out.with_extension("keys.txt");
    write_keys(&rows, &set, &keys)?;
    files.push(keys);
    let (count, dim) = (rows.len(), rows.dim());
    if args.json {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        println!("{}", serde_json::json!({ "features": count, "dim": dim, "written": files }));
    } else {
        println!("wrote {count} features of {dim} values to {}", args.out.display());
    }
    Ok(())
}

/// -1 for a sample that has none, as Python code expects it.
fn labels(rows: &Features) -> Vec<i64> {
    let signed = |label: &u32| if *label == Features::NO_LABEL { -1 } else { i64::from(*label) };
    rows.labels().iter().map(signed).collect()
}

fn write_safetensors(rows: &Features, out: &Path) -> Result<()> {
    let shape = (rows.len(), rows.dim());
    let tensors = HashMap::from([
        ("features", Tensor::from_slice(rows.values(), shape, &Device::Cpu)?),
        ("labels", Tensor::from_vec(labels(rows), rows.len(), &Device::Cpu)?),
    ]);
    crate::files::save_tensors(&tensors, out)
}

/// Writes the features to `out`, and the labels to the file that is returned.
fn write_npy(rows: &Features, out: &Path) -> Result<PathBuf> {
    written(out, |file| Ok(npy::write_f32(file, &[rows.len(), rows.dim()], rows.values())?))?;
    let beside = out.with_extension("labels.npy");
    written(&beside, |file| Ok(npy::write_i64(file, &labels(rows))?))?;
    Ok(beside)
}

fn write_keys(rows: &Features, set: &ShardSet, out: &Path) -> Result<()> {
    written(out, |file| {
        for sample in rows.samples() {
            // A line each: what would break one is escaped.
            let key = set.meta(*sample as usize)?.key;
            writeln!(
                file,
                "{}",
                key.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
            )?;
        }
        Ok(())
    })
}

/// Replaces the file at `out` by what `write` writes.
fn written(out: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    crate::files::replace(out, |file| {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        Ok(file.flush()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_hold_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let rows =
            Features::from_parts(2, vec![1., 2., 3., 4.], vec![5, Features::NO_LABEL]).unwrap();
        let (a, b) = (dir.path().join("f.safetensors"), dir.path().join("f.npy"));
        write_safetensors(&rows, &a).unwrap();
        assert_eq!(write_npy(&rows, &b).unwrap(), dir.path().join("f.labels.npy"));
        let tensors = candle_core::safetensors::load(&a, &Device::Cpu).unwrap();
        let npy = Tensor::read_npy(&b).unwrap();
        assert_eq!(tensors["features"].to_vec2::<f32>().unwrap(), npy.to_vec2::<f32>().unwrap());
        assert_eq!(tensors["labels"].to_vec1::<i64>().unwrap(), [5, -1]);
        let beside = Tensor::read_npy(dir.path().join("f.labels.npy")).unwrap();
        assert_eq!(beside.to_vec1::<i64>().unwrap(), [5, -1]);
    }
}
