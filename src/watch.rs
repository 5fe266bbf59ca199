//! `bt-stream watch`: a run's figures on the terminal while they come in, or after.
//!
//! All that is known comes from the run's folder, so that any terminal that sees the folder can
//! watch: [`RunFolder`] follows the metrics file, [`RunFolder::draw`] shows what is there.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line as TextLine;
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Sparkline, Wrap};

use crate::config::{CONFIG_FILE, RunConfig};
use crate::metrics::{Line, METRICS_FILE};
use crate::train::Summary;
use crate::units::{duration, percent};

/// Seconds without a new line, as a multiple of what lines took before, after which a run without a
/// summary is shown as silent.
const PATIENCE: f64 = 10.0;

/// Seconds that are never silence, however fast lines came.
const LEAST_SILENCE: f64 = 60.0;

/// A figure of a line of metrics, where the line has it.
type Figure = fn(&Line) -> Option<f64>;

/// A curve of a chart: its name, how it is drawn, its values.
type Curve = (&'static str, Marker, Figure);

/// A run's folder, read as far as it is written.
pub struct RunFolder {
    dir: PathBuf,
    config: RunConfig,
    /// Which file the configuration was read from: device, number and when it was written.
    config_file: Option<(u64, u64, Option<SystemTime>)>,
    lines: Vec<Line>,
    /// Which file the metrics were read from: device and number.
    file: Option<(u64, u64)>,
    /// Bytes of it that were read.
    read: u64,
    /// What was read of a line that is not finished yet.
    begun: Vec<u8>,
    /// When the metrics file last grew.
    grown: Option<SystemTime>,
    summary: Option<Summary>,
}

impl RunFolder {
    /// Reads what is there.
    ///
    /// # Errors
    /// A folder that holds no run.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let config_file = file_identity(&path);
        let config = RunConfig::load(Some(&path), &[])
            .with_context(|| format!("{} is no run's folder", dir.display()))?;
        let mut folder = RunFolder {
            dir: dir.to_path_buf(),
            config,
            config_file,
            lines: Vec::new(),
            file: None,
            read: 0,
            begun: Vec::new(),
            grown: None,
            summary: None,
        };
        folder.poll()?;
        Ok(folder)
    }

    /// Reads what came since the last call.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn poll(&mut self) -> Result<()> {
        self.reload_config();
        let path = self.dir.join(METRICS_FILE);
        if let Ok(mut file) = File::open(&path) {
            let context = || path.display().to_string();
            let meta = file.metadata().with_context(context)?;
            let file_now = Some((meta.dev(), meta.ino()));
            if meta.len() < self.read || self.file != file_now {
                // A run that was resumed took lines out: what is left is another file.
                self.file = file_now;
                (self.read, self.lines, self.begun) = (0, Vec::new(), Vec::new());
            }
            self.grown = meta.modified().ok();
            file.seek(SeekFrom::Start(self.read)).with_context(context)?;
            self.read += file.read_to_end(&mut self.begun).with_context(context)? as u64;
            let whole = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let fresh = self.begun[..whole].split(|byte| *byte == b'\n');
            self.lines.extend(fresh.filter_map(|line| serde_json::from_slice::<Line>(line).ok()));
            self.begun.drain(..whole);
        }
        // The summary of an earlier part of the run says nothing of this one.
        let last = self.lines.iter().map(|line| line.step).max().unwrap_or(0);
        self.summary = Summary::read(&self.dir).filter(|summary| summary.steps >= last);
        Ok(())
    }

    /// Takes up the configuration of a run that goes on with another one. One that cannot be read
    /// changes nothing.
    fn reload_config(&mut self) {
        let path = self.dir.join(CONFIG_FILE);
        let now = file_identity(&path);
        if now != self.config_file
            && let Ok(config) = RunConfig::load(Some(&path), &[])
        {
            (self.config, self.config_file) = (config, now);
        }
    }

    /// The lines of the process that writes.
    fn lines_of_this_process(&self) -> &[Line] {
        let last_of_another = self.lines.windows(2).rposition(|two| !two[0].same_process(&two[1]));
        &self.lines[last_of_another.map_or(0, |at| at + 1)..]
    }

    fn last<T>(&self, value: impl FnMut(&Line) -> Option<T>) -> Option<T> {
        self.lines.iter().rev().find_map(value)
    }

    /// What the run does, in a word or two.
    fn status(&self, now: SystemTime) -> String {
        match &self.summary {
            Some(summary) if summary.interrupted => "interrupted".into(),
            Some(_) => "finished".into(),
            None if self.lines.is_empty() => "no line of metrics yet".into(),
            None => {
                let quiet = self.grown.and_then(|then| now.duration_since(then).ok());
                let quiet = quiet.unwrap_or(Duration::ZERO).as_secs_f64();
                let lines = self.lines_of_this_process();
                let span = lines.last().map_or(0.0, |line| line.seconds);
                let usual = span / lines.len() as f64;
                match quiet > (PATIENCE * usual).max(LEAST_SILENCE) {
                    true => format!("silent for {}", duration(quiet)),
                    false => "running".into(),
                }
            }
        }
    }

    /// What the dashboard shows, for programs: the status, the newest line of each kind, the
    /// summary.
    pub fn json(&self, now: SystemTime) -> serde_json::Value {
        let newest = |has: fn(&Line) -> bool| self.lines.iter().rev().find(|line| has(line));
        serde_json::json!({
            "run": self.dir.display().to_string(),
            "status": self.status(now),
            "training": newest(|line| line.loss.is_some()),
            "evaluation": self.evaluation(),
            "summary": self.summary,
        })
    }

    /// The newest kNN accuracy and the newest of the online probe, which have lines of their own,
    /// each with its step.
    fn evaluation(&self) -> Option<serde_json::Value> {
        let with = |value: Figure| self.last(|line| Some((value(line)?, line.step, line.epoch)));
        let (knn, online) = (with(|line| line.knn), with(|line| line.online));
        let (_, step, epoch) = [knn, online].into_iter().flatten().max_by_key(|found| found.1)?;
        Some(serde_json::json!({
            "step": step,
            "epoch": epoch,
            "knn": knn.map(|found| found.0),
            "knn_step": knn.map(|found| found.1),
            "online": online.map(|found| found.0),
            "online_step": online.map(|found| found.1),
        }))
    }

    /// Draws the dashboard; `now` decides whether the run is called silent.
    pub fn draw(&self, frame: &mut Frame<'_>, now: SystemTime) {
        let text = self.status_lines().join("\n");
        let inner = usize::from(frame.area().width.saturating_sub(2)).max(1);
        // Charts keep their rows on a small terminal.
        let most = frame.area().height.saturating_sub(14).max(6);
        let needed = u16::try_from(rows(&text, inner) + 2).unwrap_or(most).clamp(6, most);
        let [head, progress, charts, speed, status] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(8),
            Constraint::Length(4),
            Constraint::Length(needed),
        ])
        .areas(frame.area());
        let title = format!("{}  {}", self.dir.display(), self.status(now));
        frame.render_widget(TextLine::from(title).bold(), head);
        self.progress(frame, progress);
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(charts);
        self.chart(frame, left, &[("loss", Marker::Braille, |line| line.loss)]);
        // Dots for the few, a line for the many.
        let accuracy: [Curve; 2] = [
            ("kNN •", Marker::Dot, |line| line.knn),
            ("online probe", Marker::Braille, |line| line.online),
        ];
        match self.last(|line| line.knn.or(line.online)) {
            Some(_) => self.chart(frame, right, &accuracy),
            None => {
                let off: Curve = ("off the diagonal of C", Marker::Braille, |line| line.off_diag);
                self.chart(frame, right, &[off]);
            }
        }
        self.speed(frame, speed);
        let block = Block::bordered().title("now");
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }).block(block), status);
    }

    fn progress(&self, frame: &mut Frame<'_>, area: Rect) {
        let (done, all) =
            (self.last(|line| Some(line.epoch)).unwrap_or(0.0), self.config.train.epochs);
        let step = self.last(|line| Some(line.step)).unwrap_or(0);
        let ratio = (done / all.max(1) as f64).clamp(0.0, 1.0);
        let label = format!("epoch {done:.2} of {all}, step {step}{}", self.time_left(ratio));
        let style = Style::new().add_modifier(Modifier::DIM);
        frame.render_widget(Gauge::default().ratio(ratio).label(label).gauge_style(style), area);
    }

    /// The time to the end at the speed so far.
    fn time_left(&self, ratio: f64) -> String {
        let at = |line: Option<&Line>| line.map_or((0.0, 0.0), |line| (line.epoch, line.seconds));
        let lines = self.lines_of_this_process();
        let (first, last) = (at(lines.first()), at(lines.last()));
        let rate = (last.0 - first.0) / (last.1 - first.1);
        match self.summary.is_none() && ratio < 1.0 && rate.is_finite() && rate > 0.0 {
            true => {
                format!(", {} left", duration((self.config.train.epochs as f64 - last.0) / rate))
            }
            false => String::new(),
        }
    }

    fn chart(&self, frame: &mut Frame<'_>, area: Rect, curves: &[Curve]) {
        let points = |value: Figure| -> Vec<(f64, f64)> {
            let finite = |line: &Line| value(line).filter(|v| v.is_finite());
            self.lines.iter().filter_map(|line| Some((line.epoch, finite(line)?))).collect()
        };
        let curves = curves.iter().map(|(name, marker, value)| (*name, *marker, points(*value)));
        let curves: Vec<_> = curves.filter(|(.., points)| !points.is_empty()).collect();
        let bounds = |of: fn(&(f64, f64)) -> f64| {
            let all = || curves.iter().flat_map(|(.., points)| points.iter().map(of));
            let low = all().fold(f64::INFINITY, f64::min);
            let high = all().fold(f64::NEG_INFINITY, f64::max);
            if low <= high { [low, high] } else { [0.0, 1.0] }
        };
        let (x, y) = (bounds(|p| p.0), bounds(|p| p.1));
        let label = |value: f64| format!("{value:.4}").chars().take(6).collect::<String>();
        let axis = |[low, high]: [f64; 2]| {
            Axis::default().bounds([low, high.max(low + 1e-9)]).labels([label(low), label(high)])
        };
        let (mut names, mut lines) = (Vec::new(), Vec::new());
        for (name, marker, points) in &curves {
            names.extend(points.last().map(|(_, newest)| format!("{name} {newest:.4}")));
            let line = Dataset::default().marker(*marker).graph_type(GraphType::Line);
            lines.push(line.data(points));
        }
        let name = if names.is_empty() { "–".into() } else { names.join(", ") };
        let chart = Chart::new(lines).x_axis(axis(x)).y_axis(axis(y));
        frame.render_widget(chart.block(Block::bordered().title(name)), area);
    }

    fn speed(&self, frame: &mut Frame<'_>, area: Rect) {
        let rates: Vec<u64> =
            self.lines.iter().filter_map(|line| Some(line.images_per_s? as u64)).collect();
        let shown = &rates[rates.len().saturating_sub(usize::from(area.width.saturating_sub(2)))..];
        let name = rates.last().map_or("images/s".into(), |rate| format!("images/s {rate}"));
        let block = Block::bordered().title(name);
        frame.render_widget(Sparkline::default().data(shown).block(block), area);
    }

    /// What a person would ask next, a line each.
    fn status_lines(&self) -> Vec<String> {
        let mut out = Vec::new();
        let (wait, limit) = (self.last(|line| line.wait), self.last(|line| line.limit.clone()));
        if let (Some(wait), Some(limit)) = (wait, limit) {
            out.push(format!("limited by {limit}; the step waits {} of the time", percent(wait)));
        }
        let rate =
            self.last(|line| line.lr_weights).map(|rate| format!("learning rate {rate:.3e}"));
        let bad = self.last(|line| line.bad).filter(|bad| *bad > 0);
        let bad = bad.map(|bad| format!("{bad} samples left out"));
        let knn = self.last(|line| line.knn).map(|knn| format!("kNN {}", percent(knn)));
        let facts: Vec<String> = [rate, knn, bad].into_iter().flatten().collect();
        if !facts.is_empty() {
            out.push(facts.join(", "));
        }
        out.extend(self.last(|line| Some(line.diagnostics.as_ref()?.describe())));
        out.extend(
            self.summary
                .iter()
                .map(|summary| summary.advice.clone())
                .filter(|advice| !advice.is_empty()),
        );
        out
    }
}

/// What changes when a file is replaced or written anew.
fn file_identity(path: &Path) -> Option<(u64, u64, Option<SystemTime>)> {
    let meta = path.metadata().ok()?;
    Some((meta.dev(), meta.ino(), meta.modified().ok()))
}

/// Rows that `text` takes where its lines are broken between words at `width`.
fn rows(text: &str, width: usize) -> usize {
    let of_line = |line: &str| {
        let (mut rows, mut column) = (1, 0);
        for word in line.split_whitespace().map(|word| word.chars().count()) {
            if column > 0 && column + 1 + word > width {
                (rows, column) = (rows + 1, 0);
            }
            column += usize::from(column > 0) + word;
            // A word that is longer than a row is cut.
            (rows, column) = (rows + (column - 1) / width, (column - 1) % width + 1);
        }
        rows
    };
    text.lines().map(of_line).sum()
}

#[cfg(test)]
mod tests;
