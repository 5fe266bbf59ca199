//! How a run is prepared: all that may be refused, then its folder, its network, and what it shows.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bt_pipeline::{Error, Loader, ShardSet};
use candle_core::{Device, Tensor};

use super::restore::{check_unchanged, fingerprint, restore};
use super::run::{Progress, Run};
use super::saver::Saver;
use super::summary::SUMMARY_FILE;
use super::warnings::warnings;
use super::{ResumeFrom, RunOutputs, evaluated};
use crate::checkpoint::{self, Checkpoint};
use crate::config::{CONFIG_FILE, Misconfigured, RunConfig};
use crate::data::{NOT_FOUND, open_set};
use crate::device::device;
use crate::eval::OnlineProbe;
use crate::eval::encode::same_classes;
use crate::eval::scores;
use crate::exchange::import;
use crate::files::{self, parent, write_atomically};
use crate::intake::Intake;
use crate::learner::Learner;
use crate::metrics::{self, ASIDE_METRICS_FILE, Metrics, RunLength};
use crate::model::Stem;
use crate::optim::Optimizer;
use crate::print::one_line;
use crate::prometheus::{Board, Server};
use crate::tensorboard::EventWriter;

/// File in the run's folder that a process holds a lock on while it trains there.
const LOCK_FILE: &str = ".lock";

impl Run {
    /// A run of `config` before its next step.
    pub(super) fn prepare(
        config: &RunConfig,
        from: &ResumeFrom,
        outputs: &RunOutputs,
    ) -> Result<Self> {
        let device = device(&config.train)?;
        let (intake, loader) = intake_and_loader(config, from, &device, outputs)?;
        let fresh = !config.train.dir.exists();
        let prepared = Self::in_folder(config, from, outputs, &device, intake, loader);
        if fresh && prepared.is_err() {
            remove_if_unused(&config.train.dir);
        }
        prepared
    }

    /// The part of [`Run::prepare`] that takes the run's folder.
    fn in_folder(
        config: &RunConfig,
        from: &ResumeFrom,
        outputs: &RunOutputs,
        device: &Device,
        intake: Intake,
        loader: Loader,
    ) -> Result<Self> {
        let (lock, found) = claim_run_folder(&config.train.dir, from)?;
        let fingerprint = fingerprint(loader.set());
        let Trained { mut learner, optimizer, probe } =
            build_or_restore(config, found.as_ref(), &loader, &fingerprint, device)?;
        let progress = found.as_ref().map(Progress::after).unwrap_or_default();
        let steps_per_epoch = loader.batches_per_epoch();
        let steps = steps_per_epoch.saturating_mul(config.train.epochs);
        let length = RunLength { steps, steps_per_epoch };
        let earlier = goes_back(from, found.as_ref(), length)?;
        let (metrics, board, server) =
            start_outputs(config, from, found.as_ref(), earlier, length, outputs)?;
        if progress.step < steps {
            let cpu = device.is_cpu().then_some(&mut learner);
            print_warnings(config, found.as_ref(), cpu, &metrics)?;
        }
        let saved_config = config.train.dir.join(CONFIG_FILE);
        if progress.step < steps || !saved_config.exists() {
            write_atomically(&saved_config, config.to_toml()?.as_bytes())?;
        }
        let lane = outputs.trace.as_ref().map(|trace| trace.lane("checkpoint"));
        let saver = Saver::start(&config.train.dir, config.checkpoint.keep, lane)?;
        Ok(Run {
            schedule: config.optim.schedule(config.train.batch_size, steps_per_epoch, steps),
            metrics,
            intake,
            loader,
            learner,
            optimizer,
            progress,
            probe,
            probe_given_up: found.is_some_and(|found| found.state.probe_given_up),
            embeddings: String::new(),
            board,
            _server: server,
            pictured: None,
            fingerprint,
            unevaluated: false,
            saver,
            _lock: lock,
        })
    }
}

/// Makes the run's folder this process' own, and finds what the run goes on from.
fn claim_run_folder(dir: &Path, from: &ResumeFrom) -> Result<(File, Option<Checkpoint>)> {
    // Before anything is made there; once more under the lock, by `checkpoint`.
    from.check(dir)?;
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    // What another process is about to save would be later than what is found here.
    let lock = lock(dir)?;
    let found = from.checkpoint(dir)?;
    checkpoint::clean(dir)?;
    files::clean(dir).with_context(|| dir.display().to_string())?;
    Ok((lock, found))
}

