//! Shard files, their indexes and the manifest, written from segments in
//! order. The files get their names when all of them are whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::atomic::AtomicFile;
use super::index::{IndexBuilder, fingerprint, index_path};
use super::manifest::{Manifest, ManifestShard, checksum_text};
use super::map::Map;
use super::segment::{Segment, SegmentBuilder};
use super::staging::{Staging, manifest_name};
use super::zst::{seek_table, seek_table_bytes};
use crate::{Error, Result};

/// How samples are divided over shards, and what these are called.
#[derive(Clone, Debug)]
pub(crate) struct SetPlan {
    pub folder: PathBuf,
    pub prefix: String,
    /// A shard ends before the sample that would exceed either.
    pub samples_per_shard: u64,
    pub bytes_per_shard: u64,
    pub zstd: Option<i32>,
}

impl SetPlan {
    fn shard_name(&self, number: usize) -> String {
        let kind = if self.zstd.is_some() { "tar.zst" } else { "tar" };
        format!("{}-{number:06}.{kind}", self.prefix)
    }
}

struct OpenShard {
    name: String,
    file: AtomicFile,
    index: IndexBuilder,
    /// Compressed and decompressed bytes of each frame.
    frames: Vec<(u32, u32)>,
    tar_bytes: u64,
    last: LastKey,
}

/// The key written last. Neighbours of one key would be read as one sample, and keys are often
/// given once a shard only: samples that a selection or a shuffle puts side by side may have the
/// same.
#[derive(Clone, Default)]
struct LastKey {
    /// As its sample had it, and as it was written; empty at the beginning of a shard.
    asked: String,
    written: String,
    /// How many in a row had it.
    times: u32,
}

impl LastKey {
    /// Another key for the sample that comes next, where it cannot keep its own: `KEY-2`.
    fn next(&mut self, key: &str) -> Option<String> {
        if self.times == 0 || (key != self.asked && key != self.written) {
            *self = LastKey { asked: key.to_owned(), written: key.to_owned(), times: 1 };
            return None;
        }
        if key != self.asked {
            (self.asked, self.times) = (key.to_owned(), 1);
        }
        self.times += 1;
        self.written = format!("{}-{}", self.asked, self.times);
        Some(self.written.clone())
    }

    /// The segment as it is written behind that key.
    fn apart<'a>(&mut self, segment: &'a Segment, zstd: Option<i32>) -> Result<Cow<'a, Segment>> {
        let keys: Vec<_> = segment.samples.iter().map(|sample| self.next(&sample.key)).collect();
        if keys.iter().all(Option::is_none) {
            return Ok(Cow::Borrowed(segment));
        }
        Ok(Cow::Owned(segment.with_keys(&keys, zstd)?))
    }
}

/// Writes one set of shards.
pub(crate) struct SetWriter {
    plan: SetPlan,
    end: Segment,
    open: Option<OpenShard>,
    /// Behind the open file, which lies in it.
    staging: Staging,
    shards: Vec<ManifestShard>,
    /// Samples of each label.
    counts: BTreeMap<u32, u64>,
    /// Bytes in finished files.
    finished_bytes: u64,
    /// Samples that got another key.
    renamed: u64,
}

impl SetWriter {
    /// Begins a set in `plan.folder`, which is made if need be. A set that it replaces stays
    /// until `finish`.
    ///
    /// # Errors
    /// Those of [`Staging::begin`].
    pub fn new(plan: SetPlan, overwrite: bool) -> Result<Self> {
        std::fs::create_dir_all(&plan.folder).map_err(|e| Error::io(&plan.folder, e))?;
        let staging = Staging::begin(&plan.folder, &plan.prefix, overwrite)?;
        let end = SegmentBuilder::end(plan.zstd)?;
        Ok(SetWriter {
            plan,
            end,
            open: None,
            staging,
            shards: Vec::new(),
            counts: BTreeMap::new(),
            finished_bytes: 0,
            renamed: 0,
        })
    }

