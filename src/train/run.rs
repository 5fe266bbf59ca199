//! What a run holds between two steps, how it is prepared, and the gradients of a batch.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bt_pipeline::stats::Stats;
use bt_pipeline::{Batch, Loader, Position, ShardSet};
use candle_core::{Device, Tensor};

use super::clock::Clock;
use super::save::{check_unchanged, fingerprint, restore};
use super::summary::SUMMARY_FILE;
use super::warnings::warnings;
use super::{Arriving, Intake, ResumeFrom, RunOutputs, device, evaluated};
use crate::checkpoint::{self, Checkpoint};
use crate::config::{CONFIG_FILE, Misconfigured, RunConfig};
use crate::data::open_set;
use crate::eval::OnlineProbe;
use crate::eval::encode::same_classes;
use crate::exchange::import;
use crate::files::parent;
use crate::learner::Learner;
use crate::loss::LossOutput;
use crate::metrics::{self, ASIDE_METRICS_FILE, Metrics};
use crate::optim::{Optimizer, Schedule};
use crate::prometheus::{Board, Server};
use crate::report::scores::SCORES_FILE;
use crate::tensorboard::EventWriter;

/// File in the run's folder that a process holds a lock on while it trains there.
const LOCK_FILE: &str = ".lock";

/// All that a run holds between two steps.
pub(super) struct Run {
    pub(super) intake: Intake,
    pub(super) loader: Loader,
    pub(super) learner: Learner,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) schedule: Schedule,
    pub(super) metrics: Metrics,
    /// Steps done.
    pub(super) step: u64,
    /// The next batch.
    pub(super) position: Position,
    /// Steps done when the newest checkpoint was written.
    pub(super) saved: Option<u64>,
    pub(super) checkpoint: PathBuf,
    pub(super) begun_step: u64,
    pub(super) probe: Option<OnlineProbe>,
    pub(super) embeddings: String,
    /// Figures for Prometheus, and who hands them out.
    pub(super) board: Option<Arc<Board>>,
    pub(super) _server: Option<Server>,
    /// The epoch whose pictures were drawn last.
    pub(super) pictured: Option<u64>,
    /// Source images that this process trained on.
    pub(super) images: u64,
    /// Batches passed over since the last step.
    pub(super) rewinds: u32,
    /// Of the training set; see [`fingerprint`].
    pub(super) fingerprint: String,
    /// A signal ended an evaluation that was due.
    pub(super) unevaluated: bool,
    /// Held for as long as the run writes to its folder.
    _lock: File,
}

