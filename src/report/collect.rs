//! What a run's folder tells: configuration, metrics, summary, scores, and
//! pictures drawn anew from the checkpoint and the shards.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bt_pipeline::augment::ViewConfig;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

use super::{Correlation, Report, Score, TimeTable, views};
use crate::checkpoint;
use crate::config::{CONFIG_FILE, RunConfig};
use crate::eval::encode::open;
use crate::metrics;
use crate::model::TwinNet;
use crate::train::{SUMMARY_FILE, Summary, images_of};

/// File in the run's folder that holds its evaluation: a list of [`Score`]s.
pub const SCORES_FILE: &str = "evaluation.json";

/// Samples that the page shows with their views.
const SAMPLES: usize = 12;

/// Samples of the batch that C is computed over.
const CORRELATION_BATCH: usize = 256;

/// The part of the report that needs nothing but the files of the run in `dir`.
/// Summary and scores are left out when the run has none yet.
///
/// # Errors
/// A folder without metrics, or files that cannot be read.
pub fn from_run(dir: &Path) -> Result<Report> {
    let text = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let summary: Option<Summary> = match text(SUMMARY_FILE) {
        Ok(json) => Some(serde_json::from_str(&json).context(SUMMARY_FILE)?),
        Err(_) => None,
    };
    let scores: Vec<Score> = match text(SCORES_FILE) {
        Ok(json) => serde_json::from_str(&json).context(SCORES_FILE)?,
        Err(_) => Vec::new(),
    };
    Ok(Report {
        title: "Barlow Twins run".into(),
        metrics: metrics::read(dir)?,
        scores,
        facts: summary.iter().flat_map(facts).collect(),
        times: summary.iter().flat_map(times).collect(),
        config: text(CONFIG_FILE).unwrap_or_default(),
        ..Report::default()
    })
}

/// As [`from_run`], with what the checkpoint and the shards add: samples with their views, and C of
/// the untrained and of the trained network. The second value says why where they could not.
///
/// # Errors
/// As [`from_run`].
pub fn with_pictures(dir: &Path) -> Result<(Report, Option<anyhow::Error>)> {
    let mut report = from_run(dir)?;
    let name = dir.file_name().map_or_else(|| dir.to_string_lossy(), |name| name.to_string_lossy());
    report.title = name.into_owned();
    let missing = pictures(dir, &mut report).err();
    Ok((report, missing))
}

fn pictures(dir: &Path, report: &mut Report) -> Result<()> {
    let found = checkpoint::find(dir)?;
    let config = &found.state.config;
    report.summary = format!(
        "{} of width {}, {}, {} of {} epochs on {} images.",
        config.model.arch,
        config.model.width,
        config.method.0,
        found.state.position.epoch,
        config.train.epochs,
        found.state.samples
    );
    let set = open(&config.data.train, "data.train", &config.open_options())?;
    let wanted = views::spread(SAMPLES, set.len());
    report.samples = views::draw(&set, &wanted, &config.loader()?, 0)?.0;
    let device = crate::train::evaluation_device(&config.train)?;
    let mut untrained = TwinNet::new(&config.model, config.train.seed, &device)?;
    report.correlations = vec![
        correlation("untrained", &mut untrained, &set, config)?,
        correlation("trained", &mut found.network(&device)?, &set, config)?,
    ];
    Ok(())
}

/// Puts scores into the run's [`SCORES_FILE`]: what was measured of the same features before is
/// replaced, the rest stays.
///
/// # Errors
/// A file that cannot be written.
pub fn record(dir: &Path, fresh: &[Score]) -> Result<()> {
    let path = dir.join(SCORES_FILE);
    let mut scores: Vec<Score> = match std::fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).context(SCORES_FILE)?,
        Err(_) => Vec::new(),
    };
    for score in fresh {
        match scores.iter_mut().find(|known| known.name == score.name) {
            Some(known) => {
                known.knn = score.knn.or(known.knn);
                known.linear = score.linear.or(known.linear);
            }
            None => scores.push(score.clone()),
        }
    }
    crate::files::write_atomically(&path, &serde_json::to_vec_pretty(&scores)?)
}

