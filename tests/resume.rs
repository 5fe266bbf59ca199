//! A run that is killed and resumed ends with the weights of one that never was.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bt_pipeline::shard::{OpenOptions, PackOptions, ShardSource, pack};
use bt_pipeline::synth::{self, Spec};
use bt_stream::checkpoint;
use bt_stream::config::RunConfig;
use bt_stream::metrics::BAD_SAMPLES_FILE;
use bt_stream::signals::Stop;
use bt_stream::train::ResumeFrom;
use common::{bt_stream, newest_weights, tiny_run, tiny_shards, train, write_tar};

fn start(shards: &Path, dir: &Path, resume: bool) -> Child {
    let mut command = tiny_run(shards, dir);
    if resume && dir.join("config.toml").exists() {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run_to_end(shards: &Path, dir: &Path, resume: bool) -> Duration {
    let begun = Instant::now();
    let output = start(shards, dir, resume).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    begun.elapsed()
}

/// Whether a checkpoint is being written: its folder has a temporary name.
fn writes_a_checkpoint(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir.join(checkpoint::FOLDER)) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
}

/// `BT_KILLS` sets how many (default 10); every second one comes while a checkpoint is written.
#[test]
fn sigkills_at_arbitrary_moments_change_nothing() {
    let wanted = std::env::var("BT_KILLS").map_or(10u32, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let (calm, killed) = (folder.path().join("calm"), folder.path().join("killed"));
    let whole = run_to_end(&shards, &calm, false);
    let (mut kills, mut while_writing) = (0, 0);
    for attempt in 0..20 * wanted {
        if kills == wanted {
            break;
        }
        // Moments spread over the run by the golden ratio, from start-up on.
        let part = f64::from(attempt) * 0.618_034 % 1.0;
        // What an earlier kill left would be counted as this one's.
        checkpoint::clean(&killed).unwrap();
        let mut child = start(&shards, &killed, true);
        let begun = Instant::now();
        std::thread::sleep(whole.mul_f64(0.05 + 0.5 * part));
        while attempt % 2 == 1 && begun.elapsed() < whole && !writes_a_checkpoint(&killed) {
            std::thread::yield_now();
        }
        if child.try_wait().unwrap().is_some() {
            // It was faster this time; the next one is resumed from scratch.
            std::fs::remove_dir_all(&killed).unwrap();
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        while_writing += u32::from(writes_a_checkpoint(&killed));
        checkpoint::latest(&killed, |damage| panic!("{damage}")).unwrap();
    }
    println!("{kills} kills, {while_writing} of them while a checkpoint was written");
    assert_eq!(kills, wanted, "the runs ended before they could be killed");
    assert!(while_writing > 0, "no checkpoint was being written at any kill");
    run_to_end(&shards, &killed, true);
    assert_eq!(newest_weights(&calm), newest_weights(&killed));
}

/// The samples of `shards` in shards of `count`.
fn repack(shards: &Path, out: &Path, count: u64) {
    let source = ShardSource::open(&shards.to_string_lossy(), out, &OpenOptions::default());
    let options = PackOptions { samples_per_shard: Some(count), ..PackOptions::default() };
    pack(&source.unwrap(), out, "a test", &options, &mut |_| ()).unwrap();
    assert!(std::fs::read_dir(out).unwrap().count() > 4, "one shard again");
}

#[test]
fn a_window_over_shards_of_other_sizes_is_taken_up_only_between_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let shards = tiny_shards(folder.path());
    let cut = |count: u64| {
        let out = folder.path().join(format!("in-{count}"));
        repack(&shards, &out, count);
        out
    };
    let (whole, other) = (cut(24), cut(16));
    let dir = folder.path().join("run");
    let windows = ["--set", "data.shuffle=window", "--set", "data.window_shards=2"];
    let every =
        ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99", "--epochs", "2"];
    let run = |shards: &Path, step: Option<u64>| {
        let mut command = tiny_run(shards, &dir);
        command.args(windows).args(every);
        if let Some(step) = step {
            command.arg("--resume-from").arg(dir.join(format!("checkpoints/step-{step:010}")));
        }
        command.output().unwrap()
    };
    assert!(run(&whole, None).status.success());
    let refused = run(&other, Some(9));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("shards of other sizes"), "{said}");
    assert!(run(&whole, Some(9)).status.success());
    assert!(run(&other, Some(6)).status.success());
}

#[test]
fn a_run_with_one_rate_goes_on_with_another_one_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    assert!(tiny_run(&shards, &dir).args(["--epochs", "1"]).output().unwrap().status.success());
    let mut command = bt_stream();
    command.arg("train").arg("--dir").arg(&dir).args(["--resume", "--epochs", "2"]);
    assert!(command.args(["--set", "optim.lr_weights=1e-4"]).output().unwrap().status.success());
    let text = std::fs::read_to_string(dir.join("config.toml")).unwrap();
    for rate in ["lr_weights = 0.0001\n", "lr_biases = 0.0001\n"] {
        assert!(text.contains(rate), "{text}");
    }
}

