//! A study's file and the cells it stands for.
//!
//! ```toml
//! title = "Does lambda matter?"
//! extends = "../configs/study-small.toml"     # a configuration beneath `base`
//! seeds = [0, 1, 2]
//! reference = "ImageNet top-1 of the paper"   # what the cells' `reference` figures are
//!
//! [drawn]                  # draw a data set with these counts, unless `data.train` is given
//! images = 4000
//! test_images = 1000
//!
//! [base]                   # a run's configuration, common to all cells (the `loss` beneath is dropped
//!                          # where base, grid or a cell names another `method`)
//! method = "barlow"
//!
//! [grid]                   # every combination of these values is a row, or
//! "loss.lambda" = [0.001, 0.005]
//!
//! [[cells]]                # a list of cells
//! name = "only invariance"
//! reference = 57.3
//! config.loss.terms = "invariance"
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::config::{self, Misconfigured, RunConfig};

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudyFile {
    title: String,
    #[serde(default)]
    note: String,
    extends: Option<PathBuf>,
    seeds: Vec<u64>,
    #[serde(default)]
    reference: String,
    #[serde(default)]
    log_x: bool,
    #[serde(default)]
    x_label: String,
    x: Option<String>,
    drawn: Option<Drawn>,
    #[serde(default)]
    measure: Measure,
    #[serde(default)]
    base: toml::Table,
    #[serde(default)]
    grid: toml::Table,
    #[serde(default)]
    cells: Vec<CellFile>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CellFile {
    name: String,
    reference: Option<f64>,
    x: Option<f64>,
    #[serde(default)]
    untrained: bool,
    #[serde(default)]
    config: toml::Table,
}

/// A data set that the study draws for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// Images to train on.
    pub images: u64,
    /// Images to test on.
    pub test_images: u64,
}

/// The keys of `[data]` that name the drawn shards, and where these lie in the study's folder.
pub(super) const DRAWN_SHARDS: [(&str, &str); 2] =
    [("train", "data/train.manifest.json"), ("val", "data/test.manifest.json")];

/// How finished cells are measured.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Measure {
    /// Weighted kNN with `eval.k` and `eval.temperature`.
    pub knn: bool,
    /// The linear probe on stored features.
    pub linear: bool,
}

impl Default for Measure {
    fn default() -> Self {
        Measure { knn: true, linear: true }
    }
}

/// A study, checked.
#[derive(Clone, Debug)]
pub struct Study {
    /// Heading.
    pub title: String,
    /// A few sentences under it.
    pub note: String,
    /// What the rows' reference figures are; empty when there are none.
    pub reference: String,
    /// Under the x axis of the chart over rows; empty for no chart.
    pub x_label: String,
    /// Whether that axis is logarithmic.
    pub log_x: bool,
    /// Data to draw; absent when the configuration names shards.
    pub drawn: Option<Drawn>,
    /// How cells are measured.
    pub measure: Measure,
    /// The table's rows.
    pub rows: Vec<Row>,
    /// Every row's cells, row after row, seed after seed.
    pub cells: Vec<Cell>,
}

/// A row: cells that differ in the seed only.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name in the table.
    pub name: String,
    /// What others measured.
    pub reference: Option<f64>,
    /// Its place on the chart's x axis.
    pub x: Option<f64>,
    /// Which of the chart's lines it is on: in a grid the values beside x, else empty.
    pub line: String,
}

/// One run of a study.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Number of its row.
    pub row: usize,
    /// Its seed.
    pub seed: u64,
    /// Its configuration, exact.
    pub config: RunConfig,
    /// The network is measured as it begins, without training.
    pub untrained: bool,
}

