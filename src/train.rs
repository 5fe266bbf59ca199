//! The training loop: batch -> learner's forward -> loss -> gradients -> step.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bt_pipeline::trace::{Lane, Trace};
use bt_pipeline::{Batch, Loader, Position, ShardSet};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::advice::Observed;
use crate::checkpoint::{self, Checkpoint, State, Tensors};
use crate::config::{CONFIG_FILE, OnCheckpointError, OnNan, RunConfig};
use crate::eval::OnlineProbe;
use crate::learner::Learner;
use crate::loss::LossOutput;
use crate::loss::diagnostics::Diagnostics;
use crate::metrics::Metrics;
use crate::optim::{Optimizer, Schedule};
use crate::prometheus::{Board, Server};
use crate::report::collect::SCORES_FILE;
use crate::report::{Correlation, picture, views};
use crate::signals::Stop;
use crate::tensorboard::EventWriter;

/// File in the run's folder that tells where the time went.
pub const SUMMARY_FILE: &str = "summary.json";

/// File in the run's folder with the batches whose numbers were not finite.
pub const BAD_BATCHES_FILE: &str = "bad-batches.jsonl";

/// Pairs of views in TensorBoard's picture, and the least side of each of them in pixels.
const PAIRS: usize = 8;
const LEAST_SIDE: usize = 64;

/// Batches in a row that `train.on_nan = "rewind"` passes over.
const MOST_REWINDS: u32 = 10;

/// Numbers that are not finite ended the run: what a configuration leads to, not what went wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{cause} at step {step}; the newest checkpoint is of a good state, {BAD_BATCHES_FILE} has the batch: \
     lower the learning rate, or go on without such batches with train.on_nan = \"rewind\""
)]
pub struct Diverged {
    /// What was not finite.
    pub cause: String,
    /// The step, from 1.
    pub step: u64,
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Optimizer steps done, those before a resume included.
    pub steps: u64,
    /// Source images trained on by this process.
    pub images: u64,
    /// Whether a signal ended it before its last step.
    pub interrupted: bool,
    /// Wall seconds of this process, from the first batch asked for.
    pub seconds: f64,
    /// Seconds by stage of the training thread.
    pub step_seconds: Vec<(String, f64)>,
    /// Seconds by stage of the loader, summed over its threads.
    pub loader_seconds: Vec<(String, f64)>,
    /// The stage that limited.
    pub limit: String,
    /// What limited and which setting would help, in a sentence.
    #[serde(default)]
    pub advice: String,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// What the embeddings of the last step tell, in a sentence.
    #[serde(default)]
    pub embeddings: String,
}

/// The device that `train.device` names.
///
/// # Errors
/// A name that is not known, or a device that this build cannot use.
pub fn device(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        _ => bail!("train.device: `{name}` is not known; this build has `auto` and `cpu`"),
    }
}

/// A batch's views as one tensor, `[views * size, H, W, 3]`: the one place where
/// the pipeline's memory becomes candle's.
///
/// # Errors
/// When the device cannot take it.
pub fn images_of(batch: &Batch, device: &Device) -> candle_core::Result<Tensor> {
    let spec = batch.spec();
    let shape = (spec.views * batch.size, spec.height, spec.width, 3);
    Tensor::from_slice(batch.as_f32(), shape, device)
}

/// How a run is seen from outside, beside its folder.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Where Prometheus finds its figures.
    pub metrics: Option<SocketAddr>,
    /// Where its threads note what they do.
    pub trace: Option<Arc<Trace>>,
}

/// As [`train_watched`], with nobody watching.
///
/// # Errors
/// As [`train_watched`].
pub fn train(config: &RunConfig, resume: bool, stop: &Stop) -> Result<Summary> {
    train_watched(config, resume, stop, &Watch::default())
}

