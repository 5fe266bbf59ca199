//! The loader in a training loop of one's own: views, labels, where to resume, what limits.
//!
//! ```sh
//! cargo run --release -p bt-pipeline --example training_loop -- shards/train 64
//! ```
//!
//! Arguments: shards, batch size. What a step is worth is the mean brightness of view A, in place
//! of a network.

use std::sync::Arc;
use std::time::Instant;

use bt_pipeline::augment::Preset;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};

const EPOCHS: u64 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shards, batch_size] = &arguments[..] else {
        return Err("arguments: SHARDS BATCH_SIZE".into());
    };
    let set = Arc::new(ShardSet::open(shards, &Default::default())?);
    let views = Preset::BarlowImagenet.views();
    let loader = Loader::new(set, LoaderConfig::training(views, batch_size.parse()?, 0))?;

    // A checkpoint would hold this: with it the next process begins with the very next batch.
    let mut position = Position::default();
    let begun = Instant::now();
    let mut stream = loader.start(position, EPOCHS)?;
    for batch in &mut stream {
        // Views A of the whole batch, then its views B: [2 * size, height, width, 3].
        let batch = batch?;
        let view_a = &batch.as_f32()[..batch.as_f32().len() / 2];
        let mean = view_a.iter().sum::<f32>() / view_a.len() as f32;
        println!("epoch {} batch {}: mean {mean:+.3}", batch.epoch, batch.index);
        position = Position { epoch: batch.epoch, batch: batch.index + 1 };
        // Dropped here, its buffer goes back to the loader.
    }
    let (wall, counters) = (begun.elapsed(), stream.stats().snapshot());
    println!(
        "{} samples in {:.1} s, {} left out; limited by {}; next: {position:?}",
        counters.samples,
        wall.as_secs_f64(),
        counters.bad,
        counters.limit(wall),
    );
    Ok(())
}
