//! One batch's memory, and the array interface to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bt_pipeline::augment::{DType, Layout};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::process::Rooted;

/// A batch; it owns the memory of the arrays made of it.
#[pyclass(module = "bt_stream._native", frozen)]
pub(crate) struct Batch {
    data: Data,
}

/// A batch's memory: the loader's own, or, where Python holds enough of that already, a copy. So a
/// list of batches never stops the loader's threads.
enum Data {
    Own(Rooted<bt_pipeline::Batch>, Arc<AtomicUsize>),
    Copied(Copied),
}

struct Copied {
    spec: bt_pipeline::BatchSpec,
    size: usize,
    epoch: u64,
    index: u64,
    labels: Vec<u32>,
    samples: Vec<u64>,
    /// As u64, for the alignment of f32.
    bytes: Vec<u64>,
}

impl Copied {
    fn of(batch: &bt_pipeline::Batch) -> Self {
        let words = batch.as_bytes().chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        Copied {
            spec: *batch.spec(),
            size: batch.size(),
            epoch: batch.epoch,
            index: batch.index,
            labels: batch.labels.clone(),
            samples: batch.samples.clone(),
            bytes: words.collect(),
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Data::Own(_, held) = self {
            held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Batch {
    /// `batch` in the loader's own memory where Python holds (`held`) fewer than `most` of these,
    /// else a copy.
    pub(crate) fn new(
        py: Python<'_>,
        batch: bt_pipeline::Batch,
        held: &Arc<AtomicUsize>,
        most: usize,
    ) -> Self {
        if held.fetch_add(1, Ordering::Relaxed) < most {
            return Batch { data: Data::Own(Rooted::new(batch), Arc::clone(held)) };
        }
        held.fetch_sub(1, Ordering::Relaxed);
        Batch { data: Data::Copied(py.detach(|| Copied::of(&batch))) }
    }

    fn parts(&self) -> (&bt_pipeline::BatchSpec, usize, *const u8) {
        match &self.data {
            Data::Own(batch, _) => {
                let batch = batch.anywhere();
                (batch.spec(), batch.size(), batch.as_bytes().as_ptr())
            }
            Data::Copied(copy) => (&copy.spec, copy.size, copy.bytes.as_ptr().cast()),
        }
    }
}

#[pymethods]
impl Batch {
    /// Epoch and number within it.
    #[getter]
    fn place(&self) -> (u64, u64) {
        match &self.data {
            Data::Own(batch, _) => (batch.anywhere().epoch, batch.anywhere().index),
            Data::Copied(copy) => (copy.epoch, copy.index),
        }
    }

    /// Classes; -1 where there is none.
    #[getter]
    fn labels(&self) -> Vec<i64> {
        let labels = match &self.data {
            Data::Own(batch, _) => &batch.anywhere().labels,
            Data::Copied(copy) => &copy.labels,
        };
        let signed = |label: &u32| match *label {
            bt_pipeline::Batch::NO_LABEL => -1,
            label => i64::from(label),
        };
        labels.iter().map(signed).collect()
    }

    /// Places of the samples in the set.
    #[getter]
    fn samples(&self) -> Vec<u64> {
        match &self.data {
            Data::Own(batch, _) => batch.anywhere().samples.clone(),
            Data::Copied(copy) => copy.samples.clone(),
        }
    }

    /// Whether the memory is the loader's own.
    #[getter]
    fn is_own(&self) -> bool {
        matches!(self.data, Data::Own(..))
    }

    /// View `view` as NumPy's array interface, version 3.
    fn interface<'py>(&self, py: Python<'py>, view: usize) -> PyResult<Bound<'py, PyDict>> {
        let (spec, size, data) = self.parts();
        if view >= spec.views {
            return Err(PyIndexError::new_err(format!("view {view} of {}", spec.views)));
        }
        let offset = view * size * spec.view_len() * spec.dtype.size();
        let out = PyDict::new(py);
        out.set_item("version", 3)?;
        out.set_item("shape", shape(spec, size))?;
        out.set_item("typestr", typestr(spec.dtype))?;
        // Writable: the memory is Python's until the batch is let go.
        out.set_item("data", (data as usize + offset, false))?;
        Ok(out)
    }
}

pub(crate) fn shape(spec: &bt_pipeline::BatchSpec, size: usize) -> (usize, usize, usize, usize) {
    match spec.layout {
        Layout::Nchw => (size, 3, spec.height, spec.width),
        Layout::Nhwc => (size, spec.height, spec.width, 3),
    }
}

pub(crate) fn typestr(dtype: DType) -> &'static str {
    match dtype {
        DType::U8 => "|u1",
        _ => "<f4",
    }
}