/// Removes the folder of a run that is refused, which it was made for, if nothing is in it yet.
fn remove_if_unused(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    if entries.flatten().all(|entry| entry.file_name() == LOCK_FILE) {
        // The refusal is told; that something is left behind beside it is not.
        let _ = std::fs::remove_file(dir.join(LOCK_FILE));
        let _ = std::fs::remove_dir(dir);
    }
}

/// What a step moves.
struct Trained {
    learner: Learner,
    optimizer: Box<dyn Optimizer>,
    probe: Option<OnlineProbe>,
}

/// The network with all that learns beside it: as `found` has it, or as a run begins.
fn build_or_restore(
    config: &RunConfig,
    found: Option<&Checkpoint>,
    loader: &Loader,
    fingerprint: &str,
    device: &Device,
) -> Result<Trained> {
    let mut learner = Learner::new(config, device)?;
    let mut optimizer = config.optim.for_run(config.train.batch_size)?;
    let mut probe = match found {
        Some(found) if found.state.probe_given_up => None,
        _ => online_probe(config, &mut learner, loader.set())?,
    };
    match found {
        Some(found) => {
            check_unchanged(found, config, loader, fingerprint)?;
            restore(found, config, &mut learner, &mut *optimizer, probe.as_mut())?;
        }
        None => start_from(config, |tensors| learner.start_from(tensors))?,
    }
    Ok(Trained { learner, optimizer, probe })
}

/// Whether the run goes back to a checkpoint before its newest.
///
/// # Errors
/// One behind the run's end.
fn goes_back(from: &ResumeFrom, found: Option<&Checkpoint>, length: RunLength) -> Result<bool> {
    let (ResumeFrom::Checkpoint(_), Some(found)) = (from, found) else { return Ok(false) };
    let (step, steps) = (found.state.step, length.steps);
    if step > steps {
        bail!(Misconfigured(format!(
            "nothing is to be done: the checkpoint is at step {step}, and train.epochs ends the run at step {steps}"
        )));
    }
    Ok(!found.is_newest())
}

/// Metrics, and Prometheus' figures with who hands them out. From here on what earlier processes left
/// in the run's folder changes.
fn start_outputs(
    config: &RunConfig,
    from: &ResumeFrom,
    found: Option<&Checkpoint>,
    earlier: bool,
    length: RunLength,
    outputs: &RunOutputs,
) -> Result<(Metrics, Option<Arc<Board>>, Option<Server>)> {
    let state = found.map(|found| &found.state);
    let step = state.map_or(0, |state| state.step);
    let board = outputs.prometheus.map(|_| Arc::new(Board::after(step)));
    let server = outputs.prometheus.zip(board.clone());
    let server = server.map(|(address, board)| Server::start(address, board)).transpose()?;
    let metrics = begin(config, from, found, earlier, length, outputs, board.clone())?;
    let metrics = metrics.counting_from(state.map(|state| state.tally.clone()).unwrap_or_default());
    if let Some(server) = &server {
        metrics.say(&format!("metrics on http://{}/metrics", server.address()));
    }
    Ok((metrics, board, server))
}

/// Says what a person should know before the first step; `on_cpu` is the network where it is there.
fn print_warnings(
    config: &RunConfig,
    found: Option<&Checkpoint>,
    on_cpu: Option<&mut Learner>,
    metrics: &Metrics,
) -> Result<()> {
    let count = |learner: &mut Learner| learner.params().iter().map(|p| p.len() as u64).sum();
    for text in warnings(config, found.map(|found| &found.state), on_cpu.map(count))? {
        metrics.say(&text);
    }
    Ok(())
}

impl ResumeFrom {
    /// Whether a run may begin in `dir`.
    fn check(&self, dir: &Path) -> Result<()> {
        match self {
            ResumeFrom::Scratch if checkpoint::any(dir)? => bail!(
                "{} already holds a run: continue it with --resume, or choose another --dir",
                dir.display()
            ),
            _ => Ok(()),
        }
    }

