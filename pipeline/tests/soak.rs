//! The loader at full speed for a long time: memory and file descriptors stay where they are.
//!
//! `BT_SOAK_SAMPLES=2000000 cargo test --release -p bt-pipeline --test soak -- --ignored --nocapture`

mod common;

use bt_pipeline::{Loader, LoaderConfig, Position};
use common::{Coding, config, open, write_shards};

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
#[ignore = "takes minutes to an hour"]
fn memory_and_descriptors_stay_flat() {
    let samples: u64 =
        std::env::var("BT_SOAK_SAMPLES").map_or(200_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &[500, 500], Coding::Tar, &[17, 700]));
    let config = LoaderConfig { threads: 0, ..config(100) };
    let loader = Loader::new(set, config).unwrap();
    let epochs = samples / 1000;
    let (mut half, mut most) = ((0, 0), 0);
    for batch in loader.start(Position::default(), epochs).unwrap() {
        let batch = batch.unwrap();
        if batch.index == 0 && batch.epoch == epochs / 2 {
            half = (resident(), descriptors());
        }
        if batch.index == 0 && batch.epoch > epochs / 2 {
            most = most.max(resident());
            assert_eq!(descriptors(), half.1);
        }
    }
    println!("{samples} samples: {} bytes at half, at most {most} after", half.0);
    assert!(most as f64 <= half.0 as f64 * 1.02, "{most} after {}", half.0);
}
