//! `shard ls`: what a set holds, sample by sample or summed up.

use std::collections::BTreeMap;
use std::process::ExitCode;

use bt_pipeline::printable;
use bt_pipeline::shard::{OpenOptions, SampleMeta, ShardSet, checksum_text};

use crate::cli::Ls;
use crate::output::{bytes, count, line, say};

pub fn run(args: &Ls) -> anyhow::Result<ExitCode> {
    let set = ShardSet::open(&args.shards.pattern(), &OpenOptions::default())?;
    let samples = args.limit.unwrap_or(usize::MAX).min(set.len());
    if args.summary {
        return summary(&set, samples, args.json);
    }
    let mut unusable = 0;
    for sample in 0..samples {
        let meta = set.meta(sample)?;
        unusable += u64::from(!is_usable(&meta));
        if args.json { line(as_json(&set, sample, &meta))? } else { line(as_row(&set, &meta))? }
    }
    warn_of(unusable);
    Ok(ExitCode::SUCCESS)
}

/// Whether a sample may be used, as far as is known without reading it. A scan gives no bytes to a
/// sample that it finds fault with; an index knows the pixels of each image whose header it
/// understood.
fn is_usable(meta: &SampleMeta) -> bool {
    let understood = meta.checksum == 0 || meta.width > 0;
    meta.length > 0 && understood
}

fn warn_of(unusable: u64) {
    if unusable > 0 {
        let samples = count(unusable, "sample");
        say(format_args!("warning: {samples} cannot be used; `shard verify` tells why"));
    }
}

fn shard_name<'a>(set: &'a ShardSet, meta: &SampleMeta) -> std::borrow::Cow<'a, str> {
    set.shards()[meta.shard].path.file_name().unwrap_or_default().to_string_lossy()
}

fn as_json(set: &ShardSet, sample: usize, meta: &SampleMeta) -> serde_json::Value {
    serde_json::json!({
        "sample": sample,
        "shard": set.shards()[meta.shard].path,
        "key": meta.key,
        "label": meta.label,
        "class": meta.label.and_then(|label| set.classes().get(label as usize)),
        "format": meta.format,
        "width": known(meta.width),
        "height": known(meta.height),
        "offset": meta.offset,
        "length": meta.length,
        "usable": is_usable(meta),
        "checksum": (meta.checksum != 0).then(|| checksum_text(meta.checksum)),
    })
}

fn known(pixels: u32) -> Option<u32> {
    (pixels > 0).then_some(pixels)
}

fn as_row(set: &ShardSet, meta: &SampleMeta) -> String {
    let label = match meta.label {
        _ if !is_usable(meta) => "bad".to_owned(),
        Some(label) => label.to_string(),
        None => "-".to_owned(),
    };
    let size = match known(meta.width) {
        Some(width) => format!("{width}x{}", meta.height),
        None => "?".to_owned(),
    };
    let format = format!("{:?}", meta.format).to_lowercase();
    let (shard, key) = (printable(&shard_name(set, meta)), printable(&meta.key));
    format!("{shard}  {label:>5}  {format:5}  {size:>9}  {:>9}  {key}", meta.length)
}

fn summary(set: &ShardSet, samples: usize, json: bool) -> anyhow::Result<ExitCode> {
    let mut classes = BTreeMap::<Option<u32>, u64>::new();
    let mut formats = BTreeMap::<String, u64>::new();
    let (mut sides, mut image_bytes, mut unusable) = (Vec::new(), 0u64, 0);
    for sample in 0..samples {
        let meta = set.meta(sample)?;
        *classes.entry(meta.label).or_default() += 1;
        *formats.entry(format!("{:?}", meta.format).to_lowercase()).or_default() += 1;
        image_bytes += meta.length;
        unusable += u64::from(!is_usable(&meta));
        if let Some(width) = known(meta.width) {
            sides.push((width, meta.height));
        }
    }
    let name = |label: Option<u32>| match label {
        None => "unlabelled".to_owned(),
        Some(label) => {
            set.classes().get(label as usize).cloned().unwrap_or_else(|| label.to_string())
        }
    };
    let shard_bytes: u64 = set.shards().iter().map(|shard| shard.bytes).sum();
    let extent =
        |of: fn(&(u32, u32)) -> u32| sides.iter().map(of).min().zip(sides.iter().map(of).max());
    let (widths, heights) = (extent(|size| size.0), extent(|size| size.1));
    if json {
        let classes: Vec<_> = classes
            .iter()
            .map(|(label, samples)| serde_json::json!({ "label": label, "name": name(*label), "samples": samples }))
            .collect();
        line(serde_json::json!({
            "shards": set.shards().len(), "samples": samples, "bytes": shard_bytes, "image_bytes": image_bytes,
            "seekable": set.seekable(), "classes": classes, "formats": formats,
            "width": widths, "height": heights, "unusable": unusable,
        }))?;
        warn_of(unusable);
        return Ok(ExitCode::SUCCESS);
    }
    let shards = count(set.shards().len() as u64, "shard");
    let order = if set.seekable() { "random access" } else { "in order only" };
    line(format_args!(
        "{} in {shards}, {}, {order}",
        count(samples as u64, "sample"),
        bytes(shard_bytes)
    ))?;
    let formats: Vec<String> = formats.iter().map(|(format, n)| format!("{n} {format}")).collect();
    line(format_args!("images: {}, {}", formats.join(", "), bytes(image_bytes)))?;
    if let (Some((w0, w1)), Some((h0, h1))) = (widths, heights) {
        line(format_args!("pixels: {w0} to {w1} wide, {h0} to {h1} high"))?;
    }
    for (label, samples) in &classes {
        line(format_args!("{samples:>9}  {}", printable(&name(*label))))?;
    }
    warn_of(unusable);
    Ok(ExitCode::SUCCESS)
}
