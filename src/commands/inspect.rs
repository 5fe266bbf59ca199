//! `bt-stream inspect`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use bt_pipeline::shard::{Format, ShardSet};
use clap::Args;
use serde::Serialize;

use super::{CacheArgs, ConfigSource};
use crate::config::Misconfigured;
use crate::data::open_set;
use crate::files::write_atomically;
use crate::picture::{sheet, views};
use crate::units::percent;

/// Arguments of `bt-stream inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The shards: a folder, a glob, a brace list or a manifest
    #[arg(value_name = "SHARDS")]
    shards: String,
    /// Write a contact sheet here: a row for each sample, the image and then its views
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Samples on the sheet, spread over the set
    #[arg(long, default_value_t = 12)]
    samples: usize,
    /// Longer side of a picture on the sheet, in pixels
    #[arg(long, default_value_t = 160)]
    side: usize,
    /// The epoch whose views are drawn
    #[arg(long, default_value_t = 0)]
    epoch: u64,
    /// Print the statistics as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: ConfigSource,
    #[command(flatten)]
    cache: CacheArgs,
}

impl InspectArgs {
    fn check(&self) -> Result<()> {
        let Some(path) = &self.sheet else { return Ok(()) };
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            bail!(Misconfigured(format!("{}: the name must end in .png", path.display())));
        }
        if self.samples == 0 {
            bail!(Misconfigured("--samples must be at least 1, got 0".into()));
        }
        if !(16..=1024).contains(&self.side) {
            let text = format!("--side must lie between 16 and 1024 pixels, got {}", self.side);
            bail!(Misconfigured(text));
        }
        Ok(())
    }
}

/// Smallest, middle and largest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The smallest.
    pub min: u64,
    /// As many are smaller as are larger.
    pub median: u64,
    /// The largest.
    pub max: u64,
}

/// What a set of shards holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Shards.
    pub shards: usize,
    /// Bytes of the shards.
    pub bytes: u64,
    /// Whether every sample can be read without those before it.
    pub random_access: bool,
    /// Samples.
    pub samples: usize,
    /// Encoded images by format.
    pub formats: BTreeMap<String, u64>,
    /// Bytes of an encoded image.
    pub image_bytes: Range,
    /// Pixels, of the images whose size the index knows.
    pub width: Range,
    /// Pixels, likewise.
    pub height: Range,
    /// Samples by class: (name or number, how many).
    pub classes: Vec<(String, u64)>,
    /// Samples without a label.
    pub unlabelled: u64,
}

/// Runs the command.
///
/// # Errors
/// Shards that cannot be read, or a sheet that cannot be written.
pub fn run(args: InspectArgs) -> Result<()> {
    args.check()?;
    let config = args.source.load(&args.cache.pairs())?;
    let set = open_set(&args.shards, "name them after `inspect`", &config.open_options())?;
    let statistics = statistics(&set)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&statistics)?);
    } else {
        print!("{}", text(&statistics));
    }
    if let Some(path) = &args.sheet {
        let config = config.loader()?;
        let wanted = views::spread(args.samples, set.len());
        let (samples, failed) = views::draw(&set, &wanted, &config, args.epoch)?;
        failed.iter().for_each(|error| eprintln!("left out: {error}"));
        let rows: Vec<_> = samples
            .into_iter()
            .map(|sample| [vec![sample.original], sample.views].concat())
            .collect();
        let sheet = sheet(&rows, args.side, 6, [40, 40, 44]);
        write_atomically(path, &bt_pipeline::synth::encode_png(&sheet)?)?;
        eprintln!("wrote {} rows (image, view A, view B) to {}", rows.len(), path.display());
    }
    Ok(())
}

/// Counts what the indexes tell; no image is decoded.
///
/// # Errors
/// An index that cannot be read.
pub fn statistics(set: &ShardSet) -> Result<Statistics> {
    let mut out = Statistics {
        shards: set.shards().len(),
        bytes: set.shards().iter().map(|shard| shard.bytes).sum(),
        random_access: set.seekable(),
        samples: set.len(),
        ..Statistics::default()
    };
    let (mut lengths, mut widths, mut heights) = (Vec::new(), Vec::new(), Vec::new());
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for sample in 0..set.len() {
        let meta = set.meta(sample)?;
        *out.formats.entry(format_name(meta.format).to_owned()).or_default() += 1;
        lengths.push(meta.length);
        if meta.width > 0 && meta.height > 0 {
            widths.push(u64::from(meta.width));
            heights.push(u64::from(meta.height));
        }
        match meta.label {
            Some(label) => *counts.entry(label).or_default() += 1,
            None => out.unlabelled += 1,
        }
    }
    (out.image_bytes, out.width, out.height) = (range(lengths), range(widths), range(heights));
    let name = |label: u32| set.classes().get(label as usize).cloned();
    out.classes = counts
        .into_iter()
        .map(|(label, count)| (name(label).unwrap_or_else(|| label.to_string()), count))
        .collect();
    Ok(out)
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "jpeg",
        Format::Png => "png",
        Format::Raw => "raw",
        Format::Dct => "dct",
        _ => "other",
    }
}

fn range(mut values: Vec<u64>) -> Range {
    values.sort_unstable();
    match (values.first(), values.last()) {
        (Some(min), Some(max)) => Range { min: *min, median: values[values.len() / 2], max: *max },
        _ => Range::default(),
    }
}

/// Most classes that are listed one by one.
const LISTED: usize = 20;

fn text(s: &Statistics) -> String {
    let line = |name: &str, value: String| format!("{name:14}{value}\n");
    let range =
        |r: Range, unit: &str| format!("{} to {} {unit}, median {}", r.min, r.max, r.median);
    let access = if s.random_access { "random access" } else { "in order only" };
    let mut out = line("shards", format!("{}, {:.1} MB, {access}", s.shards, s.bytes as f64 / 1e6));
    out += &line("samples", s.samples.to_string());
    let formats = s.formats.iter().map(|(name, count)| {
        format!("{name} {}", percent(*count as f64 / s.samples.max(1) as f64))
    });
    out += &line("formats", formats.collect::<Vec<_>>().join(", "));
    out += &line("image bytes", range(s.image_bytes, "bytes"));
    if s.width.max > 0 {
        out += &line("width", range(s.width, "pixels"));
        out += &line("height", range(s.height, "pixels"));
    }
    if s.unlabelled > 0 {
        out += &line("unlabelled", s.unlabelled.to_string());
    }
    if s.classes.is_empty() {
        return out + &line("classes", "none".into());
    }
    let counts: Vec<u64> = s.classes.iter().map(|(_, count)| *count).collect();
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    out += &line("classes", format!("{}, of {least} to {most} samples", s.classes.len()));
    for (name, count) in s.classes.iter().take(LISTED) {
        out += &format!("  {name:20}{count:>8}\n");
    }
    if s.classes.len() > LISTED {
        out += &format!("  and {} more\n", s.classes.len() - LISTED);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_middle_value() {
        assert_eq!(range(vec![5, 1, 9]), Range { min: 1, median: 5, max: 9 });
        assert_eq!(range(vec![]), Range::default());
    }

    #[test]
    fn many_classes_are_not_listed_one_by_one() {
        let classes = (0..30).map(|i| (format!("class {i}"), 7)).collect();
        let text = text(&Statistics { samples: 210, classes, ..Statistics::default() });
        assert!(text.contains("30, of 7 to 7 samples"), "{text}");
        assert!(text.contains("class 19") && !text.contains("class 20"), "{text}");
        assert!(text.contains("and 10 more"), "{text}");
    }
}