    /// What a run in `dir`, which no other process trains in, goes on from.
    fn checkpoint(&self, dir: &Path) -> Result<Option<Checkpoint>> {
        self.check(dir)?;
        match self {
            ResumeFrom::Scratch => Ok(None),
            ResumeFrom::Latest => checkpoint::latest(dir, |text| eprintln!("warning: {text}")),
            ResumeFrom::Checkpoint(path) => of_this_run(path, dir).map(Some),
        }
    }
}

/// Begins to change the run's folder: nothing in it tells of steps any more that come after those
/// of `found`, where some are to be done, or where that is an `earlier` checkpoint than the run's
/// newest.
fn begin(
    config: &RunConfig,
    from: &ResumeFrom,
    found: Option<&Checkpoint>,
    earlier: bool,
    length: RunLength,
    outputs: &RunOutputs,
    board: Option<Arc<Board>>,
) -> Result<Metrics> {
    let dir = &config.train.dir;
    let step = found.map_or(0, |found| found.state.step);
    let mut aside = 0;
    if earlier {
        checkpoint::set_aside_after(dir, step)?;
    }
    // A run that was only cut off comes by the steps after its checkpoint once more, as they were.
    if earlier || step == 0 {
        aside = metrics::set_aside_after(dir, step)?;
    }
    if step < length.steps || earlier {
        let _ = std::fs::remove_file(dir.join(SUMMARY_FILE));
        scores::forget_after(dir, step)?;
    }
    // A run that has all its steps has nothing to tell but an evaluation that is still due.
    let more = step < length.steps || config.eval.knn_every > 0 && !evaluated(dir, step);
    let events = (config.train.tensorboard && more).then(|| EventWriter::create(dir, step));
    let events = events.transpose()?;
    let metrics = Metrics::open(dir, step, length, config.train.log_every)?;
    let metrics = metrics.shown(events, board).named(&outputs.line_prefix);
    if step == 0
        && !earlier
        && let Some(text) = anew(dir, from, found, aside)
    {
        metrics.say(&text);
    }
    Ok(metrics)
}

/// What is said of a run without a step that was to go on, or that has `aside` lines of metrics.
fn anew(dir: &Path, from: &ResumeFrom, found: Option<&Checkpoint>, aside: usize) -> Option<String> {
    let why = match found {
        None if aside > 0 || matches!(from, ResumeFrom::Latest) => {
            format!("no checkpoint in {}", dir.display())
        }
        Some(_) if aside > 0 => "the checkpoint has no step yet".into(),
        _ => return None,
    };
    let lines = match aside {
        0 => String::new(),
        _ => format!("; {aside} lines of metrics until now are in {ASIDE_METRICS_FILE}"),
    };
    Some(format!("warning: {why}: the run begins anew{lines}"))
}

/// The batches, checked with all that they are for, and their way to `device`.
fn intake_and_loader(
    config: &RunConfig,
    from: &ResumeFrom,
    device: &Device,
    outputs: &RunOutputs,
) -> Result<(Intake, Loader)> {
    if config.data.train.is_empty() {
        bail!(Misconfigured(
            "`data.train` names no shards: give a folder, a glob, a brace list or a manifest"
                .into()
        ));
    }
    let set = open_training_set(config, from)?;
    check_evaluation(config, &set)?;
    let intake = Intake::new(device, &config.views.views()?, config.augment.device)?;
    let loader = Loader::new(Arc::new(set), intake.adapt(config.loader()?)).with_context(|| {
        let (batch, budget) = (config.train.batch_size, config.data.budget_mb);
        format!("train.batch_size = {batch} with data.budget_mb = {budget}")
    })?;
    let loader = intake.with_memory(loader);
    let loader = match &outputs.trace {
        Some(trace) => loader.traced(trace),
        None => loader,
    };
    Ok((intake, loader))
}

/// The training shards. Those of a run that goes on were there when it began.
fn open_training_set(config: &RunConfig, from: &ResumeFrom) -> Result<ShardSet> {
    ShardSet::open(&config.data.train, &config.open_options()).map_err(|error| {
        let absent =
            matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
        match from {
            ResumeFrom::Latest | ResumeFrom::Checkpoint(_) if absent => {
                anyhow::Error::from(error).context(format!("data.train: {NOT_FOUND}"))
            }
            _ => error.into(),
        }
    })
}

/// Held while this process trains in `dir`.
fn lock(dir: &Path) -> Result<File> {
    let lock = File::create(dir.join(LOCK_FILE)).with_context(|| dir.display().to_string())?;
    // File systems without locks do without.
    if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
        bail!("another process trains in {}", dir.display());
    }
    Ok(lock)
}

