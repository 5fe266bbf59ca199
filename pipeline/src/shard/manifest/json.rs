//! A manifest's JSON, read without a tree of its values: that would take many times the file's
//! bytes, and a label may have made many classes of it.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny};
use serde_json::value::RawValue;

/// Bytes of what a manifest says for people; as values they take many times that.
const MADE_BYTES: usize = 16 << 20;
/// Bytes of a version that are worth a message.
const VERSION_BYTES: usize = 40;

/// What tells a manifest from JSON of another kind.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, default)]
    format: Option<&'a RawValue>,
    #[serde(borrow, default)]
    version: Option<&'a RawValue>,
}

/// The version of a manifest, as it is written; `None` when the text is JSON of another format.
pub(super) fn version<'a>(text: &'a [u8], format: &str) -> Result<Option<&'a str>, String> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        // No object, but JSON?
        let other = serde_json::from_slice::<IgnoredAny>(text);
        return other.map(|_| None).map_err(|e| e.to_string());
    }
    let kind: Kind<'a> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let named = kind.format.and_then(|name| serde_json::from_str::<Cow<'_, str>>(name.get()).ok());
    if named.as_deref() != Some(format) {
        return Ok(None);
    }
    let version = kind.version.map_or("null", RawValue::get);
    Ok(Some(version.get(..VERSION_BYTES).unwrap_or(version)))
}

/// A JSON value that is not too large to be held as one.
pub(super) fn made<'de, D: Deserializer<'de>>(from: D) -> Result<serde_json::Value, D::Error> {
    let raw = Box::<RawValue>::deserialize(from)?;
    let bytes = raw.get().len();
    if bytes > MADE_BYTES {
        return Err(D::Error::custom(format!(
            "`made` has {bytes} bytes, the limit is {MADE_BYTES}"
        )));
    }
    serde_json::from_str(raw.get()).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Manifest, ManifestShard};
    use super::*;

    fn text(classes: &str, samples: u64) -> String {
        let shard = ManifestShard {
            name: "a.tar".to_owned(),
            samples,
            bytes: 1,
            checksum: String::new(),
            seekable: true,
        };
        let text = Manifest::new(vec![shard], Vec::new(), serde_json::json!({})).to_json();
        let unlabelled = format!("\"unlabelled\": {samples}");
        text.replace("\"classes\": []", &format!("\"classes\": [{classes}]"))
            .replace(&unlabelled, "\"unlabelled\": 0")
    }

    fn parsed(classes: &str, samples: u64) -> Result<Manifest, String> {
        let parsed = Manifest::parse(text(classes, samples).as_bytes(), Path::new("m"));
        parsed.map(|manifest| manifest.unwrap()).map_err(|error| error.to_string())
    }

    fn numbers(manifest: &Manifest) -> Vec<(u32, u64)> {
        manifest.numbered().map(|(number, class)| (number, class.samples)).collect()
    }

    #[test]
    fn classes_without_name_and_samples_need_not_be_listed() {
        let class = |samples: u64| format!("{{\"name\": \"\", \"samples\": {samples}}}");
        let at = |number: u32| format!("{{\"class\": {number}, \"name\": \"\", \"samples\": 2}}");
        let all = parsed(&[class(1), class(0), class(0), class(2)].join(","), 3).unwrap();
        let few = parsed(&[class(1), at(3)].join(","), 3).unwrap();
        assert_eq!(numbers(&all), [(0, 1), (1, 0), (2, 0), (3, 2)]);
        assert_eq!(numbers(&few), [(0, 1), (3, 2)]);
        assert_eq!((all.num_classes(), few.num_classes()), (4, 4));
        for classes in
            [[at(3), at(3)], [at(3), at(1)], [class(2), at(1 << 24)], [at(u32::MAX), class(2)]]
        {
            let error = parsed(&classes.join(","), 4).unwrap_err();
            assert!(error.contains("class"), "{error}");
        }
        let named = "{\"class\": 0, \"name\": \"cat\", \"samples\": 1}".to_owned();
        assert_eq!(parsed(&named, 1).unwrap().class_names(), ["cat"]);
        assert!(parsed(&[named, at(3)].join(","), 3).unwrap().class_names().is_empty());
    }

    #[test]
    fn json_of_another_kind_is_none_and_other_versions_are_refused() {
        let version = |text: &str| version(text.as_bytes(), "x").map(|v| v.map(str::to_owned));
        for other in ["{}", "[]", "[\"x\", 1, 2]", "3", "null", "{\"format\": {\"x\": 1}}"] {
            assert_eq!(version(other), Ok(None), "{other}");
        }
        assert_eq!(version("{\"format\": \"\\u0078\", \"version\": 1}"), Ok(Some("1".to_owned())));
        assert_eq!(version("{\"format\": \"x\"}"), Ok(Some("null".to_owned())));
        assert!(version("{\"format\"").is_err() && version("").is_err());
        let newer = text("", 0).replace("\"version\": 1", "\"version\": 2");
        let error = Manifest::parse(newer.as_bytes(), Path::new("m")).unwrap_err().to_string();
        assert!(error.contains("version 2, this program reads 1"), "{error}");
    }

    #[test]
    fn what_is_said_for_people_has_a_limit() {
        let long = format!("\"made\": {{\"a\": \"{}\"}}", "x".repeat(MADE_BYTES));
        let text = text("", 0).replace("\"made\": {}", &long);
        let error = Manifest::parse(text.as_bytes(), Path::new("m")).unwrap_err().to_string();
        assert!(error.contains("`made` has 167772"), "{error}");
    }
}
