//! `bt-stream bench loader`: images/s of a shard set, without a network.

use std::sync::Arc;

use anyhow::Result;
use bt_pipeline::augment::Layout;
use bt_pipeline::measure::{Measurement, measure};
use bt_pipeline::{LoaderConfig, ShardSet};
use clap::{Args, Subcommand, ValueEnum};

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
    /// Order of a view's dimensions
    #[arg(long, default_value = "nhwc")]
    layout: LayoutArg,
    /// Decode as if the shards had no side indexes
    #[arg(long)]
    no_side_index: bool,
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
    }
}

fn loader(args: LoaderArgs) -> Result<()> {
    let config = args.source.load(&[])?;
    let set = Arc::new(ShardSet::open(&args.shards, &Default::default())?);
    let batch_size = config.train.batch_size.min(set.len());
    let mut config = LoaderConfig { batch_size, ..config.loader()? };
    config.decode.side_index &= !args.no_side_index;
    config.layout = match args.layout {
        LayoutArg::Nchw => Layout::Nchw,
        LayoutArg::Nhwc => Layout::Nhwc,
    };
    for (nth, &threads) in args.threads.iter().enumerate() {
        let found = measure(&set, LoaderConfig { threads, ..config.clone() }, args.images)?;
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
    Ok(())
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
