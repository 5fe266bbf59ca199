//! Studies: what a file stands for, that every shipped one runs, what the tables say.

use std::path::{Path, PathBuf};

use super::table::{Spread, csv, markdown};
use super::*;
use crate::eval::Accuracy;
use crate::loss::diagnostics::Health;

fn shipped(size: &str) -> Vec<(PathBuf, Study)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with(&format!("-{size}.toml")));
    files.sort();
    let load = |file: PathBuf| {
        let study = Study::load(&file, Path::new("runs/test"), &[]).unwrap();
        (file, study)
    };
    files.into_iter().map(load).collect()
}

fn parse(text: &str) -> anyhow::Result<Study> {
    Study::parse(text, Path::new("."), Path::new("out"), &[])
}

#[test]
fn every_study_exists_in_both_sizes_and_parses() {
    let names = [
        "asymmetry",
        "augmentations",
        "batch-size",
        "lambda",
        "loss-ablations",
        "methods",
        "projector-depth",
        "projector-width",
    ];
    for size in ["small", "paper"] {
        let studies = shipped(size);
        let wanted: Vec<String> = names.iter().map(|name| format!("{name}-{size}")).collect();
        let found: Vec<String> =
            studies.iter().map(|(f, _)| f.file_stem().unwrap().to_string_lossy().into()).collect();
        assert_eq!(found, wanted);
        for (file, study) in studies {
            assert!(study.rows.len() > 1, "{}", file.display());
            assert_eq!(study.cells.len() % study.rows.len(), 0);
            // Small ones draw their data, or name the CIFAR-10 subset.
            let shards = &study.cells[0].config.data.train;
            assert!(!shards.is_empty() && (size == "paper" || !shards.contains("imagenet")));
        }
    }
}

#[test]
fn the_first_step_of_every_row_of_the_small_studies_runs() {
    for (file, study) in shipped("small") {
        for (number, row) in study.rows.iter().enumerate() {
            let cell = study.cells.iter().find(|cell| cell.row == number).unwrap();
            let loss = first_step(&cell.config, 4);
            assert!(loss.is_ok(), "{}, {}: {loss:?}", file.display(), row.name);
        }
    }
}

/// ResNet-50 with a projector of 8192 and its optimizer takes 2 GB; the smallest row of one study
/// stands for the others here. `bt-stream study FILE --first-step 8` does them all.
#[test]
fn the_first_step_of_the_smallest_paper_row_runs() {
    let studies = shipped("paper");
    let (_, study) =
        studies.iter().find(|(f, _)| f.ends_with("projector-width-paper.toml")).unwrap();
    assert_eq!(study.rows[0].name, "width 16");
    let config = &study.cells[0].config;
    assert_eq!((config.model.width, config.train.batch_size, config.train.epochs), (64, 2048, 300));
    assert!(first_step(config, 2).unwrap().is_finite());
}

#[test]
fn a_grid_is_every_combination_and_each_seed() {
    let study = parse(
        "title = 'x'\nseeds = [3, 4]\n[base]\ntrain.epochs = 7\n[grid]\n\
         'loss.lambda' = [0.1, 0.2]\n'train.batch_size' = [8, 16, 32]",
    )
    .unwrap();
    let names: Vec<&str> = study.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names[..2], ["lambda 0.1, batch_size 8", "lambda 0.1, batch_size 16"]);
    assert_eq!((study.rows.len(), study.cells.len()), (6, 12));
    let last = &study.cells[11];
    assert_eq!((last.row, last.seed, last.config.train.batch_size), (5, 4, 32));
    assert_eq!((last.config.train.seed, last.config.train.epochs), (4, 7));
    let folders: std::collections::HashSet<_> =
        study.cells.iter().map(|cell| cell.config.train.dir.clone()).collect();
    assert_eq!(folders.len(), 12);
}

