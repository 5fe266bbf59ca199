//! `bt-stream bench loader`: images/s of a shard set, without a network; `bt-stream bench step`:
//! seconds of each part of a step, on random images.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use bt_pipeline::augment::Layout;
use bt_pipeline::measure::{Measurement, cpu_seconds, measure_traced};
use bt_pipeline::{LoaderConfig, ShardSet};
use candle_core::Tensor;
use clap::{Args, Subcommand, ValueEnum};

use super::{ConfigSource, TraceArgs};
use crate::config::RunConfig;
use crate::learner::Learner;

/// Arguments of `bt-stream bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// The loader alone: shards to batches of two views
    Loader(LoaderArgs),
    /// The training step alone, on random images: any method, any network
    Step(StepArgs),
}

#[derive(Args, Debug)]
struct StepArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// The method, as `method` in the configuration; several are measured one after another
    #[arg(long, value_delimiter = ',')]
    method: Vec<String>,
    /// Source images of a step [default: train.batch_size]
    #[arg(long)]
    batch: Option<usize>,
    /// Steps that count, after one that does not
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Print JSON, a line for each method
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct LoaderArgs {
    /// A folder, a glob, a brace list or a manifest
    shards: String,
    #[command(flatten)]
    source: ConfigSource,
    /// Numbers of worker threads to measure
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Source images to load for each measurement, at least
    #[arg(long, default_value_t = 2000)]
    images: u64,
    /// Order of a view's dimensions
    #[arg(long, default_value = "nhwc")]
    layout: LayoutArg,
    /// Decode as if the shards had no side indexes
    #[arg(long)]
    no_side_index: bool,
    #[command(flatten)]
    trace: TraceArgs,
    /// Print JSON, a line for each number of threads
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Nchw,
    Nhwc,
}

/// Runs the command.
///
/// # Errors
/// Shards that cannot be read, or a configuration that does not fit them.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Loader(args) => loader(args),
        What::Step(args) => step(args),
    }
}

/// Median wall and CPU milliseconds of each part, a line for each method.
fn step(args: StepArgs) -> Result<()> {
    // Options under `[loss]` are those of the method that is asked for.
    let first = args.method.first().map(|method| format!("method={method}"));
    let configured = args.source.load(&[first])?;
    let methods = if args.method.is_empty() { vec![configured.method.0] } else { args.method };
    let batch = args.batch.unwrap_or(configured.train.batch_size);
    ensure!(batch >= 2 && args.steps > 0, "a batch of at least 2 and at least 1 step");
    let threads = rayon::current_num_threads();
    if !args.json {
        println!(
            "batch {batch}, {threads} threads, medians: milliseconds, of CPU time in brackets"
        );
    }
    for method in methods {
        let config = args.source.load(&[Some(format!("method={method}"))])?;
        let parts = step_parts(&config, batch, args.steps)?;
        if args.json {
            let of = |(name, wall, cpu): &Part| {
                ((*name).to_owned(), serde_json::json!({ "wall_ms": wall, "cpu_ms": cpu }))
            };
            let medians: serde_json::Map<_, _> = parts.iter().map(of).collect();
            let line = serde_json::json!({
                "method": method, "batch": batch, "threads": threads, "medians": medians,
            });
            println!("{line}");
            continue;
        }
        let text = parts.iter().map(|(name, wall, cpu)| format!("{name} {wall:.1} ({cpu:.1})"));
        println!("{method:<10} {}", text.collect::<Vec<_>>().join("  "));
    }
    Ok(())
}

/// A part of a step, and its medians.
type Part = (&'static str, f64, f64);

fn step_parts(config: &RunConfig, batch: usize, steps: usize) -> Result<Vec<Part>> {
    let device = crate::train::device(&config.train.device)?;
    let (height, width) = config.views.views()?[0].out_size();
    let images = Tensor::randn(0f32, 1.0, (2 * batch, height, width, 3), &device)?;
    let mut learner = Learner::new(config, &device)?;
    let mut optimizer = config.optim.build()?;
    let mut times: [(&'static str, Vec<f64>, Vec<f64>); 5] =
        ["forward", "loss", "backward", "optimizer", "follow"]
            .map(|name| (name, Vec::new(), Vec::new()));
    for step in 0..=steps {
        let mut last = (Instant::now(), cpu_seconds());
        let mut lap = |part: usize| {
            let now = (Instant::now(), cpu_seconds());
            let (wall, cpu) = ((now.0 - last.0).as_secs_f64(), now.1 - last.1);
            last = now;
            if step > 0 {
                times[part].1.push(1e3 * wall);
                times[part].2.push(1e3 * cpu);
            }
        };
        learner.forward(&images)?;
        lap(0);
        let mut out = learner.loss()?;
        lap(1);
        learner.backward(&mut out)?;
        lap(2);
        optimizer.step(&mut learner.params(), 1e-3, 1e-3)?;
        lap(3);
        learner.follow(step as u64, steps as u64)?;
        lap(4);
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(times.into_iter().map(|(name, wall, cpu)| (name, median(wall), median(cpu))).collect())
}

fn loader(args: LoaderArgs) -> Result<()> {
    let config = args.source.load(&[])?;
    let set = Arc::new(ShardSet::open(&args.shards, &config.open_options())?);
    let batch_size = config.train.batch_size.min(set.len());
    let mut config = LoaderConfig { batch_size, ..config.loader()? };
    config.decode.side_index &= !args.no_side_index;
    config.layout = match args.layout {
        LayoutArg::Nchw => Layout::Nchw,
        LayoutArg::Nhwc => Layout::Nhwc,
    };
    let trace = args.trace.begin();
    for (nth, &threads) in args.threads.iter().enumerate() {
        let config = LoaderConfig { threads, ..config.clone() };
        let found = measure_traced(&set, config, args.images, trace.as_ref())?;
        if args.json {
            println!("{}", serde_json::to_string(&found)?);
            continue;
        }
        if nth == 0 {
            print_head(&set, &found);
        }
        let Measurement { images_per_s, cpu_us, read_us, decode_us, augment_us, .. } = found;
        println!(
            "{threads:>7} {images_per_s:>10.0} {cpu_us:>10.1} {read_us:>8.1} {decode_us:>8.1} \
             {augment_us:>8.1}"
        );
    }
    args.trace.write(trace.as_ref())
}

fn print_head(set: &ShardSet, found: &Measurement) {
    let Measurement { views, height, width, batch, megapixels, side_index, .. } = found;
    println!(
        "{} images of {megapixels:.3} megapixels on average, {:.0}% with a side index; \
         {views} views of {height} x {width}, batches of {batch}",
        set.len(),
        100.0 * side_index
    );
    println!("threads   images/s   CPU us:all     read   decode  augment");
}
