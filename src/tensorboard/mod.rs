//! Event files that TensorBoard reads: scalars, histograms and pictures of a run, in
//! `RUN/tensorboard`.
//!
//! A file is a row of TFRecords: length (u64, little-endian), its masked CRC-32C, that many bytes
//! of an [`proto::Event`], their masked CRC-32C. Each process of a run writes a file of its own.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bt_pipeline::Image;
use prost::Message;

use crate::metrics::Line;

pub mod proto;
use proto::*;

/// The files' folder in the run's.
pub const FOLDER: &str = "tensorboard";

/// Buckets of a histogram.
const BUCKETS: usize = 30;

/// Writes one event file. A record is with the system when its call returns.
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a file in `run`'s folder for a process that goes on after `step`; what earlier
    /// processes wrote of later steps is void then.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(run: &Path, step: u64) -> Result<Self> {
        let folder = run.join(FOLDER);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let time = now();
        // TensorBoard takes files with `tfevents` in their name, in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{}", time as u64, std::process::id());
        let path = folder.join(name);
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut writer = EventWriter { file, path };
        writer.record(0, What::FileVersion("brain.Event:2".into()))?;
        let status = SessionStatus::Start.into();
        writer.record(step + 1, What::SessionLog(SessionLog { status }))?;
        Ok(writer)
    }

    /// Writes the numbers of a line of metrics.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn line(&mut self, line: &Line) -> Result<()> {
        let value = scalars(line).into_iter().map(|(tag, number)| Value {
            tag: tag.into(),
            content: Some(Content::SimpleValue(number as f32)),
        });
        self.summary(line.step, value.collect())
    }

    /// Writes how `values` are spread.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn histogram(&mut self, step: u64, tag: &str, values: &[f64]) -> Result<()> {
        let content = histogram(values).map(Content::Histo);
        self.summary(
            step,
            content.map(|c| Value { tag: tag.into(), content: Some(c) }).into_iter().collect(),
        )
    }

    /// Writes a picture.
    ///
    /// # Errors
    /// When the file cannot be written, or the picture has no pixels.
    pub fn image(&mut self, step: u64, tag: &str, image: &Image) -> Result<()> {
        let content = Content::Image(proto::Image {
            height: i32::try_from(image.height)?,
            width: i32::try_from(image.width)?,
            colorspace: 3,
            encoded_image_string: bt_pipeline::synth::encode_png(image)?,
        });
        self.summary(step, vec![Value { tag: tag.into(), content: Some(content) }])
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        match value.is_empty() {
            true => Ok(()),
            false => self.record(step, What::Summary(Summary { value })),
        }
    }

    fn record(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: i64::try_from(step)?, what: Some(what) };
        let record = framed(&event.encode_to_vec());
        self.file.write_all(&record).with_context(|| self.path.display().to_string())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A TFRecord of `data`.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// CRC-32C, rotated and shifted, as TFRecords have it: a checksum of data that may itself hold
/// checksums.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The numbers of a line under the names that TensorBoard groups by.
pub fn scalars(line: &Line) -> Vec<(&'static str, f64)> {
    let mut out: Vec<(&str, Option<f64>)> = vec![
        ("train/loss", line.loss),
        ("train/invariance", line.invariance),
        ("train/redundancy", line.redundancy),
        ("train/epoch", line.loss.map(|_| line.epoch)),
        ("correlation/on_diag", line.on_diag),
        ("correlation/off_diag", line.off_diag),
        ("rate/weights", line.lr_weights),
        ("rate/biases", line.lr_biases),
        ("speed/images_per_s", line.images_per_s),
        ("speed/wait_share", line.wait),
        ("data/bad_samples", line.bad.map(|bad| bad as f64)),
        ("accuracy/knn", line.knn),
        ("accuracy/online_probe", line.online),
    ];
    if let Some(d) = &line.diagnostics {
        out.extend([
            ("embeddings/std_mean", Some(d.std_mean)),
            ("embeddings/std_min", Some(d.std_min)),
            ("embeddings/spread", Some(d.spread)),
            ("embeddings/effective_rank", Some(d.effective_rank)),
            ("embeddings/alignment", Some(d.alignment)),
            ("embeddings/uniformity", Some(d.uniformity)),
            ("embeddings/information", Some(d.information)),
            ("embeddings/information_given_image", Some(d.information_given_image)),
        ]);
    }
    out.into_iter().filter_map(|(tag, number)| Some((tag, number?))).collect()
}

