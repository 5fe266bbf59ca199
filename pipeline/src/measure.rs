//! [`measure`]: how fast a loader is and where its time goes. What the loader's
//! benchmark and `bt-stream bench loader` print.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::stats::Stats;
use crate::trace::{Lane, Trace};
use crate::{BatchStream, Error, Loader, LoaderConfig, Position, Result, ShardSet};

/// Batches that are not counted: until then the loader's memory is fresh.
const WARM_UP: u64 = 8;

/// Samples whose sizes and side indexes are looked at, about.
const LOOKED_AT: usize = 500;

/// What [`measure`] found. Microseconds are of CPU time and for one source image.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Worker threads.
    pub threads: usize,
    /// Source images of a batch.
    pub batch: usize,
    /// Views of an image.
    pub views: usize,
    /// Of a view, in pixels.
    pub height: usize,
    /// Of a view, in pixels.
    pub width: usize,
    /// Source images that were counted.
    pub images: u64,
    /// Source images per second of wall time.
    pub images_per_s: f64,
    /// All threads, user and system, the consumer's included; NaN where the
    /// system does not tell.
    pub cpu_us: f64,
    /// The stages' shares of `cpu_us` by the time that workers spent in them.
    pub read_us: f64,
    /// Wall time that reads waited for a server, for one source image and summed over the threads.
    pub network_us: f64,
    /// See `read_us`.
    pub decode_us: f64,
    /// See `read_us`.
    pub augment_us: f64,
    /// Mean megapixels of the source images whose size the index tells; NaN where it tells none.
    pub megapixels: f64,
    /// The share of the samples for which a side index is there and used.
    pub side_index: f64,
}

/// Loads `images` source images or a few batches more from the first epoch on.
///
/// # Errors
/// What [`Loader::new`] and the stream report; [`Error::Usage`] for 0 images.
pub fn measure(set: &Arc<ShardSet>, config: LoaderConfig, images: u64) -> Result<Measurement> {
    measure_traced(set, config, images, None)
}

/// As [`measure`]; what the threads did, this one's waiting included, goes into `trace`.
///
/// # Errors
/// As [`measure`].
pub fn measure_traced(
    set: &Arc<ShardSet>,
    config: LoaderConfig,
    images: u64,
    trace: Option<&Arc<Trace>>,
) -> Result<Measurement> {
    if images == 0 {
        return Err(Error::Usage("at least one image must be measured".into()));
    }
    let (side_index, megapixels) = look_at(set, config.decode.side_index)?;
    let mut loader = Loader::new(Arc::clone(set), config)?;
    if let Some(trace) = trace {
        loader = loader.traced(trace);
    }
    let mut lane = trace.map(|trace| trace.lane("consumer"));
    let spec = *loader.spec();
    let batches = images.div_ceil(spec.size as u64);
    // Batches are taken for as long as the measurement lasts.
    let mut stream = loader.start(Position::default(), u64::MAX)?;
    take(&mut stream, lane.as_mut(), |taken, _| taken == WARM_UP)?;
    let (before, cpu, start) = (stream.stats().snapshot(), cpu_seconds(), Instant::now());
    // Those that waited at the start were made before it: what counts is what was made since.
    take(&mut stream, lane.as_mut(), |taken, stats| {
        taken >= batches && stats.snapshot().since(&before).samples >= images
    })?;
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let stats = stream.stats().snapshot().since(&before);
    let busy = (stats.read + stats.decode + stats.augment).as_secs_f64();
    let cpu_us = cpu * 1e6 / stats.samples as f64;
    let stage = |time: std::time::Duration| cpu_us * time.as_secs_f64() / busy;
    Ok(Measurement {
        threads: loader.threads(),
        batch: spec.size,
        views: spec.views,
        height: spec.height,
        width: spec.width,
        images: stats.samples,
        images_per_s: stats.samples as f64 / wall,
        cpu_us,
        read_us: stage(stats.read),
        network_us: stats.network.as_secs_f64() * 1e6 / stats.samples as f64,
        decode_us: stage(stats.decode),
        augment_us: stage(stats.augment),
        megapixels,
        side_index,
    })
}

/// Takes batches until `enough` of them, whose number it is told, were taken.
fn take(
    stream: &mut BatchStream,
    mut lane: Option<&mut Lane>,
    enough: impl Fn(u64, &Stats) -> bool,
) -> Result<()> {
    let mut taken = 0;
    while !enough(taken, stream.stats()) {
        let start = Instant::now();
        let Some(batch) = stream.next() else { break };
        batch?;
        taken += 1;
        if let Some(lane) = &mut lane {
            lane.span("wait for data", start, Instant::now());
        }
    }
    Ok(())
}

/// The share of the samples with a side index, and their mean megapixels.
fn look_at(set: &ShardSet, side_index: bool) -> Result<(f64, f64)> {
    let (mut indexed, mut pixels, mut sized, mut looked) = (0, 0, 0, 0);
    if !set.seekable() {
        return Ok((0.0, f64::NAN));
    }
    for sample in (0..set.len()).step_by((set.len() / LOOKED_AT).max(1)) {
        let meta = set.meta(sample)?;
        let size = u64::from(meta.width) * u64::from(meta.height);
        pixels += size;
        sized += u64::from(size > 0);
        indexed += u64::from(set.has_side_index(sample)?);
        looked += 1;
    }
    let share = indexed as f64 / f64::from(looked.max(1));
    Ok((if side_index { share } else { 0.0 }, pixels as f64 / sized as f64 * 1e-6))
}

/// CPU seconds of this process, threads that ended included; NaN where the system does
/// not tell.
pub fn cpu_seconds() -> f64 {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a place for the answer.
        let told = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        if told == 0 {
            return time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64;
        }
    }
    f64::NAN
}
