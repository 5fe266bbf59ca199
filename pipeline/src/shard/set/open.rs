//! Opening a set: what there is to know of each shard before any sample is read.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{OpenOptions, Shard, ShardInfo, ShardSet, warn_of};
use crate::shard::damaged;
use crate::shard::index::{Head, foreign, index_path};
use crate::shard::map::{Map, most_maps, open_regular};
use crate::shard::pattern::{Found, resolve_anywhere};
use crate::shard::remote::{self, Remote, RemoteShard, Survey};
use crate::shard::scan::{Depth, scan_map};
use crate::shard::union::is_url;
use crate::shard::zst::{self, FOOTER, is_zstd};
use crate::{Error, Result};

impl ShardSet {
    /// Opens a folder, a glob, a brace list (`train-{000000..000009}.tar.zst`) or
    /// a manifest; several, separated by whitespace or `::`, are read one after the other. With the
    /// feature `remote` any of them may be a URL: `s3://`, `gs://`, `az://`, `http://`, `https://`.
    ///
    /// What a manifest says of a shard is taken from there, what an index says
    /// from the index; a shard with neither is scanned, which takes one pass over
    /// its headers, and for `.tar.zst` one decompression.
    ///
    /// Files on disk are mapped: [`ShardSet`] says what that asks of whoever has them, and what is
    /// done to the process.
    ///
    /// # Errors
    /// [`Error::Usage`] when nothing matches, there is no sample, or a URL is given to a build
    /// without the feature; [`Error::Io`]; [`Error::Shard`] for a damaged shard, a stale manifest
    /// or an index that belongs to another shard.
    pub fn open(pattern: &str, options: &OpenOptions) -> Result<ShardSet> {
        Self::assemble(pattern, options, &|| false)
    }

    /// As [`ShardSet::open`], until another thread raises `given_up`: waits for a server end within
    /// 50 ms then, work on a file when it is done with that file.
    ///
    /// # Errors
    /// Those of [`ShardSet::open`]; [`Error::Io`] of the kind `Interrupted` when it was given up.
    pub fn open_unless(
        pattern: &str,
        options: &OpenOptions,
        given_up: &Arc<AtomicBool>,
    ) -> Result<ShardSet> {
        let is_given_up = || given_up.load(Ordering::Relaxed);
        remote::heeding(given_up, || Self::assemble(pattern, options, &is_given_up))
    }

