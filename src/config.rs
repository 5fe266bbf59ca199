//! The run's configuration: a TOML file, `--set key=value` on top, checked before
//! anything is read or allocated. What is in effect is saved with each checkpoint.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bt_pipeline::augment::{Preset, ViewConfig, ViewPatch};
use bt_pipeline::decode::DecodeOptions;
use bt_pipeline::shard::{Limits, OpenOptions};
use bt_pipeline::{LoaderConfig, OnBad, Shuffle};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::ModelConfig;
use crate::optim::OptimConfig;

/// File in the run's folder: the configuration that is in effect.
pub const CONFIG_FILE: &str = "config.toml";

/// Everything that decides a run's result, and where it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The objective; `barlow` is the paper's.
    pub method: Method,
    /// Shards and how they are read.
    pub data: DataConfig,
    /// The two views.
    pub views: ViewsConfig,
    /// Backbone and projector.
    pub model: ModelConfig,
    /// Options of the objective; which ones there are depends on `method`.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub loss: toml::Table,
    /// Optimizer and learning rates.
    pub optim: OptimConfig,
    /// Length of the run, batch size, seed, device.
    pub train: TrainConfig,
    /// When the run's state is saved.
    pub checkpoint: CheckpointConfig,
    /// What is measured during training.
    pub eval: EvalConfig,
}

/// What is wrong with a configuration, or with the command line that changes it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misconfigured(pub String);

/// Name of a registered objective.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Method(pub String);

impl Default for Method {
    fn default() -> Self {
        Method("barlow".into())
    }
}

/// `[data]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training shards: a folder, a glob, a brace list or a manifest.
    pub train: String,
    /// Shards whose labels are predicted by kNN during training; empty for none.
    pub val: String,
    /// `global`, `window` or `none`.
    pub shuffle: ShuffleKind,
    /// Shards that `window` reads in turns.
    pub window_shards: usize,
    /// Samples that `window` mixes.
    pub window_samples: usize,
    /// Threads that decode and augment; 0 takes one for each core.
    pub threads: usize,
    /// Bound on batches and samples in flight, in MiB.
    pub budget_mb: u64,
    /// `skip` takes another sample for a bad one, `stop` ends the run.
    pub on_bad: OnBad,
    /// `skip` takes other samples for those of a shard that cannot be read, `stop` ends the run.
    pub on_bad_shard: OnBad,
    /// The share of bad samples above which the run ends.
    pub max_bad: f64,
    /// Turn images as their EXIF orientation says.
    pub exif: bool,
    /// Largest image that is decoded, in millions of pixels.
    pub max_megapixels: u64,
    /// What shards, indexes and manifests may claim.
    pub limits: Limits,
}

/// Names of [`Shuffle`]'s variants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShuffleKind {
    /// A permutation of all samples.
    #[default]
    Global,
    /// Mixed while shards are read in turns.
    Window,
    /// The shards' own order.
    None,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            train: String::new(),
            val: String::new(),
            shuffle: ShuffleKind::Global,
            window_shards: 8,
            window_samples: 4096,
            threads: 0,
            budget_mb: 2048,
            on_bad: OnBad::Skip,
            on_bad_shard: OnBad::Stop,
            max_bad: 0.1,
            exif: false,
            max_megapixels: 178,
            limits: Limits::default(),
        }
    }
}

/// `[views]`: a preset and what differs from it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ViewsConfig {
    /// `barlow-imagenet`, `barlow-cifar`, `simclr` or `byol`.
    pub preset: Preset,
    /// Changes to both views.
    pub both: ViewPatch,
    /// Changes to view A, after those to both.
    pub a: ViewPatch,
    /// Changes to view B, after those to both.
    pub b: ViewPatch,
}

impl Default for ViewsConfig {
    fn default() -> Self {
        let same = ViewPatch::default();
        ViewsConfig { preset: Preset::BarlowImagenet, both: same, a: same, b: same }
    }
}

