//! Locks whose holder has panicked.

use std::sync::LockResult;

/// What a lock gave, also after a thread has panicked while it held it.
///
/// Nothing that this crate locks is left half changed by that: it is replaced, inserted or appended
/// as a whole, or a handle that stays usable. The panic itself is told where its thread is joined;
/// a second one here would only hide it.
pub(crate) fn unpoisoned<T>(locked: LockResult<T>) -> T {
    locked.unwrap_or_else(|poisoned| poisoned.into_inner())
}
