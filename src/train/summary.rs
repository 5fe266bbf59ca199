//! How a run ended, and where its time went.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use bt_pipeline::stats::Snapshot;
use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::run::Run;
use crate::advice::Observed;
use crate::config::RunConfig;
use crate::learner::StepPart;
use crate::signals::Stop;

/// File in the run's folder that tells where the time went.
pub const SUMMARY_FILE: &str = "summary.json";

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Optimizer steps done, those before a resume included.
    pub steps: u64,
    /// Source images trained on by this process.
    pub images: u64,
    /// Times that this process left a sample out and took another; `bad-samples.jsonl` lists them.
    #[serde(default)]
    pub bad: u64,
    /// Whether a signal ended it before its last step.
    pub interrupted: bool,
    /// Wall seconds of this process, from the first batch asked for.
    pub seconds: f64,
    /// Seconds by part of the step.
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

impl Summary {
    /// The summary in the folder of a run that has ended.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(SUMMARY_FILE)).ok()?).ok()
    }

    fn write(&self, dir: &Path) -> Result<()> {
        crate::files::write_atomically(&dir.join(SUMMARY_FILE), &serde_json::to_vec_pretty(self)?)
    }
}

impl Run {
    /// Saves what is not saved yet and tells how it went.
    pub(super) fn finish(
        mut self,
        config: &RunConfig,
        mut clock: Clock,
        loader: Snapshot,
        interrupted: bool,
        stop: &Stop,
    ) -> Result<Summary> {
        self.save(config, stop)?;
        clock.lap(StepPart::Checkpoint);
        self.metrics.finish()?;
        let summary = match self.already_done(config, interrupted) {
            Some(earlier) => earlier,
            None => self.summary_of(config, &clock, &loader, interrupted),
        };
        summary.write(&config.train.dir)?;
        Ok(summary)
    }

    /// The summary of the process that did all the steps before this one began: what it wrote about
    /// them stays; what it was stopped in is done now.
    fn already_done(&self, config: &RunConfig, interrupted: bool) -> Option<Summary> {
        let steps = self.progress.step;
        if steps < self.schedule.steps || steps != self.progress.begun_step {
            return None;
        }
        self.metrics.say("the run has all its steps already: raise train.epochs to go on");
        let earlier = Summary::read(&config.train.dir)?;
        let checkpoint = self.progress.checkpoint.clone();
        Some(Summary { interrupted, steps, checkpoint, ..earlier })
    }

    fn summary_of(
        self,
        config: &RunConfig,
        clock: &Clock,
        loader: &Snapshot,
        interrupted: bool,
    ) -> Summary {
        let wall = clock.begun.elapsed();
        let seconds = |time: Duration| time.as_secs_f64();
        Summary {
            steps: self.progress.step,
            images: self.progress.images,
            bad: loader.bad,
            interrupted,
            seconds: seconds(wall),
            step_seconds: clock
                .laps
                .iter()
                .map(|(part, time)| (part.name().to_owned(), seconds(*time)))
                .collect(),
            loader_seconds: [
                ("read", loader.read),
                ("wait for the network", loader.network),
                ("decode", loader.decode),
                ("augment", loader.augment),
                ("wait for work", loader.work_wait),
            ]
            .map(|(name, time)| (name.to_owned(), seconds(time)))
            .to_vec(),
            limit: loader.limit(wall).name().to_owned(),
            advice: self.advice(config, clock, loader, wall),
            checkpoint: self.progress.checkpoint,
            embeddings: self.embeddings,
        }
    }

    /// What would have helped this process, if it did a step.
    fn advice(
        &self,
        config: &RunConfig,
        clock: &Clock,
        loader: &Snapshot,
        wall: Duration,
    ) -> String {
        if self.progress.step == self.progress.begun_step {
            return String::new();
        }
        let observed = Observed {
            loader,
            laps: &clock.laps,
            wall,
            threads: self.loader.threads(),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            seekable: self.loader.set().seekable(),
        };
        observed.sentence(config)
    }
}