impl ViewsConfig {
    /// View A and view B in full.
    ///
    /// # Errors
    /// A preset without two views, or a value out of its range.
    pub fn views(&self) -> Result<Vec<ViewConfig>> {
        let presets = self.preset.views();
        let [a, b] = &presets[..] else {
            bail!("views.preset: `{}` has no two views to train on", self.preset.name());
        };
        let view = |base: &ViewConfig, patch: &ViewPatch, name: &str| {
            let both = self.both.apply(base).context("views.both")?;
            patch.apply(&both).with_context(|| format!("views.{name}"))
        };
        Ok(vec![view(a, &self.a, "a")?, view(b, &self.b, "b")?])
    }

    /// The view that evaluation takes: resize and centre crop to view A's size.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn eval_view(&self) -> Result<ViewConfig> {
        Ok(self.views()?[0].to_eval())
    }
}

/// `[train]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Where metrics and checkpoints are written.
    pub dir: PathBuf,
    /// Passes over the training shards.
    pub epochs: u64,
    /// Source images of a step.
    pub batch_size: usize,
    /// Decides initial weights, order and views.
    pub seed: u64,
    /// A backbone to start from: safetensors or a PyTorch state dict in torchvision's names; empty
    /// for random weights.
    pub init: PathBuf,
    /// `auto` or `cpu`.
    pub device: String,
    /// Threads that compute; 0 takes one for each core.
    pub threads: usize,
    /// Steps between two lines of metrics.
    pub log_every: u64,
    /// Write event files for TensorBoard into the run's folder.
    pub tensorboard: bool,
    /// When the loss or a gradient is not finite: `stop` ends the run, `rewind` takes the step back
    /// and goes on with the next batch, at most ten times in a row.
    pub on_nan: OnNan,
    /// Steps between two diagnoses of the embeddings (collapse, information); 0 for none.
    pub diagnose_every: u64,
}

/// What to do when a loss or a gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// End the run with a checkpoint of the state before the step.
    #[default]
    Stop,
    /// Take the step back and go on with the next batch.
    Rewind,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            dir: PathBuf::from("runs/default"),
            epochs: 100,
            batch_size: 256,
            seed: 0,
            init: PathBuf::new(),
            device: "auto".into(),
            threads: 0,
            log_every: 10,
            tensorboard: true,
            on_nan: OnNan::Stop,
            diagnose_every: 100,
        }
    }
}

/// `[checkpoint]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints within an epoch; 0 saves only between epochs.
    pub every_steps: u64,
    /// Epochs between checkpoints.
    pub every_epochs: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// `stop` ends the run when a checkpoint cannot be written, `warn` goes on.
    pub on_error: OnCheckpointError,
}

/// What a failed checkpoint does to the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnCheckpointError {
    /// Ends it.
    #[default]
    Stop,
    /// Says so and goes on to the next one.
    Warn,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig { every_steps: 0, every_epochs: 1, keep: 3, on_error: Default::default() }
    }
}

/// `[eval]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Epochs between two kNN evaluations on `data.val`; 0 for none.
    pub knn_every: u64,
    /// Neighbours.
    pub k: usize,
    /// Temperature of their weights.
    pub temperature: f64,
    /// Images of an evaluation batch.
    pub batch_size: usize,
    /// A linear classifier learns the labels beside the training, from features that it does not
    /// change.
    pub online_probe: bool,
    /// Its learning rate.
    pub online_lr: f64,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig {
            knn_every: 0,
            k: 200,
            temperature: 0.1,
            batch_size: 128,
            online_probe: false,
            online_lr: 0.3,
        }
    }
}

