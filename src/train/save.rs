//! Checkpoints of a run, and back: when they are due, what they hold.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use bt_pipeline::{Loader, Position};

use super::clock::Clock;
use super::run::Run;
use crate::checkpoint::{self, Checkpoint, State, Tensors};
use crate::config::{OnCheckpointError, RunConfig};
use crate::eval::OnlineProbe;
use crate::learner::Learner;
use crate::optim::Optimizer;
use crate::signals::Stop;

impl Run {
    /// Saves and evaluates when it is time to.
    pub(super) fn after_step(
        &mut self,
        config: &RunConfig,
        stop: &Stop,
        clock: &mut Clock,
    ) -> Result<()> {
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
            let (given_up, begun) = (stop.overdue_flag(), Instant::now());
            match crate::eval::knn_during_training(self.learner.net(), config, given_up) {
                Err(_) if stop.overdue() => {}
                accuracy => self.metrics.knn(self.step, accuracy?, begun.elapsed())?,
            }
            clock.lap("evaluation");
        }
        Ok(())
    }

    pub(super) fn save(&mut self, config: &RunConfig) -> Result<()> {
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
}

/// Puts a checkpoint's state into the network and the optimizer.
pub(super) fn restore(
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
    let order = |config: &RunConfig| {
        (config.data.shuffle, config.data.window_shards, config.data.window_samples)
    };
    if *step > 0 && (order(saved) != order(config) || saved.method.0 != config.method.0) {
        bail!(
            "{} was made with method `{}` and data.shuffle = {:?}, not `{}` and {:?} (or another window): resume \
             with those, or begin another run with train.init",
            found.path.display(),
            saved.method.0,
            saved.data.shuffle,
            config.method.0,
            config.data.shuffle
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
