//! Re-coded images: the quantised DCT coefficients of a JPEG, losslessly packed
//! for decoding speed with random access.
//!
//! Beside `jpeg` between the shard reader and the augmentation. Huffman codes
//! are read one after the other, whatever the machine; here a block names a
//! profile, which tells how many bits its coefficients take, so that the bits of
//! many coefficients are put into place at once, and segments of a few MCUs can be
//! decoded alone. Bytes are about 1.1 times the JPEG's. `docs/dct-format.md`
//! specifies every byte.
//!
//! From the coefficients on, decoding is that of `jpeg`: the pixels are the same.
//!
//! - `book`, `segment`: profiles; which blocks a segment holds.
//! - `choose`, `pack`, `header`, `encode`: a JPEG to a re-coded image.
//! - `container`, `decode`, `decoder`: a re-coded image to pixels.
//! - `huffman`, `to_jpeg`: a re-coded image to a JPEG with the same coefficients.

mod book;
mod choose;
mod container;
mod decode;
mod decoder;
mod encode;
mod error;
mod header;
mod huffman;
mod pack;
mod segment;
mod to_jpeg;

pub use container::DctImage;
pub(crate) use container::MAGIC;
pub use decoder::DctDecoder;
pub use encode::encode;
pub(crate) use encode::encode_within;
pub use error::DctError;
pub use to_jpeg::to_jpeg;
