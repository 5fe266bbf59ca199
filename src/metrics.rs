//! What a run says about itself: one JSON line every n steps, and the progress
//! line on a terminal.

mod history;
mod tally;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bt_pipeline::Image;
use bt_pipeline::stats::{BadSample, Snapshot, Stats};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::files::LineLog;
use crate::loss::LossOutput;
use crate::loss::diagnostics::{Diagnostics, Health};
use crate::prometheus::Board;
use crate::tensorboard::EventWriter;

use history::{drop_later_lines, lines_of};
pub use history::{read, set_aside_after};
pub use tally::Tally;

/// File in the run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// File in the run's folder with the lines of steps that the run was taken back before.
pub const ASIDE_METRICS_FILE: &str = "aside-metrics.jsonl";

/// File in the run's folder that lists the samples that were left out.
pub const LEDGER_FILE: &str = "bad-samples.jsonl";

/// File in the run's folder with the batches whose numbers were not finite.
pub const BAD_BATCHES_FILE: &str = "bad-batches.jsonl";

/// Time between two lines that are printed where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// Eigenvalues of a spectrum that a line holds at most.
const SPECTRUM: usize = 40;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Epochs done, with the fraction of the present one.
    pub epoch: f64,
    /// Seconds since this process began to train.
    pub seconds: f64,
    /// When the process that wrote the line opened the file, in Unix milliseconds: tells the
    /// processes of a run apart. Absent in lines of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
    /// The loss, mean over the steps since the last line.
    pub loss: Option<f64>,
    /// The invariance term, likewise.
    pub invariance: Option<f64>,
    /// The redundancy term (lambda included), likewise.
    pub redundancy: Option<f64>,
    /// Mean of C's diagonal.
    pub on_diag: Option<f64>,
    /// Root mean square of C's off-diagonal elements.
    pub off_diag: Option<f64>,
    /// Learning rate of weights.
    pub lr_weights: Option<f64>,
    /// Learning rate of biases and BN parameters.
    pub lr_biases: Option<f64>,
    /// Source images per second since the last line.
    pub images_per_s: Option<f64>,
    /// Share of the time since the last line spent waiting for data.
    pub wait: Option<f64>,
    /// The stage that limits.
    pub limit: Option<String>,
    /// Samples left out so far, repetitions counted.
    pub bad: Option<u64>,
    /// kNN accuracy on `data.val`, 0 to 1.
    pub knn: Option<f64>,
    /// Accuracy of the online linear probe on the batches since the last line, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<f64>,
    /// Collapse and information, of one batch's embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnostics: Option<Diagnostics>,
}

