//! Batches in order, awaited so that signals are heard.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, TryLockError};

use bt_pipeline::BatchStream;
use bt_pipeline::stats::Stats;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::batch::Batch;
use crate::process::Rooted;
use crate::raised;

/// Batches in the order of the epochs.
#[pyclass(module = "bt_stream._native", frozen)]
pub(crate) struct Stream {
    inner: Rooted<Mutex<BatchStream>>,
    /// Beside it, for whoever asks while a batch is awaited.
    stats: Arc<Stats>,
    held: Arc<AtomicUsize>,
    most_held: usize,
}

impl Stream {
    /// `held` counts the batches of the loader's own memory that Python has, of all its streams;
    /// `most` may be.
    pub(crate) fn new(inner: BatchStream, held: &Arc<AtomicUsize>, most: usize) -> Self {
        let stats = Arc::clone(inner.stats());
        let inner = Rooted::new(Mutex::new(inner));
        Stream { inner, stats, held: Arc::clone(held), most_held: most }
    }
}

#[pymethods]
impl Stream {
    /// The next batch; waits for it without the interpreter's lock, which it takes now and then to
    /// look for signals. The batch is still to come when a handler raises.
    fn next(&self, py: Python<'_>) -> PyResult<Batch> {
        let inner = self.inner.here()?;
        let batch = py.detach(|| await_batch(inner))?;
        Ok(Batch::new(py, batch, &self.held, self.most_held))
    }

    /// Seconds of each stage and counts, so far.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let now = self.stats.snapshot();
        let out = PyDict::new(py);
        for (name, time) in [
            ("read", now.read),
            ("network", now.network),
            ("decode", now.decode),
            ("augment", now.augment),
            ("wait_for_buffer", now.feed_wait),
            ("wait_for_work", now.work_wait),
            ("wait_for_data", now.batch_wait),
        ] {
            out.set_item(name, time.as_secs_f64())?;
        }
        for (name, count) in [("samples", now.samples), ("batches", now.batches), ("bad", now.bad)]
        {
            out.set_item(name, count)?;
        }
        Ok(out)
    }
}

impl Drop for Stream {
    /// Threads end with what they are at. Whoever else has Python code to run need not wait for
    /// that.
    fn drop(&mut self) {
        if self.inner.is_here() {
            let stream = self.inner.take();
            // At the interpreter's end there is no lock to let go of.
            let _ = Python::try_attach(|py| py.detach(move || drop(stream)));
        }
    }
}

/// For a thread without the interpreter's lock.
fn await_batch(stream: &Mutex<BatchStream>) -> PyResult<bt_pipeline::Batch> {
    let failed = |text: &'static str| PyRuntimeError::new_err(text);
    let mut stream = match stream.try_lock() {
        Ok(stream) => stream,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return Err(failed("another thread waits for this loader's batch: a loader each"));
        }
    };
    // Raised from the beginning: every wait is as short as can be.
    let look = AtomicBool::new(true);
    loop {
        match stream.next_unless(&look) {
            Some(batch) => return batch.map_err(raised),
            None if stream.remaining() == 0 => return Err(failed("the stream has ended")),
            None => Python::attach(|py| py.check_signals())?,
        }
    }
}
