//! The loader from shards to batches: determinism, ranks, resume, bad samples,
//! shutdown.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bt_pipeline::augment::{Augmenter, Crop, DType, Layout, Size, ViewConfig, ViewOut, ViewParams};
use bt_pipeline::decode::Decoder;
use bt_pipeline::measure::measure;
use bt_pipeline::rng::Rng;
use bt_pipeline::shard::ReadScratch;
use bt_pipeline::synth::{self, Spec};
use bt_pipeline::{
    Batch, Error, Image, Loader, LoaderConfig, OnBad, Position, Result, ShardSet, Shuffle,
};
use common::{Coding, append, config, open, write_shards};

const COUNTS: [u64; 4] = [13, 20, 1, 15];

/// What a batch is, without its buffer.
#[derive(Debug, PartialEq)]
struct Seen {
    place: (u64, u64),
    labels: Vec<u32>,
    samples: Vec<u64>,
    bytes: Vec<u8>,
}

fn seen(batch: &Batch) -> Seen {
    Seen {
        place: (batch.epoch, batch.index),
        labels: batch.labels.clone(),
        samples: batch.samples.clone(),
        bytes: batch.as_bytes().to_vec(),
    }
}

fn run(set: &Arc<ShardSet>, config: LoaderConfig, from: Position, epochs: u64) -> Vec<Seen> {
    let loader = Loader::new(Arc::clone(set), config).unwrap();
    loader.start(from, epochs).unwrap().map(|batch| seen(&batch.unwrap())).collect()
}

fn shuffles() -> [Shuffle; 3] {
    [Shuffle::None, Shuffle::Global, Shuffle::Window { shards: 2, samples: 9 }]
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[3, 40]));
    for shuffle in shuffles() {
        let with = |threads| {
            let config = LoaderConfig { threads, shuffle, ..config(8) };
            run(&set, config, Position::default(), 2)
        };
        let one = with(1);
        assert_eq!(one.len(), 2 * (49 / 8));
        assert_eq!(one, with(2));
        assert_eq!(one, with(5));
        assert_eq!(one, with(16));
    }
}

/// Twenty images of 40 x 40; every second one is a JPEG, which is decoded as far as its views need.
fn of_both_formats(folder: &Path) -> Arc<ShardSet> {
    let mut tar = tar::Builder::new(Vec::new());
    let spec = Spec { images: 20, side: 40, ..Spec::default() };
    for sample in 0..20 {
        let drawn = synth::draw(&spec, sample).0;
        if sample % 2 == 0 {
            append(&mut tar, &format!("{sample}.png"), &synth::encode_png(&drawn).unwrap());
            continue;
        }
        let picture = image::RgbImage::from_raw(40, 40, drawn.pixels_hwc).unwrap();
        let mut bytes = Vec::new();
        picture.write_with_encoder(image::codecs::jpeg::JpegEncoder::new(&mut bytes)).unwrap();
        append(&mut tar, &format!("{sample}.jpg"), &bytes);
    }
    std::fs::write(folder.join("a.tar"), tar.into_inner().unwrap()).unwrap();
    open(folder)
}

#[test]
fn batches_larger_than_any_memory_are_an_error_when_they_are_begun() {
    let folder = tempfile::tempdir().unwrap();
    let set = of_both_formats(folder.path());
    // 2^47 images of two views of 32 x 32: some 2^62 bytes.
    let config = LoaderConfig {
        budget_bytes: u64::MAX,
        drop_last: false,
        shuffle: Shuffle::None,
        ..config(1 << 47)
    };
    let loader = Loader::new(set, config).unwrap();
    let error = loader.start(Position::default(), 1).unwrap_err();
    let Error::System { what, source } = error else { panic!("{error}") };
    assert!(what.starts_with("memory for a batch of "), "{what}");
    assert_eq!(source.kind(), std::io::ErrorKind::OutOfMemory);
}

