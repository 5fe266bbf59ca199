//! A study's results as a table: a row for each configuration, mean and spread over its seeds.

use std::fmt::Write as _;

use super::plan::Study;
use super::run::CellResult;
use crate::loss::diagnostics::Health;

/// Mean and standard deviation (n - 1) over the seeds that are finished.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation; absent for one value.
    pub deviation: Option<f64>,
    /// Values.
    pub count: usize,
}

impl Spread {
    /// Of some values; nothing for none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        let deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        (count > 0).then_some(Spread { mean, deviation, count })
    }

    /// `64.8 ± 0.3` of values times `scale`.
    fn text(&self, scale: f64) -> String {
        let mean = self.mean * scale;
        match self.deviation {
            Some(deviation) => format!("{mean:.1} ± {:.1}", deviation * scale),
            None => format!("{mean:.1}"),
        }
    }
}

/// A measured column: its name, and how it is read from a result. Shares are told in percent.
pub(super) type Column = (&'static str, fn(&CellResult) -> Option<f64>, f64);

/// The columns that at least one result has.
pub(super) fn columns(results: &[Option<CellResult>]) -> Vec<Column> {
    let all: [Column; 5] = [
        ("kNN", |r| r.knn, 100.0),
        ("linear top-1", |r| r.linear.map(|l| l.top1), 100.0),
        ("top-5", |r| r.linear.map(|l| l.top5), 100.0),
        ("effective rank", |r| r.effective_rank, 1.0),
        ("loss", |r| r.loss, 1.0),
    ];
    let counted = || results.iter().flatten().filter(|r| r.diverged.is_none());
    let has = |column: &Column| counted().any(|r| column.1(r).is_some());
    all.into_iter().filter(has).collect()
}

/// The results of a row's seeds that are finished.
pub(super) fn of_row<'a>(
    study: &Study,
    results: &'a [Option<CellResult>],
    row: usize,
) -> Vec<&'a CellResult> {
    let own = study.cells.iter().zip(results).filter(|(cell, _)| cell.row == row);
    own.filter_map(|(_, result)| result.as_ref()).collect()
}

/// A column's spread over a row. What diverged has no figures: those of its last line are of no
/// end.
pub(super) fn spread(row: &[&CellResult], column: &Column) -> Option<Spread> {
    let counted = row.iter().filter(|r| r.diverged.is_none());
    let values: Vec<f64> = counted.filter_map(|r| column.1(r)).collect();
    Spread::of(&values)
}

/// What the embeddings of a row look like, in a word or two.
pub(super) fn verdict(row: &[&CellResult]) -> String {
    let is = |r: &CellResult, health| r.diverged.is_none() && r.health == Some(health);
    let count = |health| row.iter().filter(|r| is(r, health)).count();
    let diverged = row.iter().filter(|r| r.diverged.is_some()).count();
    let all = [
        (count(Health::Healthy), "spread"),
        (count(Health::FewDirections), "few directions"),
        (count(Health::Collapsed), "collapsed"),
        (diverged, "diverged"),
    ];
    let present: Vec<_> = all.iter().filter(|(n, _)| *n > 0).collect();
    match &present[..] {
        [(_, word)] => (*word).to_owned(),
        several => {
            several.iter().map(|(n, word)| format!("{word} {n}")).collect::<Vec<_>>().join(", ")
        }
    }
}

/// One finished cell in a line.
pub fn summary(result: &CellResult) -> String {
    if let Some(diverged) = &result.diverged {
        return diverged.clone();
    }
    let mut parts = Vec::new();
    for (name, value, scale) in columns(&[Some(result.clone())]) {
        if let Some(value) = value(result) {
            parts.push(format!("{name} {:.1}", value * scale));
        }
    }
    if !result.embeddings.is_empty() {
        parts.push(result.embeddings.clone());
    }
    parts.join("; ")
}

/// Plain text in a line or a cell of Markdown.
fn plain(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// The table in Markdown; a dash stands where no seed is finished.
pub fn markdown(study: &Study, results: &[Option<CellResult>]) -> String {
    let columns = columns(results);
    let seeds = study.cells.iter().filter(|cell| cell.row == 0).count();
    let mut out = format!("# {}\n\n", plain(&study.title));
    if !study.note.is_empty() {
        let _ = write!(out, "{}\n\n", study.note.trim());
    }
    let finished = results.iter().flatten().count();
    let _ = write!(
        out,
        "{finished} of {} runs finished; mean ± standard deviation over {seeds} seeds.\n\n|  |",
        results.len()
    );
    let mut heads: Vec<String> = columns.iter().map(|column| column.0.to_owned()).collect();
    heads.push("embeddings".into());
    if !study.reference.is_empty() {
        heads.push(plain(&study.reference));
    }
    let _ = writeln!(out, " {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for (number, row) in study.rows.iter().enumerate() {
        let own = of_row(study, results, number);
        let _ = write!(out, "| {} |", plain(&row.name));
        for column in &columns {
            let text = spread(&own, column).map_or("–".into(), |s| s.text(column.2));
            let _ = write!(out, " {text} |");
        }
        let _ = write!(out, " {} |", verdict(&own));
        if !study.reference.is_empty() {
            let _ = write!(out, " {} |", row.reference.map_or("–".into(), |r| format!("{r:.1}")));
        }
        out.push('\n');
    }
    out
}

/// The table as CSV: mean, standard deviation and count of each column, shares from 0 to 1.
pub fn csv(study: &Study, results: &[Option<CellResult>]) -> String {
    let columns = columns(results);
    let mut out = String::from("cell");
    for (name, ..) in &columns {
        let name = name.replace([' ', '-'], "_");
        let _ = write!(out, ",{name}_mean,{name}_std,{name}_n");
    }
    out.push_str(",embeddings,reference\n");
    for (number, row) in study.rows.iter().enumerate() {
        let own = of_row(study, results, number);
        let _ = write!(out, "\"{}\"", row.name.replace('"', "\"\""));
        for column in &columns {
            let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.6}"));
            match spread(&own, column) {
                Some(s) => {
                    let (mean, deviation) = (number(Some(s.mean)), number(s.deviation));
                    let _ = write!(out, ",{mean},{deviation},{}", s.count);
                }
                None => out.push_str(",,,0"),
            }
        }
        let reference = row.reference.map_or(String::new(), |r| r.to_string());
        let _ = writeln!(out, ",\"{}\",{reference}", verdict(&own));
    }
    out
}
