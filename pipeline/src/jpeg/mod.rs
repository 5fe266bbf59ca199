//! A decoder of Huffman-coded JPEGs, made for random crops.
//!
//! It stands between the shard reader and the augmentation: bytes and a region
//! in, an RGB [`crate::Image`] out. Huffman-coded JPEGs of 8 bits with one component
//! or three are decoded here: sequential ones of a single scan block by block,
//! progressive ones and those of several scans by way of all their coefficients.
//! For anything else [`JpegError::Unsupported`] sends the caller to a general
//! decoder.
//!
//! Pixels are those of libjpeg with its default settings (`islow` inverse DCT,
//! "fancy" upsampling), which is what Pillow gives; a region is exactly the
//! crop of the whole picture. One thing libjpeg does is not done: where a progressive
//! JPEG ends before the scans that complete its lowest AC coefficients, it smooths
//! the blocks; here, and in the general decoder, they show what was sent.
//!
//! ```no_run
//! use bt_pipeline::{Image, jpeg};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bytes = std::fs::read("photo.jpg")?;
//! let header = jpeg::Jpeg::parse(&bytes)?;
//! let mut decoder = jpeg::JpegDecoder::new();
//! let mut image = Image::default();
//! let region = jpeg::Region { left: 10, top: 20, width: 224, height: 224 };
//! decoder.decode_region_into(&header, region, None, &mut image)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! - `header`, `plan`: what the file says; which MCUs, blocks and samples a region needs.
//! - `unstuff`, `bits`, `huffman`: bytes to bits to symbols.
//! - `index`, `runs`: where decoding may begin.
//! - `entropy`: blocks of one stream, or of two in lock-step; `solo`: of one long stream;
//!   `scans`: of several scans.
//! - `pass`, `decoder`: who calls these, batch by batch.
//! - `raster`, with `idct`, `upsample`, `color` on `lanes`: coefficients to pixels.
//! - `coefficients`: all of an image at once, for [`crate::dct`].

mod bits;
mod coefficients;
mod color;
mod decoder;
mod entropy;
mod error;
mod header;
mod huffman;
mod idct;
mod index;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod lanes;
mod pass;
mod plan;
mod raster;
mod runs;
mod scans;
mod solo;
mod unstuff;
mod upsample;

pub use decoder::JpegDecoder;
pub use error::JpegError;
pub use header::{Color, Component, Jpeg};
pub use index::SideIndex;
pub use plan::Region;

// What `dct` shares: everything behind the entropy coding.
pub(crate) use coefficients::Coefficients;
pub(crate) use decoder::MAX_PIXELS;
pub(crate) use error::check_pixels;
pub(crate) use header::{ZIGZAG, next_segment};
pub(crate) use idct::Block;
pub(crate) use plan::{Grid, IN_ORDER, Plan};
pub(crate) use raster::{Raster, RasterBuffers};
