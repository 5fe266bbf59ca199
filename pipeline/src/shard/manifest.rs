//! The manifest of a shard set: one JSON file that says what the set holds
//! and how it was made. Read by `pattern`, written by the writer.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::map::open_regular;
use super::{Limits, MAX_LABEL};
use crate::{Error, Result};

mod json;

/// How a manifest's file name ends: `train.manifest.json`, `manifest.json`.
pub const MANIFEST_SUFFIX: &str = "manifest.json";
/// What made a set, as its manifest has it.
pub(super) const TOOL: &str = concat!("bt-pipeline ", env!("CARGO_PKG_VERSION"));
const FORMAT: &str = "bt-stream shard set";
const VERSION: u32 = 1;
/// So many classes are listed without a gap, about 6 MB of them.
const LISTED: u32 = 1 << 17;

/// What a set of shards holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `bt-stream shard set`.
    pub format: String,
    /// Always 1.
    pub version: u32,
    /// Samples in all shards.
    pub samples: u64,
    /// Bytes of all shard files.
    pub bytes: u64,
    /// Samples that have no label.
    pub unlabelled: u64,
    /// The classes in the order of their numbers; of very many only those that have a name or
    /// samples, as one label may be large. [`Manifest::numbered`] has the numbers.
    pub classes: Vec<ClassCount>,
    /// The shards in order; their files lie beside the manifest.
    pub shards: Vec<ManifestShard>,
    /// How the set was made: tool, source, options, seed. For people.
    #[serde(deserialize_with = "json::made")]
    pub made: serde_json::Value,
}

/// One class of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Its number, where that is not one more than the number of the class before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u32>,
    /// Its name; empty where only numbers are known.
    pub name: String,
    /// Its samples in the set.
    pub samples: u64,
}

/// One shard of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestShard {
    /// File name, without folders.
    pub name: String,
    /// Samples in it.
    pub samples: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// [`checksum_text`] of the file's bytes.
    pub checksum: String,
    /// Whether samples can be read in any order.
    pub seekable: bool,
}

/// Names the hash.
const XXH3: &str = "xxh3:";

/// `xxh3:` and the 16 hex digits of an XXH3-64.
pub fn checksum_text(hash: u64) -> String {
    format!("{XXH3}{hash:016x}")
}

/// The hash in [`checksum_text`]; `None` where it is of another kind.
#[cfg(feature = "remote")]
pub(crate) fn checksum_of(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix(XXH3)?, 16).ok()
}