impl Run {
    pub(super) fn prepare(
        config: &RunConfig,
        from: &ResumeFrom,
        outputs: &RunOutputs,
    ) -> Result<Self> {
        let dir = &config.train.dir;
        let device = device(&config.train)?;
        let (intake, loader) = intake_and_loader(config, &device, outputs)?;
        from.check(dir)?;
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        // What another process is about to save would be later than what is found here.
        let lock = lock(dir)?;
        let found = from.checkpoint(dir)?;
        checkpoint::clean(dir)?;
        let fingerprint = fingerprint(loader.set());
        let mut learner = Learner::new(config, &device)?;
        let mut optimizer = config.optim.for_run(config.train.batch_size)?;
        let mut probe = online_probe(config, &mut learner, loader.set())?;
        let (step, position) = match &found {
            Some(found) => {
                check_unchanged(found, config, &loader, &fingerprint)?;
                restore(found, config, &mut learner, &mut *optimizer, probe.as_mut())?
            }
            None => {
                start_from(&config.train.init, |tensors| learner.start_from(tensors))?;
                (0, Position::default())
            }
        };
        let steps_per_epoch = loader.batches_per_epoch();
        let steps = steps_per_epoch.saturating_mul(config.train.epochs);
        let chosen = matches!(from, ResumeFrom::Checkpoint(_));
        if chosen && step > steps {
            bail!(Misconfigured(format!(
                "nothing is to be done from a checkpoint of {step} steps: train.epochs ends the run at {steps}"
            )));
        }
        let board = outputs.prometheus.map(|_| Arc::new(Board::after(step)));
        let server = outputs.prometheus.zip(board.clone());
        let server = server.map(|(address, board)| Server::start(address, board)).transpose()?;
        let earlier = chosen && !found.as_ref().is_some_and(Checkpoint::is_newest);
        let length = [steps, steps_per_epoch];
        let metrics =
            begin(config, step, length, [found.is_none(), earlier], outputs, board.clone())?;
        let state = found.as_ref().map(|found| &found.state);
        let tally = state.map(|state| state.tally.clone()).unwrap_or_default();
        let rewinds = state.map_or(0, |state| state.rewinds);
        let metrics = metrics.counting_from(tally);
        if let Some(server) = &server {
            metrics.say(&format!("metrics on http://{}/metrics", server.address()));
        }
        if step < steps {
            let parameters = learner.params().iter().map(|param| param.len() as u64).sum();
            let cpu = device.is_cpu().then_some(parameters);
            for text in warnings(config, state, cpu)? {
                metrics.say(&text);
            }
        }
        if step < steps || !dir.join(CONFIG_FILE).exists() {
            let text = config.to_toml()?;
            crate::files::write_atomically(&dir.join(CONFIG_FILE), text.as_bytes())?;
        }
        Ok(Run {
            schedule: config.optim.schedule(config.train.batch_size, steps_per_epoch, steps),
            metrics,
            // One that was set aside is none that a later process goes on from.
            saved: found.as_ref().filter(|found| found.is_in_line()).map(|_| step),
            checkpoint: found.map(|found| found.path).unwrap_or_default(),
            intake,
            loader,
            learner,
            optimizer,
            step,
            position,
            begun_step: step,
            probe,
            embeddings: String::new(),
            board,
            _server: server,
            pictured: None,
            images: 0,
            rewinds,
            fingerprint,
            unevaluated: false,
            _lock: lock,
        })
    }

    /// The batch's loss with every gradient set, and what of it is not finite. Moves nothing that
    /// [`Learner::take_back`] does not undo. `fetch` is called while a device computes.
    pub(super) fn gradients(
        &mut self,
        arriving: &Arriving,
        clock: &mut Clock,
        mut fetch: impl FnMut(&mut Intake),
    ) -> Result<(LossOutput, Option<String>)> {
        let images = self.intake.images(arriving)?;
        clock.lap("copy in");
        self.learner.remember()?;
        let (learner, intake) = (&mut self.learner, &mut self.intake);
        learner.gradients_beside(&images, &mut |part| clock.lap(part), &mut || fetch(intake))
    }

    /// Moves the weights along the gradients of `batch`, and notes what it gave.
    pub(super) fn take_step(
        &mut self,
        config: &RunConfig,
        batch: &Batch,
        out: &LossOutput,
        stats: &Stats,
        clock: &mut Clock,
    ) -> Result<()> {
        let rates = self.schedule.rates(self.step);
        self.optimizer.step(&mut self.learner.params(), rates.0, rates.1)?;
        self.learner.follow(self.step, self.schedule.steps)?;
        clock.lap("optimizer");
        self.rewinds = 0;
        self.images += batch.size as u64;
        self.advance(batch);
        self.measure(config, batch)?;
        self.metrics.count(batch.size, out);
        self.metrics.step(self.step, batch.bad, rates, stats)?;
        clock.lap("measure");
        self.board.iter().for_each(|board| board.step(self.step, batch.size, &clock.laps));
        Ok(())
    }

