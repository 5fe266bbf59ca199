//! A study as a page: the table, accuracy over the rows' x, and curves of the runs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;

use super::plan::{Row, Study};
use super::run::CellResult;
use super::table::{Column, columns, of_row, spread, verdict};
use crate::metrics::{self, Line};
use crate::report::chart::{Chart, Series, escape};
use crate::report::side_by_side::{MOST_LINES, curves_of, of_the_first};
use crate::report::{charts, foot, head};
use crate::units::duration;

/// The page. It names no other file and no address.
///
/// # Errors
/// A configuration that cannot be written down.
pub(super) fn render(study: &Study, results: &[Option<CellResult>]) -> Result<String> {
    let mut out = head(&study.title, &study.note);
    table(&mut out, study, results);
    let over_x: Vec<String> = charts_over_x(study, results).iter().map(Chart::svg).collect();
    charts(&mut out, "over", &study.x_label, &over_x);
    curves(&mut out, study);
    configurations(&mut out, study)?;
    foot(&mut out);
    Ok(out)
}

fn table(out: &mut String, study: &Study, results: &[Option<CellResult>]) {
    let columns = columns(results);
    let finished: Vec<&CellResult> = results.iter().flatten().collect();
    let seconds: f64 = finished.iter().map(|r| r.seconds).sum();
    let _ = write!(
        out,
        "<section id=\"table\"><h2>Results</h2><p class=\"note\">{} of {} runs finished; the \
         processes that finished them took {} together, what others did before not counted. Mean ± \
         standard deviation over seeds, accuracies in percent.</p><table><thead><tr><th></th>",
        finished.len(),
        results.len(),
        duration(seconds)
    );
    for (name, ..) in &columns {
        let _ = write!(out, "<th class=\"num\">{name}</th>");
    }
    out.push_str("<th>embeddings</th>");
    if !study.reference.is_empty() {
        let _ = write!(out, "<th class=\"num\">{}</th>", escape(&study.reference));
    }
    out.push_str("</tr></thead><tbody>\n");
    for (number, row) in study.rows.iter().enumerate() {
        let own = of_row(study, results, number);
        let _ = write!(out, "<tr><td>{}</td>", escape(&row.name));
        for column in &columns {
            let text = spread(&own, column).map_or("–".into(), |s| {
                let mean = s.mean * column.2;
                let spread = s.deviation.map(|d| format!(" ± {:.1}", d * column.2));
                format!("{mean:.1}{}", spread.unwrap_or_default())
            });
            let _ = write!(out, "<td class=\"num\">{text}</td>");
        }
        let _ = write!(out, "<td>{}</td>", escape(&verdict(&own)));
        if !study.reference.is_empty() {
            let text = row.reference.map_or("–".into(), |r| format!("{r:.1}"));
            let _ = write!(out, "<td class=\"num\">{text}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></section>\n");
}

/// Values over the rows' x, rising: a series for each of the rows' lines.
fn over_x(study: &Study, name: &str, value: impl Fn(usize, &Row) -> Option<f64>) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for (number, row) in study.rows.iter().enumerate() {
        let Some(point) = row.x.zip(value(number, row)) else { continue };
        let label = match row.line.as_str() {
            "" => name.to_owned(),
            line => format!("{name}, {line}"),
        };
        match lines.iter_mut().find(|line| line.name == label) {
            Some(line) => line.points.push(point),
            None => lines.push(Series { name: label, points: vec![point] }),
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    lines
}

/// What was measured over the rows' x: accuracy, the reference's, effective rank. None for studies
/// without an x. The rank is that of a batch, and grows with it whatever the network does: batches of
/// several sizes are not compared by it.
pub(super) fn charts_over_x(study: &Study, results: &[Option<CellResult>]) -> Vec<Chart> {
    if study.x_label.is_empty() {
        return Vec::new();
    }
    let columns = columns(results);
    let lines = |names: &[&str]| -> Vec<Series> {
        let wanted = columns.iter().filter(|column| names.contains(&column.0));
        let mean = |number: usize, column: &Column| {
            Some(spread(&of_row(study, results, number), column)?.mean)
        };
        wanted
            .flat_map(|column| over_x(study, column.0, |number, _| mean(number, column)))
            .collect()
    };
    let chart = |title: &str, percent: bool, series: Vec<Series>| {
        let (title, x_label) = (title.to_owned(), study.x_label.clone());
        Chart { title, x_label, log_x: study.log_x, percent, series, ..Chart::default() }
    };
    let references = over_x(study, &study.reference, |_, row| Some(row.reference? / 100.0));
    let mut charts = vec![
        chart("Accuracy", true, lines(&["kNN", "linear top-1"])),
        chart("Reference", true, references),
    ];
    let sizes: BTreeSet<usize> =
        study.cells.iter().map(|cell| cell.config.train.batch_size).collect();
    if sizes.len() == 1 {
        let ranks = lines(&["effective rank"]);
        charts.push(chart("Effective rank of a batch's embeddings", false, ranks));
    }
    charts
}

/// Every row's first seed over the epochs.
fn curves(out: &mut String, study: &Study) {
    let mut runs: Vec<(&str, Vec<Line>)> = Vec::new();
    for cell in &study.cells {
        let name = study.rows[cell.row].name.as_str();
        if runs.len() < MOST_LINES
            && runs.iter().all(|(other, _)| *other != name)
            && let Ok(lines) = metrics::read(&cell.config.train.dir)
        {
            runs.push((name, lines));
        }
    }
    let runs: Vec<(&str, &[Line])> = runs.iter().map(|(name, lines)| (*name, &lines[..])).collect();
    let title = of_the_first("The runs, one seed each", study.rows.len());
    charts(out, "curves", &title, &curves_of(&runs));
}

fn configurations(out: &mut String, study: &Study) -> Result<()> {
    out.push_str("<section id=\"config\"><h2>Configurations</h2>\n");
    for (number, row) in study.rows.iter().enumerate() {
        let Some(cell) = study.cells.iter().find(|cell| cell.row == number) else { continue };
        let _ = writeln!(
            out,
            "<details><summary>{}, seed {}</summary><pre>{}</pre></details>",
            escape(&row.name),
            cell.seed,
            escape(&cell.config.to_toml()?)
        );
    }
    out.push_str("</section>\n");
    Ok(())
}
