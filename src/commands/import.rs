//! `bt-stream import`

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bt_pipeline::Position;
use clap::Args;

use super::ConfigSource;
use crate::checkpoint::{self, State, Tensors};
use crate::config::{CONFIG_FILE, Misconfigured, leaves};
use crate::device::device;
use crate::exchange::import;
use crate::files::write_atomically;
use crate::learner::Learner;
use crate::metrics::METRICS_FILE;
use crate::model::Stem;

/// Arguments of `bt-stream import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// A ResNet-18, 34 or 50 in torchvision's or timm's names: .safetensors, or a state dict in
    /// .pth, .ckpt or .pth.tar, bare or as solo-learn, lightly, MoCo and others keep it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The run's folder to make; `train --resume --dir DIR` goes on from it, all that takes a
    /// checkpoint takes it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What stands before the backbone's names, as in `--prefix module.encoder_q.` [default: found,
    /// where there is one]
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    #[command(flatten)]
    source: ConfigSource,
    /// Print the network and its checkpoint as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command: a checkpoint of step 0.
///
/// # Errors
/// Tensors that are no ResNet's, a configuration that does not fit, a folder that holds a run.
pub fn run(args: ImportArgs) -> Result<()> {
    let context = || format!("cannot import {}", args.file.display());
    // Checkpoints that were set aside are a run's, too, and so are the lines of one that has none
    // yet.
    if checkpoint::any(&args.dir)? || args.dir.join(METRICS_FILE).exists() {
        bail!("{} already holds a run: name another folder", args.dir.display());
    }
    // What is not a pair `load` reports.
    let naming = |keys: &[&str]| {
        let names = |pair: &&String| {
            leaves(pair).is_ok_and(|set| set.iter().any(|(key, _)| keys.contains(&&**key)))
        };
        args.source.set.iter().find(names)
    };
    if let Some(pair) = naming(&["model.arch", "model.width"]) {
        bail!(Misconfigured(format!("--set {pair}: the file's network has its own")));
    }
    let tensors = import::read(&args.file)?;
    let small = if import::is_padded_by_2(&tensors) { Stem::CifarPad2 } else { Stem::Cifar };
    let tensors = import::backbone(tensors, args.prefix.as_deref()).with_context(context)?;
    let mut config = args.source.load(&[])?;
    let model = import::describe(&tensors, &config.model, small).with_context(context)?;
    if let Some(pair) = naming(&["model.stem"]).filter(|_| model.stem != config.model.stem) {
        bail!(Misconfigured(format!("--set {pair}: the file's network has another")));
    }
    if model.stem == Stem::CifarPad2 && config.model.stem == Stem::Imagenet {
        eprintln!(
            "note: taken for solo-learn's, whose stem for CIFAR pads by 2; `--set model.stem=cifar` pads by 1"
        );
    }
    if model.stem != Stem::Imagenet && args.source.config.is_none() {
        // Views of 224 x 224 with ImageNet's normalisation would cost much and find little. Beneath
        // what `--set` says.
        let mut source = args.source.clone();
        source.set.insert(0, "views.preset=barlow-cifar".into());
        config = source.load(&[])?;
        eprintln!("note: the stem is CIFAR's: views begin with the preset `barlow-cifar`");
    }
    config.model = model;
    config.train.dir = args.dir.clone();
    // The file's network, not the one that was read with the configuration: all of it is allocated
    // at once.
    config.check().with_context(context)?;
    import::check_width(&tensors, &config.model).with_context(context)?;
    let mut learner = Learner::new(&config, &device(&config.train)?)?;
    learner.start_from(&tensors).with_context(context)?;
    std::fs::create_dir_all(&args.dir).with_context(|| args.dir.display().to_string())?;
    write_atomically(&args.dir.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;
    let tensors = Tensors {
        weights: learner.net().state_dict()?,
        method: learner.state()?,
        ..Tensors::default()
    };
    let state = State::new(0, Position::default(), 0, &config);
    let path = checkpoint::save(&args.dir, state, tensors, config.checkpoint.keep)?;
    let model = &config.model;
    // timm's names of its files are fixed.
    let cards = [args.file.with_extension("json"), args.file.with_file_name("card.json")];
    let card = cards.iter().find(|card| card.exists());
    if let Some(card) = card.filter(|_| args.source.config.is_none()) {
        eprintln!(
            "note: {} tells the images it was trained on; `--config` takes the configuration of that run, for views and \
             normalisation",
            card.display()
        );
    }
    if args.json {
        println!(
            "{}",
            serde_json::json!({ "model": model, "checkpoint": path.display().to_string() })
        );
    } else {
        println!(
            "{} of width {} with a new projector ({}; --set model.projector=...): {}",
            model.arch,
            model.width,
            model.projector,
            path.display()
        );
    }
    Ok(())
}