    /// Appends a segment to the shard it belongs to. A sample whose key is that of the sample
    /// before it gets another.
    pub fn push(&mut self, segment: &Segment) -> Result<()> {
        if let Some(open) = &self.open {
            let mut last = open.last.clone();
            let apart = last.apart(segment, self.plan.zstd)?;
            let samples = (open.index.len() + apart.samples.len()) as u64;
            let bytes = open.file.written() + apart.bytes.len() as u64 + self.end_bytes(open);
            if samples <= self.plan.samples_per_shard && bytes <= self.plan.bytes_per_shard {
                return self.append(segment, &apart, last);
            }
            self.finish_shard()?;
        }
        self.open = Some(self.create()?);
        let mut last = LastKey::default();
        let apart = last.apart(segment, self.plan.zstd)?;
        self.append(segment, &apart, last)
    }

    /// What follows one more segment at the end of the open shard.
    fn end_bytes(&self, open: &OpenShard) -> u64 {
        // The table has that segment's frame and the frame of the archive's end, too.
        let table = self.plan.zstd.map_or(0, |_| seek_table_bytes(open.frames.len() + 2));
        self.end.bytes.len() as u64 + table
    }

    /// Appends a segment, as it is apart from its neighbour, to the open shard.
    fn append(&mut self, asked: &Segment, segment: &Segment, last: LastKey) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.last = last;
        let pairs = asked.samples.iter().zip(&segment.samples);
        self.renamed += pairs.filter(|(asked, written)| asked.key != written.key).count() as u64;
        for sample in &segment.samples {
            let mut entry = sample.entry;
            entry.offset += open.tar_bytes;
            entry.start += open.tar_bytes;
            open.index.push(&sample.key, &entry)?;
            open.index.attach_side_index(&sample.side_index);
            if let Some(label) = entry.label {
                *self.counts.entry(label).or_default() += 1;
            }
        }
        open.append(segment)
    }

    fn create(&self) -> Result<OpenShard> {
        let number = self.shards.len();
        if number > 999_999 {
            return Err(Error::Usage("more than 1,000,000 shards: let them be larger".to_owned()));
        }
        let name = self.plan.shard_name(number);
        let file = self.staging.create(&name)?;
        Ok(OpenShard {
            name,
            file,
            index: IndexBuilder::default(),
            frames: Vec::new(),
            tar_bytes: 0,
            last: LastKey::default(),
        })
    }

    /// Ends the open shard and its index.
    pub fn finish_shard(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.append(&self.end)?;
        if self.plan.zstd.is_some() {
            open.file.write(&seek_table(&open.frames))?;
        }
        let path = self.plan.folder.join(&open.name);
        let index_name = index_path(Path::new(&open.name)).to_string_lossy().into_owned();
        let map = Map::of(open.file.flushed()?).map_err(|e| Error::io(&path, e))?;
        let index = open.index.finish(open.file.written(), fingerprint(map.as_ref()));
        drop(map);
        self.shards.push(ManifestShard {
            samples: open.index.len() as u64,
            bytes: open.file.written(),
            checksum: checksum_text(open.file.checksum()),
            seekable: true,
            name: open.name,
        });
        self.finished_bytes += open.file.written();
        open.file.commit()?;
        self.staging.write_all(&index_name, &index)
    }

    /// Samples so far that got another key than they had.
    pub fn renamed(&self) -> u64 {
        self.renamed
    }

    /// Bytes written so far, in all shards.
    pub fn written(&self) -> u64 {
        self.finished_bytes + self.open.as_ref().map_or(0, |open| open.file.written())
    }

    /// Ends the set with its manifest, which tells that it is whole, and puts it in place.
    pub fn finish(
        mut self,
        classes: &[String],
        made: serde_json::Value,
    ) -> Result<(PathBuf, Manifest)> {
        self.finish_shard()?;
        let classes = Manifest::listed(classes, &self.counts);
        let manifest = Manifest::new(self.shards, classes, made);
        let name = manifest_name(&self.plan.prefix);
        self.staging.write_all(&name, manifest.to_json().as_bytes())?;
        let path = self.staging.publish()?;
        Ok((path, manifest))
    }
}

impl OpenShard {
    fn append(&mut self, segment: &Segment) -> Result<()> {
        self.file.write(&segment.bytes)?;
        // Both fit: `segment` refuses larger frames.
        self.frames.push((segment.bytes.len() as u32, segment.tar_bytes as u32));
        self.tar_bytes += segment.tar_bytes;
        Ok(())
    }
}