/// Counts in equal buckets from the smallest to the largest value; values that are not finite are
/// left out, and without any there is none.
fn histogram(values: &[f64]) -> Option<HistogramProto> {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() {
        return None;
    }
    // A single value has a bucket too.
    let width = ((max - min) / BUCKETS as f64).max(f64::MIN_POSITIVE);
    let mut bucket = vec![0.0; BUCKETS];
    for value in &values {
        bucket[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0;
    }
    let bucket_limit =
        (1..=BUCKETS).map(|i| if i == BUCKETS { max } else { min + i as f64 * width });
    Some(HistogramProto {
        min,
        max,
        num: values.len() as f64,
        sum: values.iter().sum(),
        sum_squares: values.iter().map(|value| value * value).sum(),
        bucket_limit: bucket_limit.collect(),
        bucket,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file, every checksum verified.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(12);
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(number(&head[8..]), masked_crc(&head[..8]));
            assert_eq!(number(&tail[length..length + 4]), masked_crc(&tail[..length]));
            events.push(Event::decode(&tail[..length]).unwrap());
            rest = &tail[length + 4..];
        }
        events
    }

    #[test]
    fn a_checksum_is_that_of_tensorflow() {
        // From a file that TensorFlow wrote: the length 24 of its first record, and the checksum.
        let length = 24u64.to_le_bytes();
        assert_eq!(masked_crc(&length).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn a_file_holds_what_was_written_and_voids_later_steps() {
        let run = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(run.path(), 6).unwrap();
        let line = Line { step: 7, loss: Some(2.5), bad: Some(3), ..Line::default() };
        writer.line(&line).unwrap();
        writer.line(&Line { step: 8, ..Line::default() }).unwrap();
        writer.histogram(9, "std", &[1.0, 2.0, f64::NAN, 2.0]).unwrap();
        let image = Image { width: 2, height: 1, pixels_hwc: vec![1, 2, 3, 4, 5, 6] };
        writer.image(9, "views", &image).unwrap();
        let events = read(&writer.path);
        assert_eq!(events.len(), 5);
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
        assert!(matches!(&events[1].what, Some(What::SessionLog(log)) if log.status == 1));
        assert_eq!(events[1].step, 7);
        let values = |event: &Event| match &event.what {
            Some(What::Summary(summary)) => summary.value.clone(),
            other => panic!("{other:?}"),
        };
        let scalars = values(&events[2]);
        let names: Vec<_> = scalars.iter().map(|value| value.tag.as_str()).collect();
        assert_eq!(names, ["train/loss", "train/epoch", "data/bad_samples"]);
        assert_eq!(scalars[0].content, Some(Content::SimpleValue(2.5)));
        let Some(Content::Histo(found)) = &values(&events[3])[0].content else { panic!() };
        assert_eq!((found.min, found.max, found.num, found.sum), (1.0, 2.0, 3.0, 5.0));
        assert_eq!((found.bucket[0], found.bucket[BUCKETS - 1]), (1.0, 2.0));
        let Some(Content::Image(found)) = &values(&events[4])[0].content else { panic!() };
        assert_eq!((found.width, found.height), (2, 1));
    }

    #[test]
    fn equal_values_fill_one_bucket_and_none_make_no_histogram() {
        let found = histogram(&[3.0; 4]).unwrap();
        assert_eq!(found.bucket.iter().sum::<f64>(), 4.0);
        assert_eq!(*found.bucket_limit.last().unwrap(), 3.0);
        assert_eq!(histogram(&[f64::NAN]), None);
    }
}
