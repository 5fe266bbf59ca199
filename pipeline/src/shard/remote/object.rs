//! One shard behind a URL: what is known of it, and its bytes, from the cache or by ranged reads.

use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::cache::{Cache, entry_name};
use super::fetch::{self, Identity};
use super::net::{given_up, is_given_up, wait, waited_since};
use super::reader::Reader;
use super::store::Target;
use super::{Remote, download};
use crate::shard::access::MappedShard;
use crate::shard::damaged;
use crate::shard::index::{Head, foreign};
use crate::shard::manifest::{ManifestShard, checksum_of};
use crate::shard::map::{Map, MapCheck};
use crate::shard::passage::Passage;
use crate::shard::zst::{SeekTable, has_table, is_zstd, table_bytes};
use crate::sync::unpoisoned;
use crate::{Error, Result};

/// Bytes that are read from the front and the end of a shard to know its form.
const ENDS: u64 = 4096;
/// How long a download that failed, or found no room, is not tried again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A shard behind a URL.
pub(crate) struct RemoteShard {
    pub(super) remote: Arc<Remote>,
    pub(super) target: Target,
    pub(super) index: Target,
    known: Option<ManifestShard>,
    identity: OnceLock<(Identity, Option<Bytes>)>,
    pub(super) head: OnceLock<Option<Head>>,
    form: OnceLock<Form>,
    slot: Mutex<Slot>,
    changed: Condvar,
    /// Read from, since the cache was last told.
    pub(super) used: AtomicBool,
}

/// The form of a shard, as its first and last bytes show it.
pub(crate) struct Form {
    pub compressed: bool,
    pub table: Option<SeekTable>,
    pub(super) head: Bytes,
    pub(super) tail: Bytes,
}

/// The shard in the cache.
#[derive(Default)]
pub(super) struct Slot {
    pub data: Option<Arc<MappedShard>>,
    pub path: PathBuf,
    /// Whether the folder was looked into.
    looked: bool,
    pub queued: bool,
    /// Mapped, and not read from yet: it stays in use until it was.
    pub unread: bool,
    /// Not to be downloaded before then.
    pub later: Option<Instant>,
}

/// What is known when a set is opened.
pub(crate) struct Survey {
    pub bytes: u64,
    /// `None` where the shard has to be read to know.
    pub samples: Option<u64>,
    pub seekable: bool,
}

impl RemoteShard {
    pub(super) fn new(
        remote: &Arc<Remote>,
        url: &str,
        known: Option<ManifestShard>,
        listed: Option<Identity>,
    ) -> Result<RemoteShard> {
        let target = remote.stores.target(url)?;
        if let (Some(known), Some(listed)) = (&known, &listed) {
            agree(known, listed, &target)?;
        }
        Ok(RemoteShard {
            remote: Arc::clone(remote),
            target,
            index: remote.stores.target(&format!("{url}.idx"))?,
            known,
            identity: listed.map_or_else(OnceLock::new, |listed| OnceLock::from((listed, None))),
            head: OnceLock::new(),
            form: OnceLock::new(),
            slot: Mutex::default(),
            changed: Condvar::new(),
            used: AtomicBool::new(false),
        })
    }

    /// The state of the object that this set reads: of the manifest's size, if there is one.
    pub fn identity(&self) -> Result<&Identity> {
        if let Some((identity, _)) = self.identity.get() {
            return Ok(identity);
        }
        let (head, identity) = self.now(fetch::range(&self.target, 0..ENDS, None))?;
        if let Some(known) = &self.known {
            agree(known, &identity, &self.target)?;
        }
        Ok(&self.identity.get_or_init(|| (identity, Some(head))).0)
    }

