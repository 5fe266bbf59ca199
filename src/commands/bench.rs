//! `bt-stream bench loader`: images/s of a shard set, without a network.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};
use clap::{Args, Subcommand};

use super::ConfigSource;

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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Shards that cannot be read, or a configuration that does not fit them.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        What::Loader(args) => loader(args),
    }
}

fn loader(args: LoaderArgs) -> Result<()> {
    let config = args.source.load(&[])?;
    let set = Arc::new(ShardSet::open(&args.shards, &Default::default())?);
    ensure!(args.images > 0, "--images must be at least 1");
    for &threads in &args.threads {
        let batch_size = config.train.batch_size.min(set.len());
        let loader = Loader::new(
            Arc::clone(&set),
            LoaderConfig { threads, batch_size, ..config.loader()? },
        )?;
        let epochs = args.images.div_ceil(loader.batches_per_epoch() * batch_size as u64);
        let start = Instant::now();
        let mut stream = loader.start(Position::default(), epochs)?;
        let mut images = 0;
        for batch in stream.by_ref() {
            images += batch?.size as u64;
        }
        let wall = start.elapsed();
        let stats = stream.stats().snapshot();
        let spec = loader.spec();
        let rate = images as f64 / wall.as_secs_f64();
        let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6 / images as f64;
        let (read, decode, augment) =
            (micros(stats.read), micros(stats.decode), micros(stats.augment));
        if args.json {
            let line = serde_json::json!({
                "threads": threads, "images": images, "images_per_s": rate,
                "height": spec.height, "width": spec.width, "views": spec.views,
                "read_us": read, "decode_us": decode, "augment_us": augment,
            });
            println!("{line}");
        } else {
            println!(
                "{threads:>3} threads  {rate:>8.0} images/s  {} views of {} x {}  per image: \
                 read {read:.0} us, decode {decode:.0} us, augment {augment:.0} us",
                spec.views, spec.height, spec.width
            );
        }
    }
    Ok(())
}
