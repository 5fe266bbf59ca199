//! What a run holds between two steps, and the gradients of a batch.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use bt_pipeline::stats::Stats;
use bt_pipeline::{Batch, Loader, Position};

use super::clock::Clock;
use super::saver::Saver;
use crate::checkpoint::{Checkpoint, State};
use crate::config::RunConfig;
use crate::eval::OnlineProbe;
use crate::intake::{Arriving, Intake};
use crate::learner::{Learner, StepHooks, StepOutcome, StepPart};
use crate::loss::LossOutput;
use crate::metrics::Metrics;
use crate::optim::{Optimizer, Schedule};
use crate::prometheus::{Board, Server};

/// All that a run holds between two steps.
pub(super) struct Run {
    pub(super) intake: Intake,
    pub(super) loader: Loader,
    pub(super) learner: Learner,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) schedule: Schedule,
    pub(super) metrics: Metrics,
    pub(super) progress: Progress,
    pub(super) probe: Option<OnlineProbe>,
    /// The probe was ruined, here or before the run was resumed: none takes its place.
    pub(super) probe_given_up: bool,
    pub(super) embeddings: String,
    /// Figures for Prometheus, and who hands them out.
    pub(super) board: Option<Arc<Board>>,
    pub(super) _server: Option<Server>,
    /// The epoch whose pictures were drawn last.
    pub(super) pictured: Option<u64>,
    /// Of the training set; see [`super::restore::fingerprint`].
    pub(super) fingerprint: String,
    /// A signal ended an evaluation that was due.
    pub(super) unevaluated: bool,
    /// Before the lock: it writes to the folder until it is gone.
    pub(super) saver: Saver,
    /// Held for as long as the run writes to its folder.
    pub(super) _lock: File,
}

/// How far a run is.
#[derive(Default)]
pub(super) struct Progress {
    /// Steps done.
    pub(super) step: u64,
    /// The next batch.
    pub(super) position: Position,
    /// Steps done when this process began.
    pub(super) begun_step: u64,
    /// Source images that this process trained on.
    pub(super) images: u64,
    /// Batches passed over since the last step.
    pub(super) rewinds: u32,
    /// Steps done when the newest checkpoint was written.
    pub(super) saved: Option<u64>,
    /// The newest checkpoint.
    pub(super) checkpoint: PathBuf,
}

impl Progress {
    /// Of a process that goes on from `found`.
    pub(super) fn after(found: &Checkpoint) -> Self {
        let State { step, position, rewinds, .. } = found.state;
        Progress {
            step,
            position,
            begun_step: step,
            images: 0,
            rewinds,
            // One that was set aside is none that a later process goes on from.
            saved: found.is_in_line().then_some(step),
            checkpoint: found.path.clone(),
        }
    }
}

impl Run {
    /// The batch's loss with every gradient set, and what of it is not finite. Moves nothing that
    /// [`Learner::take_back`] does not undo. `fetch` is called while a device computes.
    pub(super) fn gradients(
        &mut self,
        arriving: &Arriving,
        clock: &mut Clock,
        mut fetch: impl FnMut(&mut Intake),
    ) -> Result<StepOutcome> {
        let images = self.intake.images(arriving)?;
        clock.lap(StepPart::CopyIn);
        self.learner.remember()?;
        let (learner, intake) = (&mut self.learner, &mut self.intake);
        let (mut lap, mut meanwhile) = (|part| clock.lap(part), || fetch(intake));
        let hooks = StepHooks { lap: Some(&mut lap), meanwhile: Some(&mut meanwhile) };
        learner.gradients(&images, hooks)
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
        let rates = self.schedule.rates(self.progress.step);
        self.optimizer.step(&mut self.learner.params(), rates.0, rates.1)?;
        self.learner.follow(self.progress.step, self.schedule.steps)?;
        clock.lap(StepPart::Optimizer);
        self.progress.rewinds = 0;
        self.progress.images += batch.size() as u64;
        self.advance(batch);
        self.step_probe(batch)?;
        self.diagnose(config, batch)?;
        self.metrics.count(batch.size(), out);
        self.metrics.step(self.progress.step, batch.bad, rates, stats)?;
        clock.lap(StepPart::Measure);
        self.board
            .iter()
            .for_each(|board| board.step(self.progress.step, batch.size(), &clock.laps));
        Ok(())
    }

    pub(super) fn advance(&mut self, batch: &Batch) {
        self.progress.step += 1;
        self.progress.position = Position { epoch: batch.epoch, batch: batch.index + 1 };
        if self.progress.position.batch == self.loader.batches_per_epoch() {
            self.progress.position = Position { epoch: batch.epoch + 1, batch: 0 };
        }
    }
}
