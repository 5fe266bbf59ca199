//! `bt_stream._native`: the pipeline's loader as Python sees it. `python/bt_stream/__init__.py`
//! makes arrays of what comes from here; nothing here knows NumPy.
//!
//! - `loader`: a shard set with its settings, out of Python's.
//! - `stream`: batches in order, awaited so that signals are heard.
//! - `batch`: one batch's memory, and the array interface to it.
//! - `process`: what waits beside the interpreter, and what a fork leaves behind.

use bt_pipeline::Error;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

mod batch;
mod loader;
mod process;
mod stream;

/// The pipeline's errors as Python's: misuse, the system, everything else.
fn raised(error: Error) -> PyErr {
    match &error {
        Error::Usage(_) => PyValueError::new_err(error.to_string()),
        Error::Io { .. } | Error::System { .. } => PyOSError::new_err(error.to_string()),
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}

fn wrong(text: String) -> PyErr {
    PyValueError::new_err(text)
}

/// bt-stream's loader.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<loader::Loader>()?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<batch::Batch>()
}