/// Trains as `config` says; with `resume` from the newest intact checkpoint of the
/// run's folder. `stop` ends the run after the step in progress, or, when that takes
/// too long, before it, with a checkpoint of the steps that were done.
///
/// # Errors
/// What the configuration, the data, the disk or the numbers do not allow.
pub fn train_watched(
    config: &RunConfig,
    resume: bool,
    stop: &Stop,
    watch: &Watch,
) -> Result<Summary> {
    let mut run = Run::prepare(config, resume, watch)?;
    run.learner.give_up_on(stop.overdue_flag());
    let mut stream = run.loader.start(run.position, config.train.epochs)?;
    let stats = Arc::clone(stream.stats());
    run.board.iter().for_each(|board| board.follow(&stats));
    // From the first step on there is something to save.
    let _hold = stop.hold();
    let mut clock = Clock::start(watch.trace.as_ref().map(|trace| trace.lane("training")));
    let mut given_up = false;
    while let Some(batch) = stream.next_unless(stop.overdue_flag()) {
        let batch = batch?;
        clock.lap("wait for data");
        let (out, trouble) = match run.gradients(&batch, &mut clock) {
            Err(_) if stop.overdue() => {
                run.learner.take_back()?;
                given_up = true;
                break;
            }
            found => found?,
        };
        if let Some(cause) = trouble {
            run.refuse(config, &batch, cause)?;
        } else {
            let rates = run.schedule.rates(run.step);
            run.optimizer.step(&mut run.learner.params(), rates.0, rates.1)?;
            run.learner.follow(run.step, run.schedule.steps)?;
            clock.lap("optimizer");
            run.rewinds = 0;
            run.advance(&batch);
            run.measure(config, &batch)?;
            run.metrics.step(run.step, batch.size, &out, rates, &stats)?;
            clock.lap("measure");
            run.board.iter().for_each(|board| board.step(run.step, batch.size, &clock.laps));
        }
        drop(batch);
        // Before a checkpoint: a run that goes on from there does not meet them again.
        run.metrics.record_bad(&stats.take_bad())?;
        run.after_step(config, stop, &mut clock)?;
        if stop.raised() {
            break;
        }
    }
    let interrupted = given_up || stream.remaining() > 0;
    if interrupted {
        run.metrics.say("stopping: a signal was received");
    }
    run.metrics.record_bad(&stats.take_bad())?;
    let snapshot = stats.snapshot();
    drop(stream);
    run.finish(config, clock, snapshot, interrupted)
}

/// All that a run holds between two steps.
struct Run {
    device: Device,
    loader: Loader,
    learner: Learner,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
    metrics: Metrics,
    /// Steps done.
    step: u64,
    /// The next batch.
    position: Position,
    /// Steps done when the newest checkpoint was written.
    saved: Option<u64>,
    checkpoint: PathBuf,
    begun_step: u64,
    probe: Option<OnlineProbe>,
    embeddings: String,
    /// Figures for Prometheus, and who hands them out.
    board: Option<Arc<Board>>,
    _server: Option<Server>,
    /// The epoch whose pictures were drawn last.
    pictured: Option<u64>,
    /// Batches passed over since the last step.
    rewinds: u32,
}

