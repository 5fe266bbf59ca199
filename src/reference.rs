//! Every key of the configuration with its default and what it means: from the code, where the
//! comments of the fields are the explanation.

use std::fmt::Write as _;

use anyhow::Result;
use schemars::schema_for;
use serde::Serialize;
use serde_json::Value;

use crate::config::RunConfig;
use crate::loss::{Described, OBJECTIVES, Registration};

/// A key, as `bt-stream config --explain` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// `train.batch_size`.
    pub key: String,
    /// What it means, one paragraph.
    pub text: String,
    /// What may be given: a type, or the choices.
    pub takes: String,
    /// The default, TOML; none where the default is to leave it away.
    pub default: Option<String>,
    /// What is in effect, where it is not the default.
    pub now: Option<String>,
}

impl Entry {
    /// Whether the key is `asked`, or lies in the section `asked`; every key lies in "".
    pub fn is_under(&self, asked: &str) -> bool {
        let rest = self.key.strip_prefix(asked);
        asked.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// The entry for a terminal.
    pub fn text(&self) -> String {
        let default =
            self.default.as_ref().map_or("not set".into(), |value| format!("default {value}"));
        let now = self.now.as_ref().map(|value| format!(", now {value}")).unwrap_or_default();
        format!("{}  ({}; {default}{now})\n    {}", self.key, self.takes, self.text)
    }
}

/// All keys in the order of the code; `now` is the configuration in effect.
///
/// # Errors
/// None that a configuration made here can have.
pub fn entries(now: &RunConfig) -> Result<Vec<Entry>> {
    let schema = schema_for!(RunConfig).to_value();
    let (default, now) = (serde_json::to_value(RunConfig::default())?, serde_json::to_value(now)?);
    let mut out = Vec::new();
    Walk { root: &schema, out: &mut out }.table("", &schema, Some(&default), Some(&now));
    let method = OBJECTIVES.iter().find(|one| Some(one.name) == now["method"].as_str());
    // Options of the objective follow the table that they are in.
    if let (Some(method), Some(at)) = (method, out.iter().position(|entry| entry.key == "loss")) {
        out.splice(at + 1..at + 1, options(method, Some(&now["loss"])));
    }
    Ok(out)
}

/// The objectives that have an option `key`, as `loss.temperature`.
pub fn methods_with(key: &str) -> Vec<&'static str> {
    let has = |method: &&Registration| options(method, None).iter().any(|entry| entry.key == key);
    OBJECTIVES.iter().filter(has).map(|method| method.name).collect()
}

/// The options of an objective, as keys of `[loss]`.
fn options(method: &Registration, now: Option<&Value>) -> Vec<Entry> {
    let Described { schema, defaults } = (method.described)();
    let mut out = Vec::new();
    // What is not given is the default, not another value.
    let mut in_effect = defaults.clone();
    for (name, value) in now.and_then(Value::as_object).into_iter().flatten() {
        in_effect[name] = value.clone();
    }
    Walk { root: &schema, out: &mut out }.table(
        "loss.",
        &schema,
        Some(&defaults),
        Some(&in_effect),
    );
    out
}

/// The reference of all keys.
pub fn markdown() -> String {
    let rows = |out: &mut String, entries: &[Entry]| {
        out.push_str("\n| key | takes | default | |\n|---|---|---|---|\n");
        for entry in entries {
            let name = entry.key.rsplit('.').next().unwrap_or_default();
            let cell = |text: &str| text.replace('|', "\\|");
            let default = entry.default.as_ref().map(|value| format!("`{}`", cell(value)));
            let (takes, text) = (cell(&entry.takes), cell(&entry.text));
            let _ =
                writeln!(out, "| `{name}` | {takes} | {} | {text} |", default.unwrap_or_default());
        }
    };
    let mut out = String::from(
        "# Configuration\n\nEvery key, from `bt-stream config --reference`. A file in TOML, `--set KEY=VALUE` on top; \
         `bt-stream config` prints\nthe effective configuration, `bt-stream config --explain KEY` explains one key; `--set method=...` shows the options\nof another method.\n",
    );
    let all = entries(&RunConfig::default()).unwrap_or_default();
    let table = |entry: &Entry| entry.key.rsplit_once('.').map(|(table, _)| table.to_owned());
    let is_option = |entry: &&Entry| entry.key.starts_with("loss.");
    // The tables of one view are those of both.
    let is_again = |entry: &&Entry| entry.is_under("views.a") || entry.is_under("views.b");
    let is_one = |entry: &&Entry| !is_option(entry) && !is_again(entry);
    let keys: Vec<Entry> = all.iter().filter(is_one).cloned().collect();
    for section in keys.chunk_by(|a, b| table(a) == table(b)) {
        if let Some(table) = table(&section[0]) {
            let _ = write!(out, "\n## [{table}]\n");
        }
        rows(&mut out, section);
        if section[0].key == "views.preset" {
            out.push_str(
                "\nThe tables of `[views.both]` follow. `[views.a]` and `[views.b]` have the same tables for one view, which take \
                 precedence over those of both.\nWhat is not set comes from the preset.\n",
            );
        }
    }
    for method in OBJECTIVES {
        let (name, summary) = (method.name, method.summary);
        let _ = write!(out, "\n## [loss] with method = \"{name}\"\n\n{summary}.\n");
        rows(&mut out, &options(method, None));
    }
    out
}

/// The key most like `asked`.
pub fn nearest<'a>(all: &'a [Entry], asked: &str) -> Option<&'a str> {
    let like = |entry: &&Entry| {
        let last = entry.key.rsplit('.').next().unwrap_or_default();
        let score = strsim::jaro_winkler(&entry.key, asked).max(strsim::jaro_winkler(last, asked));
        (score * 1e6) as u64
    };
    all.iter()
        .max_by_key(like)
        .filter(|entry| like(entry) > 700_000)
        .map(|entry| entry.key.as_str())
}

