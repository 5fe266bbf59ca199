//! `[views]`: the two views of an image.

use anyhow::{Context, Result, bail};
use bt_pipeline::augment::{Preset, ViewConfig, ViewPatch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

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

    /// Checks that both views can be made, in one size.
    pub(super) fn check(&self) -> Result<()> {
        let views = self.views()?;
        let (one, other) = (views[0].out_size(), views[1].out_size());
        if one != other {
            bail!(
                "both views must have one size: {} x {} and {} x {} were asked for",
                one.0,
                one.1,
                other.0,
                other.1
            );
        }
        Ok(())
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
        let has = |table: &Table, name: &str, key: &str| value_at(table, name, key).is_some();
        let keys = values(&both)
            .filter(|(name, key, _)| has(&a, name, key) && has(&b, name, key))
            .map(|(name, key, _)| format!("{name}.{key}"));
        Ok(keys.collect())
    }

    /// Keys that change a transform, or a part of one, which no view is ever put through, each with
    /// the reason. Those that the preset has as well are none: a configuration in full names them
    /// all.
    pub(super) fn never_drawn(&self) -> Result<Vec<(String, String)>> {
        let (presets, views) = (tables(&self.preset.views())?, tables(&self.views()?)?);
        let own = [Table::try_from(self.a)?, Table::try_from(self.b)?];
        let both = Table::try_from(self.both)?;
        let mut found = Vec::new();
        for (patch, name) in [(&both, "both"), (&own[0], "a"), (&own[1], "b")] {
            for (transform, key, value) in values(patch).filter(|(_, key, _)| *key != "p") {
                let has = |table: &Table| value_at(table, transform, key) == Some(value);
                // The views that have the value from this patch.
                let its: Vec<usize> = match name {
                    "a" => vec![0],
                    "b" => vec![1],
                    _ => (0..2).filter(|&v| value_at(&own[v], transform, key).is_none()).collect(),
                };
                let none = |view: &usize, key| {
                    value_at(&views[*view], transform, key).is_some_and(is_zero)
                };
                // What makes it so, in all of its views.
                let causes: &[&str] = if key == "exact_hue" { &["p", "hue"] } else { &["p"] };
                let cause = causes.iter().find(|cause| its.iter().all(|view| none(view, cause)));
                let place = match its[..] {
                    [view] => ["view a", "view b"][view],
                    _ => "both views",
                };
                if let Some(cause) = cause
                    && its.iter().any(|&view| !has(&presets[view]))
                {
                    let why = format!("{transform}.{cause} is 0 in {place}");
                    found.push((format!("views.{name}.{transform}.{key}"), why));
                }
            }
        }
        Ok(found)
    }

    /// The view that evaluation takes: resize and centre crop to view A's size.
    ///
    /// # Errors
    /// As [`ViewsConfig::views`].
    pub fn eval_view(&self) -> Result<ViewConfig> {
        Ok(self.views()?[0].to_eval())
    }
}

fn tables(views: &[ViewConfig]) -> Result<Vec<Table>> {
    views.iter().map(|view| Ok(Table::try_from(view)?)).collect()
}

/// Transform, key and value of everything in a table of transforms.
fn values(table: &Table) -> impl Iterator<Item = (&str, &str, &Value)> {
    let parts = table.iter().filter_map(|(name, part)| Some((name, part.as_table()?)));
    parts.flat_map(|(name, part)| {
        part.iter().map(move |(key, value)| (name.as_str(), key.as_str(), value))
    })
}

fn value_at<'a>(table: &'a Table, transform: &str, key: &str) -> Option<&'a Value> {
    table.get(transform)?.get(key)
}

/// Whether a number, or both of a range, are 0.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Array(both) => both.iter().all(is_zero),
        value => value.as_float() == Some(0.0) || value.as_integer() == Some(0),
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
