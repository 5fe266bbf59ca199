//! Shards that break while they are read, and sets with too much damage.

mod common;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use bt_pipeline::shard::{self, Limits, PackOptions, ReadScratch, open_source, pack};
use bt_pipeline::{Error, Loader, LoaderConfig, OnBad, Position, ShardSet, Shuffle};
use common::{Coding, config, open, write_shards};

/// The samples of each batch of one epoch, or the error that ended it.
fn epoch(set: &Arc<ShardSet>, config: LoaderConfig) -> Result<Vec<Vec<u64>>, Error> {
    let loader = Loader::new(Arc::clone(set), config)?;
    let stream = loader.start(Position::default(), 1)?;
    stream.map(|batch| batch.map(|batch| batch.samples.clone())).collect()
}

fn cut(folder: &Path, shard: &str, bytes: u64) {
    let file = OpenOptions::new().write(true).open(folder.join(shard)).unwrap();
    file.set_len(bytes).unwrap();
}

#[test]
fn a_shard_that_shrinks_under_its_map_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &[12, 12], Coding::Tar, &[]));
    let mut scratch = ReadScratch::new();
    set.read(23, &mut scratch).unwrap();
    cut(folder.path(), "part-000001.tar", 4096);
    // The pages are read, as zeros, and the process lives.
    let sum: u64 = match set.read(23, &mut scratch) {
        Ok(sample) => sample.image.iter().map(|&byte| u64::from(byte)).sum(),
        Err(_) => 0,
    };
    assert_eq!(sum, 0);
    let Err(Error::Shard { path, offset, cause }) = set.check(1) else { panic!("nothing noticed") };
    assert!(path.ends_with("part-000001.tar") && offset == 4096, "{path:?} {offset}");
    assert!(cause.contains("became shorter"), "{cause}");
    assert!(set.check(0).is_ok());
}

#[test]
fn a_loader_whose_shard_shrinks_stops_or_goes_on_without_it() {
    for on_bad_shard in [OnBad::Stop, OnBad::Skip] {
        let folder = tempfile::tempdir().unwrap();
        let set = open(&write_shards(folder.path(), &[40, 8], Coding::Tar, &[]));
        // Everything is mapped before the cut.
        assert_eq!(epoch(&set, config(8)).unwrap().len(), 6);
        cut(folder.path(), "part-000001.tar", 0);
        let config = LoaderConfig { on_bad_shard, max_bad: 0.9, ..config(8) };
        match (on_bad_shard, epoch(&set, config)) {
            (OnBad::Stop, Err(Error::Shard { path, .. })) => {
                assert!(path.ends_with("part-000001.tar"));
            }
            (OnBad::Skip, Ok(batches)) => {
                assert_eq!(batches.len(), 6);
                assert!(batches.iter().flatten().all(|&sample| sample < 40));
            }
            (_, outcome) => panic!("{on_bad_shard:?}: {outcome:?}"),
        }
    }
}

#[test]
fn a_shard_that_loses_a_part_of_a_page_gives_no_zeros_as_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for sample in 0..2 {
        let image = [&b"P6 8 8 255\n"[..], &[200; 192]].concat();
        common::append(&mut tar, &format!("{sample}.ppm"), &image);
    }
    std::fs::write(folder.path().join("a.tar"), tar.into_inner().unwrap()).unwrap();
    let set = open(folder.path());
    assert_eq!(epoch(&set, config(2)).unwrap(), [[0, 1]]);
    // All is in one page, of which what is gone reads as zeros and without a fault.
    cut(folder.path(), "a.tar", 600);
    let Err(Error::Shard { offset, cause, .. }) = epoch(&set, config(2)) else {
        panic!("nothing noticed")
    };
    assert!(offset == 600 && cause.contains("became shorter"), "{offset}: {cause}");
}

#[test]
fn a_shard_or_an_index_that_loses_a_part_of_a_page_gives_no_zeros_as_labels() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    common::append(&mut tar, "0.ppm", b"P6 1 1 255\n\x10\x20\x30");
    common::append(&mut tar, "0.cls", b"1");
    std::fs::write(folder.path().join("a.tar"), tar.into_inner().unwrap()).unwrap();
    let pattern = folder.path().to_str().unwrap();
    shard::index_shards(pattern, None, &[], &Limits::default(), 1, &mut |_| {}).unwrap();
    let set = open(folder.path());
    assert_eq!(set.label(0).unwrap(), Some(1));
    let mut stream = set.stream(0).unwrap();
    let shorter = |result: Result<(), Error>, name: &str, at: u64| match result {
        Err(Error::Shard { path, offset, cause }) => {
            assert!(path.ends_with(name) && offset == at, "{path:?} {offset}");
            assert!(cause.contains("became shorter"), "{cause}");
        }
        other => panic!("{name}: {other:?}"),
    };
    // Behind the header and the table, before the entry.
    cut(folder.path(), "a.tar.idx", 128);
    shorter(set.label(0).map(drop), "a.tar.idx", 128);
    // Behind the image, so that the archive seems to end there.
    cut(folder.path(), "a.tar", 1024);
    shorter(stream.next_into(&mut Default::default()).map(drop), "a.tar", 1024);
}