impl RunConfig {
    /// Reads `file` (defaults without one) and puts `key=value` pairs on top.
    ///
    /// # Errors
    /// A file that cannot be read, a key that does not exist (with the nearest
    /// known one), a value of the wrong type or out of range.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        let Some(path) = file else { return Self::parse("", "", overrides) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// As [`RunConfig::load`], from the `text` of a file called `name`.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self> {
        let mut table = text
            .parse::<toml::Table>()
            .map_err(|error| anyhow::anyhow!("{name}: {}", one_line(&error)))?;
        for pair in overrides {
            set(&mut table, pair)?;
        }
        Self::from_table(table)
    }

    /// The configuration that `table` describes.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_table(mut table: toml::Table) -> Result<Self> {
        if let Some(toml::Value::Table(optim)) = table.get_mut("optim") {
            OptimConfig::complete(optim);
        }
        let config: RunConfig = serde_path_to_error::deserialize(table).map_err(|error| {
            let path = error.path().to_string();
            anyhow::anyhow!("configuration: {}", explain(&path, error.inner().message()))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Whether the values can be used together; true of what [`RunConfig::load`] gave.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("train.epochs", self.train.epochs),
            ("train.batch_size", self.train.batch_size as u64),
            ("train.log_every", self.train.log_every),
            ("checkpoint.every_epochs", self.checkpoint.every_epochs),
            ("checkpoint.keep", self.checkpoint.keep as u64),
            ("eval.k", self.eval.k as u64),
            ("eval.batch_size", self.eval.batch_size as u64),
        ];
        for (key, value) in positive {
            if value == 0 {
                bail!("configuration: `{key}` must be at least 1");
            }
        }
        if self.train.batch_size < 2 {
            bail!("configuration: `train.batch_size` must be at least 2: C needs a batch");
        }
        if self.eval.temperature.is_nan() || self.eval.temperature <= 0.0 {
            bail!("configuration: `eval.temperature` must be positive");
        }
        if !(0.0..=1.0).contains(&self.data.max_bad) {
            bail!("configuration: `data.max_bad` is a share, from 0 to 1");
        }
        self.views.views().context("configuration")?;
        self.objective().context("configuration")?;
        Ok(())
    }

    /// The objective with its options.
    ///
    /// # Errors
    /// A method or an option that does not exist.
    pub fn objective(&self) -> Result<Box<dyn crate::loss::Objective>> {
        crate::loss::build(&self.method.0, self.loss.clone())
    }

    /// The training loader's configuration.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn loader(&self) -> Result<LoaderConfig> {
        let data = &self.data;
        let views = self.views.views()?;
        Ok(LoaderConfig {
            threads: data.threads,
            shuffle: match data.shuffle {
                ShuffleKind::Global => Shuffle::Global,
                ShuffleKind::None => Shuffle::None,
                ShuffleKind::Window => {
                    Shuffle::Window { shards: data.window_shards, samples: data.window_samples }
                }
            },
            budget_bytes: data.budget_mb << 20,
            on_bad: data.on_bad,
            on_bad_shard: data.on_bad_shard,
            max_bad: data.max_bad,
            decode: self.decode(),
            ..LoaderConfig::training(views, self.train.batch_size, self.train.seed)
        })
    }

    /// The configuration of a loader that evaluates each sample once.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn eval_loader(&self) -> Result<LoaderConfig> {
        Ok(LoaderConfig {
            threads: self.data.threads,
            budget_bytes: self.data.budget_mb << 20,
            decode: self.decode(),
            ..LoaderConfig::evaluation(self.views.eval_view()?, self.eval.batch_size)
        })
    }

    /// How shard sets are opened.
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions { limits: self.data.limits, ..OpenOptions::default() }
    }

    fn decode(&self) -> DecodeOptions {
        DecodeOptions {
            exif: self.data.exif,
            max_bytes: self.data.limits.member_bytes,
            max_pixels: self.data.max_megapixels.saturating_mul(1_000_000),
            ..DecodeOptions::default()
        }
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// None that a configuration made here can have.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }
}

