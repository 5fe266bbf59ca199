//! A study that is killed and continued gives the table of one that never was.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{bt_stream, tiny_shards, tiny_study};

fn study_file(folder: &Path, shards: &Path) -> PathBuf {
    let rest = r#"
train = { epochs = 3, batch_size = 16, log_every = 1, diagnose_every = 2 }
checkpoint = { every_steps = 2, keep = 1 }
eval = { k = 5, online_probe = true }
[base.optim]
optimizer = "adamw"
warmup_epochs = 0.0
[[cells]]
name = "barlow"
[[cells]]
name = "byol"
config.method = "byol"
config.loss.predictor_hidden = 8
[[cells]]
name = "untrained"
untrained = true
"#;
    let text = tiny_study(shards, rest);
    let path = folder.join("tiny.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// A study of tiny shards, both in `folder`.
fn written(folder: &Path, rest: &str) -> PathBuf {
    let study = folder.join("tiny.toml");
    std::fs::write(&study, tiny_study(&tiny_shards(folder), rest)).unwrap();
    study
}

fn command(study: &Path, dir: &Path) -> Command {
    let mut command = bt_stream();
    command.arg("study").arg(study).arg("--dir").arg(dir).args(["--jobs", "2"]);
    command
}

fn start(study: &Path, dir: &Path) -> Child {
    command(study, dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn to_end(study: &Path, dir: &Path) -> String {
    let output = command(study, dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_killed_study_continues_and_gives_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let study = study_file(folder.path(), &tiny_shards(folder.path()));
    let (calm, killed) = (folder.path().join("calm"), folder.path().join("killed"));
    let begun = Instant::now();
    to_end(&study, &calm);
    let whole = begun.elapsed();
    let mut kills = 0;
    for part in [0.25, 0.4, 0.3, 0.5, 0.35] {
        let mut child = start(&study, &killed);
        std::thread::sleep(whole.mul_f64(part));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0, "the study ended before it could be killed");
    to_end(&study, &killed);
    for name in ["table.md", "table.csv"] {
        let read = |dir: &Path| std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(read(&calm), read(&killed), "{name}");
        assert!(read(&calm).contains("byol"));
    }
    assert!(std::fs::read_to_string(calm.join("study.html")).unwrap().contains("<svg"));
    for cell in ["barlow.seed-0", "byol.seed-1"] {
        assert!(calm.join("cells").join(cell).join("config.toml").exists());
    }

    // Nothing is left to run, and a cell is not taken for another.
    let begun = Instant::now();
    assert!(to_end(&study, &calm).contains("0 of 6 cells to run"));
    assert!(begun.elapsed() < whole.max(Duration::from_secs(2)));
    let other = command(&study, &calm).args(["--set", "train.epochs=4"]).output().unwrap();
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("epochs = 3"), "{said}");
}

#[test]
fn a_finished_cell_is_measured_again_for_a_new_figure_and_not_taken_for_an_untrained_one() {
    let folder = tempfile::tempdir().unwrap();
    let rest = r#"
train = { epochs = 1, batch_size = 16 }
optim = { warmup_epochs = 0 }
[measure]
linear = false
[[cells]]
name = "one"
untrained = false
"#;
    let study = written(folder.path(), rest);
    let dir = folder.path().join("out");
    to_end(&study, &dir);
    let table = || std::fs::read_to_string(dir.join("table.csv")).unwrap();
    assert!(table().contains("kNN") && !table().contains("linear"), "{}", table());
    let text = std::fs::read_to_string(&study).unwrap();
    let (knn, steps) = (table(), dir.join("cells/one.seed-0/metrics.jsonl"));
    let metrics = std::fs::read_to_string(&steps).unwrap();
    std::fs::write(&study, text.replace("linear = false", "")).unwrap();
    assert!(to_end(&study, &dir).contains("2 of 2 cells to run"));
    assert!(table().contains("linear_top_1_mean"), "{}", table());
    // It was not trained again, and asking for less asks for nothing.
    assert_eq!(std::fs::read_to_string(&steps).unwrap(), metrics);
    let first = |table: &str| table.lines().last().unwrap().split(',').nth(1).unwrap().to_owned();
    assert_eq!(first(&table()), first(&knn));
    std::fs::write(&study, text.replace("linear = false", "knn = false")).unwrap();
    assert!(to_end(&study, &dir).contains("0 of 2 cells to run"));
    std::fs::write(&study, text.replace("untrained = false", "untrained = true")).unwrap();
    let output = command(&study, &dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("`untrained = true`"), "{said}");
}

#[test]
fn a_section_on_the_command_line_is_its_keys_and_leaves_each_cell_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let rest = r#"
train = { epochs = 3, batch_size = 16 }
[grid]
"loss.lambda" = [0.001, 0.01]
"#;
    let study = written(folder.path(), rest);
    let dir = folder.path().join("out");
    let output = command(&study, &dir).args(["--set", "train={epochs=1}"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cells: Vec<_> = std::fs::read_dir(dir.join("cells")).unwrap().collect();
    assert_eq!(cells.len(), 4);
    for cell in cells {
        let text = std::fs::read_to_string(cell.unwrap().path().join("config.toml")).unwrap();
        assert!(text.contains("epochs = 1\n") && text.contains("batch_size = 16\n"), "{text}");
    }
    for given in ["loss={lambda=0.1}", "train={seed=3}"] {
        let refused = command(&study, &dir).args(["--set", given]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{given}");
    }
}

#[test]
fn a_study_whose_drawn_images_are_others_keeps_no_cells_of_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let text = |images: u32| {
        format!(
            r#"
title = "tiny"
seeds = [0]
drawn = {{ images = {images}, test_images = 24 }}
[base]
views.preset = "barlow-cifar"
views.both.random_resized_crop.size = 16
model = {{ arch = "resnet18", width = 4, stem = "cifar", projector = "16-16" }}
train = {{ epochs = 1, batch_size = 16 }}
[[cells]]
name = "untrained"
untrained = true
"#
        )
    };
    let (study, dir) = (folder.path().join("tiny.toml"), folder.path().join("out"));
    std::fs::write(&study, text(48)).unwrap();
    to_end(&study, &dir);
    std::fs::write(&study, text(64)).unwrap();
    let output = command(&study, &dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("another drawn data set"), "{said}");
    std::fs::remove_dir_all(dir.join("cells")).unwrap();
    to_end(&study, &dir);
    // An untrained network begins with what a trained one would begin with.
    let (other, missing) = (folder.path().join("other"), "train.init='nowhere.safetensors'");
    let output = command(&study, &other).args(["--set", missing]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("nowhere.safetensors"), "{said}");
}

#[test]
fn a_study_is_continued_wherever_its_folder_was_moved_and_however_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let study = folder.path().join("tiny.toml");
    let text = r#"
title = "tiny"
seeds = [0]
drawn = { images = 32, test_images = 16 }
[base]
views.preset = "barlow-cifar"
views.both.random_resized_crop.size = 16
model = { arch = "resnet18", width = 4, stem = "cifar", projector = "16-16" }
train = { epochs = 1, batch_size = 16 }
optim.warmup_epochs = 0
eval.k = 5
[[cells]]
name = "trained"
[[cells]]
name = "untrained"
untrained = true
"#;
    std::fs::write(&study, text).unwrap();
    let said = to_end(&study, &folder.path().join("out"));
    // Nobody is warned that a cell begins.
    assert!(said.contains("2 of 2 cells to run") && !said.contains("anew"), "{said}");
    std::fs::rename(folder.path().join("out"), folder.path().join("moved")).unwrap();
    let again = |more: &[&str]| {
        let mut command = command(&study, Path::new("moved"));
        let output = command.args(more).current_dir(folder.path()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (done, said) = again(&[]);
    assert!(done && said.contains("0 of 2 cells to run"), "{said}");
    std::fs::remove_file(folder.path().join("moved/cells/trained.seed-0/result.json")).unwrap();
    let (done, said) = again(&[]);
    assert!(done && said.contains("1 of 2 cells to run"), "{said}");
    let (done, said) = again(&["--set", "data.val='elsewhere'", "--set", "data.train='elsewhere'"]);
    assert!(!done && said.contains("train = \"data/train.manifest.json\""), "{said}");
}

#[test]
fn a_cell_that_diverges_at_once_is_a_row_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let rest = r#"
train = { epochs = 1, batch_size = 16 }
optim = { warmup_epochs = 0 }
[[cells]]
name = "calm"
[[cells]]
name = "ruined"
config.optim.lr_weights = 1e38
[[cells]]
name = "ruined by its last step"
config = { optim.lr_weights = 1e37, train.batch_size = 96 }
"#;
    let text = tiny_study(&tiny_shards(folder.path()), rest).replace("[0, 1]", "[0]");
    let study = folder.path().join("tiny.toml");
    std::fs::write(&study, text).unwrap();
    let dir = folder.path().join("out");
    let said = to_end(&study, &dir);
    let table = std::fs::read_to_string(dir.join("table.md")).unwrap();
    let ruined = table.lines().filter(|line| line.contains("ruined"));
    assert_eq!(ruined.filter(|line| line.contains("diverged")).count(), 2, "{table}");
    // Lines of cells that run side by side say whose they are.
    assert!(said.contains("calm, seed 0: step 6 of 6"), "{said}");
}

#[test]
fn a_cell_that_fails_keeps_no_other_from_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let rest = r#"
train = { epochs = 1, batch_size = 16 }
optim = { warmup_epochs = 0 }
[[cells]]
name = "without data"
config.data.train = "nowhere"
[[cells]]
name = "calm"
"#;
    let study = written(folder.path(), rest);
    let dir = folder.path().join("out");
    let output = command(&study, &dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("2 of 4 cells failed") && said.contains("`without data, seed 1`"),
        "{said}"
    );
    let table = std::fs::read_to_string(dir.join("table.md")).unwrap();
    assert!(table.contains("2 of 4 runs finished"), "{table}");
}

#[test]
fn only_names_the_rows_in_every_mode_and_a_first_step_that_fails_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let rest = r#"
train = { epochs = 1, batch_size = 16 }
optim = { warmup_epochs = 0 }
[[cells]]
name = "ruined"
config.loss.scale = 1e308
[[cells]]
name = "calm"
"#;
    let study = written(folder.path(), rest);
    let run = |arguments: &[&str]| {
        let output = command(&study, &folder.path().join("out")).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, listed, _) = run(&["--list", "--only", "calm"]);
    assert!(code == Some(0) && listed.lines().count() == 2 && !listed.contains("ruined"));
    let (code, said, _) = run(&["--first-step", "2", "--only", "calm"]);
    assert!(code == Some(0) && said.lines().count() == 1 && said.starts_with("calm: loss"));
    for mode in [&["--list"][..], &["--first-step", "2"], &[]] {
        let (code, _, errors) = run(&[mode, &["--only", "nope"]].concat());
        assert_eq!(code, Some(2), "{mode:?}: {errors}");
    }
    // The rows after it are tried, too; the code is that of its failure.
    let (code, said, errors) = run(&["--first-step", "2"]);
    assert_eq!(code, Some(3), "{errors}");
    assert!(said.starts_with("calm: loss") && errors.contains("row `ruined`"), "{said}{errors}");
    let none = bt_stream().arg("study").arg(&study).args(["--list", "--jobs", "0"]).output();
    let said = String::from_utf8(none.unwrap().stderr).unwrap();
    assert!(said.contains("'--jobs <JOBS>': must be at least 1"), "{said}");
    assert!(!folder.path().join("out").exists(), "nothing was run");
}
