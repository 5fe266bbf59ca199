//! What is packed can be read again, whatever keys, extensions and sizes the samples had.

use std::path::Path;

use bt_pipeline::shard::{
    Limits, Loaded, OnBadImage, OpenOptions, PackOptions, ReadScratch, Recode, ShardSet,
    ShardSource, Source, Tree, index_shards, raw_header, unpack, verify,
};
use bt_pipeline::{Error, Result};

use super::memory::{Memory, contents, files, image, open, packed};

/// Verifies a set, decoding every image, and compares its indexes with those made from the shards.
fn assert_sound(folder: &Path, samples: usize, what: &str) {
    let pattern = folder.to_string_lossy();
    let report = verify(&pattern, &OpenOptions::default(), true, 1, &mut |_| {}).unwrap();
    assert_eq!((&report.damage[..], report.samples), (&[][..], samples as u64), "{what}");
    let before = files(folder);
    index_shards(&pattern, None, &[], &Default::default(), 1, &mut |_| {}).unwrap();
    assert!(before == files(folder), "{what}: the indexes differ");
}

#[test]
fn neighbours_of_one_key_stay_samples_of_their_own() {
    let mut source = Memory::some(700);
    let long = "a".repeat(120);
    for (i, sample) in source.samples.iter_mut().enumerate() {
        // Keys in rows of one to five, some as the writer makes them, some that ustar cannot hold.
        sample.0 = match i % 97 {
            0..40 => format!("k{}", i / 5),
            40..50 => "k-2".to_owned(),
            50..53 => "k".to_owned(),
            53..70 => format!("{long}/{}", i / 4),
            n => ["k", "k", "k-2", "k-2", "k-2-2", "k"][n % 6].to_owned(),
        };
    }
    source.samples[11].2 = b"no image".to_vec();
    source.extras = vec![("json".to_owned(), b"{}".to_vec())];
    let mut expected = source.samples.clone();
    expected.remove(11);
    let expected_before = |n: usize| expected[n - 1].0.clone();
    for (zstd, samples_per_shard, bytes_per_shard) in [
        (None, None, None),
        (Some(3), None, None),
        (None, Some(7), None),
        (Some(3), Some(7), None),
        (None, None, Some(9000)),
        (Some(3), None, Some(9000)),
    ] {
        let pack_with = |threads| {
            let folder = tempfile::tempdir().unwrap();
            let options = PackOptions {
                zstd,
                samples_per_shard,
                bytes_per_shard,
                threads,
                on_bad: OnBadImage::Skip,
                ..PackOptions::default()
            };
            packed(&source, folder.path(), &options).unwrap();
            folder
        };
        let folder = pack_with(1);
        let what = format!("{zstd:?} {samples_per_shard:?} {bytes_per_shard:?}");
        assert_sound(folder.path(), expected.len(), &what);
        let set = open(folder.path());
        let found = contents(&set);
        for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!((found.1, &found.2), (expected.1, &expected.2), "{what}: sample {n}");
            assert!(found.0.starts_with(&expected.0), "{what}: {} of {}", found.0, expected.0);
            // Who has another key than the neighbour keeps it, and nobody has the neighbour's.
            let first = set.shards().iter().any(|shard| shard.first_sample == n);
            if !first {
                let (before, asked) = (&set.meta(n - 1).unwrap().key, &expected_before(n));
                assert_ne!(&found.0, before, "{what}: sample {n}");
                let free = expected.0 != *before && expected.0 != *asked;
                assert!(!free || found.0 == expected.0, "{what}: sample {n}");
            }
        }
        assert!(files(folder.path()) == files(pack_with(3).path()), "{what}");
    }
}