impl Study {
    /// Reads a study whose cells will lie in `dir`; `overrides` (`key=value`) apply to all cells.
    ///
    /// # Errors
    /// A file that cannot be read, a study without cells, a configuration that does not hold, each
    /// with the cell's name.
    pub fn load(file: &Path, dir: &Path, overrides: &[String]) -> Result<Study> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the study {}", file.display()))?;
        let beside = crate::files::parent(file);
        Self::parse(&text, beside, dir, overrides).with_context(|| file.display().to_string())
    }

    /// As [`Study::load`], from the text of a file in the folder `beside`.
    ///
    /// # Errors
    /// As [`Study::load`].
    pub fn parse(text: &str, beside: &Path, dir: &Path, overrides: &[String]) -> Result<Study> {
        let mut file: StudyFile = toml::from_str(text)
            .map_err(|error| anyhow::anyhow!(config::with_line(&error, text)))?;
        if dir.to_str().is_none() {
            // Its cells' configurations name it.
            bail!(Misconfigured(format!("the name {} is not UTF-8", dir.display())));
        }
        check_seeds(&file.seeds)?;
        check_own(&file)?;
        file.base = base_with_extends(&file, beside)?;
        let overrides =
            overrides.iter().map(|pair| config::leaves(pair)).collect::<Result<Vec<_>>>()?;
        let overrides = overrides.concat();
        check_overrides(&file, &overrides)?;
        let drawn = drawn_data(&file, &overrides)?;
        let common = Common { dir, seeds: &file.seeds, draws: drawn.is_some(), overrides };
        let (mut rows, mut cells) = (Vec::new(), Vec::new());
        for (row, table, untrained) in plan(&file)? {
            check_name(&row.name, &rows)?;
            for (seed, config) in common.configs(&row.name, &table)? {
                cells.push(Cell { row: rows.len(), seed, config, untrained });
            }
            rows.push(row);
        }
        let StudyFile { title, note, reference, x_label, log_x, measure, .. } = file;
        Ok(Study { title, note, reference, x_label, log_x, drawn, measure, rows, cells })
    }

    /// The numbers of the rows whose name contains `part`; of all without one.
    ///
    /// # Errors
    /// When there is none.
    pub fn rows_named(&self, part: Option<&str>) -> Result<Vec<usize>> {
        let part = part.unwrap_or_default();
        let rows = self.rows.iter().enumerate().filter(|(_, row)| row.name.contains(part));
        let numbers: Vec<usize> = rows.map(|(number, _)| number).collect();
        if numbers.is_empty() {
            bail!(Misconfigured(format!("no row's name contains `{part}`")));
        }
        Ok(numbers)
    }
}

/// Whether a row called `name` has folders of its own beside those of `rows`.
fn check_name(name: &str, rows: &[Row]) -> Result<()> {
    let folder = slug(name);
    match rows.iter().find(|row| slug(&row.name) == folder) {
        None => Ok(()),
        Some(row) if row.name == name => bail!("two cells are called `{name}`"),
        Some(row) => bail!(
            "two cells, `{}` and `{name}`, would have one folder, `{folder}`: of a name it has the \
             ASCII letters, the digits and the dots, and a hyphen for each other character",
            row.name
        ),
    }
}

fn check_seeds(seeds: &[u64]) -> Result<()> {
    ensure!(!seeds.is_empty(), "`seeds` is empty");
    let mut seeds = seeds.to_vec();
    seeds.sort_unstable();
    ensure!(seeds.windows(2).all(|two| two[0] != two[1]), "`seeds` names one twice");
    Ok(())
}

/// Keys that a study sets in each of its cells.
const OWN: [&str; 2] = ["train.seed", "train.dir"];

/// Refuses a `key` that is one of them.
fn check_not_own(key: &str) -> Result<()> {
    ensure!(
        !OWN.contains(&key),
        "a study sets `{key}` itself: its file has the seeds, --dir the folder"
    );
    Ok(())
}

/// Refuses rows that would differ in what the study sets itself, and so not at all. What the file
/// extends is a run's configuration and may have both.
fn check_own(file: &StudyFile) -> Result<()> {
    let said = |table: &toml::Table| OWN.into_iter().find(|key| has(table, key));
    let check = |table: &toml::Table| said(table).map_or(Ok(()), check_not_own);
    check(&file.base).context("base")?;
    for (key, values) in &file.grid {
        for value in values.as_array().into_iter().flatten() {
            let mut table = toml::Table::new();
            config::put(&mut table, key, value.clone())?;
            check(&table).context("grid")?;
        }
    }
    file.cells
        .iter()
        .try_for_each(|cell| check(&cell.config).with_context(|| format!("cell `{}`", cell.name)))
}

