//! The data set that the program draws for itself, as shards: for `quickstart`, and for studies
//! that name none.

use std::path::Path;

use anyhow::Result;
use bt_pipeline::shard::{PackOptions, SynthSource, pack};
use bt_pipeline::synth::Spec;

use crate::print::progress;

/// Draws the embedded data set and packs it into `folder` as `train` and `test`.
///
/// # Errors
/// A folder that cannot be written.
pub fn draw_shards(folder: &Path, images: u64, test_images: u64, seed: u64) -> Result<()> {
    let bar = progress(images + test_images, "drawn");
    let mut before = 0;
    for (name, split, images) in [("train", 0, images), ("test", 1, test_images)] {
        let spec = Spec { images, split, seed, ..Spec::default() };
        let options = PackOptions {
            prefix: name.into(),
            samples_per_shard: Some(1000),
            overwrite: true,
            ..PackOptions::default()
        };
        let origin = format!("drawn by the program, seed {seed}, {name}");
        let source = SynthSource::new(spec)?;
        pack(&source, folder, &origin, &options, &mut |p| bar.set_position(before + p.done))?;
        before += images;
    }
    bar.finish_and_clear();
    Ok(())
}
