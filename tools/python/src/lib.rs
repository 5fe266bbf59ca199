//! `bt_stream._native`: the pipeline's loader as Python sees it. `python/bt_stream/__init__.py` makes
//! arrays of what comes from here; nothing here knows NumPy.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use bt_pipeline::augment::{DType, Layout, Preset, ViewConfig, ViewPatch};
use bt_pipeline::shard::{OpenOptions, RemoteOptions, parse_bytes};
use bt_pipeline::stats::Stats;
use bt_pipeline::{BatchStream, Error, LoaderConfig, OnBad, Position, ShardSet, Shuffle};
use pyo3::exceptions::{PyIndexError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The pipeline's errors as Python's: misuse, the system, everything else.
fn raised(error: Error) -> PyErr {
    match &error {
        Error::Usage(_) => PyValueError::new_err(error.to_string()),
        Error::Io { .. } => PyOSError::new_err(error.to_string()),
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}

fn wrong(text: String) -> PyErr {
    PyValueError::new_err(text)
}

/// Between two looks at whether a signal came.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `body` in a thread of its own, while this one waits without the interpreter's lock and looks
/// for signals. `body` is told to give up when a handler raises, and not waited for.
fn interruptible<T: Send + 'static>(
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

/// A value that rests on threads, and the process that has them. A forked child has the value without
/// them: there it is neither used, since that would wait for ever, nor dropped.
struct Rooted<T> {
    /// Until it is dropped.
    value: Option<T>,
    process: u32,
}

impl<T> Rooted<T> {
    fn new(value: T) -> Self {
        Rooted { value: Some(value), process: std::process::id() }
    }

    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// For what needs the threads.
    fn here(&self) -> PyResult<&T> {
        if !self.is_here() {
            let text = "this loader was made in another process, whose threads are not here: \
                        make it after the fork";
            return Err(PyRuntimeError::new_err(text));
        }
        Ok(self.anywhere())
    }

    /// For what lies in memory.
    fn anywhere(&self) -> &T {
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

/// A shard set with a configuration; `start` gives streams.
#[pyclass(module = "bt_stream._native", frozen)]
struct Loader {
    inner: Rooted<bt_pipeline::Loader>,
    /// Batches whose memory Python holds.
    held: Arc<AtomicUsize>,
}

/// Batches that Python may hold in the loader's own memory: a loop holds the one before until it has
/// the next one. At least one of the loader's buffers must be free for the threads to go on.
const MOST_HELD: usize = 2;

#[pymethods]
impl Loader {
    /// `views` is TOML as under `[views]` of a configuration file.
    #[new]
    #[pyo3(signature = (shards, *, views, batch_size, threads, seed, shuffle, window, layout, dtype,
                        drop_last, rank, world, budget_mb, on_bad, max_bad, cache, cache_size))]
    fn new(
        py: Python<'_>,
        shards: String,
        views: &str,
        batch_size: usize,
        threads: usize,
        seed: u64,
        shuffle: &str,
        window: (usize, usize),
        layout: &str,
        dtype: &str,
        drop_last: bool,
        rank: usize,
        world: usize,
        budget_mb: u64,
        on_bad: &str,
        max_bad: f64,
        cache: Option<PathBuf>,
        cache_size: &str,
    ) -> PyResult<Self> {
        let config = LoaderConfig {
            threads,
            shuffle: match shuffle {
                "global" => Shuffle::Global,
                "window" => Shuffle::Window { shards: window.0, samples: window.1 },
                "none" => Shuffle::None,
                other => return Err(wrong(format!("shuffle {other:?}: global, window or none"))),
            },
            layout: match layout {
                "nchw" => Layout::Nchw,
                "nhwc" => Layout::Nhwc,
                other => return Err(wrong(format!("layout {other:?}: nchw or nhwc"))),
            },
            dtype: match dtype {
                "float32" => DType::F32,
                "uint8" => DType::U8,
                other => return Err(wrong(format!("dtype {other:?}: float32 or uint8"))),
            },
            on_bad: match on_bad {
                "skip" => OnBad::Skip,
                "stop" => OnBad::Stop,
                other => return Err(wrong(format!("on_bad {other:?}: skip or stop"))),
            },
            drop_last,
            rank,
            world,
            max_bad,
            budget_bytes: budget_mb.checked_mul(1 << 20).ok_or_else(|| {
                wrong(format!("budget_mb {budget_mb}: more than 64 bits of bytes"))
            })?,
            ..LoaderConfig::training(views_of(views)?, batch_size, seed)
        };
        let cache_bytes = parse_bytes(cache_size)
            .ok_or_else(|| wrong(format!("cache_size {cache_size:?}: bytes as in \"100GB\"")))?;
        let remote = RemoteOptions { cache, cache_bytes, ..RemoteOptions::default() };
        let options = OpenOptions { remote, ..OpenOptions::default() };
        let open = move |given_up: &Arc<AtomicBool>| -> Result<bt_pipeline::Loader, Error> {
            let set = ShardSet::open_unless(&shards, &options, given_up)?;
            bt_pipeline::Loader::new(Arc::new(set), config)
        };
        let inner = interruptible(py, open)?.map_err(raised)?;
        Ok(Loader { inner: Rooted::new(inner), held: Arc::default() })
    }

    /// Batches of an epoch.
    #[getter]
    fn batches(&self) -> u64 {
        self.inner.anywhere().batches_per_epoch()
    }

    /// Samples of the set.
    #[getter]
    fn samples(&self) -> usize {
        self.inner.anywhere().set().len()
    }

    /// Names of the classes, where a manifest lists them.
    #[getter]
    fn classes(&self) -> Vec<String> {
        self.inner.anywhere().set().classes().to_vec()
    }

    /// Shape of a full batch's view, NumPy's name of its elements, views.
    #[getter]
    fn spec(&self) -> ((usize, usize, usize, usize), &'static str, usize) {
        let spec = self.inner.anywhere().spec();
        (shape(spec, spec.size), typestr(spec.dtype), spec.views)
    }

    /// A stream without an end, from a position on.
    fn start(&self, py: Python<'_>, epoch: u64, batch: u64) -> PyResult<Stream> {
        let from = Position { epoch, batch };
        let loader = self.inner.here()?;
        let inner = py.detach(|| loader.start(from, u64::MAX)).map_err(raised)?;
        let stats = Arc::clone(inner.stats());
        let most_held = MOST_HELD.min(loader.buffers() - 1);
        let inner = Rooted::new(Mutex::new(inner));
        Ok(Stream { inner, stats, held: Arc::clone(&self.held), most_held })
    }
}

fn views_of(text: &str) -> PyResult<Vec<ViewConfig>> {
    let table: toml::Table = text.parse().map_err(|error| wrong(format!("views: {error}")))?;
    let named = |name: &str| -> PyResult<Option<toml::Value>> { Ok(table.get(name).cloned()) };
    if let Some(unknown) =
        table.keys().find(|k| !["preset", "both", "a", "b"].contains(&k.as_str()))
    {
        return Err(wrong(format!("views: no key {unknown:?}, there are preset, both, a, b")));
    }
    let preset: Preset = match named("preset")? {
        None => Preset::BarlowImagenet,
        Some(value) => value.try_into().map_err(|error| wrong(format!("preset: {error}")))?,
    };
    let patch = |name: &str| -> PyResult<ViewPatch> {
        let value = named(name)?.unwrap_or_else(|| toml::Table::new().into());
        value.try_into().map_err(|error| wrong(format!("views.{name}: {error}")))
    };
    let (both, each) = (patch("both")?, [patch("a")?, patch("b")?]);
    let patched = |(nth, view): (usize, ViewConfig)| {
        let view = both.apply(&view)?;
        each.get(nth).map_or(Ok(view.clone()), |patch| patch.apply(&view))
    };
    preset.views().into_iter().enumerate().map(patched).collect::<Result<_, _>>().map_err(raised)
}

fn shape(spec: &bt_pipeline::BatchSpec, size: usize) -> (usize, usize, usize, usize) {
    match spec.layout {
        Layout::Nchw => (size, 3, spec.height, spec.width),
        Layout::Nhwc => (size, spec.height, spec.width, 3),
    }
}

fn typestr(dtype: DType) -> &'static str {
    match dtype {
        DType::U8 => "|u1",
        _ => "<f4",
    }
}

