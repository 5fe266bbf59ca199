//! `bt-pipeline`: image shards in, batches of augmented views out.
//!
//! Data flows one way: shard -> sample -> image -> views -> batch. This crate
//! knows neither a tensor library nor a command line.
//!
//! # Layout, in the order of the flow
//!
//! - [`shard`]: the tar shard format: index, manifest, reader, writer.
//! - [`decode`], [`jpeg`]: encoded bytes to an RGB [`Image`].
//! - [`augment`], [`kernel`]: an image to its views.
//! - [`synth`]: the embedded data set.
//! - [`rng`]: every random draw, keyed by (seed, epoch, sample, view).

pub mod augment;
pub mod decode;
mod error;
mod image_rgb;
pub mod jpeg;
pub mod kernel;
pub mod rng;
pub mod shard;
pub mod synth;

pub use error::{Error, Result};
pub use image_rgb::Image;