/// Keyed here once more, by the public parts: a loader that keyed its draws otherwise would still
/// agree with itself.
#[test]
fn a_view_is_what_seed_epoch_sample_and_view_give() {
    let folder = tempfile::tempdir().unwrap();
    let set = of_both_formats(folder.path());
    let mut decoder = Decoder::new(config(5).decode);
    let (mut augmenter, mut scratch) = (Augmenter::new(), ReadScratch::new());
    let (mut image, mut want) = (Image::default(), vec![0; 32 * 32 * 3]);
    for seed in [5, 6] {
        let config = LoaderConfig { seed, dtype: DType::U8, ..config(5) };
        for batch in run(&set, config.clone(), Position::default(), 2) {
            let (epoch, views) = (batch.place.0, batch.bytes.chunks(5 * want.len()));
            for (number, (view, pixels)) in config.views.iter().zip(views).enumerate() {
                for (&sample, got) in batch.samples.iter().zip(pixels.chunks(want.len())) {
                    let read = set.read(sample as usize, &mut scratch).unwrap();
                    decoder.decode_into(read.format, read.image, &mut image).unwrap();
                    let mut rng = Rng::keyed(seed, epoch, sample, number as u64);
                    let params = view.draw(&mut rng, image.width, image.height);
                    let out = ViewOut::U8(&mut want);
                    augmenter.apply_into(&image, view, &params, Layout::Nhwc, out).unwrap();
                    assert!(got == want, "view {number} of {sample} in epoch {epoch}, seed {seed}");
                }
            }
        }
    }
}