#[test]
fn options_of_the_objective_are_dropped_for_another_method_alone() {
    let head = "title = 'x'\nseeds = [0]\n";
    let losses = |rest: &str| -> Vec<String> {
        let study = parse(&format!("{head}{rest}")).unwrap();
        let loss = |cell: &Cell| cell.config.loss.to_string().trim().replace('\n', ", ");
        study.cells.iter().map(|cell| format!("{}: {}", cell.config.method.0, loss(cell))).collect()
    };
    // The grid's own options stay, whatever its keys' order.
    let grid = "[base]\nloss.lambda = 0.1\n[grid]\n'loss.temperature' = [0.1, 0.2]\n\
                method = ['infonce', 'ntxent']";
    let found = losses(grid);
    let wanted = [("infonce", 0.1), ("ntxent", 0.1), ("infonce", 0.2), ("ntxent", 0.2)];
    assert_eq!(found, wanted.map(|(method, t)| format!("{method}: temperature = {t}")));
    let lambda = "barlow: lambda = 0.1";
    let base = "[base]\nloss.lambda = 0.1\n";
    assert_eq!(losses(&format!("{base}[grid]\nmethod = ['barlow', 'imax']")), [lambda, "imax: "]);
    let cells = "[[cells]]\nname = 'a'\nconfig.method = 'barlow'\n\
                 [[cells]]\nname = 'b'\nconfig.method = 'imax'\n";
    assert_eq!(losses(&format!("{base}{cells}")), [lambda, "imax: "]);
    // So does the base over what it extends.
    let beneath = tempfile::tempdir().unwrap();
    std::fs::write(beneath.path().join("run.toml"), "[loss]\nlambda = 0.1\n").unwrap();
    let of = |base: &str| {
        let text = format!("{head}extends = 'run.toml'\n[base]\n{base}\n[[cells]]\nname = 'a'");
        Study::parse(&text, beneath.path(), Path::new("out"), &[]).unwrap().cells.remove(0).config
    };
    assert!(of("method = 'infonce'").loss.is_empty() && of("").loss.contains_key("lambda"));
}

#[test]
fn what_is_wrong_is_told_with_the_cells_name() {
    let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
    let head = "title = 'x'\nseeds = [0]\n";
    let text = error(&format!("{head}[[cells]]\nname = 'wide'\nconfig.model.widht = 3"));
    assert!(text.contains("cell `wide`") && text.contains("`width`"), "{text}");
    let text = error(&format!("{head}[[cells]]\nname = 'a b'\n[[cells]]\nname = 'a-b'"));
    assert!(text.contains("two cells"), "{text}");
    let text = error(&format!("{head}[[cells]]\nname = 'λ=1'\n[[cells]]\nname = 'μ=1'"));
    assert!(text.contains("`λ=1` and `μ=1`, would have one folder, `--1`"), "{text}");
    let text = error(&format!("{head}[[cells]]\nname = 'a b'\n[[cells]]\nname = 'a b'"));
    assert!(text.contains("two cells are called `a b`"), "{text}");
    assert!(error(head).contains("either a `[grid]`"));
    assert!(error("title = 'x'\nseeds = [0]\nsedes = 1").contains("sedes"));
    let cell = "[[cells]]\nname = 'a'";
    assert!(error(&format!("title = 'x'\nseeds = [0, 1, 0]\n{cell}")).contains("twice"));
    for key in ["train.seed=3", "train.dir='x'"] {
        let text = format!("{head}{cell}");
        let refused = Study::parse(&text, Path::new("."), Path::new("out"), &[key.to_owned()]);
        assert!(refused.unwrap_err().to_string().contains("itself"), "{key}");
    }
    for rest in [
        "[base]\ntrain.seed = 3\n[[cells]]\nname = 'a'",
        "[grid]\n'train.seed' = [1, 2]",
        "[grid]\ntrain = [{ dir = 'x' }]",
        "[[cells]]\nname = 'a'\nconfig.train.dir = 'x'",
    ] {
        let text = error(&format!("{head}{rest}"));
        assert!(text.contains("a study sets `train."), "{text}");
    }
    let grid = format!("{head}[grid]\n'loss.lambda' = [0.1, 0.2]");
    let listed = format!("{head}{cell}\nconfig.loss.lambda = 0.1");
    for text in [grid, listed] {
        let set =
            |pair: &str| Study::parse(&text, Path::new("."), Path::new("out"), &[pair.to_owned()]);
        assert!(set("loss.lambda=3").unwrap_err().to_string().contains("differ in"));
        assert!(set("loss.scale=3").is_ok());
    }
}