    pub(super) fn advance(&mut self, batch: &Batch) {
        self.step += 1;
        self.position = Position { epoch: batch.epoch, batch: batch.index + 1 };
        if self.position.batch == self.loader.batches_per_epoch() {
            self.position = Position { epoch: batch.epoch + 1, batch: 0 };
        }
    }
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

/// Begins to change the run's folder: nothing in it tells of steps after `step` any more, where some are
/// to be done, or where the run goes on from an `earlier` checkpoint than its newest; `anew` where it has none.
fn begin(
    config: &RunConfig,
    step: u64,
    [steps, steps_per_epoch]: [u64; 2],
    [anew, earlier]: [bool; 2],
    outputs: &RunOutputs,
    board: Option<Arc<Board>>,
) -> Result<Metrics> {
    let dir = &config.train.dir;
    let mut aside = 0;
    if earlier {
        checkpoint::set_aside_after(dir, step)?;
    }
    // A run that was only cut off comes by the steps after its checkpoint once more, as they were.
    if earlier || step == 0 {
        aside = metrics::set_aside_after(dir, step)?;
    }
    if step < steps || earlier {
        forget_the_end(dir);
    }
    // A run that has all its steps has nothing to tell but an evaluation that is still due.
    let more = step < steps || config.eval.knn_every > 0 && !evaluated(dir, step);
    let events = (config.train.tensorboard && more).then(|| EventWriter::create(dir, step));
    let events = events.transpose()?;
    let metrics = Metrics::open(dir, step, steps, steps_per_epoch, config.train.log_every)?;
    let metrics = metrics.shown(events, board).named(&outputs.line_prefix);
    if aside > 0 && step == 0 && !earlier {
        let why = if anew { "there is no checkpoint" } else { "the checkpoint has no step yet" };
        metrics.say(&format!(
            "warning: {why}: the run begins anew; {aside} lines of metrics until now are in {ASIDE_METRICS_FILE}"
        ));
    }
    Ok(metrics)
}

/// The batches, checked with all that they are for, and their way to `device`.
fn intake_and_loader(
    config: &RunConfig,
    device: &Device,
    outputs: &RunOutputs,
) -> Result<(Intake, Loader)> {
    if config.data.train.is_empty() {
        bail!(Misconfigured(
            "`data.train` names no shards: give a folder, a glob, a brace list or a manifest"
                .into()
        ));
    }
    let set = ShardSet::open(&config.data.train, &config.open_options())?;
    check_evaluation(config, &set)?;
    let intake = Intake::new(device, &config.views.views()?, config.augment.device)?;
    let loader = Loader::new(Arc::new(set), intake.adapt(config.loader()?))?;
    let loader = intake.with_memory(loader);
    let loader = match &outputs.trace {
        Some(trace) => loader.traced(trace),
        None => loader,
    };
    Ok((intake, loader))
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

/// Removes what tells of the end of an earlier part.
fn forget_the_end(dir: &Path) {
    for stale in [SUMMARY_FILE, SCORES_FILE] {
        let _ = std::fs::remove_file(dir.join(stale));
    }
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
    init: &Path,
    take: impl FnOnce(&HashMap<String, Tensor>) -> Result<()>,
) -> Result<()> {
    if init.as_os_str().is_empty() {
        return Ok(());
    }
    let tensors = import::read(init).context("train.init")?;
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

/// Samples without a label, or without one that can be read, which an index does not tell apart. None of shards behind URLs are looked for: that could take a request for each.
fn unlabelled(set: &ShardSet) -> usize {
    let without = |&sample: &usize| set.meta(sample).is_ok_and(|meta| meta.label.is_none());
    if set.is_remote() { 0 } else { (0..set.len()).filter(without).count() }
}

/// Whether the evaluation between epochs can be done: what would end the run hours later.
fn check_evaluation(config: &RunConfig, train: &ShardSet) -> Result<()> {
    if config.eval.knn_every == 0 {
        // It is for the evaluations after the run.
        if !config.data.val.is_empty()
            && let Err(error) = open_set(&config.data.val, "data.val", &config.open_options())
        {
            tracing::warn!(
                "data.val, which `knn`, `probe` and `linear` will want, cannot be opened: {error:#}"
            );
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
