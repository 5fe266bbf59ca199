//! A [`Report`] as HTML. Each section is one function; a section without content
//! writes nothing.

use std::fmt::Write as _;

use anyhow::Result;

use super::chart::{Chart, Series, escape};
use super::inline::{correlation_uri, data_uri, small_uri};
use super::{Report, TimeTable};
use crate::eval::Score;
use crate::loss::diagnostics::Diagnostics;
use crate::metrics::Line;
use crate::picture::correlation::MOST_ROWS;
use crate::units::percent;

/// The page. It names no other file and no address.
///
/// # Errors
/// When a picture cannot be encoded.
pub fn render(report: &Report) -> Result<String> {
    let mut out = head(&report.title, &report.summary);
    facts(&mut out, &report.facts);
    scores(&mut out, report);
    curves(&mut out, &report.metrics);
    diagnostics(&mut out, &report.metrics);
    correlations(&mut out, report)?;
    neighbours(&mut out, report)?;
    samples(&mut out, report)?;
    times(&mut out, &report.times);
    next(&mut out, &report.next);
    config(&mut out, &report.config);
    foot(&mut out);
    Ok(out)
}

/// The page up to and with its heading and the paragraph under it, both plain text.
pub(crate) fn head(title: &str, note: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title>\n<style>\n{}</style></head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        include_str!("style.css"),
        escape(note)
    )
}

/// The page's end.
pub(crate) fn foot(out: &mut String) {
    out.push_str("</body></html>\n");
}

/// Charts side by side under a heading; nothing where all are empty.
pub(crate) fn charts(out: &mut String, id: &str, title: &str, charts: &[String]) {
    noted_charts(out, id, title, "", charts);
}

/// The same with a paragraph, plain text, under the heading; without one where it is empty.
fn noted_charts(out: &mut String, id: &str, title: &str, note: &str, charts: &[String]) {
    if charts.iter().all(String::is_empty) {
        return;
    }
    let note = match note {
        "" => String::new(),
        note => format!("<p class=\"note\">{}</p>", escape(note)),
    };
    let title = escape(title);
    let _ = writeln!(out, "<section id=\"{id}\"><h2>{title}</h2>{note}<div class=\"grid2\">");
    charts.iter().for_each(|chart| out.push_str(chart));
    out.push_str("</div></section>\n");
}

fn facts(out: &mut String, facts: &[(String, String)]) {
    if facts.is_empty() {
        return;
    }
    out.push_str("<div class=\"facts\">");
    for (name, value) in facts {
        let _ = write!(out, "<div><b>{}</b><span>{}</span></div>", escape(value), escape(name));
    }
    out.push_str("</div>\n");
}

