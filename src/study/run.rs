//! Running a study's cells: those that are not finished, one after another or several at a time,
//! in this process, so that whatever ends the process ends all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use bt_pipeline::unpoisoned;
use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::plan::{Cell, DRAWN_SHARDS, Drawn, Measure, Study};
use super::{page, table};
use crate::checkpoint;
use crate::config::{CONFIG_FILE, RunConfig, flattened};
use crate::data::open_set;
use crate::device::device;
use crate::drawn::draw_shards;
use crate::eval::compare::encode;
use crate::eval::features::NotFinite;
use crate::eval::{Accuracy, ProbeConfig};
use crate::files::write_atomically;
use crate::learner::Learner;
use crate::loss::diagnostics::Health;
use crate::model::TwinNet;
use crate::nn::Engine;
use crate::print::one_line;
use crate::report::chart::Chart;
use crate::signals::Stop;
use crate::step_bench::random_images;
use crate::train::{self, Diverged, ResumeFrom, RunOutputs};

/// File in a cell's folder; it is there when the cell is finished.
pub const RESULT_FILE: &str = "result.json";
/// File in a cell's folder: the configuration as the study has it, without this machine's threads,
/// and a comment in one that is not trained.
pub const CELL_FILE: &str = "cell.toml";
/// That comment.
const UNTRAINED: &str = "# untrained = true\n";

/// How a study is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The study's folder.
    pub dir: PathBuf,
    /// Cells at a time; each gets its share of the cores.
    pub jobs: usize,
    /// Only rows whose name contains this.
    pub only: Option<String>,
}

/// What a finished cell gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// kNN accuracy, 0 to 1.
    pub knn: Option<f64>,
    /// The linear probe's.
    pub linear: Option<Accuracy>,
    /// The last line of metrics' loss; absent, as what follows, for a run that diverged.
    pub loss: Option<f64>,
    /// Effective rank of the embeddings' covariance at the end.
    pub effective_rank: Option<f64>,
    /// The embeddings at the end, in a word.
    pub health: Option<Health>,
    /// The same in a sentence.
    pub embeddings: String,
    /// Why there are no figures: the loss became no number.
    pub diverged: Option<String>,
    /// Wall seconds of the process that finished it; not part of the table.
    pub seconds: f64,
}