/// The file's `base`, over the configuration that it extends if there is one.
fn base_with_extends(file: &StudyFile, beside: &Path) -> Result<toml::Table> {
    let Some(beneath) = &file.extends else { return Ok(file.base.clone()) };
    let path = beside.join(beneath);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("extends: cannot read {}", path.display()))?;
    let mut table = config::table_of(&text, &path.display().to_string())?;
    // Its shards and folder are its own when a data set is drawn.
    if file.drawn.is_some() {
        table.get_mut("data").and_then(|d| d.as_table_mut()).map(|d| d.remove("train"));
    }
    put_over(&mut table, &file.base);
    Ok(table)
}

/// The data set to draw: none where the cells are given shards.
fn drawn_data(file: &StudyFile, overrides: &[(String, toml::Value)]) -> Result<Option<Drawn>> {
    let given = |key: &str| overrides.iter().any(|(its, _)| its == key);
    let drawn = file.drawn.filter(|_| !has(&file.base, "data.train") && !given("data.train"));
    // Other images than those that the networks are trained on have other classes.
    ensure!(
        drawn.is_none() || !given("data.val"),
        "the study draws its data set: --set data.val wants data.train beside it"
    );
    Ok(drawn)
}

/// What all cells have beside their rows' configurations.
struct Common<'a> {
    /// The study's folder.
    dir: &'a Path,
    seeds: &'a [u64],
    /// Whether a data set is drawn, for the rows that name no shards.
    draws: bool,
    /// From the command line.
    overrides: Vec<(String, toml::Value)>,
}

impl Common<'_> {
    /// The configurations of the cells of the row called `name`, each with its seed.
    fn configs(&self, name: &str, row: &toml::Table) -> Result<Vec<(u64, RunConfig)>> {
        let cells = self.seeds.iter().map(|&seed| {
            let table = self.table(name, row, seed)?;
            let config = RunConfig::from_table(table).with_context(|| format!("cell `{name}`"))?;
            Ok((seed, config))
        });
        cells.collect()
    }

    fn table(&self, name: &str, row: &toml::Table, seed: u64) -> Result<toml::Table> {
        let mut table = row.clone();
        let folder = cell_folder(self.dir, name, seed);
        config::put(&mut table, "train.dir", folder.to_string_lossy().as_ref().into())?;
        config::put(&mut table, "train.seed", (seed as i64).into())?;
        if self.draws && !has(&table, "data.train") {
            for (key, within) in DRAWN_SHARDS {
                let path = self.dir.join(within).to_string_lossy().as_ref().into();
                config::put(&mut table, &format!("data.{key}"), path)?;
            }
        }
        for (key, value) in &self.overrides {
            config::put(&mut table, key, value.clone())
                .with_context(|| format!("--set {key}={value}"))?;
        }
        Ok(table)
    }
}

/// Whether every cell can have what `overrides` say.
fn check_overrides(file: &StudyFile, overrides: &[(String, toml::Value)]) -> Result<()> {
    for (key, _) in overrides {
        check_not_own(key)?;
        let within =
            |section: &str| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
        let in_grid = file.grid.keys().any(|one| one == key || within(one));
        ensure!(
            !in_grid && !file.cells.iter().any(|cell| has(&cell.config, key)),
            "`{key}` is what the study's rows differ in: --set would make them all alike"
        );
    }
    Ok(())
}

/// A row with its configuration, before seed and folder, and whether it is not trained.
type Planned = (Row, toml::Table, bool);

/// The rows of the file's list, or of its grid.
fn plan(file: &StudyFile) -> Result<Vec<Planned>> {
    ensure!(
        file.grid.is_empty() != file.cells.is_empty(),
        "a study has either a `[grid]` or `[[cells]]`"
    );
    if file.cells.is_empty() {
        return combinations(file);
    }
    ensure!(
        file.x.is_none(),
        "`x` names a key of the grid, and there is none: a cell has its own `x`"
    );
    let listed = file.cells.iter().map(|cell| {
        let mut table = file.base.clone();
        put_over(&mut table, &cell.config);
        let (name, line) = (cell.name.clone(), String::new());
        let row = Row { name, reference: cell.reference, x: cell.x, line };
        (row, table, cell.untrained)
    });
    Ok(listed.collect())
}

