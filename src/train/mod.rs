//! The training loop: batch -> learner's forward -> loss -> gradients -> step.

mod clock;
mod diagnose;
mod diverged;
mod prepare;
mod restore;
mod run;
mod save;
mod saver;
mod summary;
mod warnings;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use bt_pipeline::BatchStream;
use bt_pipeline::trace::Trace;

use crate::config::RunConfig;
use crate::intake::Intake;
use crate::learner::{StepOutcome, StepPart};
use crate::print::one_line;
use crate::signals::Stop;

use clock::Clock;
use run::Run;

pub use diverged::Diverged;
pub(crate) use prepare::start_from;
pub(crate) use restore::fingerprint;
pub use summary::{SUMMARY_FILE, Summary};

/// Where a run's figures go, beside its folder.
#[derive(Clone, Debug, Default)]
pub struct RunOutputs {
    /// Address on which Prometheus finds its figures; none are served without one.
    pub prometheus: Option<SocketAddr>,
    /// Where its threads note what they do.
    pub trace: Option<Arc<Trace>>,
    /// What its printed lines begin with; nothing where it is the only one that prints.
    pub line_prefix: String,
}

/// Where a run begins.
#[derive(Clone, Debug)]
pub enum ResumeFrom {
    /// At its first step.
    Scratch,
    /// At the newest intact checkpoint of its folder, or at its first step where there is none,
    /// which is said.
    Latest,
    /// At this checkpoint of its folder; later ones are set aside.
    Checkpoint(PathBuf),
}

/// Trains as `config` says, beginning at `from`. `stop` ends the run after the step in progress,
/// or, when that takes too long, before it, with a checkpoint of the steps that were done.
///
/// # Errors
/// What the configuration, the data, the disk or the numbers do not allow.
pub fn train(
    config: &RunConfig,
    from: &ResumeFrom,
    stop: &Stop,
    outputs: &RunOutputs,
) -> Result<Summary> {
    let mut run = Run::prepare(config, from, outputs)?;
    run.learner.give_up_on(stop.overdue_flag());
    let mut stream = run.loader.start(run.progress.position, config.train.epochs)?;
    let stats = Arc::clone(stream.stats());
    run.board.iter().for_each(|board| board.follow(&stats));
    let begun_step = run.progress.begun_step;
    // The process before may have been stopped in it.
    let unevaluated = begun_step > 0 && !evaluated(&config.train.dir, begun_step);
    // From the first step on there is something to save.
    let _hold = stop.hold();
    let mut clock = Clock::start(outputs.trace.as_ref().map(|trace| trace.lane("training")));
    if unevaluated {
        run.evaluate(config, stop, &mut clock)?;
    }
    let trained = run.steps(config, &mut stream, stop, &mut clock);
    // Too many of them may be what ended the stream.
    run.metrics.record_bad(&stats.take_bad());
    let interrupted = trained? || run.unevaluated;
    if interrupted {
        run.metrics.say("stopping: a signal was received");
    }
    // Saved before the stream ends, which may be in the middle of a read that hangs.
    let summary = run.finish(config, clock, stats.snapshot(), interrupted, stop);
    drop(stream);
    summary
}

impl Run {
    /// A step for each batch of `stream`. Whether there are more that a signal left undone.
    fn steps(
        &mut self,
        config: &RunConfig,
        stream: &mut BatchStream,
        stop: &Stop,
        clock: &mut Clock,
    ) -> Result<bool> {
        let stats = Arc::clone(stream.stats());
        let mut given_up = false;
        // The batch that is on its way to the device while the one before is computed.
        let mut ahead = None;
        let mut fetch = |intake: &mut Intake| {
            let batch = stream.next_unless(stop.overdue_flag())?;
            Some(batch.map_err(anyhow::Error::from).and_then(|batch| intake.begin(batch)))
        };
        while let Some(fetched) = ahead.take().or_else(|| fetch(&mut self.intake)) {
            let arriving = match fetched {
                Err(error) => {
                    // The steps so far are good, and the data may be mended.
                    self.save_before_the_end(config, stop);
                    return Err(error);
                }
                Ok(arriving) => arriving,
            };
            let batch = arriving.batch();
            clock.lap(StepPart::WaitForData);
            let begun = self.gradients(&arriving, clock, |intake| ahead = fetch(intake));
            let StepOutcome { out, trouble } = match begun {
                Err(_) if stop.overdue() => {
                    self.learner.take_back()?;
                    given_up = true;
                    break;
                }
                Err(error) => {
                    match self.learner.take_back() {
                        Ok(()) => self.save_before_the_end(config, stop),
                        Err(cause) => self.metrics.say(&format!("warning: {}", one_line(&cause))),
                    }
                    return Err(error);
                }
                Ok(found) => found,
            };
            match trouble {
                Some(cause) => self.refuse(config, batch, cause, &stats)?,
                None => self.take_step(config, batch, &out, &stats, clock)?,
            }
            drop(arriving);
            // Before a checkpoint: a run that goes on from there does not meet them again.
            self.metrics.record_bad(&stats.take_bad());
            self.after_step(config, stop, clock)?;
            if stop.raised() {
                break;
            }
        }
        Ok(given_up || ahead.is_some() || stream.remaining() > 0)
    }
}

/// Whether the metrics in `dir` have an evaluation after `step`.
fn evaluated(dir: &Path, step: u64) -> bool {
    let lines = crate::metrics::read(dir).unwrap_or_default();
    lines.iter().any(|line| line.step == step && line.knn.is_some())
}
