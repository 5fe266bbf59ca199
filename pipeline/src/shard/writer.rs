//! Shard files, their indexes and the manifest, written from segments in
//! order. Every file gets its name only when it is whole.

use std::path::{Path, PathBuf};

use super::atomic::{AtomicFile, PART, sync_folder};
use super::index::{IndexBuilder, fingerprint, index_path};
use super::manifest::{ClassCount, MANIFEST_SUFFIX, Manifest, ManifestShard};
use super::map::Map;
use super::segment::{Segment, SegmentBuilder};
use super::zst::seek_table;
use crate::{Error, Result};

/// How samples are divided over shards, and what these are called.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub folder: PathBuf,
    pub prefix: String,
    /// A shard ends before the sample that would exceed either.
    pub samples_per_shard: u64,
    pub bytes_per_shard: u64,
    pub zstd: Option<i32>,
}

impl Layout {
    fn shard_name(&self, number: usize) -> String {
        let kind = if self.zstd.is_some() { "tar.zst" } else { "tar" };
        format!("{}-{number:06}.{kind}", self.prefix)
    }

    /// Where the manifest goes.
    pub fn manifest_path(&self) -> PathBuf {
        self.folder.join(format!("{}.{MANIFEST_SUFFIX}", self.prefix))
    }

    /// Files in the folder that belong to a set of this prefix: shards, indexes, manifest, leftovers.
    fn existing(&self) -> Result<Vec<PathBuf>> {
        let belongs = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let rest = name.strip_prefix('.').unwrap_or(&name).strip_prefix(&self.prefix);
            let shard = rest.and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| {
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                digits == 6 && rest[digits..].starts_with(".tar")
            });
            let manifest = rest.is_some_and(|rest| rest.starts_with(".manifest.json"));
            (shard || manifest) && (!name.starts_with('.') || name.ends_with(PART))
        };
        Ok(super::pattern::files_in(&self.folder)?.into_iter().filter(belongs).collect())
    }
}

struct OpenShard {
    name: String,
    file: AtomicFile,
    index: IndexBuilder,
    /// Compressed and decompressed bytes of each frame.
    frames: Vec<(u32, u32)>,
    tar_bytes: u64,
}

/// Writes one set of shards.
pub(crate) struct SetWriter {
    layout: Layout,
    end: Segment,
    open: Option<OpenShard>,
    shards: Vec<ManifestShard>,
    counts: Vec<u64>,
    /// Bytes in finished files.
    finished_bytes: u64,
}

impl SetWriter {
    /// Begins a set in `layout.folder`, which is made if need be.
    ///
    /// # Errors
    /// [`Error::Usage`] when a set of that prefix is there and `overwrite` is not set.
    pub fn new(layout: Layout, overwrite: bool) -> Result<Self> {
        std::fs::create_dir_all(&layout.folder).map_err(|e| Error::io(&layout.folder, e))?;
        for path in layout.existing()? {
            let leftover = path.to_string_lossy().ends_with(PART);
            if !overwrite && !leftover {
                return Err(Error::Usage(format!(
                    "{} exists: choose another folder or prefix, or say `--overwrite`",
                    path.display()
                )));
            }
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        let end = SegmentBuilder::end(layout.zstd)?;
        Ok(SetWriter {
            layout,
            end,
            open: None,
            shards: Vec::new(),
            counts: Vec::new(),
            finished_bytes: 0,
        })
    }

    /// Appends a segment to the shard it belongs to.
    pub fn push(&mut self, segment: Segment) -> Result<()> {
        if let Some(open) = &self.open {
            let samples = (open.index.len() + segment.samples.len()) as u64;
            let bytes =
                open.file.written() + segment.bytes.len() as u64 + self.end.bytes.len() as u64;
            if samples > self.layout.samples_per_shard || bytes > self.layout.bytes_per_shard {
                self.finish_shard()?;
            }
        }
        if self.open.is_none() {
            self.open = Some(self.create()?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        for sample in &segment.samples {
            let mut entry = sample.entry;
            entry.offset += open.tar_bytes;
            entry.start += open.tar_bytes;
            open.index.push(&sample.key, &entry)?;
            open.index.attach_side_index(&sample.side_index);
            if let Some(label) = entry.label {
                let label = label as usize;
                if label >= self.counts.len() {
                    self.counts.resize(label + 1, 0);
                }
                self.counts[label] += 1;
            }
        }
        open.append(&segment)
    }

    fn create(&self) -> Result<OpenShard> {
        let number = self.shards.len();
        if number > 999_999 {
            return Err(Error::Usage("more than 1,000,000 shards: let them be larger".to_owned()));
        }
        let name = self.layout.shard_name(number);
        let file = AtomicFile::create(&self.layout.folder.join(&name))?;
        Ok(OpenShard {
            name,
            file,
            index: IndexBuilder::default(),
            frames: Vec::new(),
            tar_bytes: 0,
        })
    }

    /// Ends the open shard and gives it its name, then its index.
    pub fn finish_shard(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.append(&self.end)?;
        if self.layout.zstd.is_some() {
            open.file.write(&seek_table(&open.frames))?;
        }
        let path = self.layout.folder.join(&open.name);
        let map = Map::of(open.file.flushed()?).map_err(|e| Error::io(&path, e))?;
        let index = open.index.finish(open.file.written(), fingerprint(map.as_ref()));
        drop(map);
        self.shards.push(ManifestShard {
            samples: open.index.len() as u64,
            bytes: open.file.written(),
            checksum: format!("xxh3:{:016x}", open.file.checksum()),
            seekable: true,
            name: open.name,
        });
        self.finished_bytes += open.file.written();
        open.file.commit()?;
        AtomicFile::write_all(&index_path(&path), &index)
    }

    /// Bytes written so far, in all shards.
    pub fn written(&self) -> u64 {
        self.finished_bytes + self.open.as_ref().map_or(0, |open| open.file.written())
    }

    /// Ends the set with its manifest, which tells that it is whole.
    pub fn finish(
        mut self,
        classes: &[String],
        made: serde_json::Value,
    ) -> Result<(PathBuf, Manifest)> {
        self.finish_shard()?;
        let count = self.counts.len().max(classes.len());
        let class = |label: usize| ClassCount {
            name: classes.get(label).cloned().unwrap_or_default(),
            samples: self.counts.get(label).copied().unwrap_or(0),
        };
        let manifest = Manifest::new(self.shards, (0..count).map(class).collect(), made);
        let path = self.layout.manifest_path();
        AtomicFile::write_all(&path, manifest.to_json().as_bytes())?;
        sync_folder(folder_of(&path))?;
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

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}
