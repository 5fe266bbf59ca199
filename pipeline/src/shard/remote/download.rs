//! Fills the cache in the background: a few threads that download whole shards, in the order in
//! which they were wanted, and now and then tell the cache what is in use. They end with the set.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use xxhash_rust::xxh3::Xxh3;

use super::Remote;
use super::cache::{Cache, Lock};
use super::fetch::Identity;
use super::net::hurried;
use super::object::RemoteShard;
use super::reader::Reader;
use super::store::Target;
use crate::shard::damaged;
use crate::{Error, Result};

/// Downloads at a time.
const THREADS: usize = 2;
/// Between two reports to the cache of what is in use.
const REPORT: Duration = Duration::from_secs(3);
/// Between two looks at a lock that another process holds.
const LOOK: Duration = Duration::from_millis(100);
/// Looks at the lock for each at how far that process is, which reads the folder.
const LOOKS: u32 = 10;

/// Counts, as long as it lives, as a read that somebody waits for: downloads make way for it.
pub(super) struct Hurry(&'static AtomicUsize);

impl Hurry {
    pub fn begin() -> Hurry {
        let hurried = hurried();
        hurried.fetch_add(1, Ordering::Relaxed);
        Hurry(hurried)
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where shards wait for their download.
pub(super) type Queue = Sender<Weak<RemoteShard>>;

/// Queues a shard.
pub(super) fn enqueue(remote: &Arc<Remote>, cache: &Arc<Cache>, shard: &Arc<RemoteShard>) {
    let queue = remote.downloads.get_or_init(|| start(remote, cache));
    if queue.send(Arc::downgrade(shard)).is_err() {
        shard.not_now();
    }
}

/// Starts the threads. Without any, nothing is cached, and shards are read by ranges.
fn start(remote: &Arc<Remote>, cache: &Arc<Cache>) -> Queue {
    let (sender, queue) = unbounded();
    for nth in 0..THREADS {
        let (queue, cache, remote) = (queue.clone(), Arc::clone(cache), Arc::downgrade(remote));
        let life = move || work(&queue, &cache, &remote);
        let spawned = std::thread::Builder::new().name(format!("bt-cache-{nth}")).spawn(life);
        if let Err(error) = spawned {
            tracing::warn!("no thread to download shards: {error}");
        }
    }
    sender
}

fn work(queue: &Receiver<Weak<RemoteShard>>, cache: &Cache, remote: &Weak<Remote>) {
    loop {
        match queue.recv_timeout(REPORT) {
            Ok(shard) => one(&shard, cache, remote),
            Err(RecvTimeoutError::Timeout) => report(remote),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Downloads one shard, or finds that another process has done so.
fn one(weak: &Weak<RemoteShard>, cache: &Cache, remote: &Weak<Remote>) {
    let Some(shard) = weak.upgrade() else { return };
    let download = || download(shard, weak, cache, remote);
    // Whoever waits for the shard has to know of a panic, too.
    let outcome = catch_unwind(AssertUnwindSafe(download))
        .unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
    match outcome {
        Ok(true) => {}
        Ok(false) => drop(weak.upgrade().map(|shard| shard.not_now())),
        Err(error) => {
            let Some(shard) = weak.upgrade() else { return };
            tracing::warn!("not cached: {error}");
            shard.not_now();
        }
    }
}

/// What a download needs of its shard, which may be dropped meanwhile.
struct Wanted<'a> {
    shard: &'a Weak<RemoteShard>,
    /// Its name in the cache.
    entry: String,
    target: Target,
    identity: Identity,
    checksum: Option<u64>,
    gentle: bool,
}

impl Wanted<'_> {
    /// Whether nobody wants the shard any more.
    fn dropped(&self) -> bool {
        self.shard.strong_count() == 0
    }
}

/// False when there is no room, nobody wants the shard any more, it cannot be cached, or the
/// process that is at it stands still.
fn download(
    shard: Arc<RemoteShard>,
    weak: &Weak<RemoteShard>,
    cache: &Cache,
    remote: &Weak<Remote>,
) -> Result<bool> {
    let Some(entry) = shard.entry()? else { return Ok(false) };
    let wanted = Wanted {
        shard: weak,
        entry,
        target: shard.target.clone(),
        identity: shard.identity()?.clone(),
        checksum: shard.checksum(),
        gentle: shard.remote.gentle.load(Ordering::Relaxed),
    };
    // While it waits and loads, the set may be dropped.
    drop(shard);
    let mut reports = Reports { remote, last: None };
    let Some(_lock) = turn(&wanted, cache, &mut reports)? else { return Ok(false) };
    let cached = cache.find(&wanted.entry, Some(wanted.identity.size));
    let loaded = cached.map_or_else(|| load(&wanted, cache, &mut reports), |path| Ok(Some(path)));
    let Some(path) = loaded? else { return Ok(false) };
    weak.upgrade().map(|shard| shard.adopt(path)).transpose()?;
    Ok(true)
}

/// The entry's lock, once no other process holds it. None when nobody wants the shard any more, or
/// the one that holds it stands still.
fn turn(wanted: &Wanted<'_>, cache: &Cache, reports: &mut Reports<'_>) -> Result<Option<Lock>> {
    let (mut progress, mut since) = (None, Instant::now());
    let mut looks = 0;
    loop {
        if let Some(lock) = cache.lock(&wanted.entry)? {
            return Ok(Some(lock));
        }
        if wanted.dropped() {
            return Ok(None);
        }
        // A process that was stopped keeps its lock.
        if looks % LOOKS == 0 {
            let now = cache.progress(&wanted.entry);
            if now != progress {
                (progress, since) = (now, Instant::now());
            } else if since.elapsed() > wanted.target.options.timeout {
                tracing::warn!(
                    "{}: read past the cache: another process has begun to download it and stands still",
                    wanted.target.path.display()
                );
                return Ok(None);
            }
        }
        looks += 1;
        reports.again();
        std::thread::sleep(LOOK);
    }
}

/// Loads the object into the cache. None when there is no room, or nobody wants it any more.
fn load(wanted: &Wanted<'_>, cache: &Cache, reports: &mut Reports<'_>) -> Result<Option<PathBuf>> {
    reports.again();
    let size = wanted.identity.size;
    if let Some(limit) = cache.first_over(size) {
        tracing::warn!(
            "{}: its {size} bytes are more than the cache may hold ({limit}): shards of that size are \
             fetched anew each time they are read",
            wanted.target.path.display()
        );
    }
    let Some(mut part) = cache.begin(&wanted.entry, size, wanted.gentle)? else {
        return Ok(None);
    };
    let mut reader = Reader::open(&wanted.target, &wanted.identity)?;
    let mut hash = Xxh3::new();
    loop {
        let piece = reader.next_piece_within(REPORT)?;
        if piece.as_ref().is_some_and(|piece| piece.is_empty()) {
            break;
        }
        let piece = piece.unwrap_or_default();
        part.write(&piece)?;
        hash.update(&piece);
        reports.again();
        if wanted.dropped() {
            return Ok(None);
        }
        if hurried().load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let found = hash.digest();
    if let Some(known) = wanted.checksum.filter(|&known| known != found) {
        let cause = format!(
            "the object's checksum is xxh3:{found:016x}, the manifest says xxh3:{known:016x}"
        );
        return Err(damaged(&wanted.target.path, 0, cause));
    }
    let path = part.finish()?;
    cache.forget_stale(&wanted.entry);
    Ok(Some(path))
}

/// The reports of a thread that is busy.
struct Reports<'a> {
    remote: &'a Weak<Remote>,
    last: Option<Instant>,
}

impl Reports<'_> {
    /// Reports, where it was a while ago.
    fn again(&mut self) {
        if self.last.is_none_or(|last| last.elapsed() >= REPORT) {
            report(self.remote);
            self.last = Some(Instant::now());
        }
    }
}

/// Tells the cache what was used, and lets go of entries that were put out of it.
fn report(remote: &Weak<Remote>) {
    let Some(remote) = remote.upgrade() else { return };
    for shard in remote.shards() {
        let mut slot = shard.slot();
        if slot.data.is_none() {
            continue;
        }
        if !slot.path.exists() {
            (slot.data, slot.unread) = (None, false);
        } else if shard.used.swap(false, Ordering::Relaxed) || slot.unread {
            Cache::touch(&slot.path);
        }
    }
}
