//! `bt-stream bench loader`: images/s of a shard set, without a network.

use std::sync::Arc;

use anyhow::Result;
use bt_pipeline::augment::Layout;
use bt_pipeline::measure::{Measurement, measure_traced};
use bt_pipeline::{LoaderConfig, ShardSet};
use clap::{Args, ValueEnum};

use crate::commands::{CacheArgs, ConfigSource, TraceArgs};
use crate::config::AugmentDevice;

#[derive(Args, Debug)]
pub(super) struct LoaderArgs {
    /// A folder, a glob, a brace list or a manifest
    shards: String,
    #[command(flatten)]
    source: ConfigSource,
    #[command(flatten)]
    cache: CacheArgs,
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

pub(super) fn loader(args: LoaderArgs) -> Result<()> {
    let config = args.source.load(&args.cache.pairs())?;
    let set = Arc::new(ShardSet::open(&args.shards, &config.open_options())?);
    let batch_size = config.train.batch_size.min(set.len());
    let finish = config.augment.device;
    let mut config = LoaderConfig { batch_size, ..config.loader()? };
    if finish == AugmentDevice::Cuda {
        config = config.unfinished();
    }
    config.decode.side_index &= !args.no_side_index;
    config.layout = match args.layout {
        LayoutArg::Nchw => Layout::Nchw,
        LayoutArg::Nhwc => Layout::Nhwc,
    };
    let trace = args.trace.begin()?;
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
        print!(
            "{threads:>7} {images_per_s:>10.0} {cpu_us:>10.1} {read_us:>8.1} {decode_us:>8.1} \
             {augment_us:>8.1}"
        );
        if set.is_remote() {
            print!("   {:.1} us of waiting for the network", found.network_us);
        }
        println!();
    }
    args.trace.write(trace.as_ref())
}

fn print_head(set: &ShardSet, found: &Measurement) {
    let Measurement { views, height, width, batch, megapixels, side_index, .. } = found;
    let size = match megapixels.is_nan() {
        true => String::new(),
        false => format!(" of {megapixels:.3} megapixels on average"),
    };
    println!(
        "{} images{size}, {:.0}% with a side index; \
         {views} views of {height} x {width}, batches of {batch}",
        set.len(),
        100.0 * side_index
    );
    println!("threads   images/s   CPU us:all     read   decode  augment");
}