#[test]
fn a_shard_without_an_index_that_was_replaced_has_no_new_pictures_with_old_labels() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &[6, 6], Coding::Tar, &[]));
    let path = folder.path().join("part-000001.tar");
    let mut other = std::fs::read(&path).unwrap();
    other[600] ^= 1;
    let aside = folder.path().join("aside");
    std::fs::write(&aside, &other).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    let mut scratch = ReadScratch::new();
    set.read(5, &mut scratch).unwrap();
    let Err(Error::Shard { path, cause, .. }) = set.read(6, &mut scratch) else {
        panic!("nothing noticed")
    };
    assert!(path.ends_with("part-000001.tar") && cause.contains("other content"), "{cause}");
    assert!(set.stream(1).is_err());
    // It is itself a shard as good as any.
    open(folder.path()).read(6, &mut scratch).unwrap();
}

#[test]
fn a_streamed_shard_that_is_torn_stops_or_counts_as_bad_samples() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_shards(folder.path(), &[40, 20], Coding::Stream, &[]);
    let whole = open(&path);
    // Mapped before it is torn: one that is another file when it is mapped is refused as a whole.
    whole.stream(1).unwrap();
    let torn = folder.path().join("part-000001.tar.zst");
    let bytes = std::fs::read(&torn).unwrap();
    // Replaced by a file of the same length whose second half is nonsense.
    let mut damaged = bytes[..bytes.len() / 2].to_vec();
    damaged.resize(bytes.len(), 0xA5);
    std::fs::write(&torn, damaged).unwrap();
    let with = |on_bad_shard| {
        let shuffle = Shuffle::Window { shards: 2, samples: 16 };
        LoaderConfig { shuffle, on_bad_shard, max_bad: 0.9, ..config(10) }
    };
    assert!(matches!(
        epoch(&whole, with(OnBad::Stop)),
        Err(Error::Shard { .. } | Error::Io { .. })
    ));
    let first = epoch(&whole, with(OnBad::Skip)).unwrap();
    assert_eq!(first.len(), 6);
    assert_eq!(first, epoch(&whole, LoaderConfig { threads: 5, ..with(OnBad::Skip) }).unwrap());
}

#[test]
fn a_shard_that_is_torn_or_gone_when_the_set_is_opened_counts_as_bad_samples_where_that_is_wanted()
{
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("raw")).unwrap();
    let raw = write_shards(&folder.path().join("raw"), &[40, 20, 20], Coding::Tar, &[]);
    let packed = folder.path().join("packed");
    let source = open_source(&raw.to_string_lossy(), folder.path(), &Limits::default()).unwrap();
    for (name, zstd) in [("tar", None), ("zst", Some(1))] {
        let packing = PackOptions { samples_per_shard: Some(20), zstd, ..PackOptions::default() };
        pack(&*source, &packed.join(name), "t", &packing, &mut |_| {}).unwrap();
    }
    for (name, first, second) in [
        ("tar", "shard-000001.tar", "shard-000002.tar"),
        ("zst", "shard-000001.tar.zst", "shard-000002.tar.zst"),
    ] {
        let folder = packed.join(name);
        cut(&folder, first, 3000);
        let options = shard::OpenOptions { keep_bad_shards: true, ..Default::default() };
        let opened = |options: &shard::OpenOptions| {
            ShardSet::open(&folder.to_string_lossy(), options).map(Arc::new)
        };
        assert!(matches!(opened(&Default::default()), Err(Error::Shard { .. })));
        // Without the manifest the index tells.
        let manifest = folder.join("shard.manifest.json");
        let kept = std::fs::read(&manifest).unwrap();
        std::fs::remove_file(&manifest).unwrap();
        let set = opened(&options).unwrap();
        assert!(set.len() == 80 && set.seekable(), "{name}");
        let skipping = LoaderConfig { on_bad_shard: OnBad::Skip, max_bad: 0.95, ..config(10) };
        let seen = epoch(&set, skipping).unwrap();
        assert!(seen.iter().flatten().all(|sample| !(20..40).contains(sample)), "{name}");
        std::fs::write(&manifest, kept).unwrap();
        for gone in [false, true] {
            if gone {
                std::fs::remove_file(folder.join(second)).unwrap();
                assert!(matches!(
                    opened(&Default::default()),
                    Err(Error::Shard { .. } | Error::Io { .. })
                ));
            }
            let set = opened(&options).unwrap();
            assert_eq!(set.len(), 80);
            let bad = if gone { 20..60 } else { 20..40 };
            for shuffle in [Shuffle::Global, Shuffle::None] {
                let with = |on_bad_shard| LoaderConfig {
                    on_bad_shard,
                    max_bad: 0.95,
                    shuffle,
                    ..config(10)
                };
                assert!(epoch(&set, with(OnBad::Stop)).is_err());
                let seen = epoch(&set, with(OnBad::Skip)).unwrap();
                assert!(seen.iter().flatten().all(|sample| !bad.contains(sample)), "{name} {gone}");
            }
        }
    }
}

