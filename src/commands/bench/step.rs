//! `bt-stream bench step`: the training step on random images, part by part.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use bt_pipeline::measure::cpu_seconds;
use candle_core::{Device, Tensor};
use clap::Args;

use super::median;
use crate::commands::{ConfigSource, train::set_threads};
use crate::config::{Misconfigured, RunConfig};
use crate::learner::{Learner, warm_up};
use crate::nn::Engine;
use crate::nn::cuda::Profiler;

#[derive(Args, Debug)]
pub(super) struct StepArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// The method, as `method` in the configuration; several are measured one after another
    #[arg(long, value_delimiter = ',')]
    method: Vec<String>,
    /// Source images of a step [default: train.batch_size]
    #[arg(long)]
    batch: Option<usize>,
    /// Steps that count
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Steps before them [default: 1; 4 on a CUDA device, where algorithms are chosen in three and the
    /// fourth is recorded, so that those that count replay it]
    #[arg(long)]
    warmup: Option<usize>,
    /// Where the time of a CUDA device goes, after the figures: one more step, call by call
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// Print JSON, a line for each method
    #[arg(long)]
    json: bool,
}

/// What was measured of a method's step; medians.
pub(super) struct StepFigures {
    /// Name, wall and CPU milliseconds of each part.
    pub parts: Vec<(&'static str, f64, f64)>,
    /// Wall milliseconds of all of it.
    pub wall_ms: f64,
    pub images_per_s: f64,
    /// Of convolutions and linear layers: two operations for each multiply-add of the definition,
    /// forward and twice that backward.
    pub tflop_per_s: f64,
    /// Most memory at a time: of the device, or of the process.
    pub peak_mb: f64,
    /// Finite, or the times mean nothing.
    pub loss: f64,
}

/// Whether there is something to measure.
pub(super) fn check(batch: usize, steps: usize) -> Result<()> {
    if batch < 2 || steps == 0 {
        bail!(Misconfigured("a batch of at least 2 and at least 1 step".into()));
    }
    Ok(())
}

/// Median wall and CPU milliseconds of each part, a line for each method.
pub(super) fn step(args: StepArgs) -> Result<()> {
    let configured = match args.method.first() {
        Some(method) => args.source.load_for(method)?,
        None => args.source.load(&[])?,
    };
    set_threads(configured.train.threads)?;
    let methods = if args.method.is_empty() { vec![configured.method.0] } else { args.method };
    let batch = args.batch.unwrap_or(configured.train.batch_size);
    check(batch, args.steps)?;
    let device = crate::train::device(&configured.train)?;
    if args.profile && device.is_cpu() {
        let text = "--profile wants a CUDA device; on the CPU `perf record` knows more";
        bail!(Misconfigured(text.into()));
    }
    let warmup = args.warmup.unwrap_or(warm_up(&Engine::of(&device)?));
    let threads = rayon::current_num_threads();
    if !args.json {
        println!(
            "batch {batch}, {threads} threads, medians: milliseconds, of CPU time in brackets"
        );
    }
    for method in &methods {
        let config = args.source.load_for(method)?;
        let found = measure(&config, batch, warmup, args.steps)?;
        ensure!(found.loss.is_finite(), "{method}: the loss is {}", found.loss);
        match args.json {
            true => print_json(method, batch, &found),
            false => print_line(method, &found),
        }
    }
    if args.profile
        && let Some(profiler) = Engine::profiled(&device)?
    {
        for method in &methods {
            let config = args.source.load_for(method)?;
            profile(&config, batch, &device, &profiler)?;
        }
    }
    Ok(())
}

fn print_json(method: &str, batch: usize, found: &StepFigures) {
    let of = |(name, wall, cpu): &(&str, f64, f64)| {
        ((*name).to_owned(), serde_json::json!({ "wall_ms": wall, "cpu_ms": cpu }))
    };
    let medians: serde_json::Map<_, _> = found.parts.iter().map(of).collect();
    let line = serde_json::json!({
        "method": method, "batch": batch, "threads": rayon::current_num_threads(), "medians": medians,
        "wall_ms": found.wall_ms, "images_per_s": found.images_per_s,
        "tflop_per_s": found.tflop_per_s, "peak_mb": found.peak_mb,
    });
    println!("{line}");
}

fn print_line(method: &str, found: &StepFigures) {
    let parts = found.parts.iter();
    let text = parts.map(|(name, wall, cpu)| format!("{name} {wall:.1} ({cpu:.1})"));
    println!(
        "{method:<10} {}  = {:.1} images/s, {:.3} TFLOP/s, {:.0} MB",
        text.collect::<Vec<_>>().join("  "),
        found.images_per_s,
        found.tflop_per_s,
        found.peak_mb
    );
}

/// Prints where the time of one step goes.
fn profile(config: &RunConfig, batch: usize, device: &Device, profiler: &Profiler) -> Result<()> {
    let engine = Engine::of(device)?;
    let images = random_images(&engine, batch, config)?;
    let mut learner = Learner::new(config, device)?;
    let mut optimizer = config.optim.for_run(batch)?;
    // Algorithms are chosen and buffers made in the first.
    for _ in 0..3 {
        profiler.take();
        learner.gradients(&images, &mut |_| ())?;
        optimizer.step(&mut learner.params(), 1e-3, 1e-3)?;
    }
    let lines = profiler.take();
    let all: f64 = lines.iter().map(|line| line.time.as_secs_f64()).sum();
    println!("\n{}: {:.2} ms in calls that were waited for one by one", config.method.0, 1e3 * all);
    println!("{:>8} {:>6} {:>6} {:>8}", "ms", "share", "calls", "TFLOP/s");
    for line in lines {
        let seconds = line.time.as_secs_f64();
        let rate = match line.flops {
            0.0 => String::new(),
            flops => format!("{:.1}", 1e-12 * flops / seconds),
        };
        let (ms, share) = (1e3 * seconds, 100.0 * seconds / all);
        println!("{ms:8.3} {share:5.1}% {:6} {rate:>8}  {}", line.calls, line.what);
    }
    Ok(())
}

/// Runs `warmup + steps` steps on random images.
pub(super) fn measure(
    config: &RunConfig,
    batch: usize,
    warmup: usize,
    steps: usize,
) -> Result<StepFigures> {
    let device = crate::train::device(&config.train)?;
    let engine = Engine::of(&device)?;
    // Of several methods each has its own.
    engine.forget_peak();
    let images = random_images(&engine, batch, config)?;
    let mut learner = Learner::new(config, &device)?;
    let mut optimizer = config.optim.for_run(batch)?;
    let mut times: Vec<(&'static str, Vec<f64>, Vec<f64>)> = Vec::new();
    let (mut walls, mut loss) = (Vec::new(), f64::NAN);
    for step in 0..warmup + steps {
        let begun = Instant::now();
        let mut last = (begun, cpu_seconds());
        let mut lap = |name: &'static str| {
            let now = (Instant::now(), cpu_seconds());
            let (wall, cpu) = (1e3 * (now.0 - last.0).as_secs_f64(), 1e3 * (now.1 - last.1));
            last = now;
            if step < warmup {
                return;
            }
            match times.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, walls, cpus)) => {
                    walls.push(wall);
                    cpus.push(cpu);
                }
                None => times.push((name, vec![wall], vec![cpu])),
            }
        };
        let (out, _) = learner.gradients(&images, &mut lap)?;
        optimizer.step(&mut learner.params(), 1e-3, 1e-3)?;
        engine.wait()?;
        lap("optimizer");
        learner.follow(step as u64, (warmup + steps) as u64)?;
        engine.wait()?;
        lap("follow");
        if step >= warmup {
            walls.push(1e3 * begun.elapsed().as_secs_f64());
        }
        loss = out.loss;
    }
    let wall_ms = median(walls);
    let operations = 6.0 * learner.net().multiply_adds() as f64;
    Ok(StepFigures {
        parts: times.into_iter().map(|(n, wall, cpu)| (n, median(wall), median(cpu))).collect(),
        wall_ms,
        images_per_s: 1e3 * batch as f64 / wall_ms,
        tflop_per_s: operations / wall_ms * 1e-9,
        peak_mb: engine.peak_bytes() as f64 / 1e6,
        loss,
    })
}

/// A batch's views of unit variance, `[2 * batch, height, width, channels]`, as the engine takes them.
fn random_images(engine: &Engine, batch: usize, config: &RunConfig) -> Result<Tensor> {
    let (height, width) = config.views.views()?[0].out_size();
    let host = Tensor::randn(0f32, 1.0, (2 * batch, height, width, 3), &Device::Cpu)?;
    Ok(crate::train::images_to(&host, engine)?)
}
