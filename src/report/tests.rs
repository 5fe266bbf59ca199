//! The page as a whole: what it shows, and what it must not ask for.

use super::*;
use crate::eval::Accuracy;

fn full() -> Report {
    let image = |value: u8| Image { width: 4, height: 4, pixels_hwc: vec![value; 48] };
    let line = |step: u64| Line {
        step,
        epoch: step as f64 / 10.0,
        loss: Some(100.0 / step as f64),
        invariance: Some(60.0 / step as f64),
        redundancy: Some(40.0 / step as f64),
        on_diag: Some(0.5),
        off_diag: Some(0.1),
        images_per_s: Some(200.0),
        ..Line::default()
    };
    let mut metrics: Vec<Line> = (1..40).map(line).collect();
    let (z_a, z_b) = crate::loss::tests::pair_of(20, 8, 1);
    let found = crate::loss::diagnostics::Diagnostics::measure(&z_a, &z_b).unwrap();
    for line in metrics.iter_mut().step_by(13) {
        line.diagnostics = Some(found.clone());
    }
    metrics.push(Line { step: 20, epoch: 2.0, knn: Some(0.4), ..Line::default() });
    metrics.push(Line { step: 40, epoch: 4.0, knn: Some(0.6), ..Line::default() });
    let c =
        |name: &str| Correlation { name: name.into(), dim: 2, values: vec![1.0, 0.25, -0.25, 1.0] };
    let linear = Some(Accuracy { top1: 0.71, top5: 0.98 });
    Report {
        title: "a run <of> mine".into(),
        summary: "It \"works\".".into(),
        facts: vec![("steps".into(), "40".into())],
        scores: vec![
            Score { name: "trained network".into(), knn: Some(0.623), linear },
            Score { name: "raw pixels".into(), knn: Some(0.1), linear: None },
        ],
        scores_note: "how".into(),
        metrics,
        correlations: vec![c("before training"), c("after training")],
        samples: vec![Sample {
            name: "stars".into(),
            original: image(1),
            views: vec![image(2), image(3)],
        }],
        neighbours: vec![Neighbours {
            name: "trained network".into(),
            rows: vec![(image(1), vec![(image(2), true), (image(3), false)])],
        }],
        times: vec![TimeTable {
            title: "Training thread".into(),
            rows: vec![("forward".into(), 3.0)],
        }],
        config: "[train]\nepochs = 4".into(),
        next: vec![("Your own images:".into(), "shard pack a b && c".into())],
    }
}

#[test]
fn the_page_shows_everything_it_was_given() {
    let page = render(&full()).unwrap();
    for expected in [
        "a run &lt;of&gt; mine",
        "It &quot;works&quot;.",
        "62.3%",
        "71.0%",
        "98.0%",
        "Loss and its two terms",
        "Accuracy during training",
        "Do the embeddings collapse?",
        "embeddings are spread (spread",
        "Spectrum of the covariance",
        "before training",
        "after training: diagonal 1.000, off the diagonal 0.250",
        "stars, view B",
        "class=\"same\"",
        "class=\"other\"",
        "forward",
        "epochs = 4",
        "shard pack a b &amp;&amp; c",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn the_page_needs_no_network_and_no_other_file() {
    let page = render(&full()).unwrap();
    for foreign in ["http:", "https:", "//cdn", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for source in page.split("src=\"").skip(1) {
        assert!(source.starts_with("data:image/png;base64,"), "{}", &source[..40]);
    }
    assert!(page.contains("name=\"viewport\""));
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn every_picture_on_the_page_can_be_decoded() {
    use base64::Engine as _;
    let page = render(&full()).unwrap();
    let mut count = 0;
    for source in page.split("src=\"data:image/png;base64,").skip(1) {
        let text = source.split('"').next().unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        image::load_from_memory(&png).unwrap();
        count += 1;
    }
    assert_eq!(count, 2 + 3 + 3);
}

#[test]
fn tags_are_closed_in_the_order_they_were_opened() {
    let page = render(&full()).unwrap();
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let name: String =
            tag.chars().take_while(|c| c.is_ascii_alphanumeric() || "!/".contains(*c)).collect();
        let void = ["!doctype", "meta", "img", "path"].contains(&name.as_str());
        if let Some(closed) = name.strip_prefix('/') {
            assert_eq!(
                open.pop().as_deref(),
                Some(closed),
                "before: {}",
                &tag[..tag.len().min(60)]
            );
        } else if !void {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn side_by_side_says_which_runs_the_charts_leave_out_and_has_no_empty_note() {
    let named = |count: usize| -> Vec<(String, Report)> {
        let report = Report { scores_note: String::new(), ..full() };
        (0..count).map(|i| (format!("run-{i}"), report.clone())).collect()
    };
    let page = side_by_side::render(&named(9)).unwrap();
    assert!(page.contains("charts of the first 8 of 9"), "{page}");
    assert!(page.contains("<p class=\"note\">run-3</p>"), "{page}");
    assert!(!side_by_side::render(&named(2)).unwrap().contains("charts of the first"));
}

#[test]
fn a_loss_below_zero_has_its_curve() {
    let mut report = full();
    for line in &mut report.metrics {
        (line.loss, line.invariance) = (line.loss.map(|l| -l), line.invariance.map(|l| -l));
    }
    let page = render(&report).unwrap();
    assert!(page.contains("<figcaption>Loss and its two terms</figcaption>"));
    assert!(page.contains("<i class=\"s1\"></i>invariance"), "{page}");
    let runs = [("a".to_owned(), report.clone()), ("b".to_owned(), report)];
    assert!(side_by_side::render(&runs).unwrap().contains("<figcaption>Loss</figcaption>"));
}

#[test]
fn an_empty_report_is_a_page_without_empty_sections() {
    let page = render(&Report { title: "nothing".into(), ..Report::default() }).unwrap();
    assert!(!page.contains("<section"), "{page}");
}
