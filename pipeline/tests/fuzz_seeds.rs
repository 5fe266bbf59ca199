//! The seeds of `fuzz/`: JPEGs of `fixtures/jpeg`, their side indexes, a shard in each form, all of
//! them small: a fuzzer gets further with many inputs than with large ones.

use std::fs;
use std::path::{Path, PathBuf};

use bt_pipeline::Image;
use bt_pipeline::decode::Decoder;
use bt_pipeline::jpeg::{Jpeg, JpegDecoder, Region, SideIndex};
use bt_pipeline::shard::{
    Limits, OpenOptions, OwnedSample, PackOptions, ShardSet, open_source, pack,
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
        if ["420_8x8", "gray_17x33"].iter().any(|&packed| packed == name) {
            fs::copy(&path, images.join(path.file_name().unwrap())).unwrap();
        }
    }
    let source = work.path().join("images");
    let source = open_source(&source.to_string_lossy(), work.path(), &Limits::default()).unwrap();
    for (folder, zstd) in [("plain", None), ("zstd", Some(3))] {
        let options = PackOptions { zstd, ..PackOptions::default() };
        pack(&*source, &work.path().join(folder), "seeds", &options, &mut |_| ()).unwrap();
    }
    let copy = |from: &str, to: PathBuf| fs::copy(work.path().join(from), to).unwrap();
    copy("plain/shard-000000.tar", seeds("tar").join("packed.tar"));
    copy("plain/shard-000000.tar.idx", seeds("shard_index").join("packed"));
    copy("plain/shard.manifest.json", seeds("manifest").join("packed"));
    copy("zstd/shard-000000.tar.zst", seeds("zst").join("packed.tar.zst"));
    for (name, tar) in tars() {
        // Without checksums, which a fuzzer cannot mend.
        let frame = zstd::encode_all(&tar[..], 1).unwrap();
        fs::write(seeds("zst").join(format!("{name}.tar.zst")), frame).unwrap();
        fs::write(seeds("tar").join(format!("{name}.tar")), tar).unwrap();
    }
}

/// Archives as other programs write them, each with what this crate's writer leaves out.
fn tars() -> Vec<(&'static str, Vec<u8>)> {
    const PPM: &[u8] = b"P6 1 1 255\nabc";
    let add =
        |tar: &mut tar::Builder<Vec<u8>>, mut header: tar::Header, name: &str, data: &[u8]| {
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, data).unwrap();
        };
    let mut archives: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut archive = |name, fill: &dyn Fn(&mut tar::Builder<Vec<u8>>)| {
        let mut tar = tar::Builder::new(Vec::new());
        fill(&mut tar);
        archives.push((name, tar.into_inner().unwrap()));
    };
    archive("ustar", &|tar| {
        add(tar, tar::Header::new_ustar(), "d/a.ppm", PPM);
        add(tar, tar::Header::new_ustar(), "d/a.cls", b"3");
    });
    archive("pax", &|tar| {
        let records = [("path", &b"d/a.ppm"[..]), ("size", b"14"), ("comment", b"none")];
        tar.append_pax_extensions(records).unwrap();
        add(tar, tar::Header::new_ustar(), "short.ppm", PPM);
    });
    let long = format!("{}/a.ppm", "d".repeat(120));
    archive("gnu_long_name", &|tar| add(tar, tar::Header::new_gnu(), &long, PPM));
    archive("base_256", &|tar| {
        let mut header = tar::Header::new_gnu();
        header.set_path("a.ppm").unwrap();
        header.set_mode(0o644);
        // As GNU tar writes sizes of 8 GiB and more.
        let mut size = [0; 12];
        (size[0], size[11]) = (0x80, PPM.len() as u8);
        header.as_old_mut().size = size;
        header.set_cksum();
        tar.append(&header, PPM).unwrap();
    });
    archive("progressive", &|tar| {
        let mut jpeg = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 30);
        encoder.set_progressive(true);
        let pixels: Vec<u8> = (0..8 * 8 * 3).map(|i: u32| ((i * i) >> 3) as u8).collect();
        encoder.encode(&pixels, 8, 8, jpeg_encoder::ColorType::Rgb).unwrap();
        add(tar, tar::Header::new_gnu(), "a.jpg", &jpeg);
    });
    archives
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
fn the_shard_seeds_can_be_read() {
    let shards: Vec<_> = ["tar", "zst"].iter().flat_map(|kind| files(&seeds(kind))).collect();
    assert!(shards.len() >= 12, "{}", shards.len());
    for shard in shards {
        let options = OpenOptions { use_manifest: false, ..OpenOptions::default() };
        let set = ShardSet::open(&shard.to_string_lossy(), &options).unwrap();
        let (mut stream, mut sample) = (set.stream(0).unwrap(), OwnedSample::default());
        let (mut decoder, mut image) = (Decoder::default(), Image::default());
        while stream.next_into(&mut sample).unwrap() {
            decoder.decode_into(sample.format, &sample.image, &mut image).unwrap();
        }
    }
}
