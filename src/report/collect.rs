//! What a run's folder tells: configuration, metrics, summary, scores, and
//! pictures drawn anew from the checkpoint and the shards.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

use super::{Report, TimeTable};
use crate::checkpoint;
use crate::config::{CONFIG_FILE, RunConfig, room_for};
use crate::data::open_set;
use crate::device::evaluation_device;
use crate::eval::scores;
use crate::files::optional_json;
use crate::intake::images_of;
use crate::metrics::{self, Line};
use crate::model::TwinNet;
use crate::picture::{Correlation, views};
use crate::train::{SUMMARY_FILE, Summary};
use crate::units::duration;

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
    let metrics = metrics::read(dir)?;
    let summary: Option<Summary> = optional_json(&dir.join(SUMMARY_FILE));
    let processes = seconds_by_process(&metrics);
    Ok(Report {
        title: "Barlow Twins run".into(),
        scores: checkpoint::newest_step(dir)
            .map_or_else(Vec::new, |step| scores::of_step(dir, step)),
        facts: summary.iter().flat_map(|summary| facts(summary, &processes)).collect(),
        times: summary.iter().flat_map(|summary| times(summary, processes.len())).collect(),
        config: std::fs::read_to_string(dir.join(CONFIG_FILE)).unwrap_or_default(),
        metrics,
        ..Report::default()
    })
}

/// Seconds of each process that took part in a run.
fn seconds_by_process(lines: &[Line]) -> Vec<f64> {
    let processes = lines.chunk_by(Line::same_process);
    processes.filter_map(|lines| Some(lines.last()?.seconds)).collect()
}

/// As [`from_run`], with what the checkpoint and the shards add: samples with their views, and C of
/// the untrained and of the trained network. The second value says why where they could not.
///
/// # Errors
/// As [`from_run`].
pub fn with_pictures(dir: &Path) -> Result<(Report, Option<anyhow::Error>)> {
    let mut report = from_run(dir)?;
    report.title = name_of(dir);
    let missing = pictures(dir, &mut report).err();
    Ok((report, missing))
}

/// The folder's own name, also where it was named `.` or `..`.
fn name_of(dir: &Path) -> String {
    let whole = dir.canonicalize().unwrap_or_default();
    let name = dir.file_name().or(whole.file_name()).unwrap_or(dir.as_os_str());
    name.to_string_lossy().into_owned()
}

fn pictures(dir: &Path, report: &mut Report) -> Result<()> {
    let device_of = |config: &RunConfig| evaluation_device(&config.train);
    // The network at once: a run that goes on removes its checkpoints.
    let (found, mut trained) =
        checkpoint::find_with(dir, |found| found.network(&device_of(&found.state.config)?))?;
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
    let set = open_set(&config.data.train, "data.train", &config.open_options())?;
    let wanted = views::spread(SAMPLES, set.len());
    report.samples = views::draw(&set, &wanted, &config.loader()?, 0)?.0;
    let mut untrained = TwinNet::new(&config.model, config.train.seed, &device_of(config)?)?;
    report.correlations = vec![
        correlation("untrained", &mut untrained, &set, config)?,
        correlation("trained", &mut trained, &set, config)?,
    ];
    Ok(())
}

fn facts(summary: &Summary, processes: &[f64]) -> Vec<(String, String)> {
    let rate = summary.images as f64 / summary.seconds.max(1e-9);
    // Beside the steps of all processes stands the time of all of them.
    let time = match processes {
        [_, _, ..] => {
            let all = duration(processes.iter().sum());
            format!("{all} in {} processes", processes.len())
        }
        _ => duration(summary.seconds),
    };
    vec![
        ("steps".into(), summary.steps.to_string()),
        ("source images per second".into(), format!("{rate:.0}")),
        ("training time".into(), time),
        ("stage that limits".into(), summary.limit.clone()),
    ]
}

fn times(summary: &Summary, processes: usize) -> Vec<TimeTable> {
    let whose = if processes > 1 { " (the last process)" } else { "" };
    let table = |title: &str, rows: &[(String, f64)]| TimeTable {
        title: format!("{title}{whose}"),
        rows: rows.to_vec(),
    };
    vec![
        table("Training thread", &summary.step_seconds),
        table("Loader threads, added up", &summary.loader_seconds),
    ]
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
    let budget_bytes = loader.budget_bytes.max(room_for(&loader.views, batch_size));
    let config_of_batch = LoaderConfig { batch_size, budget_bytes, ..loader };
    let loader = Loader::new(Arc::clone(set), config_of_batch)?;
    let mut stream = loader.start(Position::default(), 1)?;
    let batch = stream.next().context("the training set holds no batch")??;
    let images = images_of(&batch, &evaluation_device(&config.train)?)?;
    let z = net.forward_only(&images, 2)?;
    let (a, b) = (z.narrow(0, 0, batch.size())?, z.narrow(0, batch.size(), batch.size())?);
    let c = crate::loss::cross_correlation(&a, &b, crate::loss::BarlowConfig::default().eps)?;
    let dim = c.dim(0)?;
    Ok(Correlation { name: name.into(), dim, values: c.flatten_all()?.to_vec1()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::SCORES_FILE;

    #[test]
    fn a_torn_file_beside_the_metrics_is_left_out_and_all_processes_count() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let line = |step: u64, seconds: f64| {
            format!("{{\"step\":{step},\"epoch\":0,\"seconds\":{seconds}}}\n")
        };
        let lines = [line(1, 30.0), line(2, 70.0), line(3, 20.0), line(4, 25.0)].concat();
        put(metrics::METRICS_FILE, &lines);
        put(SCORES_FILE, "[{\"na");
        put(SUMMARY_FILE, "{\"steps\": 4");
        let report = from_run(dir.path()).unwrap();
        assert!(report.scores.is_empty() && report.facts.is_empty());
        assert_eq!(report.metrics.len(), 4);

        let summary = Summary { steps: 4, seconds: 26.0, ..Summary::default() };
        put(SUMMARY_FILE, &serde_json::to_string(&summary).unwrap());
        let report = from_run(dir.path()).unwrap();
        let time = ("training time".to_owned(), "1 min 35 s in 2 processes".to_owned());
        assert!(report.facts.contains(&time), "{:?}", report.facts);
        assert!(report.times[0].title.contains("the last process"));
        // Processes that say when they began are told apart whatever they count.
        let line = |step: u64, seconds: f64, began: u64| {
            line(step, seconds).replace('}', &format!(",\"began\":{began}}}"))
        };
        let lines = [line(1, 5.0, 100), line(2, 20.0, 2000), line(3, 50.0, 3000)].concat();
        put(metrics::METRICS_FILE, &lines);
        let report = from_run(dir.path()).unwrap();
        let time = ("training time".to_owned(), "1 min 15 s in 3 processes".to_owned());
        assert!(report.facts.contains(&time), "{:?}", report.facts);
        // A process of its own has no need of that.
        put(metrics::METRICS_FILE, &line(4, 25.0, 100));
        let report = from_run(dir.path()).unwrap();
        assert!(report.facts.contains(&("training time".to_owned(), "26.0 s".to_owned())));
    }

    #[test]
    fn a_folder_is_named_however_it_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a");
        std::fs::create_dir_all(run.join("below")).unwrap();
        for way in [run.clone(), run.join("."), run.join("below/..")] {
            assert_eq!(name_of(&way), "a", "{}", way.display());
        }
    }
}