#[test]
fn ranks_shares_taken_together_are_the_batches_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    for shuffle in shuffles() {
        let whole = run(&set, LoaderConfig { shuffle, ..config(12) }, Position::default(), 1);
        for world in [2usize, 3] {
            let shares: Vec<Vec<Seen>> = (0..world)
                .map(|rank| {
                    let config = LoaderConfig { shuffle, rank, world, ..config(12) };
                    run(&set, config, Position::default(), 1)
                })
                .collect();
            let view_bytes = whole[0].bytes.len() / 24;
            for (step, batch) in whole.iter().enumerate() {
                for slot in 0..12 {
                    let (share, nth) = (&shares[slot % world][step], slot / world);
                    assert_eq!(share.samples[nth], batch.samples[slot]);
                    assert_eq!(share.labels[nth], batch.labels[slot]);
                    for view in 0..2 {
                        let mine = &share.bytes[(view * 12 / world + nth) * view_bytes..];
                        let theirs = &batch.bytes[(view * 12 + slot) * view_bytes..];
                        assert_eq!(mine[..view_bytes], theirs[..view_bytes]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_stream_started_in_the_middle_goes_on_with_the_very_next_batch() {
    let folder = tempfile::tempdir().unwrap();
    for coding in [Coding::Tar, Coding::Stream] {
        let folder = folder.path().join(if coding == Coding::Tar { "tar" } else { "zst" });
        std::fs::create_dir(&folder).unwrap();
        let set = open(&write_shards(&folder, &COUNTS, coding, &[]));
        for shuffle in shuffles() {
            if coding == Coding::Stream && shuffle == Shuffle::Global {
                continue;
            }
            let config = || LoaderConfig { shuffle, ..config(10) };
            let whole = run(&set, config(), Position::default(), 2);
            let rest = run(&set, config(), Position { epoch: 0, batch: 3 }, 2);
            assert_eq!(whole[3..], rest);
            let rest = run(&set, config(), Position { epoch: 1, batch: 2 }, 2);
            assert_eq!(whole[6..], rest);
        }
    }
}

#[test]
fn shards_that_can_only_be_streamed_give_the_same_batches() {
    let folder = tempfile::tempdir().unwrap();
    let (tars, frames) = (folder.path().join("tar"), folder.path().join("zst"));
    for path in [&tars, &frames] {
        std::fs::create_dir(path).unwrap();
    }
    let seekable = open(&write_shards(&tars, &COUNTS, Coding::Tar, &[7, 30]));
    let streamed = open(&write_shards(&frames, &COUNTS, Coding::Stream, &[7, 30]));
    assert!(seekable.seekable() && !streamed.seekable());
    for shuffle in [Shuffle::None, Shuffle::Window { shards: 2, samples: 9 }] {
        let config = || LoaderConfig { shuffle, ..config(10) };
        let from = Position::default();
        assert_eq!(run(&seekable, config(), from, 2), run(&streamed, config(), from, 2));
    }
    let message = Loader::new(streamed, config(10)).err().unwrap().to_string();
    assert!(message.contains("window"), "{message}");
}

#[test]
fn a_window_of_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    for (shards, samples) in [(0, 9), (2, 0)] {
        let config = LoaderConfig { shuffle: Shuffle::Window { shards, samples }, ..config(10) };
        let message = Loader::new(Arc::clone(&set), config).err().unwrap().to_string();
        assert!(message.contains("window") && message.contains("at least 1"), "{message}");
    }
}

#[test]
fn a_bad_sample_is_replaced_and_enters_the_ledger_once() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[3, 40]));
    let loader = Loader::new(Arc::clone(&set), LoaderConfig { drop_last: false, ..config(7) });
    let mut stream = loader.unwrap().start(Position::default(), 3).unwrap();
    let mut met = 0;
    for batch in stream.by_ref() {
        let batch = batch.unwrap();
        met += batch.size();
        assert!(!batch.samples.contains(&3) && !batch.samples.contains(&40));
    }
    assert_eq!(met, 3 * 49);
    let mut bad: Vec<String> = stream.stats().take_bad().into_iter().map(|b| b.key).collect();
    bad.sort();
    assert_eq!(bad, ["000003", "000040"]);
    assert!(stream.stats().snapshot().bad >= 6);
}

#[test]
fn on_request_a_bad_sample_ends_the_stream_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[23]));
    let config = LoaderConfig { on_bad: OnBad::Stop, shuffle: Shuffle::None, ..config(10) };
    let batches: Vec<Result<Batch>> =
        Loader::new(set, config).unwrap().start(Position::default(), 1).unwrap().collect();
    // The two batches before it are delivered, nothing after it.
    assert_eq!(batches.len(), 3);
    assert!(batches[..2].iter().all(|batch| batch.is_ok()));
    match &batches[2] {
        Err(Error::Sample { path, key, .. }) => {
            assert_eq!(key, "000023");
            assert!(path.ends_with("part-000001.tar"));
        }
        other => panic!("expected the sample's error, got {:?}", other.as_ref().err()),
    }
}

#[test]
fn evaluation_sees_every_sample_once_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    let config = LoaderConfig::evaluation(ViewConfig::eval(20, 16), 10);
    let batches = run(&set, config, Position::default(), 1);
    let samples: Vec<u64> = batches.iter().flat_map(|batch| batch.samples.clone()).collect();
    assert_eq!(samples, (0..49).collect::<Vec<_>>());
    assert_eq!(batches.last().unwrap().samples.len(), 9);
    assert_eq!(batches[0].labels[..5], [0, 1, 2, 3, 4]);
}

#[test]
fn every_layout_and_type_holds_the_same_views() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    let load = |layout, dtype| {
        let config = LoaderConfig { layout, dtype, ..config(6) };
        let loader = Loader::new(Arc::clone(&set), config).unwrap();
        loader.start(Position::default(), 1).unwrap().next().unwrap().unwrap()
    };
    let (nhwc, nchw) = (load(Layout::Nhwc, DType::F32), load(Layout::Nchw, DType::F32));
    let half = load(Layout::Nhwc, DType::Bf16);
    let pixels = 32 * 32;
    for image in 0..12 {
        for pixel in 0..pixels {
            for channel in 0..3 {
                let at = image * pixels * 3 + pixel * 3 + channel;
                let value = nhwc.as_f32()[at];
                assert_eq!(value, nchw.as_f32()[(image * 3 + channel) * pixels + pixel]);
                assert_eq!(half::bf16::from_f32(value), half.as_bf16()[at]);
            }
        }
    }
    assert_eq!(load(Layout::Nhwc, DType::U8).as_bytes().len(), 12 * pixels * 3);
}