impl Line {
    /// Whether the process that wrote this line wrote `next` as well, the line after it. Of lines
    /// that do not say so, a process begins where the seconds are fewer than before.
    pub fn same_process(&self, next: &Line) -> bool {
        match (self.began, next.began) {
            (None, None) => self.seconds <= next.seconds,
            (this, that) => this == that,
        }
    }
}

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
    ledger: LineLog,
    batches: LineLog,
    /// Lines of the ledger, so that a resumed run adds none twice.
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
        let ledger = dir.join(LEDGER_FILE);
        let (file, ledger_log) = (LineLog::open(&path)?, LineLog::open(&ledger)?);
        let batches = dir.join(BAD_BATCHES_FILE);
        let listed = [&ledger, &batches].map(|path| std::fs::read(path).unwrap_or_default());
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
            ledger: ledger_log,
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
            self.say(&format!("warning: no more events for TensorBoard: {error:#}"));
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
        let epoch = step as f64 / self.steps_per_epoch as f64;
        let seconds = self.begun.elapsed().as_secs_f64();
        let diagnostics = Some(found.thinned(SPECTRUM));
        self.event(|events| events.histogram(step, "embeddings/std", &found.std));
        self.write(Line { step, epoch, seconds, diagnostics, ..Line::default() })
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

    fn line(
        &mut self,
        step: u64,
        (lr_weights, lr_biases): (f64, f64),
        stats: &Stats,
    ) -> Result<()> {
        let now = Instant::now();
        let snapshot = stats.snapshot();
        let (wall, since) = (now - self.last.0, snapshot.since(&self.last.1));
        let bad = self.tally.bad;
        let sums = std::mem::replace(&mut self.tally, Tally { bad, ..Tally::default() });
        let of = |sum: f64, count: u64| Some(sum / count as f64).filter(|mean| mean.is_finite());
        let mean = |sum: f64| of(sum, sums.steps);
        let correlation = |sum: f64| of(sum, sums.correlations);
        let rate = std::mem::take(&mut self.images) as f64 / wall.as_secs_f64();
        let wait = share(since.batch_wait, wall);
        let limit = since.limit(wall);
        let line = Line {
            step,
            epoch: step as f64 / self.steps_per_epoch as f64,
            seconds: self.begun.elapsed().as_secs_f64(),
            began: None,
            loss: mean(sums.loss),
            invariance: mean(sums.invariance),
            redundancy: mean(sums.redundancy),
            on_diag: correlation(sums.on_diag),
            off_diag: correlation(sums.off_diag),
            lr_weights: Some(lr_weights),
            lr_biases: Some(lr_biases),
            images_per_s: Some(rate),
            wait: Some(wait),
            limit: Some(limit.name().to_owned()),
            bad: Some(bad),
            knn: None,
            online: of(sums.online, sums.probed),
            diagnostics: None,
        };
        let said = format!(
            "epoch {:>6.2}  loss {:>9.3}  {:>7.0} images/s  limit {limit}{}",
            line.epoch,
            line.loss.unwrap_or(f64::NAN),
            rate,
            if bad > 0 { format!("  bad {bad}") } else { String::new() },
        );
        if self.bar.is_hidden() && (step == self.steps || now - self.told >= BETWEEN_LINES) {
            // A log of a run of days tells how it goes, too.
            self.told = now;
            self.say(&format!("step {step} of {}  {said}  rate {lr_weights:.2e}", self.steps));
        }
        self.bar.set_message(said);
        self.write(line)?;
        self.last = (now, snapshot);
        Ok(())
    }

    /// Writes the kNN accuracy after `step`, which took `took` to find.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn knn(&mut self, step: u64, accuracy: f64, took: Duration) -> Result<()> {
        let epoch = step as f64 / self.steps_per_epoch as f64;
        let seconds = self.begun.elapsed().as_secs_f64();
        self.say(&format!("epoch {epoch:.0}: kNN {:.1}%", accuracy * 100.0));
        self.write(Line { step, epoch, seconds, knn: Some(accuracy), ..Line::default() })?;
        // The evaluation's time belongs to no step.
        self.last.0 += took;
        Ok(())
    }

    /// Writes to the ledger what the loader left out since the last call and what no process of
    /// this run has listed before.
    ///
    /// # Errors
    /// None that a record can have.
    pub fn record_bad(&mut self, bad: &[BadSample]) -> Result<()> {
        for sample in bad {
            let text = serde_json::to_string(sample)?;
            if self.listed.insert(text.clone()) {
                let written = self.ledger.add(&text);
                self.note(written);
            }
        }
        Ok(())
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

    /// Ends the progress line.
    ///
    /// # Errors
    /// When there are lines that could not be written to the end.
    pub fn finish(&mut self) -> Result<()> {
        self.bar.finish_and_clear();
        self.file.flush()?;
        self.ledger.flush()?;
        self.batches.flush()
    }

    fn write(&mut self, line: Line) -> Result<()> {
        let line = Line { began: self.began, ..line };
        let written = self.file.add(&serde_json::to_string(&line)?);
        self.note(written);
        if let Some(board) = &self.board {
            board.line(&line);
        }
        self.event(|events| events.line(&line));
        Ok(())
    }

    /// A line that cannot be written is no reason to end a run: it is kept. That is said once.
    fn note(&mut self, written: Result<()>) {
        match written {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                self.say(&format!("warning: {error:#}; what is to be written is kept"));
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

fn share(part: Duration, whole: Duration) -> f64 {
    (part.as_secs_f64() / whole.as_secs_f64().max(1e-9)).min(1.0)
}

#[cfg(test)]
mod tests;
