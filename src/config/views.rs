//! `[views]`: the two views of an image.

use anyhow::{Context, Result, bail};
use bt_pipeline::augment::{Preset, ViewConfig, ViewPatch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
