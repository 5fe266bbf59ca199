//! `bt-stream bench step`: the training step on random images, part by part.

use anyhow::{Result, bail, ensure};
use candle_core::Device;
use clap::Args;

use crate::checks::{at_least, at_most};
use crate::commands::{ConfigSource, train::set_threads};
use crate::config::{Misconfigured, RunConfig, check_batch};
use crate::device::device;
use crate::learner::{Learner, StepHooks, warm_up};
use crate::nn::Engine;
use crate::nn::cuda::Profiler;
use crate::step_bench::{StepBench, StepTimings, random_images};

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
    /// Steps before them [default: 1; 4 on a CUDA device, where algorithms are chosen in three and
    /// the fourth is recorded, so that those that count replay it]
    #[arg(long)]
    warmup: Option<usize>,
    /// Where the time of a CUDA device goes, after the figures: one more step, call by call
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// Print JSON, a line for each method
    #[arg(long)]
    json: bool,
}

/// Steps of a kind at most; no run has as many.
const MOST_STEPS: usize = 1_000_000_000;

/// Whether there is something to measure, and an end of it.
pub(super) fn check(batch: (&str, usize), warmup: usize, steps: usize) -> Result<()> {
    let check = || {
        check_batch(batch.0, batch.1)?;
        at_least("--steps", steps, 1)?;
        at_most("--steps", steps, MOST_STEPS)?;
        at_most("--warmup", warmup, MOST_STEPS)
    };
    check().map_err(|error| Misconfigured(error.to_string()).into())
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
    check(("--batch", batch), args.warmup.unwrap_or(0), args.steps)?;
    let cut = configured.train.check_micro_batches(batch);
    cut.map_err(|error| Misconfigured(error.to_string()))?;
    let device = device(&configured.train)?;
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
        ensure!(found.final_loss.is_finite(), "{method}: the loss is {}", found.final_loss);
        match args.json {
            true => print_json(method, &found),
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

fn print_json(method: &str, found: &StepTimings) {
    let of = |(name, wall, cpu): (&str, f64, f64)| {
        (name.to_owned(), serde_json::json!({ "wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu }))
    };
    let medians: serde_json::Map<_, _> = found.median_parts().into_iter().map(of).collect();
    let line = serde_json::json!({
        "method": method, "batch": found.batch, "threads": found.threads, "medians": medians,
        "wall_ms": 1e3 * found.median_wall(), "images_per_s": found.images_per_second(),
        "tflop_per_s": 1e-12 * found.flops_per_second(), "peak_mb": found.peak_mb,
    });
    println!("{line}");
}

fn print_line(method: &str, found: &StepTimings) {
    let parts = found.median_parts().into_iter();
    let text =
        parts.map(|(name, wall, cpu)| format!("{name} {:.1} ({:.1})", 1e3 * wall, 1e3 * cpu));
    println!(
        "{method:<10} {}  = {:.1} images/s, {:.3} TFLOP/s, {:.0} MB",
        text.collect::<Vec<_>>().join("  "),
        found.images_per_second(),
        1e-12 * found.flops_per_second(),
        found.peak_mb
    );
}

/// Prints where the time of one step goes.
fn profile(config: &RunConfig, batch: usize, device: &Device, profiler: &Profiler) -> Result<()> {
    let engine = Engine::of(device)?;
    let images = random_images(&engine, batch, view_size(config)?, config.train.seed)?;
    let mut learner = Learner::new(config, device)?;
    let mut optimizer = config.optim.for_run(batch)?;
    // Algorithms are chosen and buffers made in the first.
    for _ in 0..3 {
        profiler.take();
        learner.gradients(&images, StepHooks::default())?;
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
) -> Result<StepTimings> {
    let device = device(&config.train)?;
    let learner = Learner::new(config, &device)?;
    let optimizer = config.optim.for_run(batch)?;
    StepBench { learner, optimizer, batch, size: view_size(config)?, warmup, steps }.run()
}

/// Height and width of a view.
fn view_size(config: &RunConfig) -> Result<(usize, usize)> {
    Ok(config.views.views()?[0].out_size())
}