    /// Waits for a request.
    pub(super) fn now<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        wait(request)?.unwrap_or_else(|| Err(given_up(&self.target.path)))
    }

    /// What the set has to know; of a manifest's shard without a request.
    pub fn survey(&self, use_index: bool) -> Result<Survey> {
        if let Some(known) = &self.known {
            let (bytes, samples, seekable) = (known.bytes, Some(known.samples), known.seekable);
            return Ok(Survey { bytes, samples, seekable });
        }
        let bytes = self.identity()?.size;
        let seekable = match self.cached()? {
            Some(data) => !data.compressed || data.table.is_some(),
            None => self.form()?.seekable(),
        };
        let head = if use_index { self.index_head()? } else { None };
        if let Some(head) = head.filter(|head| head.shard_bytes != bytes) {
            return Err(foreign(&self.index.path, &self.target.path, head, bytes));
        }
        Ok(Survey { bytes, samples: head.map(|head| head.samples), seekable })
    }

    /// First and last bytes, and the seek table.
    pub fn form(&self) -> Result<&Form> {
        if let Some(form) = self.form.get() {
            return Ok(form);
        }
        let identity = self.identity()?.clone();
        let size = identity.size;
        let read = |range: Range<u64>| {
            let fetched = self.now(fetch::range(&self.target, range, Some(&identity)));
            fetched.map(|(bytes, _)| bytes)
        };
        let head = match self.identity.get().and_then(|(_, head)| head.clone()) {
            Some(head) => head,
            None => read(0..size.min(ENDS))?,
        };
        let mut tail = if size <= ENDS { head.clone() } else { read(size - ENDS..size)? };
        let compressed = is_zstd(&head);
        let mut table = None;
        if compressed && has_table(&tail) {
            let needed = table_bytes(&tail).unwrap_or(0).min(size);
            let limit = self.remote.limits.index_bytes;
            if needed > limit {
                let cause = format!("a seek table of {needed} bytes is over the limit of {limit}");
                return Err(damaged(&self.target.path, size, cause));
            }
            if needed > tail.len() as u64 {
                tail = read(size - needed..size)?;
            }
            let limits = &self.remote.limits;
            table = SeekTable::parse_end(&tail, size, &self.target.path, limits)?;
        }
        let tail = tail.slice(tail.len().saturating_sub(ENDS as usize)..);
        Ok(self.form.get_or_init(|| Form { compressed, table, head, tail }))
    }

    /// As `cached`, to be read from.
    pub fn cached_to_read(&self) -> Result<Option<Arc<MappedShard>>> {
        let data = self.cached()?;
        if data.is_some() && !self.used.swap(true, Ordering::Relaxed) {
            self.slot().unread = false;
        }
        Ok(data)
    }

    /// The shard in the cache, mapped; `None` while it is not there.
    pub fn cached(&self) -> Result<Option<Arc<MappedShard>>> {
        let Some(cache) = &self.remote.cache else { return Ok(None) };
        let mut slot = self.slot();
        if let Some(data) = &slot.data {
            return Ok(Some(Arc::clone(data)));
        }
        if slot.looked {
            return Ok(None);
        }
        drop(slot);
        let size = self.identity()?.size;
        let found = self.entry()?.and_then(|entry| cache.find(&entry, Some(size)));
        if let Some(path) = found {
            match self.adopt(path.clone()) {
                Ok(data) => return Ok(Some(data)),
                // Another process put it out of the cache since it was found.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!("not read from the cache ({}): {error}", path.display());
                    if matches!(error, Error::Shard { .. }) {
                        let _ = std::fs::remove_file(&path);
                    }
                }
            }
        }
        slot = self.slot();
        slot.looked = true;
        Ok(None)
    }

    /// Maps the finished entry at `path` and reads from it from now on.
    pub(super) fn adopt(&self, path: PathBuf) -> Result<Arc<MappedShard>> {
        let data = Map::open_for_samples(&path)
            .and_then(|map| MappedShard::new(map, &self.target.path, &self.remote.limits))
            .map(Arc::new)?;
        Cache::touch(&path);
        let mut slot = self.slot();
        (slot.data, slot.path) = (Some(Arc::clone(&data)), path);
        (slot.queued, slot.looked, slot.unread) = (false, true, true);
        drop(slot);
        self.changed.notify_all();
        Ok(data)
    }

    /// The entry's name; `None` for an object that cannot be cached.
    pub(super) fn entry(&self) -> Result<Option<String>> {
        let checksum = self.known.as_ref().map(|known| &*known.checksum);
        let entry = entry_name(&self.target.url(), self.identity()?, checksum);
        if entry.is_none() && !self.remote.uncached.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{}: not cached: the server gives neither an ETag nor a time of modification, so \
                 that nobody would notice when the object changes; naming the shards' manifest \
                 (`shard pack` writes one) would help",
                self.target.path.display()
            );
        }
        Ok(entry)
    }

    /// XXH3-64 of all bytes, where a manifest tells it.
    pub(super) fn checksum(&self) -> Option<u64> {
        checksum_of(&self.known.as_ref()?.checksum)
    }

    pub(super) fn slot(&self) -> MutexGuard<'_, Slot> {
        unpoisoned(self.slot.lock())
    }

    /// Notes that a download came to nothing.
    pub(super) fn not_now(&self) {
        let mut slot = self.slot();
        (slot.queued, slot.later) = (false, Some(Instant::now() + PATIENCE));
        drop(slot);
        self.changed.notify_all();
    }

    /// Has the shard downloaded into the cache, in the background. Costs nothing to ask again.
    pub fn want_cached(self: &Arc<Self>) {
        let Some(cache) = &self.remote.cache else { return };
        let mut slot = self.slot();
        // What is not known yet the download finds out.
        let asked = self.identity.get().is_some();
        if asked && !matches!(self.entry(), Ok(Some(_))) {
            return;
        }
        let later = slot.later.is_some_and(|later| Instant::now() < later);
        if slot.data.is_none() && !slot.queued && !later {
            slot.queued = true;
            drop(slot);
            download::enqueue(&self.remote, cache, self);
        }
    }

    /// Waits for the shard to be in the cache; false where it will not be.
    fn await_cached(self: &Arc<Self>) -> Result<bool> {
        if self.cached()?.is_some() {
            return Ok(true);
        }
        self.want_cached();
        let start = Instant::now();
        let mut slot = self.slot();
        while slot.data.is_none() && slot.queued {
            if is_given_up() {
                return Err(given_up(&self.target.path));
            }
            let look = Duration::from_millis(50);
            let waited = self.changed.wait_timeout(slot, look);
            slot = unpoisoned(waited).0;
        }
        waited_since(start);
        Ok(slot.data.is_some())
    }

    /// The shard from front to back: the entry of the cache, once it is there, or a stream.
    pub fn open(self: &Arc<Self>) -> Result<Opened> {
        if self.remote.cache.is_some()
            && self.await_cached()?
            && let Some(data) = self.cached_to_read()?
        {
            return Ok(Opened::Cached(data));
        }
        let compressed = self.form()?.compressed;
        Ok(Opened::Streamed(Reader::open(&self.target, self.identity()?)?, compressed))
    }

    /// Its file from front to back.
    pub fn bytes(self: &Arc<Self>) -> Result<Box<dyn Read + Send>> {
        Ok(match self.open()? {
            Opened::Cached(data) => Box::new(Passage::new(data.map.clone())),
            Opened::Streamed(reader, _) => Box::new(reader),
        })
    }

    /// Bytes `range` by a request of its own, now.
    pub fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let _hurry = download::Hurry::begin();
        let bytes = wait(self.request(range)?)?;
        bytes.unwrap_or_else(|| Err(given_up(&self.target.path)))
    }

    /// Bytes `range`, to be waited for; takes its turn among the requests under way.
    pub(super) fn request(
        &self,
        range: Range<u64>,
    ) -> Result<impl Future<Output = Result<Bytes>> + Send + 'static> {
        let (target, identity) = (self.target.clone(), self.identity()?.clone());
        let turns = Arc::clone(&self.remote.turns);
        Ok(async move {
            let _turn = turns.acquire().await;
            let length = range.end - range.start;
            let offset = range.start;
            let (bytes, _) = fetch::range(&target, range, Some(&identity)).await?;
            if bytes.len() as u64 != length {
                let cause = format!("{length} bytes were asked for and {} came", bytes.len());
                return Err(damaged(&target.path, offset, cause));
            }
            Ok(bytes)
        })
    }

    /// Asks the map of the cache's file.
    pub fn check(&self, check: MapCheck<'_>) -> Result<()> {
        let slot = self.slot();
        slot.data.as_ref().map_or(Ok(()), |data| check(&data.map, &slot.path))
    }

    /// As [`Map::release`], of the cache's file.
    pub fn release(&self) {
        if let Some(data) = &self.slot().data {
            data.map.release();
        }
    }
}