impl Manifest {
    /// A manifest of the given shards; totals are computed.
    pub fn new(
        shards: Vec<ManifestShard>,
        classes: Vec<ClassCount>,
        made: serde_json::Value,
    ) -> Self {
        let samples = shards.iter().map(|shard| shard.samples).sum::<u64>();
        let labelled = classes.iter().map(|class| class.samples).sum::<u64>();
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            samples,
            bytes: shards.iter().map(|shard| shard.bytes).sum(),
            unlabelled: samples.saturating_sub(labelled),
            classes,
            shards,
            made,
        }
    }

    /// Reads the manifest at `path`; `None` when it is JSON of another kind.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Shard`] when it is not JSON, lacks a field, or
    /// contradicts itself.
    pub fn read(path: &Path, limits: &Limits) -> Result<Option<Manifest>> {
        let failed = |e| Error::io(path, e);
        let mut file = open_regular(path)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let limit = limits.index_bytes;
        if bytes > limit {
            let cause = format!("a manifest of {bytes} bytes is over the limit of {limit}");
            return Err(super::damaged(path, 0, cause));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        Manifest::parse(&text, path)
    }

    /// As [`Manifest::read`], from the file's bytes; `path` is for messages.
    pub(crate) fn parse(text: &[u8], path: &Path) -> Result<Option<Manifest>> {
        let bad = |cause: String| super::damaged(path, 0, format!("manifest: {cause}"));
        let Some(version) = json::version(text, FORMAT).map_err(bad)? else { return Ok(None) };
        if version != VERSION.to_string() {
            return Err(bad(format!("version {version}, this program reads {VERSION}")));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
        manifest.check().map_err(bad)?;
        Ok(Some(manifest))
    }

    /// Classes as a manifest lists them: all of them, or, where they are many, those that have a
    /// name, by number, or samples.
    pub(crate) fn listed(names: &[String], counts: &BTreeMap<u32, u64>) -> Vec<ClassCount> {
        let named = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let labels = counts.last_key_value().map_or(0, |(largest, _)| largest.saturating_add(1));
        // Those with a name or all of them, and of the others those with samples.
        let first = if labels <= LISTED { named.max(labels) } else { named };
        let others = counts.range(first..).map(|(&class, _)| class);
        let mut next = 0;
        let listed = (0..first).chain(others).map(|class| {
            let number = (class != next).then_some(class);
            next = class.saturating_add(1);
            ClassCount {
                class: number,
                name: names.get(class as usize).cloned().unwrap_or_default(),
                samples: counts.get(&class).copied().unwrap_or(0),
            }
        });
        listed.collect()
    }

    /// The classes that are listed, each with its number.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &ClassCount)> {
        let mut next = 0u32;
        self.classes.iter().map(move |class| {
            let number = class.class.unwrap_or(next);
            next = number.saturating_add(1);
            (number, class)
        })
    }

    /// The largest number of a class that is listed + 1.
    pub fn num_classes(&self) -> u32 {
        self.numbered().last().map_or(0, |(number, _)| number.saturating_add(1))
    }

    fn check(&self) -> Result<(), String> {
        let (mut samples, mut bytes, mut labelled) = (0u64, 0u64, 0u64);
        for shard in &self.shards {
            let plain =
                Path::new(&shard.name).file_name().is_some_and(|name| name == shard.name.as_str());
            if !plain {
                return Err(format!("shard name {:?} is not a plain file name", shard.name));
            }
            samples = samples.checked_add(shard.samples).ok_or("too many samples")?;
            bytes = bytes.checked_add(shard.bytes).ok_or("too many bytes")?;
        }
        let mut least = 0;
        for (number, class) in self.numbered() {
            if number < least || number > MAX_LABEL {
                return Err(format!("class {number}, expected {least} to {MAX_LABEL}"));
            }
            least = number + 1;
            labelled = labelled.checked_add(class.samples).ok_or("too many samples")?;
        }
        if samples != self.samples {
            return Err(format!("{} samples in all, but {samples} in its shards", self.samples));
        }
        if bytes != self.bytes {
            return Err(format!("{} bytes in all, but {bytes} in its shards", self.bytes));
        }
        if labelled.checked_add(self.unlabelled) != Some(samples) {
            let unlabelled = self.unlabelled;
            return Err(format!(
                "{labelled} samples in its classes and {unlabelled} without a label, but {samples} in all"
            ));
        }
        Ok(())
    }

    /// The text that is written to disk.
    pub fn to_json(&self) -> String {
        // Serialising strings, numbers and a JSON value cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Names of the classes in the order of their numbers; empty when one has none.
    pub fn class_names(&self) -> Vec<String> {
        let is_named = |(place, (number, class)): (usize, (u32, &ClassCount))| {
            number as usize == place && !class.name.is_empty()
        };
        match self.numbered().enumerate().all(is_named) {
            true => self.classes.iter().map(|class| class.name.clone()).collect(),
            false => Vec::new(),
        }
    }

    /// All manifests in `folder`, by name; files of other kinds are passed over.
    pub(crate) fn all_in(folder: &Path, limits: &Limits) -> Result<Vec<(PathBuf, Manifest)>> {
        let mut found = Vec::new();
        for path in super::pattern::files_in(folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if super::pattern::is_manifest_name(&name)
                && let Some(manifest) = Manifest::read(&path, limits)?
            {
                found.push((path, manifest));
            }
        }
        Ok(found)
    }
}
