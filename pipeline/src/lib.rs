//! `bt-pipeline`: image shards in, batches of augmented views out.
//!
//! Data flows one way: shard -> sample -> image -> views -> batch. This crate
//! knows neither a tensor library nor a command line.
//!
//! # Layout, in the order of the flow
//!
//! - [`shard`]: the tar shard format: index, manifest, reader, writer.
//! - [`decode`], [`jpeg`], [`dct`]: encoded bytes to an RGB [`Image`].
//! - [`augment`], [`kernel`]: an image to its views.
//! - `order`: (seed, epoch) to the order of the samples.
//! - [`Level`]: which instruction set runs.
//! - `feeder`, `streaming`, `scout`, `lent`, `worker`, `batch`, `run`: tasks, views, buffers, threads.
//! - [`Loader`], [`BatchStream`], [`memory`], [`stats`]: what the user holds.
//! - [`trace`]: what each thread did when.
//! - [`measure`]: how fast all of this is.
//! - [`synth`]: the embedded data set.
//! - `bit_io`: bit fields, as side indexes and re-coded images are packed.
//! - [`rng`]: every random draw, keyed by (seed, epoch, sample, view).

// A result that holds one is unwrapped by whoever expects an error.
#![warn(missing_debug_implementations)]

pub mod augment;
mod batch;
mod bit_io;
pub mod dct;
pub mod decode;
mod error;
mod feeder;
mod image_rgb;
pub mod jpeg;
pub mod kernel;
mod lent;
mod level;
mod loader;
pub mod measure;
pub mod memory;
mod order;
pub mod rng;
mod run;
mod scout;
mod scratch;
pub mod shard;
pub mod stats;
mod streaming;
mod sync;
pub mod synth;
pub mod trace;
mod worker;

pub use batch::{Batch, BatchSpec};
pub use error::{Error, Result, is_damage, printable};
pub use image_rgb::Image;
pub use level::Level;
pub use loader::{Finish, Loader, LoaderConfig, MOST_THREADS, OnBad, Position};
pub use order::Shuffle;
pub use run::BatchStream;
pub use shard::ShardSet;
pub use sync::unpoisoned;

// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
