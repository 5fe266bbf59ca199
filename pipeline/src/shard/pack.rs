//! Packing: a source, selected and put in order, becomes a set of shards.
//! Threads load, recode and compress; the caller's thread writes in order, so
//! that the files have the same bytes for any number of threads.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::manifest::{Manifest, TOOL};
use super::pool::{Progress, in_order};
use super::recode::Recode;
use super::segment::{Segment, SegmentBuilder};
use super::select::{Selection, select};
use super::source::{Loaded, Source};
use super::writer::{SetPlan, SetWriter};
use super::{MAX_LABEL, ReadScratch};
use crate::decode::Decoder;
use crate::{Error, Result};

/// Samples of one job, at most. Jobs do not depend on threads: frames end with them.
const JOB_SAMPLES: usize = 256;
/// Bytes of a job's source images, about.
const JOB_BYTES: u64 = 1 << 20;
/// What a shard holds unless told otherwise.
const DEFAULT_SHARD_BYTES: u64 = 256 << 20;

/// What to do with an image that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadImage {
    /// End with the error.
    #[default]
    Stop,
    /// Leave the image out and tell of it.
    Skip,
}

/// How a set is packed. What is serialised goes into the manifest.
#[derive(Clone, Debug, Serialize)]
pub struct PackOptions {
    /// Shards are called `{prefix}-000000.tar` and so on.
    pub prefix: String,
    /// Samples in a shard, at most; `None` for no limit.
    pub samples_per_shard: Option<u64>,
    /// Bytes of a shard's file, at most, unless one sample is larger; `None`
    /// for no limit, or 256 MiB when there is no other.
    pub bytes_per_shard: Option<u64>,
    /// zstd level for `.tar.zst`, or `None` for plain `.tar`.
    pub zstd: Option<i32>,
    /// Which samples, in which order.
    pub selection: Selection,
    /// What is done to each image.
    pub recode: Recode,
    /// What to do with an image that cannot be used.
    pub on_bad: OnBadImage,
    /// Whether a set of the same prefix may be replaced.
    #[serde(skip)]
    pub overwrite: bool,
    /// Threads that load, recode and compress; 0 for one per core.
    #[serde(skip)]
    pub threads: usize,
}

impl Default for PackOptions {
    fn default() -> Self {
        PackOptions {
            prefix: "shard".to_owned(),
            samples_per_shard: None,
            bytes_per_shard: None,
            zstd: None,
            selection: Selection::default(),
            recode: Recode::KEEP,
            on_bad: OnBadImage::Stop,
            overwrite: false,
            threads: 0,
        }
    }
}

/// What packing made.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The manifest's file.
    pub manifest_path: PathBuf,
    /// Its content.
    pub manifest: Manifest,
    /// Images left out, and why.
    pub skipped: Vec<String>,
}