struct Walk<'a> {
    root: &'a Value,
    out: &'a mut Vec<Entry>,
}

impl Walk<'_> {
    /// The schema that `schema` stands for.
    fn resolve<'s>(&'s self, schema: &'s Value) -> &'s Value {
        if let Some(path) = schema["$ref"].as_str() {
            return self.root.pointer(path.trim_start_matches('#')).unwrap_or(schema);
        }
        // An option: the one of its alternatives that is not null.
        let mut some = schema["anyOf"].as_array().into_iter().flatten();
        match some.clone().any(|one| one["type"] == "null") {
            true => some.find(|one| one["type"] != "null").map_or(schema, |one| self.resolve(one)),
            false => schema,
        }
    }

    fn table(&mut self, front: &str, schema: &Value, default: Option<&Value>, now: Option<&Value>) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let (values, tables): (Vec<_>, Vec<_>) = properties
            .iter()
            .partition(|(_, property)| self.resolve(property)["properties"].is_null());
        for (name, property) in values.into_iter().chain(tables) {
            let key = format!("{front}{name}");
            let resolved = self.resolve(property).clone();
            let of = |table: Option<&Value>| table.and_then(|table| table.get(name)).cloned();
            let (default, now) = (of(default), of(now));
            if resolved["properties"].is_object() {
                self.table(&format!("{key}."), &resolved, default.as_ref(), now.as_ref());
                continue;
            }
            let text = [property, &resolved].into_iter().find_map(|s| s["description"].as_str());
            let (takes, shown) = (self.takes(&resolved), |value: &Value| value.to_string());
            self.out.push(Entry {
                key,
                text: text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "),
                takes,
                default: default.as_ref().filter(|value| !value.is_null()).map(shown),
                now: now.filter(|now| Some(now) != default.as_ref()).as_ref().map(shown),
            });
        }
    }

    /// Type or choices, in words.
    fn takes(&self, schema: &Value) -> String {
        let schema = self.resolve(schema);
        let alternatives = ["oneOf", "anyOf"].into_iter().find_map(|key| schema[key].as_array());
        if let Some(alternatives) = alternatives {
            let words: Vec<String> = alternatives.iter().map(|one| self.takes(one)).collect();
            return words.join(" or ");
        }
        if let Some(choices) = schema["enum"].as_array() {
            return choices.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        }
        if !schema["const"].is_null() {
            return schema["const"].to_string();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => {
                kinds.iter().find_map(|kind| kind.as_str().filter(|k| *k != "null"))
            }
            kind => kind.as_str(),
        };
        match (kind, schema["maxItems"].as_u64()) {
            (Some("integer"), _) => "whole number".into(),
            (Some("boolean"), _) => "true, false".into(),
            (Some("array"), Some(items)) => format!("{items} numbers"),
            (Some("object"), _) => "table".into(),
            (Some(other), _) => other.into(),
            (None, _) => "value".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_effective_configuration_is_explained() {
        let all = entries(&RunConfig::default()).unwrap();
        for entry in &all {
            assert!(!entry.text.is_empty(), "{} has no explanation", entry.key);
            assert_ne!(entry.takes, "value", "{}", entry.key);
        }
        for method in OBJECTIVES {
            let options = options(method, None);
            assert!(!options.is_empty(), "{}", method.name);
            assert!(options.iter().all(|entry| !entry.text.is_empty()), "{}", method.name);
        }
        let mut keys = Vec::new();
        fn leaves(front: &str, table: &toml::Table, keys: &mut Vec<String>) {
            for (name, value) in table {
                match value {
                    toml::Value::Table(inner) => leaves(&format!("{front}{name}."), inner, keys),
                    _ => keys.push(format!("{front}{name}")),
                }
            }
        }
        let text = RunConfig::default().to_toml().unwrap();
        leaves("", &text.parse().unwrap(), &mut keys);
        assert!(keys.len() > 40);
        for key in keys {
            assert!(all.iter().any(|entry| entry.key == key), "{key} is not in the schema");
        }
    }

    #[test]
    fn an_entry_tells_choices_default_and_what_is_in_effect() {
        let changes = ["data.shuffle=window".into(), "loss.lambda=0.5".into()];
        let config = RunConfig::parse("", "", &changes).unwrap();
        let all = entries(&config).unwrap();
        let entry = |key: &str| all.iter().find(|entry| entry.key == key).unwrap();
        let shuffle = entry("data.shuffle");
        for word in ["\"global\"", "\"window\"", "\"none\""] {
            assert!(shuffle.takes.contains(word), "{}", shuffle.takes);
        }
        assert!(
            shuffle.text().contains("default \"global\", now \"window\""),
            "{}",
            shuffle.text()
        );
        assert_eq!(entry("loss.lambda").now.as_deref(), Some("0.5"));
        assert_eq!(entry("loss.terms").now, None);
        assert_eq!(entry("train.batch_size").takes, "whole number");
        assert_eq!(entry("views.b.gaussian_blur.sigma").takes, "2 numbers");
        assert_eq!(nearest(&all, "train.bathc_size"), Some("train.batch_size"));
        assert_eq!(nearest(&all, "batch_siz"), Some("train.batch_size"));
        assert!(entry("train.seed").is_under("train") && !entry("train.seed").is_under("tra"));
    }

    #[test]
    fn the_reference_in_docs_is_that_of_the_code() {
        let committed = include_str!("../docs/configuration.md");
        assert!(
            committed == markdown(),
            "make it anew: bt-stream config --reference > docs/configuration.md"
        );
    }
}
