//! `bt-stream quickstart`: the whole road at once, from drawing images to a page
//! that shows what the network learnt. Each station is what a person would do by
//! hand with the other commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bt_pipeline::shard::ShardSet;
use clap::Args;

use crate::checkpoint;
use crate::commands::path_flag;
use crate::config::{CONFIG_FILE, Misconfigured, RunConfig};
use crate::data::open_set;
use crate::device::device;
use crate::drawn::draw_shards;
use crate::eval::compare::{FeaturePair, encode, pixel_pairs, table};
use crate::eval::knn::nearest;
use crate::eval::{ProbeConfig, Score, scores};
use crate::files::write_atomically;
use crate::metrics::Line;
use crate::model::TwinNet;
use crate::picture::{Correlation, Sample, views};
use crate::report::collect::{self, correlation};
use crate::report::{Neighbours, Report, TimeTable, render};
use crate::train::{self, ResumeFrom, RunOutputs};
use crate::units::{duration, percent};

/// Arguments of `bt-stream quickstart`.
#[derive(Args, Debug)]
pub struct QuickstartArgs {
    /// The folder for shards, run and report; made if need be, replaced if it is
    /// quickstart's own
    #[arg(long, default_value = "runs/quickstart")]
    dir: PathBuf,
    /// Images to draw for training
    #[arg(long, default_value_t = 8000)]
    images: u64,
    /// Images to draw for testing
    #[arg(long, default_value_t = 1200)]
    test_images: u64,
    /// Passes over the training images
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Decides images, weights, order and views
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Set a key of the configuration, as in `--set optim.lr_weights=0.002`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the scores and the report's name as JSON
    #[arg(long)]
    json: bool,
}

/// Names the folder as quickstart's own, so that it may be replaced.
const MARKER: &str = "made-by-quickstart";

/// Runs the command.
///
/// # Errors
/// A folder that holds something else, a disk that is full, a signal.
pub fn run(args: QuickstartArgs) -> Result<()> {
    let begun = Instant::now();
    let config = configuration(&args)?;
    prepare_folder(&args.dir)?;
    let mut phases = Phases { last: begun, rows: Vec::new() };

    eprintln!("1/4 drawing {} + {} images into shards", args.images, args.test_images);
    draw_shards(&args.dir.join("data"), args.images, args.test_images, args.seed)?;
    phases.lap("draw and pack");

    eprintln!("2/4 looking at the images before training");
    let data = Data::open(&config)?;
    let before = Before::measure(&config, &data)?;
    phases.lap("evaluate before training");

    eprintln!(
        "3/4 training {} (width {}, projector {}) for {} epochs of {} images",
        config.model.arch,
        config.model.width,
        config.model.projector,
        config.train.epochs,
        data.train.len()
    );
    let stop = crate::signals::Stop::on_signals()?;
    let summary = train::train(&config, &ResumeFrom::Scratch, &stop, &RunOutputs::default())?;
    if let (true, Some(interrupted)) = (summary.interrupted, stop.interrupted()) {
        return Err(interrupted).context("`bt-stream quickstart` starts anew");
    }
    phases.lap("train");

    eprintln!("4/4 evaluating and writing the report");
    let after = After::measure(&config, &data, &before)?;
    phases.lap("evaluate after training");

    let scores = after.scores.clone();
    let report = report_of(&config, &data, before, after, phases, begun)?;
    let path = args.dir.join("report.html");
    write_atomically(&path, render(&report)?.as_bytes())?;
    if args.json {
        let seconds = begun.elapsed().as_secs_f64();
        let line = serde_json::json!({ "scores": scores, "report": path.display().to_string(), "seconds": seconds });
        println!("{}", serde_json::to_string_pretty(&line)?);
    } else {
        say(&scores, &path, &report, begun);
    }
    Ok(())
}

/// The run's own report, with what was found beside it.
fn report_of(
    config: &RunConfig,
    data: &Data,
    before: Before,
    after: After,
    phases: Phases,
    begun: Instant,
) -> Result<Report> {
    let mut report = collect::from_run(&config.train.dir)?;
    let untrained = before.scores.first().and_then(|score| score.knn);
    report.metrics.insert(0, Line { knn: untrained, ..Line::default() });
    headline(&mut report, data, begun);
    report.correlations = vec![before.correlation, after.correlation];
    report.neighbours = after.neighbours;
    report.samples = data.examples(config)?;
    report.times.insert(0, TimeTable { title: "Quickstart".into(), rows: phases.rows });
    report.next = next(config);
    Ok(report)
}