impl Run {
    fn prepare(config: &RunConfig, resume: bool, watch: &Watch) -> Result<Self> {
        let dir = &config.train.dir;
        let device = device(&config.train.device)?;
        if config.data.train.is_empty() {
            bail!(
                "`data.train` names no shards: give a folder, a glob, a brace list or a manifest"
            );
        }
        let set = ShardSet::open(&config.data.train, &config.open_options())?;
        let mut loader = Loader::new(Arc::new(set), config.loader()?)?;
        if let Some(trace) = &watch.trace {
            loader = loader.traced(trace);
        }
        let found = if resume {
            checkpoint::latest(dir, |text| eprintln!("warning: {text}"))?
        } else {
            None
        };
        if !resume && !checkpoint::list(&dir.join(checkpoint::FOLDER)).is_empty() {
            bail!(
                "{} already holds a run: continue it with --resume, or choose another --dir",
                dir.display()
            );
        }
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        checkpoint::clean(dir)?;
        let mut learner = Learner::new(config, &device)?;
        let mut optimizer = config.optim.build()?;
        let mut probe = match config.eval.online_probe {
            true => Some(OnlineProbe::new(
                learner.net().feature_dim(),
                loader.set().num_classes().context("eval.online_probe wants labels")?,
                config.eval.online_lr,
                &device,
            )?),
            false => None,
        };
        let (mut step, mut position) = (0, Position::default());
        let init = &config.train.init;
        if found.is_none() && !init.as_os_str().is_empty() {
            let tensors = crate::exchange::import::read(init).context("train.init")?;
            let started = learner.start_from(&tensors);
            started.with_context(|| format!("train.init: {} does not fit", init.display()))?;
        }
        if let Some(found) = &found {
            (step, position) =
                restore(found, config, &loader, &mut learner, &mut *optimizer, probe.as_mut())?;
        }
        let steps_per_epoch = loader.batches_per_epoch();
        let steps = steps_per_epoch.saturating_mul(config.train.epochs);
        if step < steps {
            // They tell of the end of an earlier part.
            for stale in [SUMMARY_FILE, SCORES_FILE] {
                let _ = std::fs::remove_file(dir.join(stale));
            }
        }
        let board = watch.metrics.map(|address| (address, Arc::new(Board::default())));
        let server = match &board {
            Some((address, board)) => Some(Server::start(*address, Arc::clone(board))?),
            None => None,
        };
        let board = board.map(|(_, board)| board);
        let events =
            config.train.tensorboard.then(|| EventWriter::create(dir, step)).transpose()?;
        let every = config.train.log_every;
        let metrics = Metrics::open(dir, step, steps, steps_per_epoch, every)?;
        let metrics = metrics.shown(events, board.clone());
        if let Some(server) = &server {
            metrics.say(&format!("metrics on http://{}/metrics", server.address()));
        }
        crate::files::write_atomically(&dir.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;
        Ok(Run {
            schedule: config.optim.schedule(config.train.batch_size, steps_per_epoch, steps),
            metrics,
            saved: found.is_some().then_some(step),
            checkpoint: found.map(|found| found.path).unwrap_or_default(),
            device,
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
            rewinds: 0,
        })
    }

    /// The batch's loss with every gradient set, and what of it is not finite. Moves nothing that
    /// [`Learner::take_back`] does not undo.
    fn gradients(
        &mut self,
        batch: &Batch,
        clock: &mut Clock,
    ) -> Result<(LossOutput, Option<String>)> {
        let images = images_of(batch, &self.device)?;
        clock.lap("copy in");
        self.learner.remember()?;
        self.learner.forward(&images)?;
        clock.lap("forward");
        let mut out = self.learner.loss()?;
        clock.lap("loss");
        if !out.loss.is_finite() {
            let cause = format!("the loss is {}", out.loss);
            return Ok((out, Some(cause)));
        }
        self.learner.backward(&mut out)?;
        let found = self.learner.bad_gradient()?;
        clock.lap("backward");
        Ok((out, found.map(|name| format!("the gradient of {name} is not finite"))))
    }

    fn advance(&mut self, batch: &Batch) {
        self.step += 1;
        self.position = Position { epoch: batch.epoch, batch: batch.index + 1 };
        if self.position.batch == self.loader.batches_per_epoch() {
            self.position = Position { epoch: batch.epoch + 1, batch: 0 };
        }
    }

    /// Takes back a step whose numbers are not finite and notes its batch. With
    /// `train.on_nan = "rewind"` the run goes on with the next batch.
    ///
    /// # Errors
    /// [`Diverged`], with a checkpoint of the state before the step.
    fn refuse(&mut self, config: &RunConfig, batch: &Batch, cause: String) -> Result<()> {
        self.learner.take_back()?;
        let step = self.step + 1;
        let set = self.loader.set();
        let samples = batch.samples.iter().map(|&sample| {
            let shard = &set.shards()[set.shard_of(sample as usize)].path;
            let key = set.meta(sample as usize).map(|meta| meta.key).unwrap_or_default();
            serde_json::json!({ "sample": sample, "shard": shard, "key": key })
        });
        let line = serde_json::json!({
            "step": step, "epoch": batch.epoch, "batch": batch.index, "cause": cause,
            "samples": samples.collect::<Vec<_>>(),
        });
        let path = config.train.dir.join(BAD_BATCHES_FILE);
        crate::files::append_line(&path, &line.to_string())?;
        self.rewinds += 1;
        if config.train.on_nan == OnNan::Stop || self.rewinds > MOST_REWINDS {
            // A step so large that it left no number behind: the checkpoints before it are
            // what is good.
            if self.learner.bad_weight()?.is_none() {
                self.save(config)?;
            }
            bail!(Diverged { cause, step });
        }
        self.metrics.say(&format!("warning: {cause} at step {step}; its batch is passed over"));
        self.advance(batch);
        Ok(())
    }

    /// What the step's embeddings and features tell, when it is time to ask.
    fn measure(&mut self, config: &RunConfig, batch: &Batch) -> Result<()> {
        if let Some(probe) = &mut self.probe {
            let features = self.learner.net().last_features()?;
            if let Some(accuracy) = probe.step(&features, &batch.labels)? {
                self.metrics.online(accuracy);
            }
        }
        let every = config.train.diagnose_every;
        let last = self.step == self.schedule.steps;
        if let Some(seen) = self.learner.seen()
            && every > 0
            && (last || self.step.is_multiple_of(every))
        {
            let found = Diagnostics::measure(&seen.a, &seen.b)?;
            self.metrics.diagnostics(self.step, &found)?;
            self.embeddings = found.describe();
            if self.metrics.takes_pictures() && self.pictured != Some(batch.epoch) {
                self.pictured = Some(batch.epoch);
                self.pictures(config, batch)?;
            }
        }
        Ok(())
    }

    /// Pairs of views and C of the present batch, for TensorBoard.
    fn pictures(&mut self, config: &RunConfig, batch: &Batch) -> Result<()> {
        let views = views::of_batch(batch, &config.views.views()?, PAIRS);
        let (height, width) = (batch.spec().height, batch.spec().width);
        let side = height.max(width).max(LEAST_SIDE);
        self.metrics.picture(self.step, "views", &picture::sheet(&views, side, 4, [255; 3]));
        if let Some(seen) = self.learner.seen() {
            let dim = seen.a.dim(1)?.min(picture::MOST_ROWS);
            let part =
                |z: &Tensor| -> candle_core::Result<Tensor> { z.narrow(1, 0, dim)?.contiguous() };
            let eps = crate::loss::BarlowConfig::default().eps;
            let c = crate::loss::cross_correlation(&part(&seen.a)?, &part(&seen.b)?, eps)?;
            let values = c.flatten_all()?.to_vec1()?;
            let c = Correlation { name: "C".into(), dim, values };
            self.metrics.picture(self.step, "correlation", &picture::correlation_image(&c));
        }
        Ok(())
    }

    /// Saves and evaluates when it is time to.
    fn after_step(&mut self, config: &RunConfig, stop: &Stop, clock: &mut Clock) -> Result<()> {
        let Position { epoch, batch } = self.position;
        let every = &config.checkpoint;
        let due = match batch {
            0 => epoch.is_multiple_of(every.every_epochs),
            _ => every.every_steps > 0 && self.step.is_multiple_of(every.every_steps),
        };
        if due {
            self.save(config)?;
            clock.lap("checkpoint");
        }
        let knn = config.eval.knn_every;
        if batch == 0 && knn > 0 && epoch.is_multiple_of(knn) && !config.data.val.is_empty() {
            let given_up = stop.overdue_flag();
            match crate::eval::knn_during_training(self.learner.net(), config, given_up) {
                Err(_) if stop.overdue() => {}
                accuracy => self.metrics.knn(self.step, accuracy?)?,
            }
            clock.lap("evaluation");
        }
        Ok(())
    }

    fn save(&mut self, config: &RunConfig) -> Result<()> {
        if self.saved == Some(self.step) {
            return Ok(());
        }
        let samples = self.loader.set().len() as u64;
        let state = State::new(self.step, self.position, samples, config);
        let tensors = Tensors {
            weights: self.learner.net().state_dict()?,
            optimizer: self.optimizer.state(),
            method: self.learner.state()?,
            probe: self.probe.as_ref().map(OnlineProbe::state).unwrap_or_default(),
        };
        let keep = config.checkpoint.keep;
        match checkpoint::save(&config.train.dir, state, tensors, keep) {
            Ok(path) => {
                self.saved = Some(self.step);
                self.checkpoint = path;
            }
            Err(error) if config.checkpoint.on_error == OnCheckpointError::Warn => {
                self.metrics.say(&format!("warning: {error:#}; going on to the next one"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn finish(
        mut self,
        config: &RunConfig,
        mut clock: Clock,
        loader: bt_pipeline::stats::Snapshot,
        interrupted: bool,
    ) -> Result<Summary> {
        self.save(config)?;
        clock.lap("checkpoint");
        self.metrics.finish()?;
        let wall = clock.begun.elapsed();
        let seconds = |time: Duration| time.as_secs_f64();
        let observed = Observed {
            loader: &loader,
            laps: &clock.laps,
            wall,
            threads: self.loader.threads(),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            seekable: self.loader.set().seekable(),
        };
        let advice = observed.sentence(config);
        let summary = Summary {
            steps: self.step,
            images: (self.step - self.begun_step) * config.train.batch_size as u64,
            interrupted,
            seconds: seconds(wall),
            step_seconds: clock.laps.iter().map(|(n, t)| ((*n).to_owned(), seconds(*t))).collect(),
            loader_seconds: [
                ("read", loader.read),
                ("decode", loader.decode),
                ("augment", loader.augment),
                ("wait for work", loader.work_wait),
            ]
            .map(|(name, time)| (name.to_owned(), seconds(time)))
            .to_vec(),
            limit: loader.limit(wall).to_owned(),
            advice,
            checkpoint: self.checkpoint,
            embeddings: self.embeddings,
        };
        let text = serde_json::to_vec_pretty(&summary)?;
        crate::files::write_atomically(&config.train.dir.join(SUMMARY_FILE), &text)?;
        Ok(summary)
    }
}

/// Puts a checkpoint's state into the network and the optimizer.
fn restore(
    found: &Checkpoint,
    config: &RunConfig,
    loader: &Loader,
    learner: &mut Learner,
    optimizer: &mut dyn Optimizer,
    probe: Option<&mut OnlineProbe>,
) -> Result<(u64, Position)> {
    let State { step, position, samples, config: saved, .. } = &found.state;
    let here = loader.set().len() as u64;
    // Before the first step there is no order yet that could differ.
    if *step > 0 && *samples != here {
        bail!(
            "{} was made with {samples} training samples, the shards hold {here}: the order of \
             the samples would differ",
            found.path.display()
        );
    }
    let (was, is) = (&saved.train, &config.train);
    if *step > 0 && (was.batch_size, was.seed) != (is.batch_size, is.seed) {
        bail!(
            "{} was made with batch size {} and seed {}, not {} and {}: resume with those",
            found.path.display(),
            was.batch_size,
            was.seed,
            is.batch_size,
            is.seed
        );
    }
    let context = || format!("{} does not fit this configuration", found.path.display());
    learner.net().load_state_dict(&found.weights()?).with_context(context)?;
    learner.load_state(found.method()?).with_context(context)?;
    optimizer.load_state(&found.optimizer()?).with_context(context)?;
    if let Some(probe) = probe {
        // A run that did without one so far may take one up.
        probe.load_state(&found.probe()?).with_context(context)?;
    }
    Ok((*step, *position))
}

/// Wall time by stage of the training thread.
struct Clock {
    begun: Instant,
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
    lane: Option<Lane>,
}

impl Clock {
    fn start(lane: Option<Lane>) -> Self {
        Clock { begun: Instant::now(), last: Instant::now(), laps: Vec::new(), lane }
    }

    /// Adds the time since the last call to `stage`.
    fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        if let Some(lane) = &mut self.lane {
            lane.span(stage, self.last, now);
        }
        let time = now - std::mem::replace(&mut self.last, now);
        match self.laps.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, sum)) => *sum += time,
            None => self.laps.push((stage, time)),
        }
    }
}
