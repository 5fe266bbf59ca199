//! Shards behind URLs: the same bytes as from the disk, through faults and without.
//!
//! Most tests talk to a server of their own (`server`), which can misbehave; `real` puts it in
//! front of nginx and of an S3 server, where they are installed (`tools/interop/remote.sh`).

#[path = "../common/mod.rs"]
mod common;
mod server;

mod cache;
mod faults;
mod hostile;
mod plain;
mod real;
#[path = "../../../tests/common/skip.rs"]
mod skip;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bt_pipeline::shard::{OpenOptions, PackOptions, RemoteOptions, open_source, pack};
use bt_pipeline::{Loader, Position, Result, ShardSet, Shuffle};

/// Options whose waits are short.
fn impatient() -> OpenOptions {
    let remote = RemoteOptions {
        retries: 3,
        backoff: Duration::from_millis(5),
        timeout: Duration::from_millis(1500),
        ..RemoteOptions::default()
    };
    OpenOptions { remote, ..OpenOptions::default() }
}

/// As `impatient`, with a cache.
fn cached(folder: &Path, bytes: u64) -> OpenOptions {
    let mut options = impatient();
    (options.remote.cache, options.remote.cache_bytes) = (Some(folder.to_owned()), bytes);
    options.remote.timeout = Duration::from_secs(30);
    options
}

/// What a run sees: sample numbers and a checksum of all bytes.
type Seen = (Vec<u64>, u64);

/// Two epochs of `set`.
fn run(set: &Arc<ShardSet>, shuffle: Shuffle, threads: usize) -> Result<Seen> {
    let mut config = common::config(8);
    (config.shuffle, config.threads, config.seed) = (shuffle, threads, 11);
    let loader = Loader::new(Arc::clone(set), config)?;
    let (mut samples, mut bytes) = (Vec::new(), Vec::new());
    for batch in loader.start(Position::default(), 2)? {
        let batch = batch?;
        samples.extend(&batch.samples);
        bytes.extend(bytes_sum(batch.as_bytes()).to_le_bytes());
    }
    Ok((samples, bytes_sum(&bytes)))
}

/// FNV-1a.
fn bytes_sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

fn open(pattern: &str, options: &OpenOptions) -> Result<Arc<ShardSet>> {
    ShardSet::open(pattern, options).map(Arc::new)
}

/// Shards without index in `raw`, packed with index and manifest in `tar` and `zst`.
struct Data {
    folder: tempfile::TempDir,
}

impl Data {
    fn new() -> Data {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        std::fs::create_dir(&raw).unwrap();
        common::write_shards(&raw, &[9, 14, 11], common::Coding::Tar, &[]);
        let stream = folder.path().join("stream");
        std::fs::create_dir(&stream).unwrap();
        common::write_shards(&stream, &[9, 14, 11], common::Coding::Stream, &[]);
        for (name, zstd) in [("tar", None), ("zst", Some(1))] {
            let options = PackOptions {
                samples_per_shard: Some(12),
                zstd,
                threads: 1,
                ..PackOptions::default()
            };
            let temporary = folder.path().join("temporary");
            let source =
                open_source(&raw.to_string_lossy(), &temporary, &Default::default()).unwrap();
            let out = folder.path().join(name);
            pack(&*source, &out, "a test", &options, &mut |_| {}).unwrap();
        }
        Data { folder }
    }

    /// What a run over the files sees.
    fn local(&self, name: &str, shuffle: Shuffle) -> Seen {
        let set = common::open(&self.folder.path().join(name));
        run(&set, shuffle, 2).unwrap()
    }
}

/// The brace list of a packed set.
fn packed(name: &str) -> String {
    let end = if name == "zst" { "tar.zst" } else { "tar" };
    format!("{name}/shard-{{000000..000002}}.{end}")
}

const ORDERS: [Shuffle; 3] =
    [Shuffle::Global, Shuffle::None, Shuffle::Window { shards: 2, samples: 9 }];
