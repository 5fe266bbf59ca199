//! What a run says about itself: one JSON line every n steps, and the progress
//! line on a terminal.

mod history;
mod line;
mod tally;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bt_pipeline::Image;
use bt_pipeline::stats::{BadSample, Snapshot, Stats};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::files::LineLog;
use crate::loss::LossOutput;
use crate::loss::diagnostics::{Diagnostics, Health};
use crate::print::one_line;
use crate::prometheus::Board;
use crate::tensorboard::EventWriter;

use history::{drop_later_lines, lines_of};
pub use history::{read, set_aside_after};
pub use line::Line;
pub use tally::Tally;

/// File in the run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// File in the run's folder with the lines of steps that the run was taken back before.
pub const ASIDE_METRICS_FILE: &str = "aside-metrics.jsonl";

/// File in the run's folder that lists the samples that were left out.
pub const BAD_SAMPLES_FILE: &str = "bad-samples.jsonl";

/// File in the run's folder with the batches whose numbers were not finite.
pub const BAD_BATCHES_FILE: &str = "bad-batches.jsonl";

/// Eigenvalues of a spectrum that a line holds at most.
const SPECTRUM: usize = 40;

/// How long a run is, in optimizer steps.
#[derive(Clone, Copy, Debug)]
pub struct RunLength {
    /// All of them.
    pub steps: u64,
    /// Those of one pass over the data.
    pub steps_per_epoch: u64,
}

/// Writes the metrics file and keeps the progress line.
pub struct Metrics {
    file: LineLog,
    samples: LineLog,
    batches: LineLog,
    /// Lines of bad samples and batches, so that a resumed run adds none twice.
    listed: HashSet<String>,
    /// Whether the last write failed.
    failing: bool,
    every: u64,
    steps: u64,
    steps_per_epoch: u64,
    begun: Instant,
    /// See [`Line::began`].
    began: Option<u64>,
    last: (Instant, Snapshot),
    /// When a line was last printed for a log.
    told: Instant,
    tally: Tally,
    /// Source images of this process since the last line.
    images: u64,
    health: Option<Health>,
    events: Option<EventWriter>,
    board: Option<Arc<Board>>,
    /// Of the run, where several print.
    name: String,
    bar: ProgressBar,
}

