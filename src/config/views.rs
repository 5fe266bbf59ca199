//! `[views]`: the two views of an image.

use anyhow::{Context, Result, bail};
use bt_pipeline::augment::{Preset, ViewConfig, ViewPatch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Table;

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

    /// The same views with every value: `both` has those that they share, `a` and `b` the others.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn in_full(&self) -> Result<Self> {
        let [mut a, mut b] = match &self.views()?[..] {
            [a, b] => [Table::try_from(a)?, Table::try_from(b)?],
            _ => bail!("views: there are two"),
        };
        let both = take_shared(&mut a, &mut b);
        let (both, a, b) = (both.try_into()?, a.try_into()?, b.try_into()?);
        Ok(ViewsConfig { preset: self.preset, both, a, b })
    }

    /// Keys of `both` that `a` and `b` replace.
    pub(super) fn hidden(&self) -> Result<Vec<String>> {
        let [both, a, b] =
            [Table::try_from(self.both)?, Table::try_from(self.a)?, Table::try_from(self.b)?];
        let has = |table: &Table, name: &str, key: &str| {
            table.get(name).is_some_and(|part| part.get(key).is_some())
        };
        let keys = both.iter().flat_map(|(name, part)| {
            let keys = part.as_table().into_iter().flat_map(Table::keys);
            keys.filter(|key| has(&a, name, key) && has(&b, name, key))
                .map(move |key| format!("{name}.{key}"))
        });
        Ok(keys.collect())
    }

    /// The view that evaluation takes: resize and centre crop to view A's size.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn eval_view(&self) -> Result<ViewConfig> {
        Ok(self.views()?[0].to_eval())
    }
}

/// Takes out of both tables of transforms the values that they share.
fn take_shared(a: &mut Table, b: &mut Table) -> Table {
    let mut both = Table::new();
    for (name, one) in a.iter_mut() {
        let (Some(one), Some(other)) = (one.as_table_mut(), table_in(b, name)) else { continue };
        let shared: Table = one
            .iter()
            .filter(|(key, value)| other.get(*key) == Some(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        one.retain(|key, _| !shared.contains_key(key));
        other.retain(|key, _| !shared.contains_key(key));
        both.insert(name.clone(), shared.into());
    }
    for table in [&mut *a, b, &mut both] {
        table.retain(|_, part| part.as_table().is_none_or(|part| !part.is_empty()));
    }
    both
}

fn table_in<'a>(table: &'a mut Table, name: &str) -> Option<&'a mut Table> {
    table.get_mut(name)?.as_table_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_in_full_are_the_same_views() {
        let patch = "[both.gaussian_blur]\np = 0.5\n[a.random_solarize]\nthreshold = 9\n[b.normalize]\nmean = [0.1, 0.2, 0.3]";
        for preset in [Preset::BarlowImagenet, Preset::BarlowCifar, Preset::Simclr, Preset::Byol] {
            for text in ["", patch, "[both.resize]\nsize = 40\n[both.center_crop]\nsize = 32"] {
                let given = ViewsConfig { preset, ..toml::from_str(text).unwrap() };
                let full = given.in_full().unwrap();
                assert_eq!(full.views().unwrap(), given.views().unwrap(), "{preset:?} {text}");
                assert_eq!(full.views().unwrap(), full.in_full().unwrap().views().unwrap());
            }
        }
        let text = toml::to_string(&ViewsConfig::default().in_full().unwrap()).unwrap();
        assert!(
            text.contains("[both.color_jitter]") && text.contains("[b.random_solarize]"),
            "{text}"
        );
        // What the views share stands once.
        assert_eq!(text.matches("sigma").count(), 1, "{text}");
    }
}