#[test]
fn too_large_a_share_of_bad_samples_ends_the_stream_with_the_commonest_causes() {
    let folder = tempfile::tempdir().unwrap();
    let bad: Vec<u64> = (0..200).step_by(4).collect();
    let set = open(&write_shards(folder.path(), &[200], Coding::Tar, &bad));
    let allowed = LoaderConfig { max_bad: 0.5, ..config(20) };
    assert_eq!(epoch(&set, allowed).unwrap().len(), 10);
    let error = epoch(&set, LoaderConfig { max_bad: 0.1, ..config(20) }).unwrap_err().to_string();
    assert!(error.contains("could not be used") && error.contains(" x "), "{error}");
}

#[test]
fn too_many_bad_samples_end_the_stream_at_the_same_batch_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    // 11 of the first 107 are bad, and no more.
    let bad: Vec<u64> = (0..10).map(|n| n * 9 + 9).chain([106]).collect();
    let set = open(&write_shards(folder.path(), &[400], Coding::Tar, &bad));
    // After 100 images 10 of 110 are bad; in the sixth batch it is 11 of 131.
    for (max_bad, batches) in [(0.1, 20), (0.09, 4)] {
        for threads in [1, 2, 3, 8] {
            let config = LoaderConfig { threads, shuffle: Shuffle::None, max_bad, ..config(20) };
            let stream = Loader::new(Arc::clone(&set), config).unwrap();
            let stream = stream.start(Position::default(), 1).unwrap();
            assert_eq!(stream.take_while(Result::is_ok).count(), batches, "{threads}");
        }
    }
}

#[test]
fn each_sample_that_was_tried_in_vain_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let bad: Vec<u64> = (0..8).collect();
    let set = open(&write_shards(folder.path(), &[8], Coding::Tar, &bad));
    let config = LoaderConfig { threads: 1, max_bad: 1.0, ..config(4) };
    let mut stream = Loader::new(set, config).unwrap().start(Position::default(), 1).unwrap();
    let Some(Err(Error::TooManyBad(cause))) = stream.next() else { panic!("no error came") };
    assert!(cause.contains("64 samples drawn in place of a bad one"), "{cause}");
    // Its own and each of those in its place.
    assert_eq!(stream.stats().snapshot().bad, 65);
}

#[test]
fn a_dropped_stream_waits_for_no_replacement() {
    let folder = tempfile::tempdir().unwrap();
    // It can only be read from its front, and most of it is bad.
    let mut tar = tar::Builder::new(Vec::new());
    let nonsense: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for n in 0..150 {
        let image = if n % 50 == 0 { &b"P6 1 1 255\n\x10\x20\x30"[..] } else { &nonsense };
        common::append(&mut tar, &format!("{n:06}.png"), image);
    }
    let frame = zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap();
    std::fs::write(folder.path().join("a.tar.zst"), frame).unwrap();
    let set = open(folder.path());
    let shuffle = Shuffle::Window { shards: 1, samples: 8 };
    let config = LoaderConfig { threads: 1, max_bad: 1.0, shuffle, ..config(8) };
    let stream = Loader::new(set, config).unwrap().start(Position::default(), 1).unwrap();
    let bad = || stream.stats().snapshot().bad;
    let begun = std::time::Instant::now();
    while bad() == 0 {
        assert!(begun.elapsed().as_secs() < 60, "no sample was found to be bad");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (stats, before) = (Arc::clone(stream.stats()), bad());
    drop(stream);
    // The one in progress, and no other of dozens.
    assert!(stats.snapshot().bad <= before + 2);
}

#[test]
fn one_percent_of_damage_gives_the_same_batches_for_any_threads_and_an_exact_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let bad = [7, 150, 299, 301];
    let set = open(&write_shards(folder.path(), &[300, 100], Coding::Tar, &bad));
    let ledger = |threads: usize, from: u64| {
        let loader = Loader::new(Arc::clone(&set), LoaderConfig { threads, ..config(20) }).unwrap();
        let mut stream = loader.start(Position { epoch: 0, batch: from }, 2).unwrap();
        let batches: Vec<Vec<u8>> =
            stream.by_ref().map(|batch| batch.unwrap().as_bytes().to_vec()).collect();
        let keys: Vec<String> =
            stream.stats().take_bad().into_iter().map(|sample| sample.key).collect();
        let unique: BTreeSet<String> = keys.iter().cloned().collect();
        assert_eq!(keys.len(), unique.len(), "a sample is listed twice");
        (batches, unique)
    };
    let (batches, keys) = ledger(1, 0);
    let expected = bad.map(|sample| format!("{sample:06}"));
    assert!(keys.iter().eq(&expected), "{keys:?}");
    for threads in [2, 5] {
        assert!(ledger(threads, 0) == (batches.clone(), keys.clone()), "{threads} threads");
    }
    // A resume in the first epoch sees all of the second one.
    let (rest, keys) = ledger(3, 9);
    assert!(rest == batches[9..] && keys.iter().eq(&expected));
}
