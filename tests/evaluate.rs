//! The commands that look at a finished run: knn, probe, embed, inspect.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

use bt_pipeline::shard::{FolderSource, PackOptions, pack};
use bt_pipeline::synth::{self, Spec};
use bt_stream::checkpoint;
use bt_stream::eval::Score;
use candle_core::{DType, Device, Tensor};
use common::{bt_stream, tiny_run, tiny_shards, write_tar};

/// What the command prints; it must succeed.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn scores(command: &[&str], run: &Path, shards: &Path) -> Vec<Score> {
    let mut program = bt_stream();
    program.args(command).arg(run).arg("--test").arg(shards).args(["--pixels", "--json"]);
    serde_json::from_str(&printed(&mut program)).unwrap()
}

#[test]
fn a_run_is_evaluated_beside_the_floor_and_its_features_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));

    // The queries are the references: each one's nearest neighbour is itself.
    let knn = scores(&["knn", "--k", "1"], &run, &shards);
    let names: Vec<&str> = knn.iter().map(|score| score.name.as_str()).collect();
    assert_eq!(names, ["trained network", "untrained network", "raw pixels", "colour histogram"]);
    assert!(knn.iter().all(|score| score.knn == Some(1.0)), "{knn:?}");
    let probe = scores(&["probe"], &run, &shards);
    // Four classes: chance is a quarter, and all are among the best five.
    let above = |score: &Score| score.linear.is_some_and(|a| a.top1 > 0.25 && a.top5 == 1.0);
    assert!(probe.iter().all(above), "{probe:?}");

    let out = dir.path().join("features.safetensors");
    printed(bt_stream().arg("embed").arg(&run).arg(&shards).arg(&out));
    let tensors = candle_core::safetensors::load(&out, &candle_core::Device::Cpu).unwrap();
    assert_eq!(tensors["features"].dims(), [96, 64]);
    assert_eq!(tensors["labels"].to_vec1::<i64>().unwrap()[..5], [0, 1, 2, 3, 0]);
    let keys = std::fs::read_to_string(dir.path().join("features.keys.txt")).unwrap();
    assert_eq!(keys.lines().nth(95), Some("000095"));
}

#[test]
fn the_accuracy_in_training_is_what_the_command_measures_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    // Other images than those that are learnt from, and as many neighbours and such a temperature
    // that one neighbour, all of them and the default temperature give other accuracies.
    let spec = Spec { images: 160, side: 16, classes: 4, split: 1, ..Spec::default() };
    let queries = write_tar(&dir.path().join("queries"), 160, |sample, label| {
        (synth::encode_png(&synth::draw(&spec, sample).0).unwrap(), label.to_string())
    });
    let mut command = tiny_run(&shards, &run);
    command.arg("--val").arg(&queries);
    for setting in ["train.epochs=2", "eval.knn_every=1", "eval.k=30", "eval.temperature=0.5"] {
        command.args(["--set", setting]);
    }
    printed(&mut command);
    let mut command = bt_stream();
    command.arg("knn").arg(&run).args(["--json", "--no-untrained"]);
    let scores: Vec<Score> = serde_json::from_str(&printed(&mut command)).unwrap();
    let lines = bt_stream::metrics::read(&run).unwrap();
    assert_eq!(lines.iter().filter(|line| line.knn.is_some()).count(), 2);
    assert!(scores[0].knn.is_some());
    assert_eq!(lines.last().unwrap().knn, scores[0].knn);
}

#[test]
fn a_sample_that_cannot_be_decoded_is_left_out_of_training_and_evaluation_alike() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_tar(&dir.path().join("shards"), 64, |sample, label| {
        let spec = Spec { images: 64, side: 16, classes: 4, ..Spec::default() };
        let mut png = synth::encode_png(&synth::draw(&spec, sample).0).unwrap();
        png.truncate(if sample == 7 { 40 } else { png.len() });
        (png, label.to_string())
    });
    let run = dir.path().join("run");
    let mut train = tiny_run(&shards, &run);
    train.arg("--val").arg(&shards).args(["--set", "train.epochs=1", "--set", "eval.knn_every=1"]);
    let output = train.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("1 of 64 samples are left out"), "{said}");
    assert!(said.contains("000007"), "{said}");

    let out = dir.path().join("features.npy");
    printed(bt_stream().arg("embed").arg(&run).arg(&shards).arg(&out));
    let keys = std::fs::read_to_string(dir.path().join("features.keys.txt")).unwrap();
    let keys: Vec<&str> = keys.lines().collect();
    assert!(keys.len() == 63 && !keys.contains(&"000007") && keys[7] == "000008", "{keys:?}");
}

