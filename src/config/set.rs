//! `--set key=value`, and what is said of keys and values that do not exist.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::print::unbroken;

/// Puts `a.b.c=value` into the table. The value is TOML; what is no TOML is a string. Of a section
/// each key that it has is put, and the others stay; an empty one leaves nothing of it.
pub(crate) fn set(table: &mut toml::Table, pair: &str) -> Result<()> {
    let mut values = leaves(pair)?;
    if values.is_empty() {
        let (key, empty) = parsed(pair)?;
        values.push((key.trim().to_owned(), empty));
    }
    for (key, value) in values {
        put(table, &key, value).with_context(|| format!("--set {pair}"))?;
    }
    Ok(())
}

/// What `a.b.c=value` sets, key by key: of a section each of its keys.
pub(crate) fn leaves(pair: &str) -> Result<Vec<(String, toml::Value)>> {
    fn walk(key: &str, value: toml::Value, found: &mut Vec<(String, toml::Value)>) {
        match value {
            toml::Value::Table(inner) => {
                inner
                    .into_iter()
                    .for_each(|(last, value)| walk(&format!("{key}.{last}"), value, found));
            }
            value => found.push((key.to_owned(), value)),
        }
    }
    let (key, value) = parsed(pair)?;
    let mut found = Vec::new();
    walk(key.trim(), value, &mut found);
    Ok(found)
}

fn parsed(pair: &str) -> Result<(&str, toml::Value)> {
    let Some((key, text)) = pair.split_once('=') else {
        bail!("--set {pair}: expected key=value");
    };
    let parsed = format!("value = {text}").parse::<toml::Table>();
    let value = parsed
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    Ok((key, value))
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

/// The values of a table, by their whole keys (`a.b.c`), as TOML writes them.
pub(crate) fn flattened(table: &toml::Table) -> BTreeMap<String, String> {
    fn put(front: &str, table: &toml::Table, into: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => put(&format!("{front}{key}."), inner, into),
                other => drop(into.insert(format!("{front}{key}"), other.to_string())),
            }
        }
    }
    let mut all = BTreeMap::new();
    put("", table, &mut all);
    all
}

/// serde's message in one line, with the nearest known key for an unknown one.
pub(super) fn explain(path: &str, message: &str) -> String {
    let message = without_types(message.lines().next().unwrap_or_default());
    let message = &*message;
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
            let elsewhere = elsewhere(unknown);
            let (are, near) = match &elsewhere[..] {
                [] => ("nearest one is", (*near).to_owned()),
                [one] => ("nearest one is", one.clone()),
                more => ("nearest ones are", more.join("`, `")),
            };
            format!("the key `{path}` does not exist; the {are} `{near}`")
        }
        Some(near) => format!("{place}`{unknown}` is not known; the nearest value is `{near}`"),
        None => format!("{place}{message}"),
    }
}

/// serde's message with what a file knows in place of the name of a type.
fn without_types(message: &str) -> Cow<'_, str> {
    match message.split_once(", expected struct ") {
        Some((found, _)) => format!("{found}, expected a section").into(),
        None => message.into(),
    }
}

/// Keys of other sections that have this name, at most three: the section is what is forgotten most.
fn elsewhere(name: &str) -> Vec<String> {
    let all = crate::reference::entries(&super::RunConfig::default()).unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    for entry in all {
        let mut parts = entry.key.split('.');
        if let Some(depth) = parts.position(|part| part == name) {
            let key = entry.key.split('.').take(depth + 1).collect::<Vec<_>>().join(".");
            if !found.contains(&key) {
                found.push(key);
            }
        }
    }
    found.truncate(3);
    found
}

/// What is wrong with a `text` that is TOML, in one line that names its line, where that is known.
pub(crate) fn with_line(error: &toml::de::Error, text: &str) -> String {
    let message = unbroken(error.message());
    let Some(span) = error.span() else { return message };
    let before = text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
    format!("line {}: {message}", before + 1)
}