#[test]
fn what_the_loader_leaves_out_the_consumer_can_finish() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[20]));
    let load = |config| {
        let loader = Loader::new(Arc::clone(&set), config).unwrap();
        loader.start(Position::default(), 1).unwrap().map(Result::unwrap)
    };
    let of = |threads| LoaderConfig { threads, dtype: DType::U8, drop_last: false, ..config(6) };
    let views = of(1).views;
    let mut augmenter = Augmenter::new();
    let mut changed = 0;
    for threads in [1, 3] {
        for (whole, left) in load(of(threads)).zip(load(of(threads).unfinished())) {
            assert!(whole.unfinished.is_empty());
            assert_eq!(left.unfinished.len(), 2 * left.size());
            let each = 32 * 32 * 3;
            let pixels = left.as_bytes().chunks(each).zip(whole.as_bytes().chunks(each));
            for (nth, ((from, want), params)) in pixels.zip(&left.unfinished).enumerate() {
                let image = Image { width: 32, height: 32, pixels_hwc: from.to_vec() };
                let crop = Crop::whole(32, 32);
                let params = ViewParams { crop, window: None, flip: false, ..*params };
                let mut got = vec![0; each];
                let view = &views[nth / left.size()];
                let out = ViewOut::U8(&mut got);
                augmenter.apply_into(&image, view, &params, Layout::Nhwc, out).unwrap();
                assert_eq!(got, want, "view {nth}: {params:?}");
                changed += usize::from(from != want);
            }
        }
    }
    assert!(changed > 100, "{changed} views were left unfinished");
}

#[test]
fn dropping_a_stream_early_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    let loader = Loader::new(Arc::clone(&set), config(4)).unwrap();
    for taken in 0..6 {
        let mut stream = loader.start(Position::default(), 1_000_000).unwrap();
        let kept: Vec<Batch> = stream.by_ref().take(taken.min(3)).map(Result::unwrap).collect();
        drop(stream);
        // What was taken stays readable.
        assert!(kept.iter().all(|batch| batch.as_f32().len() == 2 * 4 * 32 * 32 * 3));
    }
    drop(loader);
    assert_eq!(Arc::strong_count(&set), 1, "a thread still holds the set");
}

#[test]
fn a_stream_on_its_way_to_a_position_ends_when_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for sample in 0..100_000 {
        let image = b"P6 1 1 255\n\x10\x20\x30";
        let mut header = tar::Header::new_ustar();
        header.set_size(image.len() as u64);
        tar.append_data(&mut header, format!("{sample}.ppm"), &image[..]).unwrap();
    }
    let shard = zstd::encode_all(&*tar.into_inner().unwrap(), 1).unwrap();
    std::fs::write(folder.path().join("a.tar.zst"), shard).unwrap();
    let config = LoaderConfig { shuffle: Shuffle::None, ..config(32) };
    let loader = Loader::new(open(folder.path()), config).unwrap();
    let from = Position { epoch: 0, batch: loader.batches_per_epoch() - 1 };
    let start = std::time::Instant::now();
    let mut stream = loader.start(from, 1).unwrap();
    assert_eq!(stream.next().unwrap().unwrap().samples[31], 99_999);
    let whole = start.elapsed();
    // The best of several: one that goes on to its position takes nearly the whole time each time.
    let times = (0..5).map(|_| {
        let stream = loader.start(from, 1).unwrap();
        std::thread::sleep(whole / 20);
        let start = std::time::Instant::now();
        drop(stream);
        start.elapsed()
    });
    let best = times.min().unwrap();
    assert!(best < whole / 2, "{best:?} of {whole:?}");
}

