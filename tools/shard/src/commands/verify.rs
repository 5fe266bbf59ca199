//! `shard verify`: everything that is wrong with a set.

use std::process::ExitCode;

use bt_pipeline::shard::{OpenOptions, verify};

use crate::cli::Verify;
use crate::output::{Bar, bytes, count, line};

pub fn run(args: &Verify) -> anyhow::Result<ExitCode> {
    let bar = Bar::new("shards");
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
    if args.json {
        line(serde_json::to_string(&report)?)?;
    } else {
        for damage in &report.damage {
            let key = damage.key.as_ref().map_or(String::new(), |key| format!("sample `{key}` "));
            line(format_args!(
                "{}: {key}at byte {}: {}",
                damage.shard.display(),
                damage.offset,
                damage.cause
            ))?;
        }
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
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
