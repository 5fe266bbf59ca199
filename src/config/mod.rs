//! The run's configuration: a TOML file, `--set key=value` on top, checked before
//! anything is read or allocated. What is in effect is saved with each checkpoint.

mod augment;
mod checkpoint;
mod data;
mod eval;
mod idle;
mod set;
mod train;
mod views;

use std::path::Path;

use anyhow::{Context, Result, bail};
use bt_pipeline::augment::ViewConfig;
use bt_pipeline::decode::DecodeOptions;
use bt_pipeline::shard::OpenOptions;
use bt_pipeline::{LoaderConfig, Shuffle};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::ModelConfig;
use crate::optim::OptimConfig;

pub use augment::{AugmentConfig, AugmentDevice};
pub use checkpoint::{CheckpointConfig, OnCheckpointError};
pub use data::{DataConfig, ShuffleKind};
pub use eval::EvalConfig;
use set::set;
pub(crate) use set::{flattened, leaves, put, with_line};
pub(crate) use train::check_batch;
pub use train::{Named, OnNan, TrainConfig};
pub use views::ViewsConfig;

/// Most threads of either kind, as many as a loader takes.
const MOST_THREADS: usize = bt_pipeline::MOST_THREADS;

/// File in the run's folder: the configuration that is in effect.
pub const CONFIG_FILE: &str = "config.toml";

/// Everything that decides a run's result, and where it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The objective: `barlow`, the paper's, `infonce`, `ntxent`, `cosine`, `imax`, `simsiam`,
    /// `byol` or `moco`.
    pub method: Method,
    /// Shards and how they are read.
    pub data: DataConfig,
    /// The two views.
    pub views: ViewsConfig,
    /// Where the views are made.
    pub augment: AugmentConfig,
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

impl RunConfig {
    /// Reads `file` (defaults without one) and puts `key=value` pairs on top. Where they name
    /// another method than the file, its `[loss]` is left out.
    ///
    /// # Errors
    /// A file that cannot be read, a key that does not exist (with the nearest
    /// known one), a value of the wrong type or out of range.
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Self> {
        Self::with(read(file)?, overrides)
    }

    /// The same with `method`, whatever the pairs say.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load_for(file: Option<&Path>, method: &str, overrides: &[String]) -> Result<Self> {
        let named = toml::Value::String(method.to_owned());
        Self::with(read(file)?, &[overrides, &[format!("method={named}")]].concat())
    }

    /// As [`RunConfig::load`], from the `text` of a file called `name`.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self> {
        Self::with(table_of(text, name)?, overrides)
    }

    /// Puts `overrides` on top. Where they name another method than the table, its `[loss]` is left
    /// out; they may have one of their own.
    fn with(mut table: toml::Table, overrides: &[String]) -> Result<Self> {
        let leaves = overrides.iter().map(|pair| leaves(pair)).collect::<Result<Vec<_>>>()?;
        let method = leaves.iter().flatten().rfind(|(key, _)| key == "method");
        if let Some(method) = method.and_then(|(_, value)| value.as_str()) {
            drop_other_loss(&mut table, method);
        }
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
            anyhow::anyhow!("configuration: {}", set::explain(&path, error.inner().message()))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Whether the values can be used together; true of what [`RunConfig::load`] gave.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn check(&self) -> Result<()> {
        self.check_sections().context("configuration")
    }

    fn check_sections(&self) -> Result<()> {
        self.train.check()?;
        self.checkpoint.check()?;
        self.eval.check()?;
        self.data.check()?;
        self.model.check()?;
        self.optim.validate()?;
        self.views.check()?;
        let objective = self.objective()?;
        if self.optim.constant_predictor && objective.needs().predictor.is_none() {
            bail!(
                "`optim.constant_predictor` is for methods with a predictor, and `{}` has none",
                self.method.0
            );
        }
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

    /// The configuration of a loader that evaluates each sample once. A budget that was enough for
    /// training is enough: batches have fewer images where it is small.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn eval_loader(&self) -> Result<LoaderConfig> {
        let (view, budget_bytes) = (self.views.eval_view()?, self.data.budget_mb << 20);
        let most = budget_bytes / room_for(std::slice::from_ref(&view), 1).max(1);
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
        Ok(LoaderConfig {
            threads: self.data.threads,
            budget_bytes,
            on_bad: self.data.on_bad,
            on_bad_shard: self.data.on_bad_shard,
            max_bad: self.data.max_bad,
            decode: self.decode(),
            ..LoaderConfig::evaluation(view, self.eval.batch_size.min(most))
        })
    }

    /// How shard sets are opened.
    pub fn open_options(&self) -> OpenOptions {
        let remote = self.data.remote();
        let keep_bad_shards = self.data.on_bad_shard == bt_pipeline::OnBad::Skip;
        OpenOptions { limits: self.data.limits, remote, keep_bad_shards, ..OpenOptions::default() }
    }

    fn decode(&self) -> DecodeOptions {
        DecodeOptions {
            exif: self.data.exif,
            max_bytes: self.data.limits.member_bytes,
            max_pixels: self.data.max_megapixels.saturating_mul(1_000_000),
            ..DecodeOptions::default()
        }
    }

    /// The same with every option of the objective and every value of the views, defaults included.
    ///
    /// # Errors
    /// As [`RunConfig::check`].
    pub fn in_full(&self) -> Result<Self> {
        let (loss, views) = (self.full_loss()?, self.views.in_full()?);
        Ok(RunConfig { loss, views, ..self.clone() })
    }

    /// Every option of the objective that is in effect.
    ///
    /// # Errors
    /// As [`RunConfig::objective`].
    pub(crate) fn full_loss(&self) -> Result<toml::Table> {
        Ok(self.objective()?.options_at(self.model.embedding_dim()))
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// None that a configuration made here can have.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }
}

/// Removes the `[loss]` of a configuration for another method: the options of one objective are not
/// those of another.
pub(crate) fn drop_other_loss(table: &mut toml::Table, method: &str) {
    let its = table.get("method").and_then(toml::Value::as_str).map(str::to_owned);
    if its.unwrap_or_else(|| Method::default().0) != method {
        table.remove("loss");
    }
}

/// The table in `file`; an empty one without a file.
fn read(file: Option<&Path>) -> Result<toml::Table> {
    let Some(path) = file else { return Ok(toml::Table::new()) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    table_of(&text, &path.display().to_string())
}

/// Bytes of the budget for two batches of `images`, each with these views in f32, and for what is
/// fetched ahead of them.
pub(crate) fn room_for(views: &[ViewConfig], images: usize) -> u64 {
    let view = |view: &ViewConfig| {
        let (height, width) = view.out_size();
        (height * width * 3 * size_of::<f32>()) as u64
    };
    3 * images as u64 * views.iter().map(view).sum::<u64>()
}

/// The table in the `text` of a file called `name`.
pub(crate) fn table_of(text: &str, name: &str) -> Result<toml::Table> {
    text.parse().map_err(|error| anyhow::anyhow!("{name}: {}", with_line(&error, text)))
}

#[cfg(test)]
mod tests;
