//! `bt-stream report`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::files::write_atomically;
use crate::metrics::METRICS_FILE;
use crate::print::one_line;
use crate::report::{Report, collect, render, side_by_side};

/// Arguments of `bt-stream report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Folders of runs, finished or not; several are put side by side
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page to write [default: RUN/report.html; of several runs: runs.html]
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Print the page's name as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A folder without metrics, or a page that cannot be written.
pub fn run(args: ReportArgs) -> Result<()> {
    let mut reports = Vec::new();
    for dir in &args.runs {
        let metrics = dir.join(METRICS_FILE);
        if !metrics.try_exists().with_context(|| metrics.display().to_string())? {
            bail!(
                "{}: no run that has taken a step: there is no {METRICS_FILE} in it",
                dir.display()
            );
        }
        let (report, missing) = collect::with_pictures(dir)?;
        if let Some(why) = missing {
            eprintln!("{}: without pictures: {}", dir.display(), one_line(&why));
        }
        reports.push(report);
    }
    let (page, default) = match &reports[..] {
        [one] => (render(one)?, args.runs[0].join("report.html")),
        several => (side_by_side::render(&named(&args.runs, several))?, "runs.html".into()),
    };
    let path = args.out.unwrap_or(default);
    write_atomically(&path, page.as_bytes())?;
    match args.json {
        true => println!("{}", serde_json::json!({ "written": [path.display().to_string()] })),
        false => println!("wrote {}", path.display()),
    }
    Ok(())
}

/// Runs by their folders' names; by the whole paths where those are not different.
fn named(dirs: &[PathBuf], reports: &[Report]) -> Vec<(String, Report)> {
    let different =
        (1..dirs.len()).all(|i| !reports[..i].iter().any(|r| r.title == reports[i].title));
    let name = |dir: &Path, report: &Report| match different {
        true => report.title.clone(),
        false => dir.display().to_string(),
    };
    dirs.iter().zip(reports).map(|(dir, report)| (name(dir, report), report.clone())).collect()
}