/// The classifier that learns beside the training, if `config` asks for it.
fn online_probe(
    config: &RunConfig,
    learner: &mut Learner,
    set: &ShardSet,
) -> Result<Option<OnlineProbe>> {
    if !config.eval.online_probe {
        return Ok(None);
    }
    let classes = classes(set, "data.train, for eval.online_probe")?;
    let (dim, lr) = (learner.net().feature_dim(), config.eval.online_lr);
    OnlineProbe::new(dim, classes, lr, &Device::Cpu).map(Some)
}

/// Gives `take` the backbone's weights of `train.init`, if there are any.
///
/// # Errors
/// A file that cannot be read, or does not fit.
pub(crate) fn start_from(
    config: &RunConfig,
    take: impl FnOnce(&HashMap<String, Tensor>) -> Result<()>,
) -> Result<()> {
    let init = &config.train.init;
    if init.as_os_str().is_empty() {
        return Ok(());
    }
    let tensors = import::read(init).context("train.init")?;
    if config.model.stem == Stem::Cifar && import::is_padded_by_2(&tensors) {
        eprintln!(
            "warning: train.init: {} looks like solo-learn's, whose stem for CIFAR pads by 2: its network has \
             model.stem = \"cifar-pad2\"",
            init.display()
        );
    }
    let tensors = import::backbone(tensors, None).context("train.init")?;
    take(&tensors).with_context(|| format!("train.init: {} does not fit", init.display()))
}

/// The checkpoint at `path`, which must be one of the run in `dir`.
fn of_this_run(path: &Path, dir: &Path) -> Result<Checkpoint> {
    let found = checkpoint::find(path)?;
    let folder = parent(&found.path).canonicalize().ok();
    if folder.is_none() || folder != dir.join(checkpoint::FOLDER).canonicalize().ok() {
        bail!(
            "{} is no checkpoint of the run in {}: another run's weights are taken by train.init",
            found.path.display(),
            dir.display()
        );
    }
    Ok(found)
}

/// The number of classes that the samples of `set` have labels of.
fn classes(set: &ShardSet, what: &str) -> Result<usize> {
    match set.num_classes().with_context(|| what.to_owned())? {
        0 => bail!("{what}: no sample has a label"),
        classes => Ok(classes),
    }
}

/// Samples without a label, or without one that can be read, which an index does not tell apart.
/// None of shards behind URLs are looked for: that could take a request for each.
fn unlabelled(set: &ShardSet) -> usize {
    let without = |&sample: &usize| set.meta(sample).is_ok_and(|meta| meta.label.is_none());
    if set.is_remote() { 0 } else { (0..set.len()).filter(without).count() }
}

/// Whether the evaluation between epochs can be done: what would end the run hours later.
fn check_evaluation(config: &RunConfig, train: &ShardSet) -> Result<()> {
    if config.eval.knn_every == 0 {
        // It is for the evaluations after the run.
        if config.data.val.is_empty() {
            return Ok(());
        }
        match open_set(&config.data.val, "data.val", &config.open_options()) {
            Ok(val) if unlabelled(&val) == val.len() => {
                tracing::warn!(
                    "data.val has no labels, which `knn`, `probe` and `linear` will want"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(
                "data.val, which `knn`, `probe` and `linear` will want, cannot be opened: {}",
                one_line(&error)
            ),
        }
        return Ok(());
    }
    if config.data.val.is_empty() {
        bail!(Misconfigured(
            "eval.knn_every wants data.val (--val): the shards that kNN predicts".into()
        ));
    }
    let open = open_set(&config.data.val, "data.val", &config.open_options());
    let val = open.context("data.val, for eval.knn_every")?;
    same_classes(train, &val)?;
    for (set, what) in [(train, "data.train"), (&*val, "data.val")] {
        classes(set, &format!("{what}, for eval.knn_every"))?;
        let without = unlabelled(set);
        if without > 0 {
            tracing::warn!(
                "{what}: {without} of {} samples have no label, or none that can be read; kNN between epochs fails on those without one",
                set.len()
            );
        }
    }
    Loader::new(val, config.eval_loader()?).context("eval.batch_size")?;
    Ok(())
}
