//! `shard synth`: the embedded data set as shards.

use std::process::ExitCode;

use bt_pipeline::shard::SynthSource;
use bt_pipeline::synth::Spec;

use super::pack::{divided, run_pack};
use crate::cli::{Split, Synth};

pub fn run(args: &Synth) -> anyhow::Result<ExitCode> {
    let (split, name) = match args.split {
        Split::Train => (0, "train"),
        Split::Test => (1, "test"),
    };
    let spec = Spec {
        images: args.images,
        classes: args.classes,
        side: args.side,
        seed: args.seed,
        split,
    };
    let origin = format!(
        "synth: {} images of {} classes, {} pixels, seed {}, {name}",
        spec.images, spec.classes, spec.side, spec.seed
    );
    let source = SynthSource::new(spec)?;
    let options = divided(args.prefix.as_deref().unwrap_or(name), &args.division);
    run_pack(&source, &args.out, &origin, &options, args.division.json)
}