fn facts(summary: &Summary) -> Vec<(String, String)> {
    let rate = summary.images as f64 / summary.seconds.max(1e-9);
    vec![
        ("steps".into(), summary.steps.to_string()),
        ("source images per second".into(), format!("{rate:.0}")),
        ("training time".into(), duration(summary.seconds)),
        ("stage that limits".into(), summary.limit.clone()),
    ]
}

fn times(summary: &Summary) -> Vec<TimeTable> {
    vec![
        TimeTable { title: "Training thread".into(), rows: summary.step_seconds.clone() },
        TimeTable {
            title: "Loader threads, added up".into(),
            rows: summary.loader_seconds.clone(),
        },
    ]
}

/// Seconds as people say them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// What a loader needs for batches of another size than the run's, which its budget was made for: two in
/// flight and a third for the rest.
fn budget_of(loader: &LoaderConfig, batch_size: usize) -> u64 {
    let image = |view: &ViewConfig| {
        let (height, width) = view.out_size();
        (height * width * 3 * size_of::<f32>()) as u64
    };
    3 * batch_size as u64 * loader.views.iter().map(image).sum::<u64>()
}

/// C of `net` over the first training batch of epoch 0, BatchNorm taking the batch's
/// statistics as in training. It moves `net`'s running statistics: hand over a copy
/// when they are still needed.
///
/// # Errors
/// Unreadable samples, or a device that fails.
pub fn correlation(
    name: &str,
    net: &mut TwinNet,
    set: &Arc<ShardSet>,
    config: &RunConfig,
) -> Result<Correlation> {
    let loader = config.loader()?;
    let batch_size = CORRELATION_BATCH.min(set.len());
    let budget_bytes = loader.budget_bytes.max(budget_of(&loader, batch_size));
    let config_of_batch = LoaderConfig { batch_size, budget_bytes, ..loader };
    let loader = Loader::new(Arc::clone(set), config_of_batch)?;
    let mut stream = loader.start(Position::default(), 1)?;
    let batch = stream.next().context("the training set holds no batch")??;
    let images = images_of(&batch, &crate::train::evaluation_device(&config.train)?)?;
    let z = net.forward_only(&images, 2)?;
    let (a, b) = (z.narrow(0, 0, batch.size)?, z.narrow(0, batch.size, batch.size)?);
    let c = crate::loss::cross_correlation(&a, &b, crate::loss::BarlowConfig::default().eps)?;
    let dim = c.dim(0)?;
    Ok(Correlation { name: name.into(), dim, values: c.flatten_all()?.to_vec1()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_is_measured_again_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let knn = |name: &str, knn: f64| Score { name: name.into(), knn: Some(knn), linear: None };
        record(dir.path(), &[knn("trained", 0.5), knn("untrained", 0.1)]).unwrap();
        let linear = Some(crate::eval::Accuracy { top1: 0.7, top5: 0.9 });
        record(dir.path(), &[Score { name: "trained".into(), knn: None, linear }]).unwrap();
        record(dir.path(), &[knn("untrained", 0.2)]).unwrap();
        let text = std::fs::read(dir.path().join(SCORES_FILE)).unwrap();
        let scores: Vec<Score> = serde_json::from_slice(&text).unwrap();
        let trained = Score { name: "trained".into(), knn: Some(0.5), linear };
        assert_eq!(scores, [trained, knn("untrained", 0.2)]);
    }

    #[test]
    fn durations_are_said_in_the_unit_that_suits_them() {
        assert_eq!(duration(12.34), "12.3 s");
        assert_eq!(duration(125.0), "2 min 05 s");
        assert_eq!(duration(7380.0), "2 h 03 min");
    }
}
