//! `bt-stream linear`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use bt_pipeline::ShardSet;
use clap::Args;

use super::evaluated::Evaluated;
use super::{count, not_negative, positive, share_above_0};
use crate::config::Misconfigured;
use crate::device::evaluation_device;
use crate::eval::Score;
use crate::eval::compare::{EvaluatedRun, table};
use crate::eval::linear::{Classifier, LinearConfig, evaluate, few_labels};
use crate::eval::progress::Progress;
use crate::exchange::export_classifier;
use crate::model::TwinNet;
use crate::print::one_line;
use crate::train::fingerprint;

/// Arguments of `bt-stream linear`.
#[derive(Args, Debug)]
pub struct LinearArgs {
    #[command(flatten)]
    what: Evaluated,
    /// Learn from this share of each class only, at least one sample of each, as in `--labels 0.01`
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share_above_0)]
    labels: f64,
    /// Train the backbone too, with a rate of its own
    #[arg(long)]
    finetune: bool,
    /// Passes over the training images [default: 100; fine-tuning: 20]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// Images of a step
    #[arg(long, default_value_t = 256, value_parser = count)]
    batch_size: usize,
    /// Learning rate of the classifier [default: 0.3; fine-tuning: 0.5]
    #[arg(long, value_parser = positive)]
    lr: Option<f64>,
    /// Learning rate of the backbone
    #[arg(long, default_value_t = 0.005, value_parser = positive, requires = "finetune")]
    lr_backbone: f64,
    /// Weight decay [default: 1e-6; fine-tuning: 0]
    #[arg(long, value_parser = not_negative)]
    weight_decay: Option<f64>,
    /// Decides labels, order, views and the classifier's first weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Do not train on an untrained network of the same shape beside it
    #[arg(long)]
    no_untrained: bool,
    /// Write the backbone with the classifier on it: a safetensors file that torchvision's network
    /// of as many classes loads
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep the state after each epoch in this file, and go on from it where it is there (the
    /// untrained network's in `FILE.untrained`)
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl LinearArgs {
    /// The protocol's own.
    fn usual(&self) -> LinearConfig {
        if self.finetune { LinearConfig::fine_tuning() } else { LinearConfig::default() }
    }

    fn options(&self) -> LinearConfig {
        let base = self.usual();
        LinearConfig {
            lr_backbone: base.lr_backbone.map(|_| self.lr_backbone),
            epochs: self.epochs.unwrap_or(base.epochs),
            batch_size: self.batch_size,
            lr: self.lr.unwrap_or(base.lr),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            seed: self.seed,
        }
    }

    /// How a run's report calls what was measured: with what differs from the protocol, so that a
    /// short trial takes no result's place.
    fn protocol(&self) -> String {
        let (own, usual) = (self.options(), self.usual());
        let mut name =
            if self.finetune { "fine-tuned" } else { "authors' linear protocol" }.to_owned();
        let mut add = |text: String| name.push_str(&format!(", {text}"));
        if self.labels != 1.0 {
            add(format!("{}% of labels", (1e6 * self.labels).round() / 1e4));
        }
        if own.seed != usual.seed {
            add(format!("seed {}", own.seed));
        }
        if own.epochs != usual.epochs {
            add(format!("{} epochs", own.epochs));
        }
        if own.batch_size != usual.batch_size {
            add(format!("batch {}", own.batch_size));
        }
        if own.lr != usual.lr {
            add(format!("rate {}", own.lr));
        }
        if let Some(lr) = own.lr_backbone.filter(|_| own.lr_backbone != usual.lr_backbone) {
            add(format!("backbone's rate {lr}"));
        }
        if own.weight_decay != usual.weight_decay {
            add(format!("weight decay {}", own.weight_decay));
        }
        name
    }

    /// That the files can be written shows before hours of training.
    fn check_files(&self) -> Result<()> {
        if let Some(out) = &self.out {
            if out.extension().is_none_or(|extension| extension != "safetensors") {
                let out = out.display();
                bail!(Misconfigured(format!("{out}: the name must end in .safetensors")));
            }
            check_folder("--out", out)?;
        }
        self.state.iter().try_for_each(|state| check_folder("--state", state))
    }

    /// The samples that the classifier learns from; with a `folder` few, which are packed there.
    fn learnt_from(&self, run: &EvaluatedRun, folder: Option<&Path>) -> Result<Arc<ShardSet>> {
        let Some(folder) = folder else { return Ok(Arc::clone(&run.train)) };
        let pattern = self.what.train.as_deref().unwrap_or(&run.config().data.train);
        few_labels(pattern, self.labels, self.seed, folder, &run.config().open_options())
    }

    /// Keeps how far the training of the network `name` is, in a file with this ending.
    fn progress(&self, name: &str, of: &str, ending: &str) -> Option<Progress> {
        let mut path = self.state.clone()?.into_os_string();
        path.push(ending);
        Some(Progress::new(path.into(), format!("{name}; {of}")))
    }

    /// Keeps what was measured of the checkpoint after `step` on a run's own shards beside what kNN
    /// and probe found, under names of its own.
    fn record(&self, step: u64, scores: &[Score]) {
        let named = |score: &Score| Score {
            name: format!("{}, {}", score.name, self.protocol()),
            ..score.clone()
        };
        self.what.record(step, &scores.iter().map(named).collect::<Vec<_>>());
    }
}

fn check_folder(option: &str, file: &Path) -> Result<()> {
    let folder = crate::files::parent(file);
    if !folder.is_dir() {
        bail!(Misconfigured(format!("{option}: there is no folder {}", folder.display())));
    }
    Ok(())
}

/// Runs the command.
///
/// # Errors
/// As [`evaluate`], and a file that cannot be written.
pub fn run(args: LinearArgs) -> Result<()> {
    args.check_files()?;
    args.options().check()?;
    let run = args.what.open()?;
    let (config, options) = (run.config(), args.options());
    let device = evaluation_device(&config.train)?;
    // The selected samples are packed into a folder of their own, gone at the end, a signal's too.
    let temporary = (args.labels != 1.0).then(tempfile::tempdir).transpose()?;
    let folder = temporary.as_ref().map(|temporary| temporary.path());
    let stop = crate::signals::Stop::on_signals()?;
    folder.iter().for_each(|folder| stop.remove_at_exit(folder));
    let train = args.learnt_from(&run, folder)?;
    let of = format!(
        "weights {} on {} samples {}; {options}",
        run.checkpoint.state.weights_sum(),
        train.len(),
        fingerprint(&train)
    );
    let classifier = |name: &str, net: &mut TwinNet, ending: &str| -> Result<Classifier> {
        let progress = args.progress(name, &of, ending);
        let sets = [&train, &run.test];
        evaluate(net, sets, config, &options, &device, progress.as_ref(), |epoch, right| {
            if !args.json {
                eprintln!("{name}: epoch {epoch:>3}  right {:.1}%", 100.0 * right);
            }
        })
    };
    let (trained, untrained) = ("trained network", "untrained network");
    let score = |name: &str, found: &Classifier| {
        let linear = Some(found.accuracy);
        Score { name: name.into(), knn: None, linear }
    };
    let mut net = run.checkpoint.network(&device)?;
    let found = classifier(trained, &mut net, "")?;
    // A full disk takes no result away: it is told before the error.
    let written = match &args.out {
        Some(out) => export_classifier(&mut net, &found.fc, out),
        None => Ok(()),
    };
    if let Err(error) = &written {
        eprintln!("warning: {}; the evaluation goes on", one_line(error));
    }
    let mut scores = vec![score(trained, &found)];
    if !args.no_untrained {
        let mut net = TwinNet::new(&config.model, config.train.seed, &device)?;
        scores.push(score(untrained, &classifier(untrained, &mut net, ".untrained")?));
    }
    args.record(run.checkpoint.state.step, &scores);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&scores)?);
        return written;
    }
    println!("{} labels, {} test images, {} epochs", train.len(), found.tested, options.epochs);
    println!("{}", table(&scores));
    if let Some(out) = args.out.filter(|_| written.is_ok()) {
        println!("wrote {}", out.display());
    }
    written
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: LinearArgs,
    }

    fn of(more: &str) -> LinearArgs {
        Line::parse_from(["linear", "run"].into_iter().chain(more.split_whitespace())).args
    }

    #[test]
    fn flags_change_the_protocol_and_its_name() {
        assert_eq!(of("").options(), LinearConfig::default());
        assert_eq!(of("").protocol(), "authors' linear protocol");
        assert_eq!(of("--finetune").options(), LinearConfig::fine_tuning());
        assert_eq!(of("--finetune").protocol(), "fine-tuned");
        let all = "--epochs 3 --batch-size 8 --lr 0.7 --weight-decay 0.5 --seed 4 --labels 0.015";
        let changed = LinearConfig {
            epochs: 3,
            batch_size: 8,
            lr: 0.7,
            lr_backbone: None,
            weight_decay: 0.5,
            seed: 4,
        };
        assert_eq!(of(all).options(), changed);
        let named = "1.5% of labels, seed 4, 3 epochs, batch 8, rate 0.7, weight decay 0.5";
        assert_eq!(of(all).protocol(), format!("authors' linear protocol, {named}"));
        let tuned = of("--finetune --lr-backbone 0.25");
        let base = LinearConfig::fine_tuning();
        assert_eq!(tuned.options(), LinearConfig { lr_backbone: Some(0.25), ..base });
        assert_eq!(tuned.protocol(), "fine-tuned, backbone's rate 0.25");
    }
}