#[test]
fn labels_that_mean_different_classes_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let packed = |name: &str, classes: [&str; 2]| {
        let images = dir.path().join(name).join("images");
        for (number, class) in classes.iter().enumerate() {
            let spec = Spec { images: 64, side: 16, classes: 2, ..Spec::default() };
            std::fs::create_dir_all(images.join(class)).unwrap();
            for i in 0..32 {
                let image = synth::draw(&spec, 2 * i + number as u64).0;
                let path = images.join(class).join(format!("{i}.png"));
                std::fs::write(path, synth::encode_png(&image).unwrap()).unwrap();
            }
        }
        let (source, to) = (FolderSource::open(&images).unwrap(), dir.path().join(name));
        pack(&source, &to, name, &PackOptions::default(), &mut |_| ()).unwrap();
        to
    };
    let (train, test) = (packed("train", ["cat", "dog"]), packed("test", ["dog", "emu"]));
    let run = dir.path().join("run");
    printed(tiny_run(&train, &run).args(["--set", "train.epochs=1"]));
    let said = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for command in ["knn", "probe", "linear"] {
        let mut program = bt_stream();
        program.arg(command).arg(&run).arg("--test").arg(&test);
        let text = said(program);
        assert!(text.contains("`cat`") && text.contains("`dog`"), "{command}: {text}");
    }
    // In training before its first step.
    let mut program = tiny_run(&train, &dir.path().join("other"));
    program.arg("--val").arg(&test).args(["--set", "eval.knn_every=1"]);
    assert!(said(program).contains("`cat`"));
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let shards = tiny_shards(dir.path());
    let mut command = bt_stream();
    command.arg("inspect").arg(&shards).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn nobody_has_to_listen_to_what_is_said_beside_the_results() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, dir) = (tiny_shards(folder.path()), folder.path().join("run"));
    let mut child = tiny_run(&shards, &dir)
        .args(["--epochs", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(bt_stream::train::Summary::read(&dir).unwrap().steps, 12);
    let mut child = bt_stream().args(["knn", "nowhere"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn few_drawn_images_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = bt_stream();
    command.args(["quickstart", "--images", "70", "--test-images", "3", "--epochs", "1", "--dir"]);
    assert!(command.arg(folder.path().join("q")).output().unwrap().status.success());
}

#[test]
fn inspect_counts_and_draws_a_sheet() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, sheet) = (tiny_shards(dir.path()), dir.path().join("sheet.png"));
    let mut command = bt_stream();
    command.arg("inspect").arg(&shards).arg("--sheet").arg(&sheet);
    command.args(["--samples", "5", "--side", "32", "--set", "views.preset=barlow-cifar"]);
    let text = printed(&mut command);
    assert!(text.contains("samples       96"), "{text}");
    assert!(text.contains("4, of 24 to 24 samples"), "{text}");
    assert!(text.contains("png 100.0%"), "{text}");
    // Five rows of image, view A, view B: 32 pixels each, 6 between.
    let picture = image::open(&sheet).unwrap();
    assert_eq!((picture.width(), picture.height()), (3 * 38 + 6, 5 * 38 + 6));
}

#[test]
fn a_run_without_test_shards_is_told_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));
    let output = bt_stream().arg("knn").arg(&run).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--test"), "{said}");
}