    fn assemble(
        pattern: &str,
        options: &OpenOptions,
        is_given_up: &dyn Fn() -> bool,
    ) -> Result<ShardSet> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let (limits, remote) = (&options.limits, &options.remote);
        let found = resolve_anywhere(pattern, options.use_manifest, limits, remote)?;
        let mut set = ShardSet {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            infos: Vec::with_capacity(found.shards.len()),
            shards: Vec::with_capacity(found.shards.len()),
            samples: 0,
            in_order_only: 0,
            classes: found.classes,
            options: options.clone(),
            bytes_read: AtomicU64::new(0),
        };
        let behind = Self::survey(&found.shards, options)?;
        for (shard, remote) in found.shards.into_iter().zip(behind) {
            if is_given_up() {
                let kind = std::io::ErrorKind::Interrupted;
                let source = std::io::Error::new(kind, "opening the shards was given up");
                return Err(Error::io(&shard.path, source));
            }
            set.add(shard, remote)?;
        }
        if set.samples == 0 {
            return Err(Error::Usage(format!("`{}`: the shards hold no samples", pattern.trim())));
        }
        let files = set.shards.iter().filter(|shard| shard.remote.is_none()).count();
        if let Some(most) = most_maps().filter(|most| 2 * files > *most) {
            tracing::warn!(
                "{}: {files} shards and their indexes may want more maps of files than the {most} that \
                 this system lets a process have: `sysctl vm.max_map_count` raises that",
                pattern.trim()
            );
        }
        Ok(set)
    }

    /// Which shards are behind URLs, with what the set has to know of them.
    fn survey(found: &[Found], options: &OpenOptions) -> Result<Vec<Option<Arc<RemoteShard>>>> {
        if !found.iter().any(|found| is_url(&found.path.to_string_lossy())) {
            return Ok(vec![None; found.len()]);
        }
        let remote = Remote::new(&options.remote, &options.limits)?;
        let behind = found.iter().map(|found| remote.shard(found)).collect::<Result<Vec<_>>>()?;
        let asked: Vec<_> = behind.iter().flatten().cloned().collect();
        Remote::survey(&asked, options.use_index, options.remote.parallel)?;
        Ok(behind)
    }

    fn add(&mut self, found: Found, remote: Option<Arc<RemoteShard>>) -> Result<()> {
        let path = found.path;
        let shard = Shard::new(remote);
        if let Some(remote) = &shard.remote {
            let Survey { bytes, samples, seekable } = remote.survey(self.options.use_index)?;
            let samples = match samples {
                Some(samples) => samples,
                None => {
                    let index = self.remote_index(remote, &path)?;
                    shard.index.get_or_init(|| index).len() as u64
                }
            };
            return self.push(path, bytes, samples, seekable, shard);
        }
        let size = std::fs::metadata(&path).map(|file| file.len());
        let size = size.map_err(|e| Error::io(&path, e));
        let Some(known) = found.known else {
            let size = size?;
            let (bytes, samples) = self.count(&path, size, &shard)?;
            // One that is torn may have lost its seek table, and nobody reads it: it decides no
            // order.
            let seekable = bytes != size || is_seekable(&path)?;
            return self.push(path, bytes, samples, seekable, shard);
        };
        let agrees = size.and_then(|bytes| match known.bytes == bytes {
            true => Ok(()),
            false => {
                let cause = format!(
                    "the manifest says {} bytes, the file has {bytes}: pack anew, or remove the manifest",
                    known.bytes
                );
                Err(damaged(&path, bytes, cause))
            }
        });
        agrees.or_else(|error| self.keep_bad(error))?;
        self.push(path, known.bytes, known.samples, known.seekable, shard)
    }

    /// Lets a shard that cannot be read be, where the options say so.
    fn keep_bad(&self, error: Error) -> Result<()> {
        if !self.options.keep_bad_shards || error.is_shortage() {
            return Err(error);
        }
        tracing::warn!("{error}; its samples count as bad ones");
        Ok(())
    }

    fn push(
        &mut self,
        path: PathBuf,
        bytes: u64,
        samples: u64,
        seekable: bool,
        shard: Shard,
    ) -> Result<()> {
        let samples = usize::try_from(samples)
            .ok()
            .filter(|&samples| self.samples.checked_add(samples).is_some());
        let samples =
            samples.ok_or_else(|| damaged(&path, 0, "more samples than memory can number"))?;
        self.in_order_only += usize::from(!seekable);
        self.infos.push(ShardInfo { path, samples, first_sample: self.samples, bytes, seekable });
        self.shards.push(shard);
        self.samples += samples;
        Ok(())
    }

    /// Bytes and samples of a shard that no manifest knows.
    fn count(&self, path: &Path, bytes: u64, shard: &Shard) -> Result<(u64, u64)> {
        let index = index_path(path);
        if self.options.use_index
            && let Some(head) = Head::read(&index)?
        {
            if head.shard_bytes != bytes {
                self.keep_bad(foreign(&index, path, &head, bytes))?;
            }
            return Ok((head.shard_bytes, head.samples));
        }
        let map = Map::open(path)?;
        let scanned = scan_map(&map, path, Depth::Headers, &self.options.limits)?;
        warn_of(&scanned, path);
        Ok((bytes, shard.index.get_or_init(|| scanned.index).len() as u64))
    }
}

/// Whether a file allows random access, from its first and last bytes.
fn is_seekable(path: &Path) -> Result<bool> {
    let failed = |e| Error::io(path, e);
    let mut file = open_regular(path)?;
    let mut head = Vec::with_capacity(4);
    (&mut file).take(4).read_to_end(&mut head).map_err(failed)?;
    let mut tail = Vec::with_capacity(FOOTER);
    // Of a plain tar nothing depends on it.
    if is_zstd(&head) && file.seek(SeekFrom::End(-(FOOTER as i64))).is_ok() {
        file.read_to_end(&mut tail).map_err(failed)?;
    }
    Ok(zst::is_seekable(&head, &tail))
}
