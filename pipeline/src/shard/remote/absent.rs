//! A build without the feature `remote`: there are no shards behind URLs, so that most of this
//! cannot be called, and what names one is told which feature is missing.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::access::{Extent, FileScratch};
use super::index::{Head, ShardIndex};
use super::map::{Map, MapCheck};
use super::pattern::{Found, NamesOf};
use super::tar::AnyTar;
use super::{Limits, RemoteOptions, Scanned, ShardSet};
use crate::{Error, Result};

/// What a thread keeps of the last read from behind a URL: nothing.
#[derive(Default)]
pub(in crate::shard) struct Scratch;

impl Scratch {
    pub fn reading_ahead(_: Option<Arc<Ahead>>) -> Self {
        Scratch
    }

    pub fn trim(&mut self) {}

    pub fn forget(&self, _: usize) {}
}

/// What a listing says of an object.
#[derive(Clone, Debug)]
pub(crate) enum Identity {}

/// Refuses URLs.
pub(crate) struct Lister;

/// Shards with the class names that their manifest gives them.
pub(crate) type Listed = Vec<(Found, NamesOf)>;

impl Lister {
    pub fn new(_: &RemoteOptions, _: &Limits) -> Self {
        Lister
    }

    pub fn find(&self, url: &str, _: bool) -> Result<Listed> {
        Err(Error::Usage(format!(
            "{url}: this build reads no shards behind URLs: build it with the feature `remote` \
             (`cargo build --release --workspace --features remote`)"
        )))
    }
}

/// What the shards of a set share: nothing.
pub(crate) struct Remote;

impl Remote {
    pub fn new(_: &RemoteOptions, _: &Limits) -> Result<Arc<Remote>> {
        Ok(Arc::new(Remote))
    }

    pub fn shard(self: &Arc<Self>, found: &Found) -> Result<Option<Arc<RemoteShard>>> {
        match found.listed {
            None => Ok(None),
            Some(ref listed) => match *listed {},
        }
    }

    pub fn survey(_: &[Arc<RemoteShard>], _: bool, _: usize) -> Result<()> {
        Ok(())
    }
}

/// What is known when a set is opened.
pub(crate) struct Survey {
    pub bytes: u64,
    pub samples: Option<u64>,
    pub seekable: bool,
}

/// There is none.
pub(crate) enum RemoteShard {}

impl RemoteShard {
    pub fn survey(&self, _: bool) -> Result<Survey> {
        match *self {}
    }

    pub fn head(&self) -> Option<&Head> {
        match *self {}
    }

    pub fn index(
        &self,
        _: &Limits,
        _: bool,
        _: impl FnOnce() -> Result<Scanned>,
    ) -> Result<ShardIndex> {
        match *self {}
    }

    pub fn bytes(self: &Arc<Self>) -> Result<Box<dyn Read + Send>> {
        match **self {}
    }

    pub fn check(&self, _: MapCheck<'_>) -> Result<()> {
        match *self {}
    }

    pub fn release(&self) {
        match *self {}
    }
}

/// There is none.
#[derive(Debug)]
pub(crate) enum Ahead {}

impl Ahead {
    pub fn heed(&self) {
        match *self {}
    }

    pub fn give_up(&self) {
        match *self {}
    }

    pub fn has_room(&self) -> bool {
        match *self {}
    }

    pub fn queue(&self, _: u64) {
        match *self {}
    }

    pub fn pump(&self, _: &ShardSet) {
        match *self {}
    }
}

/// Runs `body`, which waits for no server.
pub(crate) fn heeding<T>(_: &Arc<AtomicBool>, body: impl FnOnce() -> T) -> T {
    body()
}

/// The time that this thread waited for the network: none.
pub(crate) fn take_waited() -> Duration {
    Duration::ZERO
}

impl ShardSet {
    pub(in crate::shard) fn remote_bytes<'a>(
        &'a self,
        remote: &RemoteShard,
        _: Extent<'_>,
        _: Option<usize>,
        _: &'a mut FileScratch,
        _: &'a mut Scratch,
    ) -> Result<&'a [u8]> {
        match *remote {}
    }

    pub(crate) fn ahead(&self, _: u64, _: bool) -> Option<Arc<Ahead>> {
        None
    }

    pub(crate) fn open_indexes(&self, ahead: &Ahead) {
        match *ahead {}
    }
}

pub(in crate::shard) fn open_tar(
    remote: &Arc<RemoteShard>,
    _: &Path,
    _: &Limits,
) -> Result<(AnyTar, Option<Map>)> {
    match **remote {}
}

pub(in crate::shard) fn scan(remote: &Arc<RemoteShard>, _: &Path, _: &Limits) -> Result<Scanned> {
    match **remote {}
}