/// Checks the object's size against what a manifest says.
fn agree(known: &ManifestShard, is: &Identity, target: &Target) -> Result<()> {
    if known.bytes == is.size {
        return Ok(());
    }
    let cause = format!(
        "the manifest says {} bytes, the object has {}: pack anew, or name the shards without the \
         manifest",
        known.bytes, is.size
    );
    Err(damaged(&target.path, is.size, cause))
}

/// A shard opened to be read in order.
pub(crate) enum Opened {
    Cached(Arc<MappedShard>),
    /// With whether its bytes are compressed with zstd.
    Streamed(Reader, bool),
}

impl Form {
    /// Whether samples can be read in any order.
    pub fn seekable(&self) -> bool {
        !self.compressed || self.table.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{Limits, RemoteOptions};

    #[test]
    fn a_listed_object_of_another_size_than_the_manifests_is_refused_at_once() {
        let remote = Remote::new(&RemoteOptions::default(), &Limits::default()).unwrap();
        let known = ManifestShard {
            name: "a.tar".into(),
            samples: 1,
            bytes: 10,
            checksum: "xxh3:00000000000000ff".into(),
            seekable: true,
        };
        let of = |size| {
            let listed = Identity { size, etag: None, modified: 0 };
            RemoteShard::new(&remote, "http://localhost/a.tar", Some(known.clone()), Some(listed))
        };
        let shard = of(10).unwrap();
        assert_eq!(shard.checksum(), Some(255));
        assert!(shard.entry().unwrap().is_some(), "the checksum tells its state");
        let error = of(11).err().unwrap().to_string();
        assert!(error.contains("manifest says 10 bytes, the object has 11"), "{error}");
    }
}