#[test]
fn what_cannot_be_met_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    let view = |change: fn(&mut ViewConfig)| {
        let mut config = config(4);
        change(config.views.last_mut().unwrap());
        config
    };
    let cases: [(LoaderConfig, &str); 18] = [
        (config(50), "larger than the data set"),
        (config(0), "batch of 0"),
        (LoaderConfig { rank: 2, world: 2, ..config(4) }, "rank 2 of 2"),
        (LoaderConfig { world: 0, ..config(4) }, "rank 0 of 0"),
        (LoaderConfig { world: 3, ..config(4) }, "3 ranks"),
        (LoaderConfig { world: 2, drop_last: false, ..config(4) }, "several ranks"),
        (LoaderConfig { budget_bytes: 1000, ..config(4) }, "byte budget"),
        (LoaderConfig { views: vec![], ..config(4) }, "at least one view"),
        (LoaderConfig { layout: Layout::Nchw, ..config(4).unfinished() }, "8-bit NHWC"),
        (LoaderConfig { threads: usize::MAX / 4 + 1, ..config(4) }, "threads"),
        (LoaderConfig { max_bad: f64::NAN, ..config(4) }, "max_bad"),
        (LoaderConfig { budget_bytes: u64::MAX, drop_last: false, ..config(1 << 53) }, "budget"),
        (view(|view| view.random_resized_crop = None), "a view is made by"),
        (
            view(|view| view.random_resized_crop.as_mut().unwrap().size = Size::Square(31)),
            "one size: 32 x 32 and 31 x 31",
        ),
        (
            LoaderConfig { views: vec![ViewConfig::eval(0, 0)], ..config(4) },
            "resize.size must be 1 to",
        ),
        (
            view(|view| view.random_resized_crop.as_mut().unwrap().ratio = [2.0, 0.5]),
            "random_resized_crop.ratio",
        ),
        (view(|view| view.gaussian_blur.sigma = [f64::NAN; 2]), "gaussian_blur.sigma"),
        (view(|view| view.random_grayscale.p = 2.0), "random_grayscale.p"),
    ];
    for (config, expected) in cases {
        let message = Loader::new(Arc::clone(&set), config).err().unwrap().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_position_is_one_of_the_epoch_or_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    let whole = run(&set, config(10), Position::default(), 2);
    let end = Position { epoch: 0, batch: 4 };
    assert_eq!(run(&set, config(10), end, 2), whole[4..]);
    let loader = Loader::new(set, config(10)).unwrap();
    let Err(Error::Usage(text)) = loader.start(Position { epoch: 0, batch: 5 }, 2) else {
        panic!("there are four batches");
    };
    assert!(text.contains("no batch 5") && text.contains("has 4"), "{text}");
}

#[test]
fn a_run_visits_each_sample_once_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    let seen = run(&set, config(7), Position::default(), 2);
    for epoch in 0..2 {
        let batches = seen.iter().filter(|batch| batch.place.0 == epoch);
        let samples: Vec<u64> = batches.flat_map(|batch| batch.samples.clone()).collect();
        assert_eq!(samples.len(), 49);
        assert_eq!(samples.iter().collect::<BTreeSet<_>>().len(), 49);
    }
}

#[test]
fn a_measurement_counts_no_batch_that_waited_when_it_began() {
    let folder = tempfile::tempdir().unwrap();
    let set = open(&write_shards(folder.path(), &COUNTS, Coding::Tar, &[]));
    for _ in 0..20 {
        let found = measure(&set, config(8), 16).unwrap();
        assert!(found.images >= 16 && found.images_per_s > 0.0, "{found:?}");
    }
    // More than the set has.
    assert!(measure(&set, config(8), 200).unwrap().images >= 200);
}
