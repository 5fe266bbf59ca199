//! What waits in a thread beside the interpreter, and what a fork leaves behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bt_pipeline::Error;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::raised;

/// Between two looks at whether a signal came.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `body` in a thread of its own, while this one waits without the interpreter's lock and
/// looks for signals. `body` is told to give up when a handler raises, and not waited for.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    body: impl FnOnce(&Arc<AtomicBool>) -> T + Send + 'static,
) -> PyResult<T> {
    let given_up = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = channel();
    let told = Arc::clone(&given_up);
    std::thread::Builder::new()
        .name("bt-open".into())
        .spawn(move || drop(sender.send(body(&told))))
        .map_err(|error| raised(Error::io("thread bt-open", error)))?;
    let waited = py.detach(move || {
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) => Python::attach(|py| py.check_signals())?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err("the thread bt-open panicked"));
                }
            }
        }
    });
    waited.inspect_err(|_| given_up.store(true, Ordering::Relaxed))
}

/// A value that rests on threads, and the process that has them. A forked child has the value
/// without them: there it is neither used, since that would wait for ever, nor dropped.
pub(crate) struct Rooted<T> {
    /// Until it is dropped.
    value: Option<T>,
    process: u32,
}

impl<T> Rooted<T> {
    pub(crate) fn new(value: T) -> Self {
        Rooted { value: Some(value), process: std::process::id() }
    }

    pub(crate) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// For what needs the threads.
    pub(crate) fn here(&self) -> PyResult<&T> {
        if !self.is_here() {
            let text = "this loader was made in another process, whose threads are not here: \
                        make it after the fork";
            return Err(PyRuntimeError::new_err(text));
        }
        Ok(self.anywhere())
    }

    /// To drop it in a place of one's choice.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.value.take()
    }

    /// For what lies in memory.
    pub(crate) fn anywhere(&self) -> &T {
        self.value.as_ref().expect("taken by drop alone")
    }
}

impl<T> Drop for Rooted<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}
