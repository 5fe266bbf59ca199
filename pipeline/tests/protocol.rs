//! The loader's protocol of queues, order and shutdown under a scheduler that
//! tries many interleavings of its threads:
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --release -p bt-pipeline --test protocol --target-dir
//! target/shuttle`
//!
//! A deadlock, a lost batch or a batch out of order fails it. `BT_SCHEDULES` sets
//! how many schedules each scenario gets (default 2,000).
#![cfg(shuttle)]

mod common;

use std::sync::Arc;

use bt_pipeline::augment::Preset;
use bt_pipeline::{Error, Loader, LoaderConfig, OnBad, Position, ShardSet, Shuffle};
use common::{Coding, write_shards};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

fn explore(bad: &[u64], threads: usize, on_bad: OnBad, scenario: fn(&Loader)) {
    explore_with(Coding::Tar, bad, LoaderConfig { threads, on_bad, ..training() }, scenario);
}

fn training() -> LoaderConfig {
    LoaderConfig::training(Preset::BarlowCifar.views(), 2, 1)
}

fn explore_with(coding: Coding, bad: &[u64], config: LoaderConfig, scenario: fn(&Loader)) {
    let folder = tempfile::tempdir().unwrap();
    let path = write_shards(folder.path(), &[5, 4], coding, bad);
    let set = Arc::new(ShardSet::open(path.to_str().unwrap(), &Default::default()).unwrap());
    let run = move || scenario(&Loader::new(Arc::clone(&set), config.clone()).unwrap());
    let schedules = std::env::var("BT_SCHEDULES").map_or(2000, |text| text.parse().unwrap());
    let config = || {
        let mut config = Config::new();
        // Decoding happens on the model's stacks.
        config.stack_size = 1 << 20;
        config
    };
    Runner::new(RandomScheduler::new(schedules), config()).run(run.clone());
    Runner::new(PctScheduler::new(3, schedules), config()).run(run);
}

#[test]
fn every_batch_comes_in_its_turn() {
    explore(&[], 2, OnBad::Skip, |loader| {
        let places: Vec<(u64, u64)> = loader
            .start(Position { epoch: 0, batch: 2 }, 2)
            .unwrap()
            .map(|batch| batch.map(|batch| (batch.epoch, batch.index)).unwrap())
            .collect();
        assert_eq!(places, [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]);
    });
}

#[test]
fn a_consumer_that_keeps_batches_and_leaves_blocks_nobody() {
    explore(&[], 2, OnBad::Skip, |loader| {
        for batches in [0, 1, 3] {
            let mut stream = loader.start(Position::default(), 3).unwrap();
            let held: Vec<_> = stream.by_ref().take(batches).map(Result::unwrap).collect();
            drop(stream);
            drop(held);
        }
    });
}

#[test]
fn an_error_comes_in_the_place_of_its_batch_and_ends_the_stream() {
    explore(&[0, 6], 2, OnBad::Stop, |loader| {
        let mut good = 0;
        let mut errors = 0;
        for batch in loader.start(Position::default(), 2).unwrap() {
            match batch {
                Ok(batch) => {
                    assert_eq!((batch.epoch, batch.index, errors), (0, good, 0));
                    good += 1;
                }
                Err(Error::Sample { .. }) => errors += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(errors == 1 && good < 4);
    });
}

#[test]
fn one_worker_that_fails_ends_the_feeder_too() {
    explore(&[0, 1, 2, 3, 4, 5, 6, 7, 8], 1, OnBad::Stop, |loader| {
        let mut stream = loader.start(Position::default(), 5).unwrap();
        assert!(matches!(stream.next(), Some(Err(Error::Sample { .. }))));
        assert!(stream.next().is_none());
    });
}

#[test]
fn a_feeder_that_waits_for_samples_to_be_used_goes_on_and_ends() {
    // Four batches, and less than two samples of a stream.
    let budget_bytes = 4 * 2 * 2 * 32 * 32 * 3 * 4 + 1800;
    let config = LoaderConfig { shuffle: Shuffle::None, budget_bytes, ..training() };
    // With one worker tasks are left where it leaves.
    for threads in [1, 2] {
        explore_with(Coding::Stream, &[3], LoaderConfig { threads, ..config.clone() }, |loader| {
            assert_eq!(loader.buffers(), 4);
            let whole = loader.start(Position::default(), 2).unwrap();
            assert_eq!(whole.map(Result::unwrap).count(), 8);
            for batches in [0, 1, 3] {
                let mut stream = loader.start(Position::default(), 3).unwrap();
                drop(stream.by_ref().take(batches).map(Result::unwrap).last());
                drop(stream);
            }
        });
        let config = LoaderConfig { threads, on_bad: OnBad::Stop, ..config.clone() };
        explore_with(Coding::Stream, &[0, 1, 2, 3], config, |loader| {
            assert!(loader.start(Position::default(), 3).unwrap().next().unwrap().is_err());
        });
    }
}
