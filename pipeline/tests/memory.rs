//! Memory of a stream, whatever the size of the data set. Alone in its process, whose peak it
//! looks at.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::rng::Rng;
use bt_pipeline::shard::raw_header;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet, Shuffle};

const BUDGET: u64 = 64 << 20;
const SHARDS: usize = 4;

/// The most memory this process ever had, mapped files included; None where the system
/// does not tell.
fn peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// A data set of noise.
struct Images {
    samples: usize,
    side: usize,
    /// Bytes of another member of each sample.
    beside: usize,
    /// Whether the shards are compressed without a seek table, to be read in order only.
    streamed: bool,
    preset: Preset,
}

impl Images {
    fn pack(&self, folder: &Path) {
        let mut image = raw_header(self.side as u32, self.side as u32).to_vec();
        let header = image.len();
        image.resize(header + self.side * self.side * 3, 0);
        let mut rng = Rng::keyed(9, 0, 0, 0);
        let beside = vec![b' '; self.beside];
        for shard in 0..SHARDS {
            let extension = if self.streamed { "tar.zst" } else { "tar" };
            let file = File::create(folder.join(format!("{shard:06}.{extension}"))).unwrap();
            let file: Box<dyn Write> = match self.streamed {
                true => Box::new(zstd::Encoder::new(file, 1).unwrap().auto_finish()),
                false => Box::new(BufWriter::with_capacity(1 << 20, file)),
            };
            let mut tar = tar::Builder::new(file);
            for sample in 0..self.samples / SHARDS {
                for eight in image[header..].chunks_exact_mut(8) {
                    eight.copy_from_slice(&rng.bits().to_le_bytes());
                }
                let members = [("ppm", &image), ("json", &beside)];
                for (extension, bytes) in members.into_iter().filter(|(_, bytes)| !bytes.is_empty())
                {
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    header.set_cksum();
                    let name = format!("{sample:06}.{extension}");
                    tar.append_data(&mut header, name, &bytes[..]).unwrap();
                }
            }
            tar.into_inner().unwrap().flush().unwrap();
        }
    }

    /// Streams an epoch of them; `name` is for messages.
    fn stay_within_the_budget(&self, name: &str, shuffle: Shuffle) {
        let folder = tempfile::tempdir().unwrap();
        self.pack(folder.path());
        let set = ShardSet::open(&folder.path().to_string_lossy(), &Default::default()).unwrap();
        let data: u64 = set.shards().iter().map(|shard| shard.bytes).sum();
        assert!(data > BUDGET + (120 << 20), "the data set is too small to show anything");
        let views = self.preset.views();
        let config = LoaderConfig {
            threads: 2,
            budget_bytes: BUDGET,
            shuffle,
            ..LoaderConfig::training(views, 16, 0)
        };
        let loader = Loader::new(Arc::new(set), config).unwrap();
        let batches = loader.start(Position::default(), 1).unwrap().map(Result::unwrap).count();
        assert_eq!(batches, self.samples / 16);
        let Some(peak) = peak() else { return };
        let (data, mib) = (data >> 20, peak >> 20);
        println!("{name}: {data} MiB of shards, peak {mib} MiB, budget {} MiB", BUDGET >> 20);
        assert!(peak < BUDGET + 100_000_000, "{name}: {peak} bytes");
    }
}

// One test, as the peak is the process's: who goes first has the smallest.
#[test]
fn peak_memory_stays_within_the_byte_budget_and_100_megabytes() {
    let preset = Preset::BarlowCifar;
    let small = Images { samples: 20_000, side: 16, beside: 9_000, streamed: false, preset };
    small.stay_within_the_budget("small images at random", Shuffle::Global);
    // Too large to be copied.
    let mapped = Images { samples: 192, side: 600, beside: 0, ..small };
    mapped.stay_within_the_budget("mapped images at random", Shuffle::Global);
    let preset = Preset::BarlowImagenet;
    let large = Images { samples: 1_000, side: 256, beside: 0, streamed: false, preset };
    let window = Shuffle::Window { shards: 2, samples: 20 };
    Images { streamed: true, ..large }.stay_within_the_budget("in order", window);
    large.stay_within_the_budget("at random", Shuffle::Global);
}