/// Batches in the order of the epochs.
#[pyclass(module = "bt_stream._native", frozen)]
struct Stream {
    inner: Rooted<Mutex<BatchStream>>,
    /// Beside it, for whoever asks while a batch is awaited.
    stats: Arc<Stats>,
    held: Arc<AtomicUsize>,
    most_held: usize,
}

#[pymethods]
impl Stream {
    /// The next batch; waits for it without the interpreter's lock, which it takes now and then to
    /// look for signals. The batch is still to come when a handler raises.
    fn next(&self, py: Python<'_>) -> PyResult<Batch> {
        let inner = self.inner.here()?;
        let batch = py.detach(|| await_batch(inner))?;
        let data = match self.held.fetch_add(1, Ordering::Relaxed) < self.most_held {
            true => Data::Own(Rooted::new(batch), Arc::clone(&self.held)),
            false => {
                self.held.fetch_sub(1, Ordering::Relaxed);
                Data::Copied(py.detach(|| Copied::of(&batch)))
            }
        };
        Ok(Batch { data })
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
    /// Threads end with what they are at. Whoever else has Python code to run need not wait for that.
    fn drop(&mut self) {
        if self.inner.is_here() {
            let stream = self.inner.value.take();
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

/// A batch; it owns the memory of the arrays made of it.
#[pyclass(module = "bt_stream._native", frozen)]
struct Batch {
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
            size: batch.size,
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
    fn parts(&self) -> (&bt_pipeline::BatchSpec, usize, *const u8) {
        match &self.data {
            Data::Own(batch, _) => {
                let batch = batch.anywhere();
                (batch.spec(), batch.size, batch.as_bytes().as_ptr())
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

/// bt-stream's loader.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Loader>()?;
    module.add_class::<Stream>()?;
    module.add_class::<Batch>()
}