pub(super) fn scores(out: &mut String, report: &Report) {
    if report.scores.is_empty() {
        return;
    }
    out.push_str("<section id=\"scores\"><h2>Is the representation better?</h2>\n");
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&report.scores_note));
    let any = |has: fn(&Score) -> bool| report.scores.iter().any(has);
    let (knn, linear) = (any(|s| s.knn.is_some()), any(|s| s.linear.is_some()));
    out.push_str("<table><thead><tr><th>Features</th>");
    if knn {
        out.push_str("<th>kNN</th>");
    }
    if linear {
        out.push_str("<th>Linear, top-1</th><th class=\"num\">top-5</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
    for (i, score) in report.scores.iter().enumerate() {
        let own = if i == 0 { " class=\"own\"" } else { "" };
        let _ = write!(out, "<tr{own}><td>{}</td>", escape(&score.name));
        if knn {
            bar(out, score.knn);
        }
        if linear {
            bar(out, score.linear.map(|l| l.top1));
            let top5 = score.linear.map_or("–".into(), |l| percent(l.top5));
            let _ = write!(out, "<td class=\"num\">{top5}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></section>\n");
}

fn bar(out: &mut String, share: Option<f64>) {
    match share {
        Some(share) => {
            let width = (100.0 * share).clamp(0.0, 100.0);
            let _ = write!(
                out,
                "<td class=\"bar\">{}<div class=\"track\"><i style=\"width:{width:.1}%\"></i>\
                 </div></td>",
                percent(share)
            );
        }
        None => out.push_str("<td class=\"bar\">–</td>"),
    }
}

fn curves(out: &mut String, lines: &[Line]) {
    let series = |name: &str, value: fn(&Line) -> Option<f64>| {
        let points = lines.iter().filter_map(|line| Some((line.epoch, value(line)?))).collect();
        Series { name: name.to_owned(), points }
    };
    let loss = vec![
        series("loss", |l| l.loss),
        series("invariance", |l| l.invariance),
        series("redundancy (with lambda)", |l| l.redundancy),
    ];
    let diag = vec![
        series("diagonal of C, mean", |l| l.on_diag),
        series("off the diagonal, root mean square", |l| l.off_diag),
    ];
    let accuracy = vec![series("kNN", |l| l.knn), series("online linear probe", |l| l.online)];
    let speed = vec![series("images/s", |l| l.images_per_s)];
    let charts = [
        Chart::over_epochs("Loss and its two terms", loss).log_y_if_positive(),
        Chart::over_epochs("Cross-correlation C", diag),
        Chart::over_epochs("Accuracy during training", accuracy).as_percent(),
        Chart::over_epochs("Source images per second", speed),
    ]
    .map(|chart| chart.svg());
    let note = "Invariance makes the two views of an image agree, redundancy reduction keeps the dimensions apart.";
    noted_charts(out, "curves", "Training", note, &charts);
}

/// What was measured of embeddings, each with its epoch.
type Measured<'a> = [(f64, &'a Diagnostics)];

/// Collapse and information as curves, the spectrum at three moments, the judgement in words.
fn diagnostics(out: &mut String, lines: &[Line]) {
    let measured: Vec<(f64, &Diagnostics)> =
        lines.iter().filter_map(|line| Some((line.epoch, line.diagnostics.as_ref()?))).collect();
    let Some((_, last)) = measured.last() else { return };
    let charts = rank_charts(&measured).into_iter().chain(information_charts(&measured));
    let charts: Vec<String> = charts.map(|chart| chart.svg()).collect();
    let note = format!("At the end {}.", last.describe());
    noted_charts(out, "diagnostics", "Do the embeddings collapse?", &note, &charts);
}

/// A figure over the epochs.
fn over(measured: &Measured<'_>, name: &str, value: fn(&Diagnostics) -> f64) -> Series {
    let points = measured.iter().map(|(epoch, found)| (*epoch, value(found))).collect();
    Series { name: name.to_owned(), points }
}

/// How many dimensions are in use, and how evenly.
fn rank_charts(measured: &Measured<'_>) -> [Chart; 3] {
    let series = |name: &str, value: fn(&Diagnostics) -> f64| over(measured, name, value);
    let spread = vec![
        series("mean", |d| d.std_mean),
        series("smallest", |d| d.std_min),
        series("of unit embeddings, times sqrt(dim)", |d| d.spread),
    ];
    let spectrum = |at: usize| {
        let (epoch, found) = &measured[at];
        let ranks = found.ranks.iter().map(|rank| *rank as f64);
        let points = ranks.zip(found.spectrum.iter().copied()).collect();
        Series { name: format!("epoch {epoch:.1}"), points }
    };
    let mut moments = vec![0, measured.len() / 2, measured.len() - 1];
    moments.dedup();
    let rank = vec![series("of the covariance", |d| d.effective_rank)];
    [
        Chart::over_epochs("Effective rank", rank),
        Chart::over_epochs("Standard deviation by dimension", spread),
        Chart {
            title: "Spectrum of the covariance".into(),
            x_label: "eigenvalue, from the largest".into(),
            log_y: true,
            series: moments.into_iter().map(spectrum).collect(),
            ..Chart::default()
        },
    ]
}

/// What the embeddings tell of the image, and of each other.
fn information_charts(measured: &Measured<'_>) -> [Chart; 3] {
    let series = |name: &str, value: fn(&Diagnostics) -> f64| over(measured, name, value);
    let information = vec![
        series("embeddings hold", |d| d.information),
        series("of the distortion", |d| d.information_given_image),
    ];
    let pairs = vec![series("alignment", |d| d.alignment), series("uniformity", |d| d.uniformity)];
    let c = vec![series("diagonal, mean", |d| d.on_diag), series("off it, rms", |d| d.off_diag)];
    [
        Chart::over_epochs("Information (Gaussian estimate, nats)", information),
        Chart::over_epochs("Alignment and uniformity", pairs),
        Chart::over_epochs("C, measured for every method", c),
    ]
}

pub(super) fn correlations(out: &mut String, report: &Report) -> Result<()> {
    if report.correlations.is_empty() {
        return Ok(());
    }
    out.push_str(
        "<section id=\"correlation\"><h2>The cross-correlation matrix C</h2><p class=\"note\">\
         Between the embeddings of the two views of one batch. The objective wants 1 on the \
         diagonal and 0 elsewhere. Orange is positive, blue negative.</p><div class=\"grid2\">\n",
    );
    for c in &report.correlations {
        let (on, off) = (c.on_diag_mean(), c.off_diag_rms());
        let cut = match c.dim > MOST_ROWS {
            true => format!(" (drawn: the first {MOST_ROWS} of {} dimensions)", c.dim),
            false => String::new(),
        };
        let _ = writeln!(
            out,
            "<figure class=\"matrix\"><img alt=\"C {name}\" src=\"{}\"><figcaption>{name}: \
             diagonal {on:.3}, off the diagonal {off:.3} (root mean square){cut}</figcaption></figure>",
            correlation_uri(c)?,
            name = escape(&c.name),
        );
    }
    out.push_str("</div></section>\n");
    Ok(())
}

fn neighbours(out: &mut String, report: &Report) -> Result<()> {
    if report.neighbours.is_empty() {
        return Ok(());
    }
    out.push_str(
        "<section id=\"neighbours\"><h2>What looks alike to the network</h2><p class=\"note\">\
         A test image, then the training images with the most similar features. Green: the same \
         class, red: another. Labels took no part in training.</p><div class=\"grid2\">\n",
    );
    for kind in &report.neighbours {
        let _ = writeln!(out, "<div><figcaption>{}</figcaption>", escape(&kind.name));
        for (query, near) in &kind.rows {
            let _ = write!(
                out,
                "<div class=\"near\"><img class=\"query\" alt=\"query\" src=\"{}\">",
                small_uri(query)?
            );
            for (image, same) in near {
                let class = if *same { "same" } else { "other" };
                let uri = small_uri(image)?;
                let _ = write!(out, "<img class=\"{class}\" alt=\"{class} class\" src=\"{uri}\">");
            }
            out.push_str("</div>\n");
        }
        out.push_str("</div>\n");
    }
    out.push_str("</div></section>\n");
    Ok(())
}

fn samples(out: &mut String, report: &Report) -> Result<()> {
    if report.samples.is_empty() {
        return Ok(());
    }
    out.push_str(
        "<section id=\"views\"><h2>What the network sees</h2><p class=\"note\">Each image as it \
         lies in the shard, then view A and view B of it.</p><div class=\"samples\">\n",
    );
    for sample in &report.samples {
        out.push_str("<figure><div>");
        let name = escape(&sample.name);
        let _ = write!(out, "<img alt=\"{name}\" src=\"{}\">", small_uri(&sample.original)?);
        for (view, letter) in sample.views.iter().zip('A'..) {
            let uri = data_uri(view)?;
            let _ = write!(out, "<img alt=\"{name}, view {letter}\" src=\"{uri}\">");
        }
        let _ = writeln!(out, "</div><figcaption>{name}</figcaption></figure>");
    }
    out.push_str("</div></section>\n");
    Ok(())
}

fn times(out: &mut String, tables: &[TimeTable]) {
    let tables: Vec<&TimeTable> = tables.iter().filter(|t| !t.rows.is_empty()).collect();
    if tables.is_empty() {
        return;
    }
    out.push_str("<section id=\"time\"><h2>Where the time went</h2><div class=\"grid2\">\n");
    for table in tables {
        let total: f64 = table.rows.iter().map(|row| row.1).sum();
        let _ = writeln!(
            out,
            "<div><table><thead><tr><th>{}</th><th></th><th class=\"num\">seconds</th></tr>\
             </thead><tbody>",
            escape(&table.title)
        );
        for (stage, seconds) in &table.rows {
            let share = 100.0 * seconds / total.max(1e-9);
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td class=\"bar\">{share:.1}%<div class=\"track\">\
                 <i style=\"width:{share:.1}%\"></i></div></td><td class=\"num\">{seconds:.1}</td></tr>",
                escape(stage)
            );
        }
        let _ = writeln!(
            out,
            "<tr class=\"own\"><td>together</td><td></td><td class=\"num\">{total:.1}</td></tr>\
             </tbody></table></div>"
        );
    }
    out.push_str("</div></section>\n");
}

fn next(out: &mut String, commands: &[(String, String)]) {
    if commands.is_empty() {
        return;
    }
    out.push_str("<section id=\"next\"><h2>Next</h2>\n");
    for (what, command) in commands {
        let _ = writeln!(out, "<p>{}</p><pre>{}</pre>", escape(what), escape(command));
    }
    out.push_str("</section>\n");
}

fn config(out: &mut String, config: &str) {
    if config.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<section id=\"config\"><details><summary>Effective configuration</summary>\
         <pre>{}</pre></details></section>",
        escape(config)
    );
}
