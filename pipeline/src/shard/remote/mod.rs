//! Shards behind URLs (feature `remote`): how a set reads what is not on its disk.
//!
//! # Layout
//!
//! - `url`, `store`: what a URL names; the store that holds it.
//! - `net`: the one thread that talks to servers. With those of `download` the only ones that live
//!   on besides the loader's; neither touches samples. (Opening a set and its indexes takes scoped
//!   threads, which wait for requests side by side.)
//! - `retry`, `fetch`, `reader`: requests that are repeated; ranges, and streams that go on where
//!   they stopped.
//! - `list`: folders, globs and manifests behind URLs.
//! - `object`: one shard. `index`: what is in it. `read`: its samples, for the set.
//! - `expected`, `ahead`: what the loader will need next, fetched within a bound on memory.
//! - `cache`, `download`: whole shards on disk, shared by processes.
//!
//! `absent` stands in for all of it in a build without the feature.

mod ahead;
mod cache;
mod capped;
mod download;
mod expected;
mod fetch;
mod index;
mod list;
mod net;
mod object;
mod read;
mod reader;
mod retry;
/// The server of the integration tests.
#[cfg(test)]
#[path = "../../../tests/remote/server.rs"]
mod server;
mod store;
mod url;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::sync::Semaphore;

pub(crate) use ahead::Ahead;
pub(crate) use fetch::Identity;
pub(crate) use list::Lister;
pub(crate) use net::{heeding, take_waited};
pub(crate) use object::{Opened, RemoteShard, Survey};
pub(in crate::shard) use read::{Scratch, open_tar, scan};

use super::{Limits, RemoteOptions};
use crate::shard::pattern::Found;
use crate::sync::unpoisoned;
use crate::{Error, Result};

/// A piece of a shard, in memory.
pub(crate) type Block = bytes::Bytes;

/// What the shards of a set share.
pub(crate) struct Remote {
    stores: store::Stores,
    cache: Option<Arc<cache::Cache>>,
    limits: Limits,
    /// Ranged reads under way.
    turns: Arc<Semaphore>,
    shards: Mutex<Vec<Weak<RemoteShard>>>,
    downloads: OnceLock<download::Queue>,
    /// Whether entries of the cache that are in use are left there: an order that comes back to
    /// every shard at once would put out what it needs next.
    gentle: AtomicBool,
    /// Whether it was said that an object cannot be cached.
    uncached: AtomicBool,
}

/// Threads that ask for what is known of shards, at most, however many requests there may be.
const MOST_ASKING: usize = 64;

impl Remote {
    /// What the shards of a set will share. The cache's folder is made.
    pub fn new(options: &RemoteOptions, limits: &Limits) -> Result<Arc<Remote>> {
        let (bytes, timeout) = (options.cache_bytes, options.timeout);
        let open = |folder| cache::Cache::open(folder, bytes, timeout).map(Arc::new);
        Ok(Arc::new(Remote {
            stores: store::Stores::new(options, limits),
            cache: options.cache.as_deref().map(open).transpose()?,
            limits: *limits,
            // The most that a semaphore counts; more requests there are never.
            turns: Arc::new(Semaphore::new(options.parallel.clamp(1, Semaphore::MAX_PERMITS))),
            shards: Mutex::default(),
            downloads: OnceLock::new(),
            gentle: AtomicBool::new(false),
            uncached: AtomicBool::new(false),
        }))
    }

    /// The shard that was found; `None` for one on disk.
    pub fn shard(self: &Arc<Self>, found: &Found) -> Result<Option<Arc<RemoteShard>>> {
        let url = found.path.to_string_lossy();
        if !super::union::is_url(&url) {
            return Ok(None);
        }
        let known = found.known.clone();
        let shard = Arc::new(RemoteShard::new(self, &url, known, found.listed.clone())?);
        let mut shards = unpoisoned(self.shards.lock());
        shards.push(Arc::downgrade(&shard));
        Ok(Some(shard))
    }

    fn shards(&self) -> Vec<Arc<RemoteShard>> {
        let shards = unpoisoned(self.shards.lock());
        shards.iter().filter_map(Weak::upgrade).collect()
    }

    /// Asks for what the set has to know of its shards, of many at a time.
    pub fn survey(shards: &[Arc<RemoteShard>], use_index: bool, parallel: usize) -> Result<()> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let ask = &|| {
            while let Some(shard) =
                shards.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
            {
                if let Err(error) = shard.survey(use_index) {
                    *unpoisoned(failed.lock()) = Some(error);
                    next.store(shards.len(), std::sync::atomic::Ordering::Relaxed);
                }
            }
        };
        let heeded = net::heeded();
        std::thread::scope(|scope| {
            for _ in 1..parallel.min(shards.len()).min(MOST_ASKING) {
                let heeded = heeded.clone();
                let life = move || {
                    net::heed_as(heeded);
                    ask();
                };
                // Where there is no thread to be had, those that there are do it.
                if std::thread::Builder::new().spawn_scoped(scope, life).is_err() {
                    break;
                }
            }
            ask();
        });
        unpoisoned(failed.into_inner()).map_or(Ok(()), Err)
    }
}
