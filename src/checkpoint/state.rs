//! `state.json`: what a checkpoint says of its run, and the checksums of its files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Result;
use bt_pipeline::Position;
use serde::{Deserialize, Serialize};

use super::WEIGHTS;
use crate::config::RunConfig;
use crate::metrics::Tally;

/// What `state.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// The program's version.
    pub version: String,
    /// Optimizer steps done.
    pub step: u64,
    /// The next batch.
    pub position: Position,
    /// Samples of the training set, which the position is relative to.
    pub samples: u64,
    /// What tells the training set from others of its size (`src/train/save.rs`); empty where
    /// nothing does, and in checkpoints of earlier versions.
    #[serde(default)]
    pub fingerprint: String,
    /// A checksum over the sizes of the shards, in samples: the order of `data.shuffle = "window"`
    /// depends on them. Empty in checkpoints of earlier versions.
    #[serde(default)]
    pub cuts: String,
    /// Batches passed over since the last step (`train.on_nan = "rewind"`).
    #[serde(default)]
    pub rewinds: u32,
    /// The effective configuration.
    pub config: RunConfig,
    /// What the next line of metrics has to tell of steps before this. Absent in checkpoints of
    /// earlier versions.
    #[serde(default)]
    pub tally: Tally,
    /// The online probe was given up: a run that goes on from here has none. Absent in checkpoints
    /// of earlier versions.
    #[serde(default)]
    pub probe_given_up: bool,
    /// Name -> length and checksum of the other files.
    pub(super) files: BTreeMap<String, FileSum>,
    /// 64-bit XXH3 of `state.json` with zeros in the place of these 16 digits. Absent in
    /// checkpoints of earlier versions.
    #[serde(default)]
    pub(super) checksum: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileSum {
    pub(super) bytes: u64,
    /// 64-bit XXH3, hexadecimal.
    pub(super) xxh3: String,
}

pub(super) const FORMAT: u32 = 1;

impl State {
    /// The checksum of the network's tensors.
    pub fn weights_sum(&self) -> &str {
        self.files.get(WEIGHTS).map_or("", |sum| &sum.xxh3)
    }

    /// The state after `step` steps.
    pub fn new(step: u64, position: Position, samples: u64, config: &RunConfig) -> Self {
        State {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            step,
            position,
            samples,
            fingerprint: String::new(),
            cuts: String::new(),
            rewinds: 0,
            config: config.clone(),
            tally: Tally::default(),
            probe_given_up: false,
            files: BTreeMap::new(),
            checksum: "0".repeat(DIGITS),
        }
    }

    /// As the text of `state.json`, with its checksum.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        if let Some((sum, digits)) = seal_of(&text) {
            text[digits].copy_from_slice(sum.as_bytes());
        }
        Ok(text)
    }
}

/// What stands before the checksum in `state.json`. Quotes inside of strings are escaped, so it
/// stands nowhere else.
const SEAL: &[u8] = b"\"checksum\": \"";
/// Digits of a checksum.
const DIGITS: usize = 16;

/// What the checksum in `text` should be, and where it stands.
pub(super) fn seal_of(text: &[u8]) -> Option<(String, std::ops::Range<usize>)> {
    let at = text.windows(SEAL.len()).position(|window| window == SEAL)? + SEAL.len();
    let mut zeroed = text.to_vec();
    zeroed.get_mut(at..at + DIGITS)?.fill(b'0');
    Some((format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&zeroed)), at..at + DIGITS))
}

/// Length and checksum of a file.
pub(super) fn sum_of(path: &Path) -> std::io::Result<FileSum> {
    use std::io::{ErrorKind, Read};
    let mut file = File::open(path)?;
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let (mut chunk, mut bytes) = (vec![0; 64 << 10], 0);
    loop {
        let n = match file.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        if n == 0 {
            return Ok(FileSum { bytes, xxh3: format!("{:016x}", hasher.digest()) });
        }
        hasher.update(&chunk[..n]);
        bytes += n as u64;
    }
}