#[test]
fn linear_protocol_few_labels_and_fine_tuning_run_on_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));
    let score = |more: &[&str]| -> Vec<Score> {
        let mut program = bt_stream();
        program.arg("linear").arg(&run).arg("--test").arg(&shards).args([
            "--json",
            "--batch-size",
            "16",
        ]);
        serde_json::from_str(&printed(program.args(more))).unwrap()
    };
    let file = |name: &str| dir.path().join(name).with_extension("safetensors");
    let [frozen, tuned, faster] = ["frozen", "tuned", "faster"].map(file);
    // Trained on the images that it is tested on: better than chance, which is 25%.
    let all = score(&["--epochs", "20", "--out", frozen.to_str().unwrap()]);
    assert_eq!(all.len(), 2);
    assert!(all[0].linear.is_some_and(|a| a.top1 > 0.35 && a.top5 == 1.0), "{all:?}");
    let fine_tuned = |rate: &str, to: &Path| {
        let more = ["--epochs", "8", "--finetune", "--no-untrained", "--lr-backbone", rate];
        score(&[&more[..], &["--out", to.to_str().unwrap()]].concat())[0].linear.unwrap().top1
    };
    let top1 = fine_tuned("0.05", &tuned);
    assert!(top1 > 0.35, "{top1}");
    assert_eq!(share_right(&tuned, &run, &shards), top1);
    fine_tuned("0.1", &faster);

    // A frozen backbone is the run's, running statistics and all; one that is tuned moves, by the
    // rate that was asked for.
    let weights = checkpoint::find(&run).unwrap().weights().unwrap();
    let [frozen, tuned, faster] = [&frozen, &tuned, &faster].map(|file| backbone(file));
    assert!(frozen.len() > 100 && frozen.keys().any(|name| name.ends_with("running_var")));
    for (name, tensor) in &frozen {
        let before = values(&weights[&format!("backbone.{name}")]);
        assert!(values(tensor) == before, "{name} has changed");
        if name.contains("conv") {
            let [now, fast] = [&tuned[name], &faster[name]].map(values);
            assert!(now != before && fast != before && now != fast, "{name}");
        }
    }
    let few = score(&["--epochs", "2", "--labels", "0.1", "--no-untrained"]);
    assert_eq!(few.len(), 1);

    let mut probe = bt_stream();
    probe.arg("probe").arg(&run).arg("--test").arg(&shards);
    let text = printed(probe.args(["--labels", "0.2", "--no-untrained", "--json"]));
    let few: Vec<Score> = serde_json::from_str(&text).unwrap();
    assert!(few[0].linear.is_some());
}

#[test]
fn an_evaluation_that_was_killed_goes_on_to_the_same_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--set", "train.epochs=1"]));
    let (state, temporary) = (dir.path().join("state"), dir.path().join("tmp"));
    std::fs::create_dir(&temporary).unwrap();
    let linear = |out: &Path, more: &[&str]| {
        let mut command = bt_stream();
        command.arg("linear").arg(&run).arg("--test").arg(&shards).arg("--out").arg(out);
        command.args(["--batch-size", "16", "--no-untrained"]).args(more);
        // Who is killed leaves the selected samples behind.
        command.env("TMPDIR", &temporary);
        command
    };
    // Those of a frozen backbone are short: so many that the last one does not come before the kill.
    for how in [&["--finetune", "--epochs", "30"][..], &["--labels", "0.5", "--epochs", "300"]] {
        let [calm, killed] =
            ["calm", "killed"].map(|n| dir.path().join(n).with_extension("safetensors"));
        printed(&mut linear(&calm, how));
        let kept = [how, &["--state", state.to_str().unwrap()]].concat();
        let mut child = linear(&killed, &kept).stderr(Stdio::null()).spawn().unwrap();
        while !state.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!killed.exists());
        let left = std::fs::read_dir(&temporary).unwrap().count();
        assert_eq!(left, usize::from(how.contains(&"--labels")), "{how:?}");
        let output = linear(&killed, &kept).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("epoch   1 "), "{said}");
        assert!(std::fs::read(&calm).unwrap() == std::fs::read(&killed).unwrap(), "{how:?}");
        // It is of this evaluation alone.
        let other = [&kept[..], &["--seed", "1"]].concat();
        let output = linear(&killed, &other).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("another evaluation"), "{said}");
        for file in [&state, &killed] {
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// What is in `file` but for its classifier, in torchvision's names.
fn backbone(file: &Path) -> HashMap<String, Tensor> {
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    tensors.retain(|name, _| !name.starts_with("fc."));
    tensors
}

/// A tensor's numbers, bit for bit.
fn values(tensor: &Tensor) -> Vec<u64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    tensor.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
}

/// How often the network in `file`, of a run's shape and with its classifier, is right.
fn share_right(file: &Path, run: &Path, shards: &Path) -> f64 {
    let (imported, features) = (file.with_extension("run"), file.with_extension("f.safetensors"));
    let config = run.join("config.toml");
    printed(bt_stream().arg("import").arg(file).arg(&imported).arg("--config").arg(config));
    printed(bt_stream().arg("embed").arg(&imported).arg(shards).arg(&features));
    let load = |path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let (net, rows) = (load(file), load(features.as_path()));
    let logits = rows["features"].matmul(&net["fc.weight"].t().unwrap()).unwrap();
    let logits = logits.broadcast_add(&net["fc.bias"]).unwrap();
    let found = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
    let labels = rows["labels"].to_vec1::<i64>().unwrap();
    let right = found.iter().zip(&labels).filter(|(found, label)| i64::from(**found) == **label);
    right.count() as f64 / labels.len() as f64
}

