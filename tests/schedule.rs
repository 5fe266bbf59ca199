//! A run's steps, done once more by the public parts with rates that are computed here.

mod common;

use std::f64::consts::PI;
use std::sync::Arc;

use bt_pipeline::{Loader, Position};
use bt_stream::checkpoint;
use bt_stream::config::RunConfig;
use bt_stream::data::open_set;
use bt_stream::intake::images_of;
use bt_stream::learner::{Learner, StepHooks};
use bt_stream::signals::Stop;
use bt_stream::train::ResumeFrom;
use candle_core::{Device, Tensor};
use common::{TINY_NETWORK, tiny_shards, train};

/// 96 images in batches of 24: two epochs of four steps, the first of them all warm-up.
const BATCH: usize = 24;
const STEPS_PER_EPOCH: u64 = 4;
const STEPS: u64 = 2 * STEPS_PER_EPOCH;

/// Base rates of weights and of biases, and where the cosine ends.
const RATES: (f64, f64) = (6.4, 0.3);
const FINAL_LR: f64 = 0.1;

/// The rates of step number `step` (from 0), by the authors' `adjust_learning_rate`.
fn rates(step: u64) -> (f64, f64) {
    let share = if step < STEPS_PER_EPOCH {
        step as f64 / STEPS_PER_EPOCH as f64
    } else {
        let (done, all) = (step - STEPS_PER_EPOCH, STEPS - STEPS_PER_EPOCH);
        let q = 0.5 * (1.0 + (PI * done as f64 / all as f64).cos());
        q + FINAL_LR * (1.0 - q)
    };
    let of = |base: f64| share * (base * (BATCH as f64 / 256.0));
    (of(RATES.0), of(RATES.1))
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let tensor = tensor.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap();
    tensor.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
}

#[test]
fn a_run_takes_each_step_at_the_rates_of_the_authors_schedule() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let text = format!(
        r#"{TINY_NETWORK}
        [optim]
        lr_weights = {:?}
        lr_biases = {:?}
        final_lr = {FINAL_LR:?}
        scale_lr = true
        warmup_epochs = 1.0
        weight_decay = 1e-3
        [train]
        epochs = 2
        batch_size = {BATCH}
        log_every = 1
        seed = 3
        [data]
        threads = 2
    "#,
        RATES.0, RATES.1
    );
    let dir = folder.path().join("run");
    let named = [("data.train", &shards), ("train.dir", &dir)].map(|(k, v)| format!("{k}={v:?}"));
    let config = RunConfig::parse(&text, "", &named).unwrap();
    assert_eq!(train(&config, &ResumeFrom::Scratch, &Stop::default()).unwrap().steps, STEPS);

    // The epochs' diagnostics have lines of their own.
    let mut lines = bt_stream::metrics::read(&dir).unwrap();
    lines.retain(|line| line.loss.is_some());
    assert_eq!(lines.len() as u64, STEPS);
    for (step, line) in (0..).zip(&lines) {
        let (weights, biases) = rates(step);
        assert_eq!(line.step, step + 1);
        for (told, want) in [(line.lr_weights, weights), (line.lr_biases, biases)] {
            let told = told.unwrap();
            assert!((told - want).abs() <= 1e-9 * want, "step {step}: {told} for {want}");
        }
    }

    let mut learner = Learner::new(&config, &Device::Cpu).unwrap();
    let mut optimizer = config.optim.build().unwrap();
    let set = open_set(&config.data.train, "data.train", &config.open_options()).unwrap();
    let loader = Loader::new(Arc::clone(&set), config.loader().unwrap()).unwrap();
    for (step, batch) in (0..).zip(loader.start(Position::default(), 2).unwrap()) {
        let images = images_of(&batch.unwrap(), &Device::Cpu).unwrap();
        let found = learner.gradients(&images, StepHooks::default()).unwrap();
        assert_eq!(found.trouble, None);
        assert_eq!(lines[step as usize].loss, Some(found.out.loss), "step {step}");
        let (weights, biases) = rates(step);
        optimizer.step(&mut learner.params(), weights, biases).unwrap();
        learner.follow(step, STEPS).unwrap();
    }
    let saved = checkpoint::find(&dir).unwrap().weights().unwrap();
    let own = learner.net().state_dict().unwrap();
    assert_eq!(saved.len(), own.len());
    for (name, tensor) in &own {
        assert!(bits(tensor) == bits(&saved[name]), "{name}");
    }
}
