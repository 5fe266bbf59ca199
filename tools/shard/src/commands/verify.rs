//! `shard verify`: everything that is wrong with a set.

use std::path::Path;
use std::process::ExitCode;

use bt_pipeline::printable;
use bt_pipeline::shard::{Damage, OpenOptions, VerifyReport, salvage, verify};

use crate::cli::Verify;
use crate::output::{Bar, bytes, count, is_broken_pipe, line};

pub fn run(args: &Verify) -> anyhow::Result<ExitCode> {
    if let Some(out) = &args.repair {
        return repair(args, out);
    }
    let bar = Bar::new();
    let show = &mut |progress| bar.show(progress);
    let report = verify(
        &args.shards.pattern(),
        &OpenOptions::default(),
        !args.no_decode,
        args.threads,
        show,
    );
    drop(bar);
    let report = report?;
    let code = if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match print(&report, args.json) {
        // Who reads no further than the first fault has the same verdict.
        Err(error) if is_broken_pipe(&error) => Ok(code),
        printed => printed.map(|()| code),
    }
}

/// The faults and what was looked at, as lines or as one of JSON.
fn print(report: &VerifyReport, json: bool) -> anyhow::Result<()> {
    if json {
        return line(serde_json::to_string(report)?);
    }
    tell(&report.damage)?;
    let found = match report.damage.len() as u64 {
        0 => "no damage".to_owned(),
        faults => count(faults, "fault"),
    };
    line(format_args!(
        "{found} in {} of {} ({} indexed), {}",
        count(report.samples, "sample"),
        count(report.shards as u64, "shard"),
        report.indexed,
        bytes(report.bytes)
    ))?;
    if report.without_image > 0 {
        line(format_args!(
            "{} without an image passed over",
            count(report.without_image, "sample")
        ))?;
    }
    if report.links.count > 0 {
        line(format_args!("{}: their samples lack an image or a label", report.links))?;
    }
    Ok(())
}

/// Saves what can be saved; succeeds when a set was written, however much was lost.
fn repair(args: &Verify, out: &Path) -> anyhow::Result<ExitCode> {
    let bar = Bar::new();
    let show = &mut |progress| bar.show(progress);
    let options = OpenOptions::default();
    let saved = salvage(&args.shards.pattern(), out, &options, args.threads, show);
    drop(bar);
    let saved = saved?;
    if args.json {
        let manifest = &saved.packed.manifest_path;
        line(serde_json::json!({ "manifest": manifest, "lost": saved.lost }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    tell(&saved.lost)?;
    // One damage often shows twice: where it was met, and in the samples that it took. Those that
    // nothing names any more are in the first alone.
    let lost = saved.lost.iter().filter(|damage| damage.key.is_some()).count() as u64;
    let places = saved.lost.len() as u64 - lost;
    let met = match places {
        0 => String::new(),
        places => format!(", damage met in {}", count(places, "place")),
    };
    line(format_args!(
        "{} saved, {lost} known to be lost{met}\n{}",
        count(saved.packed.manifest.samples, "sample"),
        saved.packed.manifest_path.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each fault.
fn tell(faults: &[Damage]) -> anyhow::Result<()> {
    for damage in faults {
        let sample = |key: &String| format!("sample `{}` ", printable(key));
        let key = damage.key.as_ref().map_or(String::new(), sample);
        line(format_args!(
            "{}: {key}at byte {}: {}",
            printable(&damage.shard.to_string_lossy()),
            damage.offset,
            printable(&damage.cause)
        ))?;
    }
    Ok(())
}
