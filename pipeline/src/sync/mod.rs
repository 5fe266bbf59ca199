//! What the loader's threads are made of: crossbeam's channels and the system's
//! threads and locks. Built with `--cfg shuttle` it is models of them instead, whose
//! schedules `tests/protocol.rs` explores.

#[cfg(shuttle)]
mod model;

#[cfg(not(shuttle))]
pub(crate) use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
#[cfg(shuttle)]
pub(crate) use model::{Receiver, Sender, bounded, unbounded};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(shuttle)]
pub(crate) use shuttle::thread::{Builder, JoinHandle};
#[cfg(not(shuttle))]
pub(crate) use std::thread::{Builder, JoinHandle};

/// What a lock gave, also after a thread has panicked while it held it.
///
/// Nothing that these crates lock is left half changed by that: it is replaced, inserted or appended
/// as a whole, or a handle that stays usable. The panic itself is told where its thread is joined; a second one here would only
/// hide it.
pub fn unpoisoned<T>(locked: std::sync::LockResult<T>) -> T {
    locked.unwrap_or_else(|poisoned| poisoned.into_inner())
}
