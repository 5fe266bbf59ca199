//! Shards that exist already as a source of new ones: members other than image
//! and label (`.json`, ...) travel along.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::{Loaded, Source};
use crate::shard::group::{Group, Groups, Keep};
use crate::shard::map::Map;
use crate::shard::tar::{SliceSource, Tar};
use crate::shard::{Limits, OpenOptions, damaged};
use crate::shard::{ReadScratch, ShardSet};
use crate::{Error, Result};

/// The images of a shard set.
#[derive(Debug)]
pub struct ShardSource {
    set: ShardSet,
    classes: Vec<String>,
    limits: Limits,
}

impl ShardSource {
    /// Opens a set as [`ShardSet::open`] does. Shards that can be read in
    /// order only are decompressed into unnamed files in `temporary`, so that
    /// they can be selected from and shuffled like any other.
    ///
    /// # Errors
    /// Those of [`ShardSet::open`], and of writing to `temporary`.
    pub fn open(pattern: &str, temporary: &Path, options: &OpenOptions) -> Result<ShardSource> {
        let mut set = ShardSet::open(pattern, options)?;
        for shard in 0..set.shards().len() {
            if !set.shards()[shard].seekable {
                let path = set.shards()[shard].path.clone();
                let map = expand(set.open_file(shard)?, &path, temporary, options)?;
                set.replace_data(shard, map)?;
            }
        }
        let classes = set.classes().to_vec();
        Ok(ShardSource { set, classes, limits: options.limits })
    }

    /// The same with names of its classes from elsewhere.
    pub(crate) fn named(self, classes: Vec<String>) -> ShardSource {
        ShardSource { classes, ..self }
    }
}

/// Decompresses a shard into a file that has no name and goes with its map.
fn expand(bytes: impl Read, shard: &Path, temporary: &Path, options: &OpenOptions) -> Result<Map> {
    let window_log = options.limits.zstd_window_log;
    std::fs::create_dir_all(temporary).map_err(|e| Error::io(temporary, e))?;
    let mut plain = tempfile::tempfile_in(temporary).map_err(|e| Error::io(temporary, e))?;
    let mut decoder = zstd::stream::read::Decoder::new(bytes).map_err(|e| Error::io(shard, e))?;
    decoder.window_log_max(window_log).map_err(|e| Error::io(shard, e))?;
    let limit = options.limits.shard_bytes;
    let mut within = decoder.take(limit.saturating_add(1));
    let copied =
        std::io::copy(&mut within, &mut plain).map_err(|e| match e.downcast::<Error>() {
            Ok(error) => error,
            // The decompressor's own errors carry no number of the system's.
            Err(e) if e.raw_os_error().is_none() => {
                damaged(shard, 0, format!("cannot be decompressed: {e}"))
            }
            Err(e) => Error::io(temporary, e),
        })?;
    if copied > limit {
        let cause = format!("more than {limit} bytes when decompressed (limit)");
        return Err(damaged(shard, limit, cause));
    }
    plain.seek(SeekFrom::Start(0)).map_err(|e| Error::io(temporary, e))?;
    Map::of(&plain).map_err(|e| Error::io(temporary, e))
}

impl Source for ShardSource {
    fn len(&self) -> usize {
        self.set.len()
    }

    fn label(&self, i: usize) -> Result<Option<u32>> {
        self.set.label(i)
    }

    fn bytes(&self, i: usize) -> Result<u64> {
        // All of the sample: its other members travel along.
        let (_, entry, _) = self.set.entry(i)?;
        Ok(entry.span.max(entry.length).into())
    }

    fn name(&self, i: usize) -> String {
        let shard = &self.set.shards()[self.set.shard_of(i)];
        match self.set.meta(i) {
            Ok(meta) => {
                format!("{}: sample `{}` at byte {}", shard.path.display(), meta.key, meta.offset)
            }
            Err(_) => shard.path.display().to_string(),
        }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, i: usize, scratch: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let (entry, blocks) = self.set.blocks(i, scratch)?;
        let path = &self.set.shards()[self.set.shard_of(i)].path;
        let tar = Tar::new(SliceSource::new(blocks), path, entry.start, self.limits);
        let mut group = Group::default();
        let found = Groups::new(tar, Keep::All).next_into(&mut group)?;
        group.check(path)?;
        let image = found.then(|| group.image_place()).flatten();
        let image = image.filter(|&image| group.parts()[image].offset == entry.offset);
        let image = image.ok_or_else(|| {
            damaged(path, entry.start, "the index names a sample here, the shard has none")
        })?;
        entry.check(&group.parts()[image].data, path, &group.key)?;
        into.extension = group.parts()[image].extension.rsplit('.').next().unwrap_or("").to_owned();
        group.swap_data(image, &mut into.image);
        into.label = entry.label;
        into.extras.clear();
        for other in (0..group.parts().len()).filter(|&other| other != image) {
            let extension = group.parts()[other].extension.clone();
            if extension != "cls" {
                let mut data = Vec::new();
                group.swap_data(other, &mut data);
                into.extras.push((extension, data));
            }
        }
        into.key = group.key;
        self.set.check(self.set.shard_of(i))
    }
}
