//! Checkpoints of a run: when they are due, what they hold.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use bt_pipeline::Position;

use super::clock::Clock;
use super::restore::cuts;
use super::run::Run;
use super::saver::Written;
use crate::checkpoint::{self, State, Tensors};
use crate::config::{OnCheckpointError, RunConfig};
use crate::eval::OnlineProbe;
use crate::learner::StepPart;
use crate::nn::storage;
use crate::print::one_line;
use crate::signals::Stop;

impl Run {
    /// Begins to save, and evaluates, when it is time to.
    ///
    /// # Errors
    /// What became of the checkpoint before, as `checkpoint.on_error` has it; [`super::Diverged`]; what
    /// metrics or the device do not allow.
    pub(super) fn after_step(
        &mut self,
        config: &RunConfig,
        stop: &Stop,
        clock: &mut Clock,
    ) -> Result<()> {
        let Position { epoch, batch } = self.progress.position;
        let every = &config.checkpoint;
        let due_by_epoch = batch == 0 && epoch.is_multiple_of(every.every_epochs);
        let due_by_step =
            every.every_steps > 0 && self.progress.step.is_multiple_of(every.every_steps);
        let due = due_by_epoch || due_by_step;
        let written = if due { self.saver.wait() } else { self.saver.poll() };
        self.take_up(config, written)?;
        // A batch that was passed over adds no step to what is saved.
        if due && self.progress.saved != Some(self.progress.step) {
            let (state, tensors) = self.finite_snapshot(config)?;
            self.saver.begin(state, tensors);
        }
        if due {
            clock.lap(StepPart::Checkpoint);
        }
        self.evaluate(config, stop, clock)
    }

    /// Evaluates where it is time to. What goes wrong there, the disk of `data.val` say, is said
    /// and ends no training; a signal that ends it leaves [`Run::unevaluated`].
    pub(super) fn evaluate(
        &mut self,
        config: &RunConfig,
        stop: &Stop,
        clock: &mut Clock,
    ) -> Result<()> {
        if !self.evaluation_due(config) {
            return Ok(());
        }
        let (given_up, begun) = (stop.overdue_flag(), Instant::now());
        match crate::eval::knn_during_training(
            self.learner.net(),
            config,
            self.loader.set(),
            given_up,
        ) {
            Err(_) if stop.overdue() => self.unevaluated = true,
            Err(error) => {
                self.metrics.say(&format!("warning: no kNN accuracy: {}", one_line(&error)))
            }
            Ok(accuracy) => self.metrics.knn(self.progress.step, accuracy, begun.elapsed())?,
        }
        clock.lap(StepPart::Evaluation);
        Ok(())
    }

    /// Whether this is the end of an epoch after which `eval.knn_every` asks for an evaluation: every
    /// so many, and the last one.
    fn evaluation_due(&self, config: &RunConfig) -> bool {
        let (Position { epoch, batch }, every) = (self.progress.position, config.eval.knn_every);
        let due = epoch.is_multiple_of(every.max(1)) || epoch == config.train.epochs;
        batch == 0 && epoch > 0 && every > 0 && due
    }

    /// Notes what became of a checkpoint that was written beside the steps.
    fn take_up(&mut self, config: &RunConfig, written: Option<Written>) -> Result<()> {
        let Some(Written { step, path }) = written else { return Ok(()) };
        match path {
            Ok(path) => {
                (self.progress.checkpoint, self.progress.saved) = (path, Some(step));
                Ok(())
            }
            Err(error) if config.checkpoint.on_error == OnCheckpointError::Warn => {
                self.metrics
                    .say(&format!("warning: {}; going on to the next one", one_line(&error)));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the checkpoint that is being written. That it could not be is said: what the run
    /// does now takes its place.
    pub(super) fn settle(&mut self, config: &RunConfig) {
        let written = self.saver.wait();
        if let Err(error) = self.take_up(config, written) {
            self.metrics.say(&format!("warning: {}", one_line(&error)));
        }
    }

    /// Saves what is not saved yet.
    ///
    /// # Errors
    /// When it cannot be written, whatever `checkpoint.on_error` says; [`super::Diverged`].
    pub(super) fn save(&mut self, config: &RunConfig, stop: &Stop) -> Result<()> {
        if self.progress.saved == Some(self.progress.step) {
            return Ok(());
        }
        if stop.interrupted().is_some() {
            // Of a large network on a slow disk it takes longer than a step may.
            self.metrics.say("saving a checkpoint; a second signal gives it up");
        }
        self.settle(config);
        if self.progress.saved == Some(self.progress.step) {
            return Ok(());
        }
        let (state, tensors) = self.finite_snapshot(config)?;
        let keep = config.checkpoint.keep;
        self.progress.checkpoint = checkpoint::save(&config.train.dir, state, tensors, keep)?;
        self.progress.saved = Some(self.progress.step);
        Ok(())
    }

    /// Saves steps of this process before an error that is not theirs ends it; that they cannot be
    /// saved is said.
    pub(super) fn save_before_the_end(&mut self, config: &RunConfig, stop: &Stop) {
        if self.progress.step > self.progress.begun_step
            && let Err(cause) = self.save(config, stop)
        {
            self.metrics.say(&format!("warning: {}", one_line(&cause)));
        }
    }

    /// Saves the state where no run continues from by itself, unless one of its numbers is not
    /// finite.
    pub(super) fn save_aside(&mut self, config: &RunConfig) -> Result<Option<PathBuf>> {
        let (state, tensors) = self.snapshot(config)?;
        match tensors.first_not_finite()? {
            None => checkpoint::save_aside(&config.train.dir, state, tensors).map(Some),
            Some(_) => Ok(None),
        }
    }

    /// A copy of all that a checkpoint holds, every number of it finite. That is looked for here:
    /// no loss has seen yet what the last step did, and none ever sees an infinite second moment,
    /// with which AdamW leaves a weight as it is for good.
    ///
    /// # Errors
    /// [`super::Diverged`] where the last step has ruined it: it takes no good checkpoint's place.
    fn finite_snapshot(&mut self, config: &RunConfig) -> Result<(State, Tensors)> {
        let (state, tensors) = self.snapshot(config)?;
        match tensors.first_not_finite()? {
            None => Ok((state, tensors)),
            Some(name) => {
                let cause = format!("{name} is not finite");
                bail!(self.diverged(config, cause, self.progress.step, false, None))
            }
        }
    }

    /// A copy of all that a checkpoint holds, on the CPU: the next step changes none of it.
    fn snapshot(&mut self, config: &RunConfig) -> Result<(State, Tensors)> {
        self.check_probe()?;
        let samples = self.loader.set().len() as u64;
        let mut state = State::new(self.progress.step, self.progress.position, samples, config);
        state.fingerprint.clone_from(&self.fingerprint);
        (state.cuts, state.rewinds) = (cuts(self.loader.set()), self.progress.rewinds);
        state.tally.clone_from(self.metrics.tally());
        state.probe_given_up = self.probe_given_up;
        let probe = self.probe.as_ref().map(OnlineProbe::state).unwrap_or_default();
        let tensors = Tensors {
            weights: self.learner.net().state_dict()?,
            optimizer: storage::copies(self.optimizer.state())?,
            method: self.learner.state()?,
            probe: storage::copies(probe)?,
        };
        Ok((state, tensors))
    }
}
