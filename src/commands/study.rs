//! `bt-stream study`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::count;
use crate::config::{Misconfigured, check_batch};
use crate::print::one_line;
use crate::study::{Options, Study, first_step, result_of, run as run_study};

/// Arguments of `bt-stream study`.
#[derive(Args, Debug)]
pub struct StudyArgs {
    /// The study, a TOML file
    #[arg(value_name = "STUDY")]
    study: PathBuf,
    /// The study's folder; what is there already is continued [default: runs/studies/STUDY]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Cells at a time, on the CPU; each gets its share of the cores
    #[arg(long, default_value_t = 1, value_parser = count)]
    jobs: usize,
    /// Only the cells whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Set one key in every cell, as in `--set data.train='shards/train'`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the cells and their folders, and run nothing
    #[arg(long)]
    list: bool,
    /// Only do each row's first step, on as many random images, to see that it runs
    #[arg(long, value_name = "BATCH")]
    first_step: Option<usize>,
    /// Print JSON, a line for each row or cell
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// As [`Study::load`] and [`run_study()`].
pub fn run(args: StudyArgs) -> Result<()> {
    let stem = args.study.file_stem().unwrap_or_default();
    let dir = args.dir.unwrap_or_else(|| PathBuf::from("runs/studies").join(stem));
    let study = Study::load(&args.study, &dir, &args.set)
        .map_err(|error| Misconfigured(format!("{error:#}")))?;
    let rows = study.rows_named(args.only.as_deref())?;
    let chosen = || study.cells.iter().filter(|cell| rows.contains(&cell.row));
    if args.list {
        for cell in chosen() {
            let (name, folder) = (&study.rows[cell.row].name, &cell.config.train.dir);
            match args.json {
                true => println!("{}", json!({ "row": name, "seed": cell.seed, "folder": folder })),
                false => println!("{name}, seed {}: {}", cell.seed, folder.display()),
            }
        }
        return Ok(());
    }
    if let Some(batch) = args.first_step {
        check_batch("--first-step", batch).map_err(|error| Misconfigured(error.to_string()))?;
        return first_steps(&study, &rows, batch, args.json);
    }
    let stop = crate::signals::Stop::on_signals()?;
    let options = Options { dir: dir.clone(), jobs: args.jobs, only: args.only };
    let whole = run_study(&study, &options, &stop)?;
    if args.json {
        for cell in chosen() {
            let (name, result) = (&study.rows[cell.row].name, result_of(cell)?);
            println!("{}", json!({ "row": name, "seed": cell.seed, "result": result }));
        }
    } else {
        print!("{}", std::fs::read_to_string(dir.join("table.md"))?);
        println!("\npage  {}", dir.join("study.html").display());
    }
    match stop.interrupted() {
        Some(interrupted) if !whole => {
            Err(interrupted).context("the same command continues the study")
        }
        _ => Ok(()),
    }
}

/// The first step of each of `rows`, also of those after one that fails; the first error ends the
/// command.
fn first_steps(study: &Study, rows: &[usize], batch: usize, json: bool) -> Result<()> {
    let (mut failed, mut first) = (0, None);
    for number in rows {
        let Some(cell) = study.cells.iter().find(|cell| cell.row == *number) else { continue };
        let name = &study.rows[*number].name;
        match first_step(&cell.config, batch) {
            Ok(loss) if json => println!("{}", json!({ "row": name, "loss": loss })),
            Ok(loss) => println!("{name}: loss {loss:.4}"),
            Err(error) => {
                let error = error.context(format!("row `{name}`"));
                eprintln!("{}", one_line(&error));
                failed += 1;
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) => Err(error.context(format!("{failed} of {} rows failed", rows.len()))),
        None => Ok(()),
    }
}
