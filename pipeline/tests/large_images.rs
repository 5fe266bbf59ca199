//! One image that is far larger than all others. Alone in its process, whose memory it looks at.

use std::fs::File;
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::shard::raw_header;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

const BUDGET: u64 = 64 << 20;
const SIDE: u32 = 5000;

/// Bytes of this process in memory; None where the system does not tell.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// 25 megapixels of 16-bit RGBA: 200 MB as decoded, hardly anything as a file.
fn large_png() -> Vec<u8> {
    use image::ImageEncoder;
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let pixels = vec![0; SIDE as usize * SIDE as usize * 8];
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::NoFilter)
        .write_image(&pixels, SIDE, SIDE, image::ExtendedColorType::Rgba16)
        .unwrap();
    png
}

#[test]
fn what_a_large_image_took_is_given_back_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(File::create(folder.path().join("a.tar")).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add("large.png", &large_png());
    let small = [&raw_header(8, 8)[..], &[90; 192]].concat();
    for sample in 0..7 {
        add(&format!("small-{sample}.ppm"), &small);
    }
    drop(tar.into_inner().unwrap());
    let set = ShardSet::open(&folder.path().to_string_lossy(), &Default::default()).unwrap();
    let config = LoaderConfig {
        threads: 1,
        budget_bytes: BUDGET,
        max_bad: 0.0,
        ..LoaderConfig::training(Preset::BarlowImagenet.views(), 4, 0)
    };
    let loader = Loader::new(Arc::new(set), config).unwrap();
    let mut stream = loader.start(Position::default(), 100).unwrap();
    // Two epochs, with all buffers held: the worker is idle, and what it has, it keeps.
    let held: Vec<_> = stream.by_ref().take(loader.buffers()).map(Result::unwrap).collect();
    assert_eq!((held.len(), stream.stats().snapshot().bad), (4, 0));
    let Some(resident) = resident() else { return };
    println!("{} MiB of memory, budget {} MiB", resident >> 20, BUDGET >> 20);
    assert!(resident < BUDGET + 100_000_000, "{resident} bytes");
}