/// The rows of a grid, named and in order as its keys are in the alphabet.
fn combinations(file: &StudyFile) -> Result<Vec<Planned>> {
    let start = Row { name: String::new(), reference: None, x: None, line: String::new() };
    let mut rows = vec![(start, Vec::new())];
    let x_key = x_key(file)?;
    for (key, values) in &file.grid {
        let Some(values) = values.as_array().filter(|values| !values.is_empty()) else {
            bail!("grid: `{key}` must be a list of values");
        };
        let grown = rows.iter().flat_map(|(row, chosen)| {
            values.iter().map(move |value| {
                let row = grown(row, key, value, x_key == Some(key));
                (row, [&chosen[..], &[(key, value)]].concat())
            })
        });
        rows = grown.collect();
    }
    let planned = rows.into_iter().map(|(row, mut chosen)| {
        let mut table = file.base.clone();
        // It may drop the base's `[loss]`, but none of the options that are the grid's own.
        chosen.sort_by_key(|(key, _)| *key != "method");
        for (key, value) in chosen {
            if let ("method", Some(method)) = (key.as_str(), value.as_str()) {
                config::drop_other_loss(&mut table, method);
            }
            config::put(&mut table, key, value.clone())?;
        }
        Ok((row, table, false))
    });
    planned.collect()
}

/// `row` with the value of one more key of a grid, which is its x or belongs to its line.
fn grown(row: &Row, key: &str, value: &toml::Value, is_x: bool) -> Row {
    let last = key.rsplit('.').next().unwrap_or(key);
    let text = value.as_str().map_or(value.to_string(), str::to_owned);
    let after = |front: &str| {
        let gap = if front.is_empty() { "" } else { ", " };
        format!("{front}{gap}{last} {text}")
    };
    let (x, line) = match is_x {
        true => (number(value), row.line.clone()),
        false => (row.x, after(&row.line)),
    };
    Row { name: after(&row.name), reference: None, x, line }
}

/// The key of a grid whose values are the rows' x: the file's `x`, else, of those with nothing but
/// numbers, the last in the alphabet.
fn x_key(file: &StudyFile) -> Result<Option<&String>> {
    let numeric = |values: &toml::Value| {
        values.as_array().is_some_and(|list| list.iter().all(|value| number(value).is_some()))
    };
    let mut numbers = file.grid.iter().filter(|(_, values)| numeric(values)).map(|(key, _)| key);
    let Some(asked) = &file.x else { return Ok(numbers.next_back()) };
    match numbers.find(|key| *key == asked) {
        Some(key) => Ok(Some(key)),
        None => bail!("`x` is `{asked}`, which is no key of the grid with nothing but numbers"),
    }
}

fn number(value: &toml::Value) -> Option<f64> {
    value.as_float().or(value.as_integer().map(|i| i as f64))
}

/// Whether a table says something of the dotted `key`.
fn has(table: &toml::Table, key: &str) -> bool {
    match key.split_once('.') {
        None => table.contains_key(key),
        Some((section, rest)) => match table.get(section) {
            Some(toml::Value::Table(inner)) => has(inner, rest),
            other => other.is_some(),
        },
    }
}

/// Puts one configuration over another: where it names another method, the `[loss]` beneath is
/// dropped.
fn put_over(table: &mut toml::Table, config: &toml::Table) {
    if let Some(method) = config.get("method").and_then(toml::Value::as_str) {
        config::drop_other_loss(table, method);
    }
    merge(table, config);
}

/// Puts `from` over `into`, table by table.
fn merge(into: &mut toml::Table, from: &toml::Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Where a cell lies in the study's folder.
fn cell_folder(dir: &Path, name: &str, seed: u64) -> PathBuf {
    dir.join("cells").join(format!("{}.seed-{seed}", slug(name)))
}

/// A name as a folder's: letters, digits, dots; everything else a dash.
fn slug(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    name.chars().map(keep).collect()
}
