//! Every registered method trains from the command's configuration, and goes on bit for bit after
//! an interruption at every single step.

mod common;

use std::path::Path;

use bt_stream::config::RunConfig;
use bt_stream::loss::OBJECTIVES;
use bt_stream::signals::Stop;
use bt_stream::train::ResumeFrom;
use common::{TINY_NETWORK, tiny_shards, train};

fn config(method: &str, shards: &Path, dir: &Path) -> RunConfig {
    let rest = r#"
        projector_output_norm = true
        [optim]
        optimizer = "adamw"
        warmup_epochs = 0.0
        [train]
        epochs = 2
        batch_size = 32
        log_every = 1
        [data]
        threads = 1
    "#;
    let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
    let mut pairs = vec![
        format!("method={method}"),
        format!("data.train={}", quoted(shards)),
        format!("train.dir={}", quoted(dir)),
        "eval.online_probe=true".to_owned(),
    ];
    match method {
        "simsiam" | "byol" => pairs.push("loss.predictor_hidden=8".into()),
        "moco" => pairs.push("loss.queue=50".into()),
        _ => {}
    }
    RunConfig::parse(&format!("{TINY_NETWORK}{rest}"), "", &pairs).unwrap()
}

/// The bytes of every file of the newest checkpoint but the one that holds the folder's name.
fn newest(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let path =
        bt_stream::checkpoint::list(&dir.join("checkpoints")).unwrap().pop().expect("a checkpoint");
    let mut files: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_method_interrupted_after_each_step_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    for objective in OBJECTIVES {
        interrupt(objective.name, 1, &shards, folder.path());
    }
}

#[test]
fn a_run_whose_batches_go_in_parts_ends_with_the_same_bits_too() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    for method in ["barlow", "byol"] {
        interrupt(method, 4, &shards, folder.path());
    }
}

/// Runs `method`, each batch in `parts`, whole and once more with an interruption after each step.
fn interrupt(method: &str, parts: usize, shards: &Path, folder: &Path) {
    let config = |dir: &Path| {
        let mut config = config(method, shards, dir);
        config.train.micro_batches = parts;
        config
    };
    let (calm, broken) = (folder.join(method), folder.join(format!("{method}-2")));
    train(&config(&calm), &ResumeFrom::Scratch, &Stop::default()).unwrap();
    let config = config(&broken);
    let mut runs = 0;
    // Raised before, it ends each run after one step.
    let stop = Stop::default();
    stop.raise();
    let mut from = ResumeFrom::Scratch;
    while train(&config, &from, &stop).unwrap().interrupted {
        from = ResumeFrom::Latest;
        runs += 1;
        assert!(runs < 10);
    }
    assert_eq!(runs, 5, "{method}: two epochs of three steps");
    let (calm, broken) = (newest(&calm), newest(&broken));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&calm), names(&broken), "{method}");
    assert!(calm == broken, "{method}: the checkpoints differ");
    let keeps_more = matches!(method, "simsiam" | "byol" | "moco");
    // Weights, optimizer, online probe; predictor, teacher, queue.
    assert_eq!(calm.len(), if keeps_more { 4 } else { 3 }, "{method}");
}

#[test]
fn an_online_probe_is_logged_and_changes_no_weight() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let weights = |name: &str, probe: bool| {
        let dir = folder.path().join(name);
        let mut config = config("barlow", &shards, &dir);
        config.eval.online_probe = probe;
        config.train.epochs = 8;
        train(&config, &ResumeFrom::Scratch, &Stop::default()).unwrap();
        let files = newest(&dir);
        files.into_iter().find(|(name, _)| name == "weights.safetensors").unwrap()
    };
    assert!(weights("with", true) == weights("without", false));
    let online = |name: &str| -> Vec<f64> {
        let lines = bt_stream::metrics::read(&folder.path().join(name)).unwrap();
        lines.iter().filter_map(|line| line.online).collect()
    };
    assert!(online("without").is_empty());
    let online = online("with");
    // A fresh probe says class 0 of everything, which here a quarter is; that it learns is its unit
    // test's claim.
    assert!(online.len() == 24 && online[0] == 0.25, "{online:?}");

    // One that was ruined is not saved, and none takes its place when the run goes on.
    let dir = folder.path().join("ruined");
    let mut config = config("barlow", &shards, &dir);
    config.eval.online_lr = 1e38;
    for (epochs, from) in [(1, ResumeFrom::Scratch), (2, ResumeFrom::Latest)] {
        config.train.epochs = epochs;
        train(&config, &from, &Stop::default()).unwrap();
        assert!(newest(&dir).iter().all(|(name, _)| name != "probe.safetensors"));
    }
    let lines = bt_stream::metrics::read(&dir).unwrap();
    assert!(lines.last().unwrap().online.is_none());
}