#[test]
fn overrides_apply_to_every_cell_and_given_shards_are_not_drawn() {
    let text = "title = 'x'\nseeds = [0]\n[drawn]\nimages = 9\ntest_images = 3\n\
                [[cells]]\nname = 'a'\n[[cells]]\nname = 'b'";
    let drawn = parse(text).unwrap();
    assert!(drawn.drawn.is_some());
    assert!(drawn.cells[1].config.data.train.ends_with("data/train.manifest.json"));
    let other =
        text.replace("[drawn]", "[[cells]]\nname = 'other'\nconfig.data.train = 'o'\n[drawn]");
    let other = parse(&other).unwrap();
    let data = other.cells.iter().map(|cell| &cell.config.data);
    let named: Vec<_> =
        data.map(|data| (data.train.as_str() == "o", data.val.is_empty())).collect();
    assert!(named.contains(&(true, true)) && named.contains(&(false, false)), "{named:?}");
    // Blanks change nothing.
    for pair in ["data.train=own", "data.train = 'own'"] {
        let overrides = [pair.to_owned(), "train.epochs=2".to_owned()];
        let own = Study::parse(text, Path::new("."), Path::new("out"), &overrides).unwrap();
        assert!(own.drawn.is_none());
        assert!(
            own.cells.iter().all(|c| c.config.data.train == "own" && c.config.train.epochs == 2)
        );
        assert!(own.cells.iter().all(|c| c.config.data.val.is_empty()));
    }
    for pair in ["data.val=own", "data.val = 'own'"] {
        let mixed = Study::parse(text, Path::new("."), Path::new("out"), &[pair.to_owned()]);
        assert!(mixed.unwrap_err().to_string().contains("data.train beside it"));
    }
}

#[test]
fn rows_are_named_by_a_part_and_no_row_is_a_mistake() {
    let text = "title = 'x'\nseeds = [0]\n[[cells]]\nname = 'wide'\n[[cells]]\nname = 'narrow'";
    let study = parse(text).unwrap();
    assert_eq!(study.rows_named(None).unwrap(), [0, 1]);
    assert_eq!(study.rows_named(Some("arr")).unwrap(), [1]);
    assert!(study.rows_named(Some("nope")).unwrap_err().is::<crate::config::Misconfigured>());
}

#[test]
fn a_grids_chart_rises_over_one_key_of_numbers_with_a_line_for_each_of_the_others() {
    // The key that is asked for, else the last one of the alphabet, whatever the other one is.
    let of_x = |x: &str, grid: &str| {
        let text = format!("title = 'x'\nx_label = 'x'\nseeds = [0]\n{x}\n[grid]\n{grid}");
        let study = parse(&text).unwrap();
        let knn = |x: f64| CellResult { knn: Some(x / 100.0), ..CellResult::default() };
        let results: Vec<_> = study.rows.iter().map(|row| Some(knn(row.x.unwrap()))).collect();
        super::page::charts_over_x(&study, &results)[0].series.clone()
    };
    let of = |grid: &str| of_x("", grid);
    let lines = of("'loss.lambda' = [0.2, 0.1]\n'model.stem' = ['cifar', 'imagenet']");
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names, ["kNN, stem cifar", "kNN, stem imagenet"]);
    assert!(lines.iter().all(|line| line.points == [(0.1, 0.001), (0.2, 0.002)]));
    let lines = of("'loss.lambda' = [0.2, 0.1]\n'train.batch_size' = [16, 8]");
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names, ["kNN, lambda 0.2", "kNN, lambda 0.1"]);
    assert!(lines.iter().all(|line| line.points == [(8.0, 0.08), (16.0, 0.16)]));
    let two = "'train.batch_size' = [16, 8]\n'loss.lambda' = [0.2, 0.1]";
    let lines = of_x("x = 'loss.lambda'", two);
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names, ["kNN, batch_size 16", "kNN, batch_size 8"]);
    assert!(lines.iter().all(|line| line.points == [(0.1, 0.001), (0.2, 0.002)]));
    for rest in ["[grid]\n'model.stem' = ['cifar', 'imagenet']", "[[cells]]\nname = 'a'"] {
        for x in ["model.stem", "loss.lambda"] {
            let text = format!("title = 'x'\nx = '{x}'\nseeds = [0]\n{rest}");
            assert!(parse(&text).unwrap_err().to_string().starts_with("`x` "), "{text}");
        }
    }
}

