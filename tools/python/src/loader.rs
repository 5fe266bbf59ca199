//! A shard set with its settings, out of Python's.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use bt_pipeline::augment::{DType, Layout, Preset, ViewConfig, ViewPatch};
use bt_pipeline::shard::{OpenOptions, RemoteOptions, parse_bytes};
use bt_pipeline::{Error, LoaderConfig, OnBad, Position, ShardSet, Shuffle};
use pyo3::prelude::*;

use crate::batch::{shape, typestr};
use crate::process::{Rooted, interruptible};
use crate::stream::Stream;
use crate::{raised, wrong};

/// A shard set with a configuration; `start` gives streams.
#[pyclass(module = "bt_stream._native", frozen)]
pub(crate) struct Loader {
    inner: Rooted<bt_pipeline::Loader>,
    /// Batches whose memory Python holds.
    held: Arc<AtomicUsize>,
}

/// Batches that Python may hold in the loader's own memory: a loop holds the one before until it
/// has the next one. At least one of the loader's buffers must be free for the threads to go on.
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
            shuffle: one_of(
                "shuffle",
                shuffle,
                [
                    ("global", Shuffle::Global),
                    ("window", Shuffle::Window { shards: window.0, samples: window.1 }),
                    ("none", Shuffle::None),
                ],
            )?,
            layout: one_of("layout", layout, [("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc)])?,
            dtype: one_of("dtype", dtype, [("float32", DType::F32), ("uint8", DType::U8)])?,
            on_bad: one_of("on_bad", on_bad, [("skip", OnBad::Skip), ("stop", OnBad::Stop)])?,
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
        Ok(Stream::new(inner, &self.held, MOST_HELD.min(loader.buffers() - 1)))
    }
}

/// What `given` names of `values`; the setting's `name` is for who gave another one.
fn one_of<T, const N: usize>(name: &str, given: &str, values: [(&str, T); N]) -> PyResult<T> {
    let mut known = values.each_ref().map(|(value, _)| *value).join(", ");
    if let Some(last) = known.rfind(", ") {
        known.replace_range(last..last + 2, " or ");
    }
    let found = values.into_iter().find(|(value, _)| *value == given);
    found.map(|(_, value)| value).ok_or_else(|| wrong(format!("{name} {given:?}: {known}")))
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