/// Puts `a.b.c=value` into the table. The value is TOML; what is no TOML is a string.
pub(crate) fn set(table: &mut toml::Table, pair: &str) -> Result<()> {
    let Some((key, text)) = pair.split_once('=') else {
        bail!("--set {pair}: expected key=value");
    };
    let parsed = format!("value = {text}").parse::<toml::Table>();
    let value = parsed
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    put(table, key, value).with_context(|| format!("--set {pair}"))
}

/// Puts `value` into the table under `a.b.c`.
pub(crate) fn put(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<()> {
    let mut place = table;
    let (parents, last) = key.rsplit_once('.').map_or(("", key), |(front, last)| (front, last));
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        let entry = place.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let Some(inner) = entry.as_table_mut() else {
            bail!("`{part}` is a value, not a section");
        };
        place = inner;
    }
    place.insert(last.trim().to_owned(), value);
    Ok(())
}

/// serde's message in one line, with the nearest known key for an unknown one.
fn explain(path: &str, message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let place = if path == "." { String::new() } else { format!("`{path}`: ") };
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let [unknown, known @ ..] = &quoted[..] else { return format!("{place}{message}") };
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return format!("{place}{message}");
    }
    let near = known.iter().max_by(|a, b| {
        let likeness = |name: &str| strsim::jaro_winkler(name, unknown);
        likeness(a).total_cmp(&likeness(b))
    });
    match near {
        Some(near) if message.starts_with("unknown field") => {
            format!("the key `{path}` does not exist; the nearest one is `{near}`")
        }
        Some(near) => format!("{place}`{unknown}` is not known; the nearest value is `{near}`"),
        None => format!("{place}{message}"),
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        format!("{:#}", RunConfig::load(None, &overrides).unwrap_err())
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let message = error_of(&["train.epoch=3"]);
        assert!(message.contains("`train.epoch`") && message.contains("`epochs`"), "{message}");
        let message = error_of(&["views.both.gausian_blur.p=0.5"]);
        assert!(message.contains("`gaussian_blur`"), "{message}");
        let message = error_of(&["trian.epochs=3"]);
        assert!(message.contains("`train`"), "{message}");
        let message = error_of(&["data.shuffle=globl"]);
        assert!(message.contains("`global`"), "{message}");
    }

    #[test]
    fn an_unknown_option_of_the_objective_is_an_error() {
        let message = error_of(&["loss.lamda=0.1"]);
        assert!(message.contains("lamda") && message.contains("lambda"), "{message}");
    }

    #[test]
    fn only_lars_has_two_rates_by_default() {
        let rates = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
            let optim = RunConfig::parse("", "", &overrides).unwrap().optim;
            (optim.lr_weights, optim.lr_biases)
        };
        assert_eq!(rates(&[]), (0.2, 0.0048));
        assert_eq!(rates(&["optim.optimizer=adamw"]), (1e-3, 1e-3));
        assert_eq!(rates(&["optim.optimizer=sgd", "optim.lr_weights=1"]), (1.0, 1.0));
        assert_eq!(rates(&["optim.optimizer=adamw", "optim.lr_biases=0.5"]), (1e-3, 0.5));
    }

    #[test]
    fn messages_are_one_line() {
        for overrides in [["train.epochs=abc"], ["train.epochs=0"], ["train=3"], ["x"]] {
            let message = error_of(&overrides);
            assert!(!message.contains('\n') && !message.is_empty(), "{message}");
        }
    }

    #[test]
    fn what_is_saved_loads_as_the_same_configuration() {
        let overrides = ["loss.lambda=0.01".to_owned(), "views.a.gaussian_blur.p=0.3".to_owned()];
        let config = RunConfig::load(None, &overrides).unwrap();
        let text = config.to_toml().unwrap();
        let again = RunConfig::from_table(text.parse().unwrap()).unwrap();
        assert_eq!(again.to_toml().unwrap(), text);
        assert_eq!(again.views.views().unwrap()[0].gaussian_blur.p, 0.3);
        assert_eq!(again.views.views().unwrap()[1].gaussian_blur.p, 0.1);
    }
}
