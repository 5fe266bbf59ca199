//! A line of `metrics.jsonl`, and how a run comes to write it.

use std::time::{Duration, Instant};

use anyhow::Result;
use bt_pipeline::stats::Stats;
use serde::{Deserialize, Serialize};

use super::{Metrics, Tally};
use crate::loss::diagnostics::Diagnostics;

/// Time between two lines that are printed where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

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

impl Metrics {
    /// A line of `step`, without figures yet.
    pub(super) fn blank(&self, step: u64) -> Line {
        let epoch = step as f64 / self.steps_per_epoch as f64;
        let seconds = self.begun.elapsed().as_secs_f64();
        Line { step, epoch, seconds, began: self.began, ..Line::default() }
    }

    /// Writes what the steps since the last line tell, and shows it.
    pub(super) fn line(
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
            online: of(sums.online, sums.probed),
            ..self.blank(step)
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
        self.write(&line)?;
        self.last = (now, snapshot);
        Ok(())
    }

    /// Writes the line to the file, and to who shows it.
    pub(super) fn write(&mut self, line: &Line) -> Result<()> {
        let written = self.file.add(&serde_json::to_string(line)?);
        self.note(written);
        if let Some(board) = &self.board {
            board.line(line);
        }
        self.event(|events| events.line(line));
        Ok(())
    }
}

fn share(part: Duration, whole: Duration) -> f64 {
    (part.as_secs_f64() / whole.as_secs_f64().max(1e-9)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_time_is_one_at_most() {
        let share = |part, whole| share(Duration::from_secs(part), Duration::from_secs(whole));
        assert_eq!([share(0, 4), share(1, 4), share(4, 4), share(5, 4)], [0.0, 0.25, 1.0, 1.0]);
        assert_eq!(share(0, 0), 0.0);
    }
}
