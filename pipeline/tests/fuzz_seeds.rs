//! The seeds of `fuzz/`: JPEGs of `fixtures/jpeg`, their side indexes, a shard in each form.

use std::fs;
use std::path::{Path, PathBuf};

use bt_pipeline::Image;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, Region, SideIndex};
use bt_pipeline::shard::{
    Limits, OpenOptions, PackOptions, ReadScratch, ShardSet, open_source, pack,
};

fn seeds(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Writes the seeds anew; to be run when a format changes:
/// `cargo test --release -p bt-pipeline --test fuzz_seeds -- --ignored`.
#[test]
#[ignore = "writes fuzz/seeds"]
fn write_the_seeds() {
    for target in ["jpeg", "side_index", "tar", "zst", "shard_index", "manifest"] {
        let _ = fs::remove_dir_all(seeds(target));
        fs::create_dir_all(seeds(target)).unwrap();
    }
    let work = tempfile::tempdir().unwrap();
    let images = work.path().join("images/a");
    fs::create_dir_all(&images).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    let mut taken = 0;
    for path in files(&fixtures) {
        let (bytes, name) = (fs::read(&path).unwrap(), path.file_stem().unwrap());
        if path.extension().is_none_or(|extension| extension != "jpg") || bytes.len() > 3000 {
            continue;
        }
        fs::write(seeds("jpeg").join(name), &bytes).unwrap();
        if let Ok(index) = SideIndex::build_with_spacing(&bytes, 2) {
            let index = index.to_bytes();
            let index = &index[..index.len() - 4];
            let seed = [&(index.len() as u16).to_le_bytes(), index, &bytes].concat();
            fs::write(seeds("side_index").join(name), seed).unwrap();
        }
        if taken < 4 {
            fs::copy(&path, images.join(path.file_name().unwrap())).unwrap();
            taken += 1;
        }
    }
    let source = work.path().join("images");
    let source = open_source(&source.to_string_lossy(), work.path(), &Limits::default()).unwrap();
    for (folder, zstd) in [("plain", None), ("zstd", Some(3))] {
        let options = PackOptions { zstd, ..PackOptions::default() };
        pack(&*source, &work.path().join(folder), "seeds", &options, &mut |_| ()).unwrap();
    }
    let copy = |from: &str, to: PathBuf| fs::copy(work.path().join(from), to).unwrap();
    copy("plain/shard-000000.tar", seeds("tar").join("four.tar"));
    copy("plain/shard-000000.tar.idx", seeds("shard_index").join("four"));
    copy("plain/shard.manifest.json", seeds("manifest").join("four"));
    copy("zstd/shard-000000.tar.zst", seeds("zst").join("four.tar.zst"));
}

#[test]
fn every_jpeg_seed_decodes_or_is_refused() {
    let mut decoder = JpegDecoder::new();
    let mut decoded = 0;
    for path in files(&seeds("jpeg")) {
        let bytes = fs::read(&path).unwrap();
        let Ok(jpeg) = Jpeg::parse(&bytes) else { continue };
        decoded += usize::from(decoder.decode_into(&jpeg, &mut Image::default()).is_ok());
    }
    assert!(decoded > 10, "{decoded} seeds decode");
}

#[test]
fn the_side_index_seeds_are_used_once_they_have_their_checksum() {
    let (mut decoder, mut used) = (JpegDecoder::new(), 0);
    for path in files(&seeds("side_index")) {
        let seed = fs::read(&path).unwrap();
        let length = usize::from(u16::from_le_bytes([seed[0], seed[1]]));
        let (index, bytes) = seed[2..].split_at(length);
        let checksum = xxhash_rust::xxh3::xxh3_64(index) as u32;
        let index = SideIndex::from_bytes(&[index, &checksum.to_le_bytes()].concat()).unwrap();
        let jpeg = Jpeg::parse(bytes).unwrap();
        let all = Region::full(&jpeg);
        decoder.decode_region_into(&jpeg, all, Some(&index), &mut Image::default()).unwrap();
        used += usize::from(decoder.used_index());
    }
    assert!(used > 10, "{used} side indexes are used");
}

#[test]
fn the_shard_seeds_hold_four_samples() {
    for name in ["tar/four.tar", "zst/four.tar.zst"] {
        let options = OpenOptions { use_manifest: false, ..OpenOptions::default() };
        let set = ShardSet::open(&seeds(name).to_string_lossy(), &options).unwrap();
        assert_eq!(set.len(), 4);
        let mut scratch = ReadScratch::new();
        assert!((0..4).all(|sample| set.read(sample, &mut scratch).is_ok()));
    }
}
