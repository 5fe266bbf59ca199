//! Samples in memory, packed and read again.

use std::collections::BTreeMap;
use std::path::Path;

use bt_pipeline::Result;
use bt_pipeline::shard::{
    Loaded, OpenOptions, PackOptions, Packed, ReadScratch, ShardSet, Source, pack, raw_header,
};

/// Samples in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub samples: Vec<(String, Option<u32>, Vec<u8>)>,
    pub extras: Vec<(String, Vec<u8>)>,
    pub classes: Vec<String>,
}

impl Memory {
    /// `count` small images of three classes, all different.
    pub fn some(count: u32) -> Memory {
        let samples = (0..count)
            .map(|i| (format!("d/{i:05}"), Some(i % 3), image(1 + i % 40, 1 + i % 7, i as u8)));
        Memory { samples: samples.collect(), ..Memory::default() }
    }
}

/// A decoded image of noise, which does not compress away.
pub fn image(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let mut bytes = raw_header(width, height).to_vec();
    let mut noise = u32::from(seed) + 77;
    bytes.extend((0..width * height * 3).map(|_| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    }));
    bytes
}

impl Source for Memory {
    fn len(&self) -> usize {
        self.samples.len()
    }
    fn label(&self, i: usize) -> Result<Option<u32>> {
        Ok(self.samples[i].1)
    }
    fn bytes(&self, i: usize) -> Result<u64> {
        Ok(self.samples[i].2.len() as u64)
    }
    fn name(&self, i: usize) -> String {
        self.samples[i].0.clone()
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let (key, label, image) = self.samples[i].clone();
        *into = Loaded { key, label, image, extension: String::new(), extras: self.extras.clone() };
        Ok(())
    }
}

pub fn packed(source: &dyn Source, folder: &Path, options: &PackOptions) -> Result<Packed> {
    pack(source, folder, "a test", options, &mut |_| {})
}

pub fn open(folder: &Path) -> ShardSet {
    ShardSet::open(
        &folder.to_string_lossy(),
        &OpenOptions { verify: true, ..OpenOptions::default() },
    )
    .unwrap()
}

pub fn contents(set: &ShardSet) -> Vec<(String, Option<u32>, Vec<u8>)> {
    let mut scratch = ReadScratch::new();
    (0..set.len())
        .map(|i| {
            let sample = set.read(i, &mut scratch).unwrap();
            (sample.key.to_owned(), sample.label, sample.image.to_vec())
        })
        .collect()
}

/// Every file of a folder.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect()
}
