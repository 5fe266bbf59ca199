//! A set of a million samples.

use std::path::Path;

use bt_pipeline::augment::Preset;
use bt_pipeline::shard::{OpenOptions, PackOptions, ReadScratch, ShardSet};
use bt_pipeline::{Loader, LoaderConfig, Position};

use super::memory::{Memory, image, packed};

/// Makes 1,000,000 samples in 1,000 shards first, which takes a minute or two:
/// `cargo test --release -p bt-pipeline --test shard million -- --ignored --nocapture`.
#[test]
#[ignore = "packs a million samples"]
fn a_million_samples_open_within_two_seconds_and_200_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    let samples = (0..1_000_000).map(|i| (format!("{i:09}"), Some(i % 1000), image(1, 1, i as u8)));
    let source = Memory { samples: samples.collect(), ..Memory::default() };
    let options =
        PackOptions { zstd: Some(1), samples_per_shard: Some(1000), ..PackOptions::default() };
    packed(&source, folder.path(), &options).unwrap();
    drop(source);
    let manifest = folder.path().join("shard.manifest.json");
    for with_manifest in [true, false] {
        if !with_manifest {
            std::fs::remove_file(&manifest).unwrap();
        }
        let before = resident_bytes();
        let start = std::time::Instant::now();
        let set =
            ShardSet::open(&folder.path().to_string_lossy(), &OpenOptions::default()).unwrap();
        let opened = start.elapsed();
        let mut scratch = ReadScratch::new();
        let first = set.read(900_000, &mut scratch).unwrap().key.to_owned();
        let read = start.elapsed();
        let labels: u64 = (0..set.len()).map(|i| u64::from(set.label(i).unwrap().unwrap())).sum();
        let all = start.elapsed();
        let grown = resident_bytes().saturating_sub(before);
        println!(
            "manifest {with_manifest}: open {opened:?}, first sample {read:?}, every entry {all:?}, +{} MiB resident",
            grown >> 20
        );
        assert_eq!((set.len(), first.as_str(), labels), (1_000_000, "000900000", 499_500_000));
        assert!(all.as_secs_f64() < 2.0 && grown < 200 << 20);
        drop(set);
        let resumed = 900_000 / 64;
        for batch in [0, resumed] {
            let (elapsed, grown) = first_batch(folder.path(), batch);
            println!(
                "manifest {with_manifest}: batch {batch} after {elapsed:?}, +{} MiB",
                grown >> 20
            );
            assert!(elapsed.as_secs_f64() < 2.0 && grown < 200 << 20);
        }
    }
}

/// Time from opening the set to batch `batch`, and what memory grew by.
fn first_batch(folder: &Path, batch: u64) -> (std::time::Duration, u64) {
    let (before, start) = (resident_bytes(), std::time::Instant::now());
    let set = ShardSet::open(&folder.to_string_lossy(), &OpenOptions::default()).unwrap();
    let config = LoaderConfig::training(Preset::BarlowCifar.views(), 64, 0);
    let loader = Loader::new(set.into(), config).unwrap();
    let mut stream = loader.start(Position { epoch: 0, batch }, 1).unwrap();
    let found = stream.next().unwrap().unwrap();
    let elapsed = start.elapsed();
    assert_eq!((found.index, found.size()), (batch, 64));
    (elapsed, resident_bytes().saturating_sub(before))
}

/// Resident memory of this process; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