/// A tar of 200 images of which these are cut in half.
const DAMAGED: [u64; 2] = [31, 140];

fn damaged_shards(folder: &Path) -> PathBuf {
    let spec = Spec { images: 200, side: 16, classes: 4, ..Spec::default() };
    write_tar(&folder.join("shards"), spec.images, |sample, label| {
        let mut png = synth::encode_png(&synth::draw(&spec, sample).0).unwrap();
        if DAMAGED.contains(&sample) {
            png.truncate(png.len() / 2);
        }
        (png, label.to_string())
    })
}

#[test]
fn one_percent_of_damage_changes_nothing_for_any_threads_or_interruptions_and_is_listed_once() {
    let folder = tempfile::tempdir().unwrap();
    let shards = damaged_shards(folder.path());
    let run = |name: &str, threads: usize, interrupted: bool| {
        let dir = folder.path().join(name);
        let pairs = [
            "views.preset=barlow-cifar".to_owned(),
            "views.both.random_resized_crop.size=16".to_owned(),
            "model={arch = 'resnet18', width = 4, stem = 'cifar', projector = '16-16'}".to_owned(),
            "optim.optimizer=adamw".to_owned(),
            "train.epochs=2".to_owned(),
            "train.batch_size=40".to_owned(),
            "train.log_every=4".to_owned(),
            format!("data.train={shards:?}"),
            format!("data.threads={threads}"),
            format!("train.dir={dir:?}"),
        ];
        let config = RunConfig::load(None, &pairs).unwrap();
        let stop = Stop::default();
        if interrupted {
            // Each process ends after one step.
            stop.raise();
        }
        let (mut resumed, mut from) = (0, ResumeFrom::Scratch);
        while train(&config, &from, &stop).unwrap().interrupted {
            from = ResumeFrom::Latest;
            resumed += 1;
        }
        assert_eq!(resumed, if interrupted { 9 } else { 0 });
        let ledger = std::fs::read_to_string(dir.join(BAD_SAMPLES_FILE)).unwrap();
        let mut keys: Vec<String> = ledger
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line["key"].as_str().unwrap().to_owned())
            .collect();
        keys.sort();
        assert_eq!(keys, DAMAGED.map(|sample| format!("{sample:06}")), "{name}");
        let lines = bt_stream::metrics::read(&dir).unwrap();
        let means = lines.iter().filter_map(|line| Some((line.step, line.loss?, line.bad?)));
        (means.collect::<Vec<_>>(), newest_weights(&dir))
    };
    let expected = run("one", 1, false);
    for (name, threads, interrupted) in [("two", 2, false), ("five", 5, false), ("torn", 3, true)] {
        assert!(run(name, threads, interrupted) == expected, "{name}");
    }
}

/// A run of one epoch in `dir`.
fn begun(shards: &Path, dir: &Path) {
    let first = tiny_run(shards, dir).args(["--set", "train.epochs=1"]).output().unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
}

/// Whether the run in `dir` is continued to a second epoch, and what is said.
fn continued(shards: &Path, dir: &Path, more: &[&str]) -> (bool, String) {
    let mut command = tiny_run(shards, dir);
    command.args(["--resume", "--set", "train.epochs=2"]).args(more);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_run_is_continued_with_the_objective_and_order_it_was_begun_with() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    begun(&shards, &dir);
    let others =
        ["method='infonce'", "data.shuffle='none'", "optim.optimizer='sgd'", "model.width=12"];
    for other in others {
        let (done, text) = continued(&shards, &dir, &["--set", other]);
        assert!(!done && text.contains("resume with th"), "{other}: {text}");
    }
}

