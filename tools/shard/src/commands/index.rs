//! `shard index`: indexes for shards made elsewhere.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use bt_pipeline::Error;
use bt_pipeline::shard::{Limits, index_shards};

use crate::cli::Index;
use crate::output::{Bar, count, line};

pub fn run(args: &Index) -> anyhow::Result<ExitCode> {
    let classes = args.classes.as_deref().map_or(Ok(Vec::new()), names_in)?;
    let bar = Bar::new();
    let indexed = index_shards(
        &args.shards.pattern(),
        args.manifest.as_deref(),
        &classes,
        &Limits::default(),
        args.threads,
        &mut |progress| bar.show(progress),
    );
    drop(bar);
    for shard in indexed? {
        if args.json {
            line(serde_json::to_string(&shard)?)?;
            continue;
        }
        let mut remarks = Vec::new();
        if shard.without_image > 0 {
            remarks.push(format!(
                "{} without an image passed over",
                count(shard.without_image, "sample")
            ));
        }
        if shard.links.count > 0 {
            remarks.push(shard.links.to_string());
        }
        if shard.unreadable > 0 {
            remarks.push(format!(
                "{} with a header that cannot be read",
                count(shard.unreadable, "image")
            ));
        }
        if !shard.ended {
            remarks.push("no end-of-archive marker: cut short?".to_owned());
        }
        if let Some(at) = shard.trailing {
            remarks.push(format!("more follows the end of the archive, at byte {at}, unread"));
        }
        if !shard.seekable {
            remarks.push("no seek table: can be read in order only".to_owned());
        }
        let remarks: String = remarks.iter().map(|remark| format!("; {remark}")).collect();
        line(format_args!(
            "{}: {}{remarks}",
            shard.shard.display(),
            count(shard.samples, "sample")
        ))?;
    }
    // With --json there are lines of JSON alone; where the manifest lies is known from the command.
    if let Some(manifest) = args.manifest.as_ref().filter(|_| !args.json) {
        line(manifest.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of classes in a file, one a line.
fn names_in(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let names = text.lines().map(str::trim).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        let cause = format!("{}: no names of classes in it, one a line", path.display());
        return Err(Error::Usage(cause).into());
    }
    Ok(names)
}
