//! Memory of a stream, whatever the size of the data set. Alone in its process, whose peak it
//! looks at.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::rng::Rng;
use bt_pipeline::shard::raw_header;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

const SIDE: usize = 256;
const SAMPLES: usize = 1000;
const BUDGET: u64 = 64 << 20;

/// The most memory this process ever had, mapped files included; None where the system
/// does not tell.
fn peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[test]
fn peak_memory_stays_within_the_byte_budget_and_100_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut noise = vec![0; SIDE * SIDE * 3];
    let mut rng = Rng::keyed(9, 0, 0, 0);
    noise.iter_mut().for_each(|value| *value = rng.bits() as u8);
    for shard in 0..4 {
        let file = File::create(folder.path().join(format!("raw-{shard:06}.tar"))).unwrap();
        let mut tar = tar::Builder::new(file);
        for sample in 0..SAMPLES / 4 {
            let mut image = raw_header(SIDE as u32, SIDE as u32).to_vec();
            image.extend(&noise);
            let mut header = tar::Header::new_gnu();
            header.set_size(image.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, format!("{sample:06}.ppm"), &image[..]).unwrap();
        }
        tar.into_inner().unwrap().flush().unwrap();
    }
    let set = ShardSet::open(&folder.path().to_string_lossy(), &Default::default()).unwrap();
    let data: u64 = set.shards().iter().map(|shard| shard.bytes).sum();
    assert!(data > BUDGET + (120 << 20), "the data set is too small to show anything");
    let config = LoaderConfig {
        threads: 2,
        budget_bytes: BUDGET,
        ..LoaderConfig::training(Preset::BarlowImagenet.views(), 16, 0)
    };
    let loader = Loader::new(Arc::new(set), config).unwrap();
    let batches = loader.start(Position::default(), 1).unwrap().map(Result::unwrap).count();
    assert_eq!(batches, SAMPLES / 16);
    let Some(peak) = peak() else { return };
    println!("{} MiB of shards, peak {} MiB, budget {} MiB", data >> 20, peak >> 20, BUDGET >> 20);
    assert!(peak < BUDGET + 100_000_000, "{peak} bytes");
}
