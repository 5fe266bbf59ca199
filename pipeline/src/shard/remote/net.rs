//! The thread that talks to servers, and how other threads wait for it.
//!
//! One thread drives all requests of the process (a tokio runtime without worker threads); it
//! copies bytes and does nothing else. Whoever waits for it may be told to give up, by a loader's
//! [`Cancel`] or by a caller's flag, and the time that was waited is kept apart for each thread, so
//! that the loader's counters tell the network from reading.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ptr::{from_ref, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::{Error, Result};

/// What one process has of the network. A forked child finds its parent's, but not the thread: it
/// makes its own.
struct Net {
    process: u32,
    handle: OnceLock<Result<Handle, std::io::Error>>,
    hurried: AtomicUsize,
}

/// This process' own. Without a lock, which another thread might hold at the moment of a fork.
fn net() -> &'static Net {
    static NET: AtomicPtr<Net> = AtomicPtr::new(null_mut());
    let process = std::process::id();
    loop {
        let found = NET.load(Ordering::Acquire);
        // SAFETY: it is null, or was leaked below and is never freed.
        if let Some(net) = unsafe { found.as_ref() }.filter(|net| net.process == process) {
            return net;
        }
        // One that comes too late stays unused: a few bytes.
        let (handle, hurried) = (OnceLock::new(), AtomicUsize::new(0));
        let own: &Net = Box::leak(Box::new(Net { process, handle, hurried }));
        let own = from_ref(own).cast_mut();
        let _ = NET.compare_exchange(found, own, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// How many reads of this process somebody waits for at this moment.
pub(super) fn hurried() -> &'static AtomicUsize {
    &net().hurried
}

/// The runtime that requests run on.
pub(crate) fn handle() -> Result<&'static Handle> {
    let started = net().handle.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let life = move || runtime.block_on(std::future::pending::<()>());
        std::thread::Builder::new().name("bt-net".into()).spawn(life)?;
        Ok(handle)
    });
    started.as_ref().map_err(|e| Error::system("the network's thread", copy(e)))
}

fn copy(error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), error.to_string())
}

/// Tells all that wait, once and for good, to give up.
#[derive(Clone, Debug)]
pub(crate) struct Cancel(watch::Sender<bool>);

impl Default for Cancel {
    fn default() -> Self {
        Cancel(watch::Sender::new(false))
    }
}

impl Cancel {
    /// From now on nobody waits.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was called.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    async fn cancelled(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|&cancelled| cancelled).await;
    }
}

/// Between two looks at a caller's flag.
const LOOK: Duration = Duration::from_millis(50);

/// What tells a thread to give up its waits.
#[derive(Clone)]
pub(super) enum Heeded {
    Loader(Cancel),
    Caller(Arc<AtomicBool>),
}

impl Heeded {
    fn is_raised(&self) -> bool {
        match self {
            Heeded::Loader(cancel) => cancel.is_cancelled(),
            Heeded::Caller(flag) => flag.load(Ordering::Relaxed),
        }
    }

    async fn raised(&self) {
        match self {
            Heeded::Loader(cancel) => cancel.cancelled().await,
            Heeded::Caller(_) => {
                while !self.is_raised() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }
}

thread_local! {
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static HEEDED: RefCell<Option<Heeded>> = const { RefCell::new(None) };
}

/// From now on this thread gives up its waits when `cancel` says so.
pub(super) fn heed(cancel: &Cancel) {
    heed_as(Some(Heeded::Loader(cancel.clone())));
}

/// What this thread heeds, for [`heed_as`] of one that works for it.
pub(super) fn heeded() -> Option<Heeded> {
    HEEDED.with_borrow(Option::clone)
}

/// From now on this thread heeds what another one does.
pub(super) fn heed_as(heeded: Option<Heeded>) {
    HEEDED.set(heeded);
}

/// Runs `body`, in which this thread gives up its waits when `flag` is raised.
pub(crate) fn heeding<T>(flag: &Arc<AtomicBool>, body: impl FnOnce() -> T) -> T {
    let before = HEEDED.replace(Some(Heeded::Caller(Arc::clone(flag))));
    let outcome = body();
    HEEDED.set(before);
    outcome
}

/// Whether this thread was told to give up.
pub(super) fn is_given_up() -> bool {
    HEEDED.with_borrow(|heeded| heeded.as_ref().is_some_and(Heeded::is_raised))
}

/// The time that this thread waited for the network since it was last asked.
pub(crate) fn take_waited() -> Duration {
    WAITED.take()
}

/// Counts the time since `start` as waiting for the network.
pub(super) fn waited_since(start: Instant) {
    WAITED.set(WAITED.get() + start.elapsed());
}

/// Waits for `future`; `None` when the thread was told to give up. Not for use on the network's
/// own thread.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> Result<Option<T>> {
    let handle = handle()?;
    let start = Instant::now();
    let heeded = heeded();
    let outcome = handle.block_on(async {
        match &heeded {
            None => Some(future.await),
            Some(heeded) => tokio::select! {
                biased;
                () = heeded.raised() => None,
                value = future => Some(value),
            },
        }
    });
    waited_since(start);
    Ok(outcome)
}

/// The error of a wait that was given up.
pub(super) fn given_up(path: &std::path::Path) -> Error {
    let kind = std::io::ErrorKind::Interrupted;
    Error::io(path, std::io::Error::new(kind, "the wait for the network was given up"))
}