impl Metrics {
    /// Opens the file in `dir`, for a line each `every` steps. Lines after `step`, which a run that
    /// was cut off left behind, are taken out.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(dir: &Path, step: u64, length: RunLength, every: u64) -> Result<Self> {
        let RunLength { steps, steps_per_epoch } = length;
        let path = dir.join(METRICS_FILE);
        drop_later_lines(&path, step).with_context(|| path.display().to_string())?;
        let samples = dir.join(BAD_SAMPLES_FILE);
        let (file, samples_log) = (LineLog::open(&path)?, LineLog::open(&samples)?);
        let batches = dir.join(BAD_BATCHES_FILE);
        let listed = [&samples, &batches].map(|path| std::fs::read(path).unwrap_or_default());
        let batches = LineLog::open(&batches)?;
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} {eta} left")
                .context("progress template")?,
        );
        bar.set_position(step);
        bar.reset_eta();
        Ok(Metrics {
            file,
            samples: samples_log,
            batches,
            listed: listed.iter().flat_map(|text| lines_of(text)).map(str::to_owned).collect(),
            failing: false,
            every,
            steps,
            steps_per_epoch,
            begun: Instant::now(),
            began: unix_ms(),
            last: (Instant::now(), Snapshot::default()),
            told: Instant::now(),
            tally: Tally::default(),
            images: 0,
            health: None,
            events: None,
            board: None,
            name: String::new(),
            bar,
        })
    }

    /// The same, which goes on counting from `tally`, a checkpoint's.
    pub fn counting_from(self, tally: Tally) -> Self {
        Metrics { tally, ..self }
    }

    /// What was counted so far, for a checkpoint.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The same, whose printed lines begin with `name`.
    pub fn named(self, name: &str) -> Self {
        Metrics { name: name.to_owned(), ..self }
    }

    /// The same, whose lines also go to TensorBoard and to Prometheus.
    pub fn shown(self, events: Option<EventWriter>, board: Option<Arc<Board>>) -> Self {
        Metrics { events, board, ..self }
    }

    /// Whether pictures are of use.
    pub fn takes_pictures(&self) -> bool {
        self.events.is_some()
    }

    /// Puts a picture beside the curves.
    pub fn picture(&mut self, step: u64, tag: &str, image: &Image) {
        self.event(|events| events.image(step, tag, image));
    }

    /// Writes an event; a file that cannot be written is given up, and the run goes on.
    fn event(&mut self, write: impl FnOnce(&mut EventWriter) -> Result<()>) {
        if let Some(events) = &mut self.events
            && let Err(error) = write(events)
        {
            self.events = None;
            self.say(&format!("warning: no more events for TensorBoard: {}", one_line(&error)));
        }
    }

    /// Counts a batch of the online probe: the share of right answers.
    pub fn online(&mut self, accuracy: f64) {
        self.tally.online += accuracy;
        self.tally.probed += 1;
    }

    /// Writes what the embeddings of the batch of `step` tell; says so when that has changed for
    /// the worse.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn diagnostics(&mut self, step: u64, found: &Diagnostics) -> Result<()> {
        let health = found.health();
        if self.health.replace(health) != Some(health) && health != Health::Healthy {
            self.say(&format!("step {step}: {}", found.describe()));
        }
        let line = Line { diagnostics: Some(found.thinned(SPECTRUM)), ..self.blank(step) };
        self.event(|events| events.histogram(step, "embeddings/std", &found.std));
        self.write(&line)
    }

    /// Counts a step on `images` source images.
    pub fn count(&mut self, images: usize, out: &LossOutput) {
        let tally = &mut self.tally;
        tally.steps += 1;
        tally.loss += out.loss;
        tally.invariance += out.invariance;
        tally.redundancy += out.redundancy;
        if let Some(c) = &out.correlation {
            tally.correlations += 1;
            tally.on_diag += c.on_diag_mean;
            tally.off_diag += c.off_diag_rms.unwrap_or(f64::NAN);
        }
        self.images += images as u64;
    }

    /// `step` steps are done, the last with a batch on the way to which `bad` samples were left
    /// out: each `every` of them, and after the last, a line is written of those that moved the
    /// weights.
    ///
    /// # Errors
    /// When a line cannot be written.
    pub fn step(&mut self, step: u64, bad: u32, rates: (f64, f64), stats: &Stats) -> Result<()> {
        self.tally.bad += u64::from(bad);
        self.bar.set_position(step);
        let due = step.is_multiple_of(self.every) || step == self.steps;
        if due && self.tally.steps > 0 { self.line(step, rates, stats) } else { Ok(()) }
    }

    /// Writes the kNN accuracy after `step`, which took `took` to find.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn knn(&mut self, step: u64, accuracy: f64, took: Duration) -> Result<()> {
        let line = Line { knn: Some(accuracy), ..self.blank(step) };
        self.say(&format!("epoch {:.0}: kNN {:.1}%", line.epoch, accuracy * 100.0));
        self.write(&line)?;
        // The evaluation's time belongs to no step.
        self.last.0 += took;
        Ok(())
    }

    /// Lists what the loader left out since the last call and what no process of
    /// this run has listed before.
    pub fn record_bad(&mut self, bad: &[BadSample]) {
        for sample in bad {
            // Text and numbers: nothing that JSON cannot hold.
            let Ok(text) = serde_json::to_string(sample) else { continue };
            if self.listed.insert(text.clone()) {
                let written = self.samples.add(&text);
                self.note(written);
            }
        }
    }

    /// Notes a batch whose numbers were not finite, if no process of this run has noted it before.
    pub fn record_batch(&mut self, line: &serde_json::Value) {
        let text = line.to_string();
        if self.listed.insert(text.clone()) {
            let written = self.batches.add(&text);
            self.note(written);
        }
    }

    /// A line for the person, above the progress bar where there is one.
    pub fn say(&self, text: &str) {
        let text = format!("{}{text}", self.name);
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Ends the progress line, and writes the lines that a full disk has kept back.
    ///
    /// # Errors
    /// When they still cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        self.bar.finish_and_clear();
        self.file.flush()?;
        self.samples.flush()?;
        self.batches.flush()
    }

    /// A line that cannot be written is no reason to end a run: it is kept. That is said once.
    fn note(&mut self, written: Result<()>) {
        match written {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                self.say(&format!("warning: {}; what is to be written is kept", one_line(&error)));
            }
            Err(_) => {}
        }
    }
}

/// Milliseconds since 1970; none by a clock before that.
fn unix_ms() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests;