#[test]
fn training_goes_on_when_it_cannot_be_evaluated_and_says_at_once_what_never_could() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    // Of the test set more is damaged than may be.
    let torn = write_tar(&dir.path().join("torn"), 40, |_, label| (vec![0; 9], label.to_string()));
    let every = ["--set", "eval.knn_every=1", "--set", "train.epochs=2"];
    let output = tiny_run(&shards, &run).arg("--val").arg(&torn).args(every).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("warning: no kNN accuracy").count(), 2, "{said}");

    // A set without labels can never be evaluated.
    let bare = dir.path().join("bare");
    std::fs::create_dir_all(&bare).unwrap();
    let mut tar = tar::Builder::new(std::fs::File::create(bare.join("a.tar")).unwrap());
    for number in 0..20 {
        let spec = Spec { images: 20, side: 16, classes: 4, ..Spec::default() };
        let image = synth::encode_png(&synth::draw(&spec, number).0).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(image.len() as u64);
        tar.append_data(&mut header, format!("{number}.png"), &image[..]).unwrap();
    }
    tar.into_inner().unwrap();
    for (data, val, named) in [(&bare, &shards, "data.train"), (&shards, &bare, "data.val")] {
        let other = dir.path().join("other");
        let output = tiny_run(data, &other).arg("--val").arg(val).args(every).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !other.join("metrics.jsonl").exists(), "{said}");
        assert!(said.contains(named) && said.contains("no sample has a label"), "{said}");
    }
}

#[test]
fn the_authors_protocol_learns_from_every_label_in_each_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (shards, run) = (tiny_shards(dir.path()), dir.path().join("run"));
    printed(tiny_run(&shards, &run).args(["--epochs", "1", "--set", "data.shuffle='none'"]));
    let linear = |batch: &str| -> Vec<u8> {
        let mut command = bt_stream();
        command.arg("linear").arg(&run).arg("--test").arg(&shards).arg("--no-untrained");
        command.args(["--epochs", "1", "--batch-size", batch]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stderr
    };
    // 96 labels in batches of 90: of an epoch that left six out the share would be in ninetieths.
    // All have weights of nearly zero then, so that the share is that of the classes.
    let said = String::from_utf8(linear("90")).unwrap();
    let share: f64 =
        said.split("right ").nth(1).unwrap().split('%').next().unwrap().parse().unwrap();
    let right = share * 96.0 / 100.0;
    assert!((right - right.round()).abs() < 0.06, "{said}");
    // Of other shards it is no result of the run's; of its own it is kept.
    let kept = run.join("evaluation.json");
    assert!(!kept.exists());
    let config = run.join("config.toml");
    let mut command = bt_stream();
    command.arg("import").arg(run.join("checkpoints/step-0000000006/weights.safetensors"));
    command.arg(dir.path().join("again")).arg("--config").arg(config);
    for (key, value) in [("data.train", &shards), ("data.val", &shards)] {
        command.arg("--set").arg(format!("{key}={value:?}"));
    }
    printed(&mut command);
    let again = dir.path().join("again");
    let mut command = bt_stream();
    command.arg("linear").arg(&again).args(["--epochs", "1", "--labels", "0.5", "--no-untrained"]);
    printed(&mut command);
    let text = std::fs::read_to_string(again.join("evaluation.json")).unwrap();
    let name = "trained network, authors' linear protocol, 50% of labels, 1 epochs";
    assert!(text.contains(name), "{text}");
}

#[test]
fn samples_without_a_label_are_told_before_the_first_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec { images: 96, side: 16, classes: 4, ..Spec::default() };
    let shards = write_tar(&dir.path().join("shards"), 96, |sample, label| {
        let image = synth::encode_png(&synth::draw(&spec, sample).0).unwrap();
        (image, if sample == 5 { "-1".to_owned() } else { label.to_string() })
    });
    let mut run = tiny_run(&shards, &dir.path().join("run"));
    run.arg("--val").arg(&shards).args(["--epochs", "1", "--set", "eval.knn_every=1"]);
    let said = String::from_utf8(run.output().unwrap().stderr).unwrap();
    let told = said.find("data.val: 1 of 96 samples have no label").expect(&said);
    assert!(told < said.find("no kNN accuracy").expect(&said), "{said}");
}