#[test]
fn extras_never_have_the_extension_of_the_image_or_the_label() {
    let mut source = Memory::some(60);
    let extras = ["ppm", "PPM", "jpg", "dct", "json", "jpg", "cls", "seg.jpg"];
    source.extras = extras.map(|name| (name.to_owned(), name.as_bytes().to_vec())).to_vec();
    let shrink = Some(bt_pipeline::shard::Shrink::MaxSide(1));
    for (recode, image) in [
        (Recode::KEEP, "ppm"),
        (Recode { shrink, ..Recode::KEEP }, "jpg"),
        (Recode { shrink, dct: true, ..Recode::KEEP }, "dct"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("1");
        let options = PackOptions { recode, ..PackOptions::default() };
        packed(&source, &first, &options).unwrap();
        assert_sound(&first, 60, image);
        let tree = folder.path().join("tree");
        let pattern = first.to_string_lossy();
        unpack(&pattern, &tree, Tree::Members, &OpenOptions::default(), &mut |_| {}).unwrap();
        // Nothing is lost, whatever it is called.
        let mut members: Vec<_> = files(&tree.join("d")).into_iter().collect();
        if image == "dct" {
            // Which is a JPEG there, too.
            members.extend(files(&tree.join("shard-000000/d")));
        }
        let values: Vec<_> =
            members.iter().filter(|(name, _)| name.starts_with("00007.")).collect();
        assert_eq!(values.len(), 2 + extras.len(), "{image}: {values:?}");
        for extra in extras {
            let kept = |(name, data): &(String, Vec<u8>)| {
                name.to_lowercase().ends_with(&extra.to_lowercase()) && data == extra.as_bytes()
            };
            assert!(values.iter().any(|value| kept(value)), "{image}: {extra} of {values:?}");
        }
        // What was packed is packed again, into another form.
        for (raw, dct) in [(true, false), (false, true), (false, false)] {
            let again =
                ShardSource::open(&pattern, folder.path(), &OpenOptions::default()).unwrap();
            let second = folder.path().join(format!("{raw}{dct}"));
            let recode = Recode { raw, dct, ..Recode::KEEP };
            packed(&again, &second, &PackOptions { recode, ..PackOptions::default() }).unwrap();
            assert_sound(&second, 60, &format!("{image}, {raw} {dct}"));
        }
    }
}

#[test]
fn an_image_whose_extension_no_reader_knows_is_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    let pixels = image::RgbImage::from_pixel(4, 3, image::Rgb([9, 8, 7]));
    pixels.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Bmp).unwrap();
    std::fs::write(folder.path().join("a.scan"), &bytes).unwrap();
    std::fs::write(folder.path().join("list.csv"), "a.scan,1\n").unwrap();
    let list = folder.path().join("list.csv");
    let source = bt_pipeline::shard::ListSource::open(&list, &Default::default()).unwrap();
    let out = folder.path().join("out");
    packed(&source, &out, &PackOptions::default()).unwrap();
    assert_sound(&out, 1, "a.scan");
    assert_eq!(contents(&open(&out))[0].2, bytes);
}

#[test]
fn an_image_larger_than_readers_take_is_refused_or_left_out_by_name() {
    /// The second of three images is larger than the default limits.
    struct Large;
    impl Source for Large {
        fn len(&self) -> usize {
            3
        }
        fn label(&self, _: usize) -> Result<Option<u32>> {
            Ok(None)
        }
        fn bytes(&self, _: usize) -> Result<u64> {
            Ok(1)
        }
        fn name(&self, i: usize) -> String {
            format!("scan {i}")
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
            let side = if i == 1 { 9500 } else { 10 };
            let mut image = raw_header(side, side).to_vec();
            image.resize(image.len() + (side * side * 3) as usize, 7);
            *into = Loaded { key: format!("{i}"), image, ..Loaded::default() };
            Ok(())
        }
    }
    for zstd in [None, Some(1)] {
        let folder = tempfile::tempdir().unwrap();
        let options = PackOptions { zstd, threads: 1, ..PackOptions::default() };
        let error = packed(&Large, folder.path(), &options).unwrap_err().to_string();
        assert!(error.contains("scan 1") && error.contains("--max-side"), "{error}");
        let skip = PackOptions { on_bad: OnBadImage::Skip, ..options };
        let done = packed(&Large, folder.path(), &skip).unwrap();
        assert!(done.skipped.len() == 1 && done.skipped[0].contains("scan 1"));
        assert_sound(folder.path(), 2, "large");
    }
}

#[test]
fn a_frame_or_image_over_the_limits_costs_its_samples_and_not_the_shard() {
    let mut source = Memory::some(40);
    source.samples[20].2 = image(300, 300, 1);
    let folder = tempfile::tempdir().unwrap();
    for (zstd, limits) in [
        (Some(1), Limits { member_bytes: 200_000, ..Limits::default() }),
        (Some(1), Limits { frame_bytes: 200_000, ..Limits::default() }),
    ] {
        let options = PackOptions { zstd, overwrite: true, ..PackOptions::default() };
        packed(&source, folder.path(), &options).unwrap();
        let options = OpenOptions { limits, ..OpenOptions::default() };
        let set = ShardSet::open(&folder.path().to_string_lossy(), &options).unwrap();
        let mut scratch = ReadScratch::new();
        let mut bad = Vec::new();
        for i in 0..set.len() {
            match set.read(i, &mut scratch) {
                Ok(sample) => assert_eq!(sample.image, &source.samples[i].2[..]),
                Err(Error::Sample { key, .. }) => bad.push(key),
                Err(error) => panic!("{i}: {error}"),
            }
        }
        let whole_frame = limits.frame_bytes == 200_000;
        assert!(bad.contains(&"d/00020".to_owned()) && !bad.contains(&"d/00021".to_owned()));
        assert_eq!(bad.len(), if whole_frame { 21 } else { 1 }, "{bad:?}");
    }
    // In order, too.
    let options = OpenOptions {
        limits: Limits { member_bytes: 200_000, ..Limits::default() },
        ..OpenOptions::default()
    };
    let set = ShardSet::open(&folder.path().to_string_lossy(), &options).unwrap();
    let mut stream = set.stream(0).unwrap();
    let mut sample = bt_pipeline::shard::OwnedSample::default();
    let good = (0..40).filter(|_| stream.next_into(&mut sample).is_ok_and(|more| more));
    assert_eq!(good.count(), 39);
}