/// A cell's result, if it is finished.
///
/// # Errors
/// A result that cannot be read.
pub fn result_of(cell: &Cell) -> Result<Option<CellResult>> {
    let path = cell.config.train.dir.join(RESULT_FILE);
    match std::fs::read(&path) {
        Ok(text) => {
            let result = serde_json::from_slice(&text);
            Ok(Some(result.with_context(|| path.display().to_string())?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Runs the cells that are not finished, and writes the table after each of them. Returns whether
/// all are finished; `stop` ends it after the steps in progress.
///
/// # Errors
/// Another process at work in the folder, a finished cell of another configuration, a table that
/// cannot be written; and, once the others were run, the first error of a cell's training or
/// evaluation.
pub fn run(study: &Study, options: &Options, stop: &Stop) -> Result<bool> {
    let rows = study.rows_named(options.only.as_deref())?;
    std::fs::create_dir_all(&options.dir).with_context(|| options.dir.display().to_string())?;
    let lock = std::fs::File::create(options.dir.join(".lock"))?;
    if lock.try_lock().is_err() {
        bail!("another process runs the study in {}", options.dir.display());
    }
    if let Some(drawn) = &study.drawn {
        draw(&options.dir, drawn)?;
    }
    let waiting = waiting(study, &rows)?;
    eprintln!("{} of {} cells to run", waiting.len(), study.cells.len());
    write_results(study, &options.dir)?;
    let jobs = options.jobs.clamp(1, waiting.len().max(1));
    if jobs > 1 {
        only_cpus(&waiting)?;
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let queue = Queue {
        study,
        dir: &options.dir,
        waiting,
        next: AtomicUsize::new(0),
        threads: (cores / jobs).max(1),
        writing: Mutex::new(()),
        failed: Mutex::new(Vec::new()),
        stop,
    };
    let ended = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                if let Err(error) = queue.work() {
                    // The others end after the step in progress and can be continued.
                    stop.raise();
                    unpoisoned(ended.lock()).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = unpoisoned(ended.into_inner()) {
        return Err(error);
    }
    write_results(study, &options.dir)?;
    if stop.raised() {
        return Ok(false);
    }
    let (failed, cells) = (queue.failed.into_inner(), queue.waiting.len());
    let mut failed = unpoisoned(failed).into_iter();
    match (failed.len(), failed.next()) {
        (count, Some(first)) => Err(first.context(format!("{count} of {cells} cells failed"))),
        _ => Ok(true),
    }
}

/// The cells of `rows` that are not finished.
fn waiting<'a>(study: &'a Study, rows: &[usize]) -> Result<Vec<&'a Cell>> {
    let mut waiting = Vec::new();
    for cell in study.cells.iter().filter(|cell| rows.contains(&cell.row)) {
        check_unchanged(cell, &study.rows[cell.row].name)?;
        if !result_of(cell)?.is_some_and(|result| has_all(&result, cell, &study.measure)) {
            waiting.push(cell);
        }
    }
    Ok(waiting)
}

/// Whether `result` has every figure that `measure` asks for now; it may be from before the study's
/// file did.
fn has_all(result: &CellResult, cell: &Cell, measure: &Measure) -> bool {
    let figures =
        (!measure.knn || result.knn.is_some()) && (!measure.linear || result.linear.is_some());
    // The others have none.
    figures || result.diverged.is_some() || cell.config.data.val.is_empty()
}

/// A CUDA device's stream records whole steps: another cell's work would be recorded with them.
fn only_cpus(cells: &[&Cell]) -> Result<()> {
    for cell in cells {
        if !device(&cell.config.train)?.is_cpu() {
            bail!(
                "a CUDA device takes one cell at a time: --jobs 1, or --set train.device=\"'cpu'\""
            );
        }
    }
    Ok(())
}

/// The cells that several threads take one by one.
struct Queue<'a> {
    study: &'a Study,
    dir: &'a Path,
    waiting: Vec<&'a Cell>,
    /// The next of them.
    next: AtomicUsize,
    /// For each cell.
    threads: usize,
    /// Held by the one that writes the table.
    writing: Mutex<()>,
    /// What ended cells, in that order.
    failed: Mutex<Vec<anyhow::Error>>,
    stop: &'a Stop,
}

impl Queue<'_> {
    /// Runs cells until none is left: one that fails keeps no other from its turn.
    fn work(&self) -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build()?;
        while !self.stop.raised() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = self.waiting.get(number) else { break };
            let name = format!("{}, seed {}", self.study.rows[cell.row].name, cell.seed);
            let place = format!("[{}/{}] {name}", number + 1, self.waiting.len());
            eprintln!("{place}");
            let done = pool
                .install(|| run_cell(cell, &name, &self.study.measure, self.threads, self.stop))
                .with_context(|| format!("cell `{name}`"));
            match done {
                Ok(Some(result)) => {
                    eprintln!("{place}: {}", table::summary(&result));
                    let _one = unpoisoned(self.writing.lock());
                    write_results(self.study, self.dir)?;
                }
                Ok(None) => {}
                Err(error) => {
                    eprintln!("{}", one_line(&error));
                    unpoisoned(self.failed.lock()).push(error);
                }
            }
        }
        Ok(())
    }
}

/// Draws and packs the data set once; the marker is written last.
fn draw(dir: &Path, drawn: &Drawn) -> Result<()> {
    let marker = dir.join("data").join("drawn.json");
    let wanted = serde_json::to_vec(drawn)?;
    if let Ok(found) = std::fs::read(&marker) {
        if found == wanted {
            return Ok(());
        }
        let begun =
            std::fs::read_dir(dir.join("cells")).is_ok_and(|mut cells| cells.next().is_some());
        if begun {
            bail!(
                "the cells in {} were begun with another drawn data set ({}): use another --dir, or remove them",
                dir.display(),
                String::from_utf8_lossy(&found)
            );
        }
    }
    draw_shards(&dir.join("data"), drawn.images, drawn.test_images, 0)?;
    write_atomically(&marker, &wanted)
}

/// The text of [`CELL_FILE`].
fn exact(cell: &Cell) -> Result<String> {
    let mut config = cell.config.clone();
    (config.train.threads, config.data.threads, config.data.network_requests) = (0, 0, 0);
    let mark = if cell.untrained { UNTRAINED } else { "" };
    Ok(config.to_toml()? + mark)
}

/// What decides a cell's result, as text, of the `text` of its [`CELL_FILE`]: all but the name of
/// the study's folder, which may have been moved or be named otherwise.
fn decisive(text: &str) -> Result<String> {
    let mut table: toml::Table = text.parse()?;
    let train = table.get_mut("train").and_then(toml::Value::as_table_mut);
    let cell = train.and_then(|train| train.remove("dir")).unwrap_or("".into());
    let cell = Path::new(cell.as_str().unwrap_or_default());
    let dir = cell.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    // Cells of before it was a setting have none.
    if let Some(data) = table.get_mut("data").and_then(toml::Value::as_table_mut) {
        data.remove("network_requests");
    }
    for (key, within) in DRAWN_SHARDS {
        let data = table.get_mut("data").and_then(toml::Value::as_table_mut);
        if let Some(toml::Value::String(shards)) = data.and_then(|data| data.get_mut(key))
            && Path::new(shards) == dir.join(within)
        {
            *shards = within.into();
        }
    }
    let mark = if text.ends_with(UNTRAINED) { UNTRAINED } else { "" };
    Ok(toml::to_string_pretty(&table)? + mark)
}

/// A cell that was begun with another configuration is not silently taken for this one.
fn check_unchanged(cell: &Cell, name: &str) -> Result<()> {
    let path = cell.config.train.dir.join(CELL_FILE);
    let Ok(found) = std::fs::read_to_string(&path) else { return Ok(()) };
    let found = decisive(&found).with_context(|| path.display().to_string())?;
    let wanted = decisive(&exact(cell)?)?;
    if found == wanted {
        return Ok(());
    }
    let values = |text: &str| -> BTreeMap<String, String> {
        let mut values = text.parse().map(|table| flattened(&table)).unwrap_or_default();
        values.extend(text.ends_with(UNTRAINED).then(|| ("untrained".into(), "true".into())));
        values
    };
    let (found, wanted) = (values(&found), values(&wanted));
    let mut keys = found.keys().chain(wanted.keys());
    // Tables without a setting are none.
    let Some(differs) = keys.find(|key| found.get(*key) != wanted.get(*key)) else { return Ok(()) };
    let told = |values: &BTreeMap<String, String>| match values.get(differs) {
        Some(value) => format!("{differs} = {value}"),
        None => format!("the default of {differs}"),
    };
    bail!(
        "cell `{name}` was begun with `{}`, the study now has `{}`: use another --dir, or remove {}",
        told(&found),
        told(&wanted),
        cell.config.train.dir.display()
    )
}

/// Trains and measures one cell; nothing when it was stopped on the way.
fn run_cell(
    cell: &Cell,
    name: &str,
    measure: &Measure,
    threads: usize,
    stop: &Stop,
) -> Result<Option<CellResult>> {
    let begun = std::time::Instant::now();
    let mut config = cell.config.clone();
    if config.data.threads == 0 {
        config.data.threads = threads;
    }
    let dir = &config.train.dir;
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    write_atomically(&dir.join(CELL_FILE), exact(cell)?.as_bytes())?;
    let device = device(&config.train)?;
    let mut result = CellResult::default();
    let net = if cell.untrained {
        write_atomically(&dir.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;
        let mut net = TwinNet::new(&config.model, config.train.seed, &device)?;
        train::start_from(&config, |tensors| Ok(net.load_backbone(tensors)?))?;
        Some(net)
    } else {
        let outputs = RunOutputs { line_prefix: format!("{name}: "), ..Default::default() };
        // A cell that has not begun is nothing to warn of.
        let from = match checkpoint::any(dir)? {
            true => ResumeFrom::Latest,
            false => ResumeFrom::Scratch,
        };
        match train::train(&config, &from, stop, &outputs) {
            Ok(summary) if summary.interrupted => return Ok(None),
            Ok(_) => Some(checkpoint::find(dir)?.network(&device)?),
            Err(error) => match error.downcast::<Diverged>() {
                Ok(diverged) => {
                    result.diverged = Some(diverged.to_string());
                    None
                }
                Err(error) => return Err(error),
            },
        }
    };
    if let Some(mut net) = net {
        match score(&mut net, &config, measure, &device, &mut result) {
            // The last step's weights are seen by no loss.
            Err(error) if error.is::<NotFinite>() => result.diverged = Some(error.to_string()),
            scored => scored?,
        }
    }
    if !cell.untrained && result.diverged.is_none() {
        from_metrics(dir, &mut result)?;
    }
    result.seconds = begun.elapsed().as_secs_f64();
    write_atomically(&dir.join(RESULT_FILE), &serde_json::to_vec_pretty(&result)?)?;
    Ok(Some(result))
}

fn score(
    net: &mut TwinNet,
    config: &RunConfig,
    measure: &Measure,
    device: &Device,
    result: &mut CellResult,
) -> Result<()> {
    if config.data.val.is_empty() || !(measure.knn || measure.linear) {
        return Ok(());
    }
    let options = config.open_options();
    let set = |pattern: &str, key: &str| open_set(pattern, key, &options);
    let sets = [set(&config.data.train, "data.train")?, set(&config.data.val, "data.val")?];
    let kind = encode("features", net, [&sets[0], &sets[1]], config, device)?;
    let knn = config.eval.knn();
    // Many cells, and half the iterations of `bt-stream probe` leave their order as it is.
    let probe = ProbeConfig { max_iterations: 80, ..ProbeConfig::default() };
    let score = kind.score(measure.knn.then_some(knn), measure.linear.then_some(&probe))?;
    (result.knn, result.linear) = (score.knn, score.linear);
    Ok(())
}

/// What the metrics tell of the end of the run.
fn from_metrics(dir: &Path, result: &mut CellResult) -> Result<()> {
    let lines = crate::metrics::read(dir)?;
    result.loss = lines.iter().rev().find_map(|line| line.loss);
    if let Some(found) = lines.iter().rev().find_map(|line| line.diagnostics.as_ref()) {
        result.effective_rank = Some(found.effective_rank);
        result.health = Some(found.health());
        result.embeddings = found.describe();
    }
    Ok(())
}

/// Table and page of what is finished.
fn write_results(study: &Study, dir: &Path) -> Result<()> {
    let results = study.cells.iter().map(result_of).collect::<Result<Vec<Option<CellResult>>>>()?;
    write_atomically(&dir.join("table.md"), table::markdown(study, &results).as_bytes())?;
    write_atomically(&dir.join("table.csv"), table::csv(study, &results).as_bytes())?;
    if let Some(curve) = page::charts_over_x(study, &results).first().and_then(Chart::svg_file) {
        write_atomically(&dir.join("accuracy.svg"), curve.as_bytes())?;
    }
    write_atomically(&dir.join("study.html"), page::render(study, &results)?.as_bytes())
}

/// One whole step of `config`'s network on random images, with a batch of `batch`: whether a
/// configuration runs at all, without its data. Returns the loss.
///
/// # Errors
/// What the step answers.
pub fn first_step(config: &RunConfig, batch: usize) -> Result<f64> {
    let device = device(&config.train)?;
    let view = config.views.views()?.swap_remove(0);
    let images = random_images(&Engine::of(&device)?, batch, view.out_size(), config.train.seed)?;
    let mut learner = Learner::new(config, &device)?;
    let mut optimizer = config.optim.for_run(config.train.batch_size)?;
    learner.forward(&images)?;
    let mut out = learner.loss()?;
    learner.backward(&mut out)?;
    let rates = config.optim.schedule(config.train.batch_size, 10, 1000).rates(20);
    optimizer.step(&mut learner.params(), rates.0, rates.1)?;
    learner.follow(0, 1000)?;
    if !out.loss.is_finite() {
        let cause = format!("the loss is {}", out.loss);
        bail!(Diverged { cause, step: 1, passed: 0, noted: false, before: None, resumable: false });
    }
    Ok(out.loss)
}
