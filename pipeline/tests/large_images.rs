//! One image that is far larger than all others. Alone in its process, whose memory it looks at.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::dct;
use bt_pipeline::shard::{OpenOptions, PackOptions, ShardSource, pack, raw_header};
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

const BUDGET: u64 = 64 << 20;
/// What a process has beside the budget.
const REST: u64 = 100_000_000;

/// Bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`); None where the system
/// does not tell.
fn memory(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Begins a new `VmHWM`; None where the system does not do that.
fn forget_peak() -> Option<()> {
    std::fs::write("/proc/self/clear_refs", "5").ok()
}

/// 25 megapixels of 16-bit RGBA: 200 MB as decoded, hardly anything as a file.
fn large_png() -> Vec<u8> {
    use image::ImageEncoder;
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let side = 5000;
    let pixels = vec![0; side as usize * side as usize * 8];
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::NoFilter)
        .write_image(&pixels, side, side, image::ExtendedColorType::Rgba16)
        .unwrap();
    png
}

/// 67 megapixels, 200 MB as decoded, and as much again in planes of samples.
fn large_jpeg() -> Vec<u8> {
    let side: u16 = 8168;
    let pixels = vec![90; usize::from(side) * usize::from(side) * 3];
    let mut jpeg = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 80);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    encoder.encode(&pixels, side, side, jpeg_encoder::ColorType::Rgb).unwrap();
    jpeg
}

/// 60 megapixels, 180 MB that are hardly anything as a file: a frame to be decompressed.
fn large_ppm() -> Vec<u8> {
    let side = 7744;
    let mut ppm = raw_header(side, side).to_vec();
    ppm.resize(ppm.len() + 3 * (side * side) as usize, 90);
    ppm
}

/// Makes the shard in `folder` a `.tar.zst`.
fn compress(folder: &Path) {
    let (tar, into) = (folder.join("a.tar"), folder.join("zst"));
    let source =
        ShardSource::open(&tar.to_string_lossy(), folder, &OpenOptions::default()).unwrap();
    let options = PackOptions { zstd: Some(1), threads: 1, ..PackOptions::default() };
    pack(&source, &into, "a test", &options, &mut |_| {}).unwrap();
    drop(source);
    std::fs::remove_file(tar).unwrap();
    std::fs::rename(into.join("shard-000000.tar.zst"), folder.join("a.tar.zst")).unwrap();
}

#[test]
fn what_a_large_image_took_is_given_back_before_the_next() {
    let jpeg = large_jpeg();
    let recoded = dct::encode(&jpeg).unwrap();
    for (name, bytes) in [("large.png", large_png()), ("large.jpg", jpeg), ("large.dct", recoded)] {
        load(name, bytes, false);
    }
    load("large.ppm", large_ppm(), true);
}

fn load(name: &str, large: Vec<u8>, compressed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(File::create(folder.path().join("a.tar")).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add(name, &large);
    let length = large.len() as u64;
    drop(large);
    let small = [&raw_header(8, 8)[..], &[90; 192]].concat();
    for sample in 0..7 {
        add(&format!("small-{sample}.ppm"), &small);
    }
    drop(tar.into_inner().unwrap());
    if compressed {
        compress(folder.path());
    }
    let set = ShardSet::open(&folder.path().to_string_lossy(), &Default::default()).unwrap();
    let mut views = Preset::BarlowImagenet.views();
    // All of the image is wanted.
    for crop in views.iter_mut().filter_map(|view| view.random_resized_crop.as_mut()) {
        (crop.scale, crop.ratio) = ([1.0; 2], [1.0; 2]);
    }
    let config = LoaderConfig {
        threads: 1,
        budget_bytes: BUDGET,
        max_bad: 0.0,
        ..LoaderConfig::training(views, 4, 0)
    };
    let loader = Loader::new(Arc::new(set), config).unwrap();
    let forgotten = forget_peak();
    let mut stream = loader.start(Position::default(), 100).unwrap();
    // Two epochs, with all buffers held: the worker is idle, and what it has, it keeps.
    let held: Vec<_> = stream.by_ref().take(loader.buffers()).map(Result::unwrap).collect();
    assert_eq!((held.len(), stream.stats().snapshot().bad), (4, 0));
    let (Some(resident), Some(peak)) = (memory("VmRSS"), memory("VmHWM")) else { return };
    println!(
        "{name}: {} MiB of memory, at most {}, budget {} MiB",
        resident >> 20,
        peak >> 20,
        BUDGET >> 20
    );
    assert!(resident < BUDGET + REST, "{name}: {resident} bytes");
    // The image, 200 MB of it, once, and what is read.
    let most = BUDGET + REST + 200_150_000 + 2 * length;
    assert!(forgotten.is_none() || peak < most, "{name}: at most {peak} bytes");
}