/// Packs `source` into `folder`. `origin` says in the manifest where it came
/// from. Every file is written under a temporary name; when all of them are whole
/// they are renamed, the manifest last: a set with a manifest is whole. A set that
/// is replaced stays as it is until then, so that it may be the source itself.
///
/// # Errors
/// [`Error::Usage`] for options that cannot be met; [`Error::Io`] when a file cannot be
/// read or written (a full disk, say); [`Error::Sample`], [`Error::Decode`], [`Error::TooLarge`] or
/// [`Error::Io`] for an image that cannot be used, with [`OnBadImage::Stop`];
/// [`Error::TooManyBad`] when none can.
pub fn pack(
    source: &dyn Source,
    folder: &Path,
    origin: &str,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed> {
    check(options)?;
    let labels = (0..source.len()).map(|i| source.label(i)).collect::<Result<Vec<_>>>()?;
    // The manifest counts the samples of each class up to the largest label.
    if let Some(i) = labels.iter().position(|label| label.is_some_and(|n| n > MAX_LABEL)) {
        let (name, label) = (source.name(i), labels[i].unwrap_or_default());
        return Err(Error::Usage(format!("{name}: label {label}, expected 0 to {MAX_LABEL}")));
    }
    let order = select(&labels, &options.selection)?;
    if order.is_empty() {
        return Err(Error::Usage(format!("{origin}: the selection leaves no samples")));
    }
    let plan = plan(folder, options);
    let jobs = divide(source, &order, plan.samples_per_shard, options.on_bad)?;
    let mut writer = SetWriter::new(plan, options.overwrite)?;
    let mut skipped = Vec::new();
    let (mut done, total) = (0, order.len() as u64);
    progress(Progress { unit: "samples", done, total, bytes: 0 });
    in_order(
        options.threads,
        jobs.len(),
        Worker::default,
        |worker, job| worker.run(source, &order[jobs[job].clone()], options),
        |job, packed| {
            let (segments, left_out) = packed?;
            segments.iter().try_for_each(|segment| writer.push(segment))?;
            skipped.extend(left_out);
            done += jobs[job].len() as u64;
            progress(Progress { unit: "samples", done, total, bytes: writer.written() });
            Ok(())
        },
    )?;
    if skipped.len() as u64 == total {
        let cause = format!("{origin}: no image can be used; the first: {}", skipped[0]);
        return Err(Error::TooManyBad(cause));
    }
    if writer.renamed() > 0 {
        tracing::warn!(
            "{origin}: {} samples had the key of the sample before them and got another (`KEY-2`)",
            writer.renamed()
        );
    }
    let made = serde_json::json!({ "tool": TOOL, "source": origin, "options": options, "left_out": skipped.len() });
    let (manifest_path, manifest) = writer.finish(source.classes(), made)?;
    Ok(Packed { manifest_path, manifest, skipped })
}

fn check(options: &PackOptions) -> Result<()> {
    let prefix = &options.prefix;
    let plain =
        !prefix.is_empty() && !prefix.starts_with('.') && !prefix.contains(['/', '\\', '\0']);
    if !plain {
        return Err(Error::Usage(format!(
            "prefix {prefix:?}: it must be the beginning of a file name"
        )));
    }
    if options.samples_per_shard == Some(0) || options.bytes_per_shard == Some(0) {
        return Err(Error::Usage("a shard cannot hold 0 samples or bytes".to_owned()));
    }
    let levels = zstd::compression_level_range();
    if options.zstd.is_some_and(|level| !levels.contains(&level)) {
        return Err(Error::Usage(format!(
            "levels of zstd go from {} (fastest) to {} (smallest)",
            levels.start(),
            levels.end()
        )));
    }
    Ok(())
}

fn bytes_per_shard(options: &PackOptions) -> u64 {
    let unlimited =
        if options.samples_per_shard.is_some() { u64::MAX } else { DEFAULT_SHARD_BYTES };
    options.bytes_per_shard.unwrap_or(unlimited)
}

fn plan(folder: &Path, options: &PackOptions) -> SetPlan {
    SetPlan {
        folder: folder.to_owned(),
        prefix: options.prefix.clone(),
        samples_per_shard: options.samples_per_shard.unwrap_or(u64::MAX),
        bytes_per_shard: bytes_per_shard(options),
        zstd: options.zstd,
    }
}

/// Cuts the order into jobs that end where shards of `per_shard` samples do.
fn divide(
    source: &dyn Source,
    order: &[usize],
    per_shard: u64,
    on_bad: OnBadImage,
) -> Result<Vec<std::ops::Range<usize>>> {
    let mut jobs = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (at, &sample) in order.iter().enumerate() {
        let image_bytes = match source.bytes(sample) {
            // Loading it meets the same, and lists it.
            Err(error) if on_bad == OnBadImage::Skip && is_of_one_image(&error) => 0,
            known => known.map_err(|error| named(error, source, sample))?,
        };
        bytes = bytes.saturating_add(image_bytes);
        let end = at + 1;
        if end - start >= JOB_SAMPLES
            || bytes >= JOB_BYTES
            || (end as u64).is_multiple_of(per_shard)
            || end == order.len()
        {
            jobs.push(start..end);
            (start, bytes) = (end, 0);
        }
    }
    Ok(jobs)
}

/// What a packing thread keeps between jobs.
#[derive(Default)]
struct Worker {
    scratch: ReadScratch,
    sample: Loaded,
    decoder: Decoder,
    builder: Option<SegmentBuilder>,
}

impl Worker {
    fn run(
        &mut self,
        source: &dyn Source,
        job: &[usize],
        options: &PackOptions,
    ) -> Result<(Vec<Segment>, Vec<String>)> {
        let builder = match &mut self.builder {
            Some(builder) => builder,
            empty => empty.insert(SegmentBuilder::new(options.zstd, bytes_per_shard(options))?),
        };
        let mut skipped = Vec::new();
        for &i in job {
            let sample = &mut self.sample;
            let prepared = source
                .load(i, &mut self.scratch, sample)
                .and_then(|()| options.recode.apply(&mut sample.image, &mut self.decoder))
                .and_then(|kind| builder.check(sample).map(|()| kind));
            match prepared {
                Ok(kind) => builder.push(sample, kind)?,
                Err(error) => {
                    let skip = options.on_bad == OnBadImage::Skip && is_of_one_image(&error);
                    let error = named(error, source, i);
                    if !skip {
                        return Err(error);
                    }
                    skipped.push(error.to_string());
                }
            }
        }
        Ok((builder.finish()?, skipped))
    }
}

/// Whether an error tells of an image that cannot be used: damage, or a file that may not be read.
/// That is no damage where all of a shard would be passed over; here the image alone is, and it is
/// listed with the reason. What would befall any image (too many open files, a server that is gone)
/// is none: the set would lack images at random.
fn is_of_one_image(error: &Error) -> bool {
    let refused = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
    error.is_damage() || matches!(error, Error::Io { source, .. } if refused(source))
}

/// An error of decoding does not know whose bytes they were, one of reading which list named the
/// file.
fn named(error: Error, source: &dyn Source, i: usize) -> Error {
    match (error, source.listed(i)) {
        (Error::Decode(cause), _) => Error::Decode(format!("{}: {cause}", source.name(i))),
        (Error::TooLarge(cause), _) => Error::TooLarge(format!("{}: {cause}", source.name(i))),
        (Error::Io { path, source: cause }, Some(place)) => {
            Error::io(path, std::io::Error::new(cause.kind(), format!("{cause}; {place}")))
        }
        (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_is_at_fault_for_damage_and_for_what_may_not_be_read() {
        use std::io::ErrorKind;
        let of_one = |error: std::io::Error| is_of_one_image(&Error::io("a.jpg", error));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::NotFound, ErrorKind::UnexpectedEof] {
            assert!(of_one(kind.into()), "{kind:?}");
        }
        assert!(!of_one(ErrorKind::OutOfMemory.into()) && !of_one(ErrorKind::TimedOut.into()));
        assert!(is_of_one_image(&Error::Decode(String::new())));
    }

    #[test]
    fn shards_are_bounded_by_bytes_unless_samples_alone_are_asked_for() {
        let most = |samples_per_shard, asked| {
            let usual = PackOptions::default();
            bytes_per_shard(&PackOptions { samples_per_shard, bytes_per_shard: asked, ..usual })
        };
        assert_eq!(most(None, None), 256 << 20);
        assert_eq!(most(Some(9), None), u64::MAX);
        assert_eq!((most(None, Some(7)), most(Some(9), Some(7))), (7, 7));
    }
}
