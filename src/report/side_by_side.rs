//! Several runs on one page: their figures in columns, their curves in one chart, what their
//! configurations do not share.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;

use super::Report;
use super::chart::{Chart, Series, escape};
use super::page::{charts, correlations, foot, head, scores};
use crate::config::flattened;
use crate::metrics::Line;
use crate::picture::Correlation;
use crate::units::percent;

/// Runs that one chart draws at most; further ones are left to the table.
pub const MOST_LINES: usize = 8;

/// The page of several runs, each with its name. It names no other file and no address.
///
/// # Errors
/// When a picture cannot be encoded.
pub fn render(runs: &[(String, Report)]) -> Result<String> {
    let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
    let mut out = head("Runs side by side", &names.join(", "));
    figures(&mut out, runs);
    for (name, report) in runs {
        // Whose scores they are comes first.
        let note = match report.scores_note.as_str() {
            "" => name.clone(),
            note => format!("{name}: {note}"),
        };
        scores(
            &mut out,
            &Report { scores: report.scores.clone(), scores_note: note, ..Report::default() },
        );
    }
    let curves: Vec<(&str, &[Line])> =
        runs.iter().map(|(name, report)| (name.as_str(), &report.metrics[..])).collect();
    charts(&mut out, "curves", &of_the_first("Training", runs.len()), &curves_of(&curves));
    let all = runs.iter().flat_map(|(name, report)| {
        report
            .correlations
            .iter()
            .map(move |c| Correlation { name: format!("{name}, {}", c.name), ..c.clone() })
    });
    correlations(&mut out, &Report { correlations: all.collect(), ..Report::default() })?;
    differences(&mut out, runs);
    foot(&mut out);
    Ok(out)
}

/// The heading of charts that do not show all of `count` runs says so.
pub fn of_the_first(title: &str, count: usize) -> String {
    match count > MOST_LINES {
        true => format!("{title} (charts of the first {MOST_LINES} of {count})"),
        false => title.to_owned(),
    }
}

/// The runs' measurements over the epochs, a chart each.
pub fn curves_of(runs: &[(&str, &[Line])]) -> Vec<String> {
    let chart = |title: &str, value: fn(&Line) -> Option<f64>| {
        let series = runs.iter().take(MOST_LINES).map(|(name, lines)| Series {
            name: (*name).to_owned(),
            points: lines.iter().filter_map(|l| Some((l.epoch, value(l)?))).collect(),
        });
        Chart::over_epochs(title, series.collect())
    };
    let charts = [
        chart("Loss", |l| l.loss).log_y_if_positive(),
        chart("kNN accuracy", |l| l.knn).as_percent(),
        chart("Online linear probe", |l| l.online).as_percent(),
        chart("Source images per second", |l| l.images_per_s),
        chart("Diagonal of C", |l| l.diagnostics.as_ref().map(|d| d.on_diag)),
        chart("Effective rank", |l| l.diagnostics.as_ref().map(|d| d.effective_rank)),
        chart("Spread: 0 when collapsed", |l| l.diagnostics.as_ref().map(|d| d.spread)),
        chart("Information of embeddings, nats", |l| l.diagnostics.as_ref().map(|d| d.information)),
        chart("Information of the distortion, nats", |l| {
            l.diagnostics.as_ref().map(|d| d.information_given_image)
        }),
    ];
    charts.iter().map(Chart::svg).collect()
}

/// A row for each figure that any run has.
fn figures(out: &mut String, runs: &[(String, Report)]) {
    let last = |report: &Report, value: fn(&Line) -> Option<f64>| {
        report.metrics.iter().rev().find_map(value)
    };
    let rows: Vec<BTreeMap<String, String>> = runs
        .iter()
        .map(|(_, report)| {
            let mut row: BTreeMap<String, String> = report.facts.iter().cloned().collect();
            let mut add = |name: &str, value: Option<String>| {
                row.extend(value.map(|value| (name.to_owned(), value)));
            };
            add("last loss", last(report, |l| l.loss).map(|v| format!("{v:.4}")));
            add("kNN in training", last(report, |l| l.knn).map(percent));
            add("online probe", last(report, |l| l.online).map(percent));
            row
        })
        .collect();
    table(out, "figures", "Figures", "", runs, &rows, |_| true);
}

/// Keys of the configurations that differ, with each run's value.
fn differences(out: &mut String, runs: &[(String, Report)]) {
    let rows: Vec<BTreeMap<String, String>> = runs
        .iter()
        .map(|(_, report)| report.config.parse().map(|table| flattened(&table)).unwrap_or_default())
        .collect();
    let note = "Keys of the configuration that are not the same in all runs.";
    table(out, "config", "What differs", note, runs, &rows, |key| {
        rows.iter().any(|row| row.get(key) != rows[0].get(key))
    });
}

/// A table with a column for each run and a row for each key that `shown` lets through.
fn table(
    out: &mut String,
    id: &str,
    title: &str,
    note: &str,
    runs: &[(String, Report)],
    columns: &[BTreeMap<String, String>],
    shown: impl Fn(&str) -> bool,
) {
    let mut keys: Vec<&String> = columns.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| shown(key));
    if keys.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<section id=\"{id}\"><h2>{title}</h2><p class=\"note\">{note}</p>\
         <div class=\"wide\"><table><thead><tr><th></th>"
    );
    for (name, _) in runs {
        let _ = write!(out, "<th>{}</th>", escape(name));
    }
    out.push_str("</tr></thead><tbody>\n");
    for key in keys {
        let _ = write!(out, "<tr><td>{}</td>", escape(key));
        for column in columns {
            let value = column.get(key).map_or("–".into(), |value| escape(value));
            let _ = write!(out, "<td>{value}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></section>\n");
}