fn say(scores: &[Score], path: &Path, report: &Report, begun: Instant) {
    println!("{}", table(scores));
    println!("\nreport  {}", std::path::absolute(path).unwrap_or(path.into()).display());
    println!("time    {}", duration(begun.elapsed().as_secs_f64()));
    for (what, command) in &report.next {
        println!("\n{what}\n{}", indent(command));
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect::<String>().trim_end().to_owned()
}

/// Makes the folder, or empties it when an earlier quickstart made it.
fn prepare_folder(dir: &Path) -> Result<()> {
    let marker = dir.join(MARKER);
    let io = || format!("cannot prepare {}", dir.display());
    if dir.exists() {
        let empty = std::fs::read_dir(dir).with_context(io)?.next().is_none();
        if !empty && !marker.exists() {
            bail!("{} holds something else: name another folder with --dir", dir.display());
        }
        for own in ["data", "run"] {
            let own = dir.join(own);
            if own.exists() {
                std::fs::remove_dir_all(&own).with_context(|| own.display().to_string())?;
            }
        }
    }
    std::fs::create_dir_all(dir).with_context(io)?;
    write_atomically(&marker, b"bt-stream quickstart made this folder and may replace it.\n")
}

fn configuration(args: &QuickstartArgs) -> Result<RunConfig> {
    let within = |key: &str, name: &str| path_flag(key, Some(&args.dir.join(name)));
    let places = [
        within("data.train", "data/train.manifest.json")?,
        within("data.val", "data/test.manifest.json")?,
        within("train.dir", "run")?,
    ];
    let mut pairs: Vec<String> = places.into_iter().flatten().collect();
    pairs.push(format!("train.epochs={}", args.epochs));
    pairs.push(format!("train.seed={}", args.seed));
    pairs.extend(args.set.iter().cloned());
    RunConfig::parse(include_str!("quickstart.toml"), "quickstart.toml", &pairs)
        .map_err(|error| Misconfigured(format!("{error:#}")).into())
}

/// The two sets that were drawn.
struct Data {
    train: Arc<ShardSet>,
    test: Arc<ShardSet>,
}

impl Data {
    fn open(config: &RunConfig) -> Result<Self> {
        Ok(Data {
            train: open_set(&config.data.train, "data.train", &config.open_options())?,
            test: open_set(&config.data.val, "data.val", &config.open_options())?,
        })
    }

    fn sets(&self) -> [&Arc<ShardSet>; 2] {
        [&self.train, &self.test]
    }

    /// One image of each class with its views; classes take turns in the set.
    fn examples(&self, config: &RunConfig) -> Result<Vec<Sample>> {
        let classes = self.train.num_classes()? as u64;
        let wanted: Vec<u64> = (0..classes.min(self.train.len() as u64)).collect();
        Ok(views::draw(&self.train, &wanted, &config.loader()?, 0)?.0)
    }
}

/// What is known before the first step.
struct Before {
    untrained: FeaturePair,
    /// Untrained network, raw pixels, colour histogram.
    scores: Vec<Score>,
    correlation: Correlation,
}

impl Before {
    fn measure(config: &RunConfig, data: &Data) -> Result<Self> {
        let device = device(&config.train)?;
        let mut net = TwinNet::new(&config.model, config.train.seed, &device)?;
        let untrained = encode("untrained network", &mut net, data.sets(), config, &device)?;
        let mut scores = vec![score(untrained.clone(), config)?];
        for pair in pixel_pairs(&data.train, &data.test, config)? {
            scores.push(score(pair, config)?);
        }
        let correlation = correlation("before training", &mut net, &data.train, config)?;
        Ok(Before { untrained, scores, correlation })
    }
}

/// What is known after the last one.
struct After {
    /// The trained network's, then those from before.
    scores: Vec<Score>,
    neighbours: Vec<Neighbours>,
    correlation: Correlation,
}

impl After {
    /// Measures the newest checkpoint, and keeps its scores in the run's folder.
    fn measure(config: &RunConfig, data: &Data, before: &Before) -> Result<Self> {
        let found = checkpoint::find(&config.train.dir)?;
        let device = device(&config.train)?;
        let mut net = found.network(&device)?;
        let trained = encode("trained network", &mut net, data.sets(), config, &device)?;
        let mut scores = vec![score(trained.clone(), config)?];
        scores.extend(before.scores.iter().cloned());
        scores::record(&config.train.dir, found.state.step, &scores)?;
        let neighbours = neighbours(data, &before.untrained, &trained)?;
        let correlation = correlation("after training", &mut net, &data.train, config)?;
        Ok(After { scores, neighbours, correlation })
    }
}

fn score(pair: FeaturePair, config: &RunConfig) -> Result<Score> {
    let knn = config.eval.knn();
    // Raw pixels have 3,072 dimensions: few iterations keep them within seconds.
    let probe =
        ProbeConfig { decays: vec![1e-1, 1e-2, 1e-3], max_iterations: 60, ..Default::default() };
    pair.score(Some(knn), Some(&probe))
}

/// For the first test image of some classes, the nearest training images by both
/// networks' features.
fn neighbours(
    data: &Data,
    untrained: &FeaturePair,
    trained: &FeaturePair,
) -> Result<Vec<Neighbours>> {
    const NEAR: usize = 6;
    // Drawn images go through the classes in turn: one of every other class, as far as there are
    // any.
    let classes = data.test.num_classes()?.min(data.test.len());
    let queries: Vec<u64> = (0..classes as u64).step_by(2).collect();
    let pictures = |set: &ShardSet, mut wanted: Vec<u64>| -> Result<Vec<(u64, Sample)>> {
        wanted.sort_unstable();
        wanted.dedup();
        let config = bt_pipeline::LoaderConfig::training(Vec::new(), 1, 0);
        Ok(wanted.iter().copied().zip(views::draw(set, &wanted, &config, 0)?.0).collect())
    };
    let asked = pictures(&data.test, queries)?;
    let mut out = Vec::new();
    for pair in [untrained, trained] {
        let place: Vec<u64> = asked.iter().map(|(place, _)| *place).collect();
        let rows = pair.test.select(|i| place.contains(&pair.test.samples()[i]));
        let found = nearest(pair.train.clone(), rows.clone(), NEAR)?;
        let all = found.iter().flatten().map(|one| pair.train.samples()[one.index as usize]);
        let images = pictures(&data.train, all.collect())?;
        let image = |index: u32| {
            let place = pair.train.samples()[index as usize];
            images.iter().find(|(at, _)| *at == place).map(|(_, sample)| sample.original.clone())
        };
        let rows = asked.iter().zip(&found).enumerate().map(|(i, ((_, query), near))| {
            let near = near.iter().filter_map(|one| {
                let same = pair.train.labels()[one.index as usize] == rows.labels()[i];
                Some((image(one.index)?, same))
            });
            (query.original.clone(), near.collect())
        });
        out.push(Neighbours { name: pair.name.clone(), rows: rows.collect() });
    }
    Ok(out)
}

fn headline(report: &mut Report, data: &Data, begun: Instant) {
    report.title = "bt-stream quickstart".into();
    let knn = |i: usize| report.scores.get(i).and_then(|s| s.knn).map_or("-".into(), percent);
    report.summary = format!(
        "A Barlow Twins network trained for a few minutes on {} drawn images without their \
         labels. Its features now find the class of a new image in {} of cases; before training \
         it was {}, and comparing pixels gives {}.",
        data.train.len(),
        knn(0),
        knn(1),
        knn(2)
    );
    let classes = data.train.classes().len();
    report.scores_note = format!(
        "{} test images of {classes} classes: guessing is right in {} of cases. kNN: the 20 most \
         similar training images vote. Linear: a classifier on frozen features. Only here are \
         labels used.",
        data.test.len(),
        percent(1.0 / classes.max(1) as f64)
    );
    let total = duration(begun.elapsed().as_secs_f64());
    report.facts.insert(0, ("whole quickstart".into(), total));
    report.facts.insert(0, ("kNN accuracy".into(), knn(0)));
}

/// The command for the person's own images.
fn next(config: &RunConfig) -> Vec<(String, String)> {
    let saved = config.train.dir.join(CONFIG_FILE);
    vec![(
        "Your own images (a folder with a subfolder for each class), with this small configuration; README's \"Your own \
         images\" has a larger one, evaluation and export:"
            .into(),
        format!(
            "cargo run --release -p shard -- pack path/to/images runs/own/data --prefix train\n\
             cargo run --release -- train --config {} --data runs/own/data --dir runs/own/run \
             --val '' --set eval.knn_every=0",
            quoted(&saved)
        ),
    )]
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Wall time by phase.
struct Phases {
    last: Instant,
    rows: Vec<(String, f64)>,
}

impl Phases {
    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        let seconds = (now - std::mem::replace(&mut self.last, now)).as_secs_f64();
        self.rows.push((name.to_owned(), seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_folder_is_left_alone_and_its_own_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        prepare_folder(&own).unwrap();
        std::fs::create_dir(own.join("run")).unwrap();
        prepare_folder(&own).unwrap();
        assert!(!own.join("run").exists());
        let foreign = dir.path().join("foreign");
        std::fs::create_dir_all(foreign.join("run")).unwrap();
        let error = prepare_folder(&foreign).unwrap_err().to_string();
        assert!(error.contains("holds something else"), "{error}");
        assert!(foreign.join("run").exists());
    }

    #[test]
    fn the_embedded_configuration_is_valid() {
        let args = QuickstartArgs {
            dir: "a \"b".into(),
            images: 1,
            test_images: 1,
            epochs: 3,
            seed: 5,
            set: vec!["model.width=8".into()],
            json: false,
        };
        let config = configuration(&args).unwrap();
        assert_eq!((config.train.epochs, config.train.seed, config.model.width), (3, 5, 8));
        assert_eq!(config.data.train, "a \"b/data/train.manifest.json");
        // The command that is suggested pastes.
        assert!(next(&config)[0].1.contains(" --config 'a \"b/run/config.toml' --data "));
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(Path::new("runs/größe-1")), "runs/größe-1");
        assert_eq!(config.views.views().unwrap().len(), 2);
    }
}