#[test]
fn a_run_is_continued_with_its_samples_wherever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    begun(&shards, &dir);
    // As many samples, of other labels.
    let others = write_tar(&folder.path().join("others"), 96, |sample, label| {
        let spec = Spec { images: 96, side: 16, classes: 4, ..Spec::default() };
        (synth::encode_png(&synth::draw(&spec, sample).0).unwrap(), (3 - label).to_string())
    });
    let (done, text) = continued(&others, &dir, &[]);
    assert!(!done && text.contains("other training samples"), "{text}");
    // The same ones in another place, cut into shards differently.
    let moved = folder.path().join("moved");
    repack(&shards, &moved, 20);
    let (done, text) = continued(&moved, &dir, &[]);
    assert!(done, "{text}");
}

#[test]
fn a_run_is_continued_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    begun(&shards, &dir);
    let lock = std::fs::File::create(dir.join(".lock")).unwrap();
    lock.lock().unwrap();
    let (done, text) = continued(&shards, &dir, &[]);
    assert!(!done && text.contains("another process"), "{text}");
    drop(lock);
    let (done, text) = continued(&shards, &dir, &[]);
    assert!(done, "{text}");
}

#[test]
fn a_run_goes_on_from_an_earlier_checkpoint_and_sets_the_later_ones_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let other = folder.path().join("other");
    let keep = ["--set", "checkpoint.keep=9", "--epochs", "2"];
    for dir in [&dir, &other] {
        assert!(tiny_run(&shards, dir).args(keep).output().unwrap().status.success());
    }
    let whole = newest_weights(&dir);
    let checkpoints = dir.join(checkpoint::FOLDER);
    let earlier = checkpoints.join("step-0000000004");
    // Its own configuration and folder are found by its name.
    let mut command = common::bt_stream();
    command.arg("train").arg("--resume-from").arg(&earlier);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(newest_weights(&dir) == whole, "the same steps again");
    let names: Vec<String> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.contains(&"aside-0000000008".to_owned()), "{names:?}");
    let resume_from = |path: &Path, more: &[&str]| {
        let mut command = common::bt_stream();
        command.arg("train").arg("--resume-from").arg(path).args(more).output().unwrap()
    };
    // What cannot be begun changes nothing.
    let listed = || checkpoint::list(&checkpoints).unwrap();
    let before = listed();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = resume_from(&earlier, &["--metrics", &address]);
    assert!(!output.status.success() && listed() == before);
    let output = resume_from(&earlier, &["--set", "train.batch_size=96", "--epochs", "1"]);
    assert!(!output.status.success() && listed() == before);
    let output = resume_from(&checkpoints.join("step-0000000008"), &["--epochs", "1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("nothing is to be done") && listed() == before, "{said}");
    // What was set aside is the newest again, and a later process finds it.
    let output = resume_from(&earlier, &["--epochs", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(listed().pop().is_some_and(|newest| newest.ends_with("step-0000000006")));
    let output = resume_from(&checkpoints.join("aside-0000000012"), &["--epochs", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(listed().pop().is_some_and(|newest| newest.ends_with("step-0000000012")));
    assert!(newest_weights(&dir) == whole);
    // Another run's is refused.
    let foreign = other.join(checkpoint::FOLDER).join("step-0000000004");
    let mut command = common::bt_stream();
    command.arg("train").arg("--dir").arg(&dir).arg("--resume-from").arg(foreign);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no checkpoint of the run in"), "{said}");
}

#[test]
fn a_checkpoint_is_a_runs_from_wherever_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut command = tiny_run(&shards, &dir);
    command.args(["--epochs", "1", "--set", "eval.knn_every=1"]).arg("--val").arg(&shards);
    assert!(command.output().unwrap().status.success());
    let checkpoints = dir.join(checkpoint::FOLDER);
    let (last, earlier) = ("step-0000000006", "step-0000000004");
    for (place, name) in [(&dir, "checkpoints/step-0000000006"), (&checkpoints, last)] {
        let card = folder.path().join("backbone.json");
        let mut command = common::bt_stream();
        command.arg("export").arg(name).arg(card.with_extension("safetensors"));
        assert!(command.current_dir(place).output().unwrap().status.success());
        let card: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&card).unwrap()).unwrap();
        assert!(card["accuracy"]["knn_in_training"].is_f64(), "{card}");
    }
    let places = [
        (dir.clone(), "checkpoints/step-0000000004"),
        (checkpoints.clone(), earlier),
        (checkpoints.join(earlier), "."),
    ];
    let resume_from = |place: &Path, name: &str| {
        let mut command = common::bt_stream();
        let output = command.args(["train", "--resume-from", name]).current_dir(place).output();
        let output = output.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (place, name) in places {
        let (done, said) = resume_from(&place, name);
        assert!(done, "{}: {said}", place.display());
        assert!(checkpoints.join(last).exists());
    }
    // A run's folder is that of its newest one; what is neither is told as it was named.
    let (done, said) = resume_from(folder.path(), "run");
    assert!(done && said.contains("has all its steps already"), "{said}");
    for (place, name) in [(&dir, "checkpoints"), (&checkpoints, "."), (&dir, "nowhere")] {
        let (done, said) = resume_from(place, name);
        let wanted = format!("{name}: no checkpoint of a run: expected RUN/checkpoints/step-N");
        assert!(!done && said.contains(&wanted), "{said}");
    }
    // The newest one is no earlier one: nothing is set aside.
    let before = std::fs::read_dir(&checkpoints).unwrap().count();
    let mut command = common::bt_stream();
    command.args(["train", "--resume-from", last]).current_dir(&checkpoints);
    assert!(command.output().unwrap().status.success());
    assert_eq!(std::fs::read_dir(&checkpoints).unwrap().count(), before);
}

#[test]
fn a_finished_run_that_is_asked_for_nothing_more_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    assert!(tiny_run(&shards, &dir).args(["--epochs", "2"]).output().unwrap().status.success());
    let read =
        || ["config.toml", "summary.json"].map(|name| std::fs::read(dir.join(name)).unwrap());
    let before = read();
    // What a killed process was writing is nobody's.
    let left = dir.join(".tmp-aB3xYz");
    std::fs::write(&left, "{").unwrap();
    let again = tiny_run(&shards, &dir).args(["--resume", "--epochs", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && said.contains("has all its steps already"), "{said}");
    assert!(read() == before && !left.exists());
    let events = || std::fs::read_dir(dir.join("tensorboard")).unwrap().count();
    assert_eq!(events(), 1, "a file of no events");
    // Nor does its newest checkpoint, asked for by name, make it a run of no steps.
    let newest = checkpoint::list(&dir.join(checkpoint::FOLDER)).unwrap().pop().unwrap();
    let output =
        common::bt_stream().arg("train").arg("--resume-from").arg(newest).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(read() == before);
}

#[test]
fn checkpoints_by_steps_are_written_at_the_ends_of_epochs_too() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let every = ["checkpoint.every_steps=6", "checkpoint.every_epochs=100", "checkpoint.keep=9"];
    let mut command = tiny_run(&shards, &dir);
    for pair in every {
        command.args(["--set", pair]);
    }
    assert!(command.args(["--epochs", "3"]).output().unwrap().status.success());
    let written = checkpoint::list(&dir.join(checkpoint::FOLDER)).unwrap();
    let steps: Vec<_> = written.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(steps, ["step-0000000006", "step-0000000012", "step-0000000018"]);
}

#[test]
fn what_has_no_effect_may_change_when_a_run_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    assert!(tiny_run(&shards, &dir).args(["--epochs", "1"]).output().unwrap().status.success());
    let resume = |pair: &str| {
        let mut command = tiny_run(&shards, &dir);
        command.args(["--resume", "--epochs", "2", "--set", pair]).output().unwrap()
    };
    let refused = resume("data.shuffle=window");
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    // The order is global.
    assert!(resume("data.window_samples=100").status.success());
}

#[test]
fn metrics_of_steps_that_are_lost_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    assert!(tiny_run(&shards, &dir).args(["--epochs", "2"]).output().unwrap().status.success());
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let before = read("metrics.jsonl");
    assert!(before.lines().count() > 2);
    // Back to an earlier checkpoint: the later steps need not come out the same.
    let checkpoints = dir.join(checkpoint::FOLDER);
    let earlier = checkpoint::list(&checkpoints).unwrap().swap_remove(0);
    let mut back = common::bt_stream();
    assert!(back.arg("train").arg("--resume-from").arg(earlier).output().unwrap().status.success());
    let aside = read("aside-metrics.jsonl");
    assert!(before.ends_with(&aside) && !aside.is_empty());
    // No checkpoint at all: the run begins anew, and says so.
    std::fs::remove_dir_all(&checkpoints).unwrap();
    let all = read("metrics.jsonl");
    let again = tiny_run(&shards, &dir).args(["--resume", "--epochs", "2"]).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    let anew = format!("warning: no checkpoint in {}: the run begins anew", dir.display());
    assert!(again.status.success() && said.contains(&format!("{anew}; ")), "{said}");
    assert_eq!(read("aside-metrics.jsonl"), aside + &all);
    // Also where nothing tells of earlier steps; a run that is not to go on begins in silence.
    let begun = |more: &[&str]| {
        std::fs::remove_dir_all(&dir).unwrap();
        let output = tiny_run(&shards, &dir).args(["--epochs", "1"]).args(more).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(begun(&["--resume"]).contains(&format!("{anew}\n")));
    assert!(!begun(&[]).contains("anew"));
    // Those of a disk that is not there are not taken for none.
    std::fs::rename(&checkpoints, folder.path().join("gone")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("unmounted"), &checkpoints).unwrap();
    let all = read("metrics.jsonl");
    let again = tiny_run(&shards, &dir).args(["--resume", "--epochs", "3"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(read("metrics.jsonl"), all);
}

/// A run of no step in `dir`, of the backbone in `file`.
fn imported(file: &Path, dir: &Path) {
    let mut command = common::bt_stream();
    command.arg("import").arg(file).arg(dir).args(["--set", "model.projector=32-32"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_imported_run_begins_as_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, place) = (tiny_shards(folder.path()), |name: &str| folder.path().join(name));
    let backbone = |name: &str, seed: &str| {
        let (run, file) = (place(name), place(name).with_extension("safetensors"));
        let train = tiny_run(&shards, &run).args(["--epochs", "1", "--seed", seed]).output();
        assert!(train.unwrap().status.success());
        let exported = common::bt_stream().arg("export").arg(&run).arg(&file).output().unwrap();
        assert!(exported.status.success());
        file
    };
    let (one, other) = (backbone("one", "1"), backbone("other", "2"));
    let resumed = |name: &str, more: &[&str]| {
        imported(&one, &place(name));
        let mut command = tiny_run(&shards, &place(name));
        command.args(["--resume", "--epochs", "1"]).args(more);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    // Another backbone: as a run that begins with it.
    let init = ["--init", other.to_str().unwrap()];
    let said = resumed("again", &init);
    assert!(said.contains("takes the place of the checkpoint's backbone"), "{said}");
    let fresh = tiny_run(&shards, &place("fresh")).args(["--epochs", "1"]).args(init).output();
    assert!(fresh.unwrap().status.success());
    assert!(newest_weights(&place("again")) == newest_weights(&place("fresh")));
    // Another method, which wants a predictor and a teacher.
    resumed("byol", &["--set", "method=byol"]);
    let fresh = tiny_run(&shards, &place("fresh-byol"))
        .args(["--epochs", "1", "--set", "method=byol", "--init"])
        .arg(&one)
        .output();
    assert!(fresh.unwrap().status.success());
    assert!(newest_weights(&place("byol")) == newest_weights(&place("fresh-byol")));
    // Another seed.
    let said = resumed("seeded", &["--seed", "7"]);
    assert!(said.contains("warning: train.seed = 7") && said.contains("train.seed = 0"), "{said}");
    // Its later checkpoints are lost: there still is one.
    let checkpoints = place("seeded").join(checkpoint::FOLDER);
    for lost in ["step-0000000004", "step-0000000006"] {
        std::fs::remove_dir_all(checkpoints.join(lost)).unwrap();
    }
    let output = tiny_run(&shards, &place("seeded")).args(["--resume", "--epochs", "1"]).output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("warning: the checkpoint has no step yet"), "{said}");
}