#[test]
fn what_diverged_is_counted_once_and_is_in_no_mean() {
    let study =
        parse("title = 'a <b>'\nreference = 'ref | <i>'\nseeds = [0, 1]\n[[cells]]\nname = 'a'")
            .unwrap();
    let with_rank = |rank: f64, diverged: Option<String>| CellResult {
        effective_rank: Some(rank),
        loss: Some(rank),
        health: Some(Health::Healthy),
        diverged,
        ..CellResult::default()
    };
    let results = [Some(with_rank(8.0, None)), Some(with_rank(2.0, Some("NaN".into())))];
    let text = markdown(&study, &results);
    assert!(text.contains("| a | 8.0 | 8.0 | spread 1, diverged 1 | – |"), "{text}");
    // What Markdown would take for a column or a tag is text.
    assert!(text.contains("# a &lt;b>") && text.contains("| ref \\| &lt;i> |"), "{text}");
}

#[test]
fn the_table_has_mean_spread_and_reference_and_a_dash_for_what_is_missing() {
    let study = parse(
        "title = 'x'\nreference = 'deck'\nseeds = [0, 1]\n[[cells]]\nname = 'a'\nreference = 71.4\n\
         [[cells]]\nname = 'b'\n[[cells]]\nname = 'c'",
    )
    .unwrap();
    let result = |knn: f64| CellResult {
        knn: Some(knn),
        linear: Some(Accuracy { top1: knn, top5: 1.0 }),
        health: Some(Health::Healthy),
        ..CellResult::default()
    };
    let diverged = CellResult { diverged: Some("NaN".into()), ..CellResult::default() };
    let results =
        [Some(result(0.5)), Some(result(0.52)), Some(result(0.4)), None, Some(diverged), None];
    let text = markdown(&study, &results);
    for line in [
        "|  | kNN | linear top-1 | top-5 | embeddings | deck |",
        "| a | 51.0 ± 1.4 | 51.0 ± 1.4 | 100.0 ± 0.0 | spread | 71.4 |",
        "| b | 40.0 | 40.0 | 100.0 | spread | – |",
        "| c | – | – | – | diverged | – |",
        "4 of 6 runs finished",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let lines = csv(&study, &results);
    assert!(lines.contains("\"a\",0.510000,0.014142,2"), "{lines}");
    assert!(super::page::render(&study, &results).unwrap().contains("51.0 ± 1.4"));
    assert_eq!(Spread::of(&[]), None);
}

#[test]
fn the_files_that_the_documentation_shows_are_studies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/studies.md")).unwrap();
    let mut shown = text.split("```toml\n").skip(1).map(|part| part.split("```").next().unwrap());
    let of = |text: &str| Study::parse(text, &root.join("studies"), Path::new("out"), &[]).unwrap();
    let grid = of(shown.next().unwrap());
    assert_eq!((grid.rows.len(), grid.cells.len()), (2, 6));
    assert_eq!(grid.rows[1].x, Some(0.005));
    let cells = of(&format!("title = 'x'\nseeds = [3]\n{}", shown.next().unwrap()));
    assert!(cells.cells[1].untrained && cells.rows[0].reference == Some(57.3));
    assert!(shown.next().is_none());
}

#[test]
#[cfg(unix)]
fn a_folder_whose_name_no_configuration_can_hold_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let text = "title = 'x'\nseeds = [0]\n[[cells]]\nname = 'a'";
    let dir = Path::new(std::ffi::OsStr::from_bytes(b"out\xff"));
    let error = Study::parse(text, Path::new("."), dir, &[]).unwrap_err();
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}
