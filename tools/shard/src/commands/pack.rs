//! `shard pack`: a source becomes a set of shards.

use std::path::Path;
use std::process::ExitCode;

use anyhow::anyhow;
use bt_pipeline::Error;
use bt_pipeline::shard::{
    Limits, OnBadImage, PackOptions, Packed, Recode, Selection, Shrink, Source, finish_killed,
    open_source, pack,
};

use crate::cli::{Division, Pack};
use crate::output::{Bar, bytes, count, line, say};

pub fn run(args: &Pack) -> anyhow::Result<ExitCode> {
    let (origin, out) = args.paths()?;
    let source = open_source(&origin, out, &Limits::default())
        .or_else(|error| Err(unless_killed(error, &origin, out, &args.prefix)?))?;
    let options = PackOptions {
        selection: Selection {
            shuffle: args.shuffle,
            per_class: args.per_class,
            fraction: args.fraction,
            limit: args.limit,
        },
        recode: Recode {
            shrink: args.max_side.map(Shrink::MaxSide).or(args.short_side.map(Shrink::ShortSide)),
            quality: args.quality.unwrap_or(Recode::KEEP.quality),
            raw: args.raw,
            dct: args.recode,
        },
        on_bad: if args.skip_bad { OnBadImage::Skip } else { OnBadImage::Stop },
        ..divided(&args.prefix, &args.division)
    };
    run_pack(source.as_ref(), out, &origin, &options, args.division.json)
}

/// The error of a source that cannot be opened. It may be the set that a pack, which was killed, was
/// putting in place: that is finished then, and is all, as the same choice of samples would be made of
/// it a second time.
fn unless_killed(
    error: Error,
    origin: &str,
    out: &Path,
    prefix: &str,
) -> anyhow::Result<anyhow::Error> {
    if !finish_killed(out, prefix)? {
        return Ok(error.into());
    }
    let out = out.display();
    Ok(anyhow!(
        "{origin}: not packed: it could not be read before the set `{prefix}` of a pack that was killed was put in place \
         in {out}. Now it is there; if it was to come of the same command, all is done"
    ))
}

/// Options that say how a set is divided, all else by default.
pub fn divided(prefix: &str, division: &Division) -> PackOptions {
    PackOptions {
        prefix: prefix.to_owned(),
        samples_per_shard: division.samples_per_shard,
        bytes_per_shard: division.bytes_per_shard,
        zstd: division.zstd,
        overwrite: division.overwrite,
        threads: division.threads,
        ..PackOptions::default()
    }
}

/// Packs with a progress bar and prints what was made.
pub fn run_pack(
    source: &dyn Source,
    out: &Path,
    origin: &str,
    options: &PackOptions,
    json: bool,
) -> anyhow::Result<ExitCode> {
    for note in source.passed_over() {
        say(format_args!("warning: passed over: {note}"));
    }
    let bar = Bar::new();
    let packed = pack(source, out, origin, options, &mut |progress| bar.show(progress));
    drop(bar);
    let Packed { manifest_path, manifest, skipped } = packed?;
    for cause in &skipped {
        say(format_args!("left out: {cause}"));
    }
    if json {
        line(serde_json::json!({
            "manifest": manifest_path,
            "shards": manifest.shards.len(),
            "samples": manifest.samples,
            "bytes": manifest.bytes,
            "classes": manifest.num_classes(),
            "left_out": skipped,
        }))?;
    } else {
        let (shards, samples) = (manifest.shards.len() as u64, manifest.samples);
        let (shards, samples) = (count(shards, "shard"), count(samples, "sample"));
        let classes = manifest.num_classes();
        let filled = manifest.classes.iter().filter(|class| class.samples > 0).count();
        let empty = match classes as usize - filled {
            0 => String::new(),
            empty => format!(" ({empty} of them without a sample)"),
        };
        line(format_args!(
            "{samples} of {classes} classes{empty} in {shards}, {}",
            bytes(manifest.bytes)
        ))?;
        if !skipped.is_empty() {
            line(format_args!("{} left out", count(skipped.len() as u64, "image")))?;
        }
        line(manifest_path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
