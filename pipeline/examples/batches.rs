//! Writes the bytes of batches to standard output, as the loader makes them: two views of each
//! image, f32, NCHW.
//!
//! ```sh
//! cargo run --release -p bt-pipeline --example batches -- shards/train barlow-imagenet 64 0 10 > batches.bin
//! ```
//!
//! Arguments: shards, preset, batch size, seed, batches. Other programs can compare themselves with
//! this.

use std::io::Write;

use bt_pipeline::augment::{Layout, Preset};
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shards, preset, batch_size, seed, batches] = &arguments[..] else {
        return Err("arguments: SHARDS PRESET BATCH_SIZE SEED BATCHES".into());
    };
    let preset: Preset = serde_json::from_value(preset.as_str().into())?;
    let set = ShardSet::open(shards, &Default::default())?;
    let config = LoaderConfig {
        layout: Layout::Nchw,
        ..LoaderConfig::training(preset.views(), batch_size.parse()?, seed.parse()?)
    };
    let loader = Loader::new(set.into(), config)?;
    let mut out = std::io::stdout().lock();
    for batch in loader.start(Position::default(), u64::MAX)?.take(batches.parse()?) {
        out.write_all(batch?.as_bytes())?;
    }
    Ok(())
}
