//! Shards for the tests, made of the embedded data set.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::synth::{self, Spec};
use bt_pipeline::{LoaderConfig, ShardSet};

/// Opens the shards in a folder.
pub fn open(folder: &Path) -> Arc<ShardSet> {
    Arc::new(ShardSet::open(folder.to_str().unwrap(), &Default::default()).unwrap())
}

/// Training batches of CIFAR views from two threads.
pub fn config(batch_size: usize) -> LoaderConfig {
    LoaderConfig {
        threads: 2,
        ..LoaderConfig::training(Preset::BarlowCifar.views(), batch_size, 5)
    }
}

/// How a test shard is compressed.
#[derive(Clone, Copy, PartialEq)]
pub enum Coding {
    Tar,
    /// The label before the image, as programs have it that write members by name.
    LabelFirst,
    /// One zstd frame without a seek table: readable only in order.
    Stream,
}

/// Writes `counts.len()` shards with as many samples into `folder`. Keys count
/// through the set; `break_at` samples hold bytes that are no image.
pub fn write_shards(folder: &Path, counts: &[u64], coding: Coding, break_at: &[u64]) -> PathBuf {
    let spec = Spec { images: counts.iter().sum(), side: 20, ..Spec::default() };
    let mut next = 0;
    for (number, &count) in counts.iter().enumerate() {
        let mut tar = tar::Builder::new(Vec::new());
        for sample in next..next + count {
            let (image, label) = synth::draw(&spec, sample);
            let mut png = synth::encode_png(&image).unwrap();
            if break_at.contains(&sample) {
                png.truncate(png.len() / 2);
            }
            let label = label.to_string();
            let mut members = [("png", &png[..]), ("cls", label.as_bytes())];
            if coding == Coding::LabelFirst {
                members.reverse();
            }
            for (extension, data) in members {
                append(&mut tar, &format!("{sample:06}.{extension}"), data);
            }
        }
        next += count;
        let bytes = tar.into_inner().unwrap();
        let name = format!("part-{number:06}.tar");
        match coding {
            Coding::Tar | Coding::LabelFirst => std::fs::write(folder.join(name), bytes).unwrap(),
            Coding::Stream => {
                let frame = zstd::encode_all(&bytes[..], 1).unwrap();
                std::fs::write(folder.join(name + ".zst"), frame).unwrap();
            }
        }
    }
    folder.to_path_buf()
}

/// Adds a file to a tar.
pub fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, data).unwrap();
}
