//! The embedded data set: images drawn by the program, so that a first run
//! needs neither a download nor a folder of pictures.
//!
//! It stands before the flow: [`Spec::samples`] feeds the shard writer, and
//! from there on the images are like anybody's.
//!
//! Twelve classes are told apart by texture or by shape alone. Colours, their
//! polarity, positions, scale, some rotation, a smooth warp, lighting, a background
//! texture, scratches and noise are drawn independently of the class, so that
//! pixels and colour histograms say little about it. Shapes come as scatterings of
//! many of one kind, and colours and polarity change within an image: two random
//! crops have the class in common and little else, which is what makes it learnable
//! from pairs of views.
//!
//! What was tried and lost: textures turned by any angle, weaker contrast and shapes
//! that differ in their corners alone (squares, stars); a small network then needs
//! far more steps than a first run has. Without warp and patches raw pixels find
//! stripes by their phase.
//!
//! The pixels are a pure function of (seed, split, index, side). Only IEEE
//! basic operations and square roots are used, no `sin` or `exp` of a platform's
//! library, so the bits are the same on every machine.

mod color;
mod noise;
mod scene;
mod shape;
mod texture;

use crate::{Error, Image, Result};

/// The classes' names; a label is an index into them.
pub const CLASSES: [&str; 12] = [
    "stripes",
    "discs",
    "checks",
    "triangles",
    "zigzag",
    "crosses",
    "bricks",
    "cells",
    "layers",
    "ripples",
    "grid",
    "blotches",
];

/// What to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// How many images.
    pub images: u64,
    /// How many classes, 2 to 12: the first ones of [`CLASSES`].
    pub classes: usize,
    /// Width and height in pixels, 16 to 1024.
    pub side: usize,
    /// The seed of every draw.
    pub seed: u64,
    /// Images of different splits are different draws: 0 for training, 1 for
    /// testing, by convention.
    pub split: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Spec { images: 6000, classes: CLASSES.len(), side: 48, seed: 0, split: 0 }
    }
}

/// One image of the data set with its place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynthSample {
    /// A key for the shard: `000042`.
    pub key: String,
    /// Index into [`CLASSES`].
    pub label: u32,
    /// The pixels.
    pub image: Image,
}

impl Spec {
    /// # Errors
    /// [`Error::Usage`] when a field is out of range.
    pub fn check(&self) -> Result<()> {
        if !(2..=CLASSES.len()).contains(&self.classes) {
            return Err(Error::Usage(format!(
                "the embedded data set has 2 to {} classes, not {}",
                CLASSES.len(),
                self.classes
            )));
        }
        if !(16..=1024).contains(&self.side) {
            return Err(Error::Usage(format!(
                "the side of a drawn image is 16 to 1024 pixels, not {}",
                self.side
            )));
        }
        Ok(())
    }

    /// The names of the classes in the order of their labels.
    pub fn class_names(&self) -> Vec<String> {
        CLASSES.iter().take(self.classes).map(|name| (*name).to_owned()).collect()
    }

    /// The label of image `i`: classes take turns, so every prefix is balanced.
    ///
    /// # Panics
    /// When there are no classes, which [`Spec::check`] refuses.
    pub fn label(&self, i: u64) -> u32 {
        (i % self.classes as u64) as u32
    }

    /// The images in order, drawn one at a time.
    ///
    /// # Errors
    /// [`Error::Usage`] when a field is out of range.
    pub fn samples(&self) -> Result<impl Iterator<Item = SynthSample> + Send + '_> {
        self.check()?;
        Ok((0..self.images).map(|i| {
            let (image, label) = draw(self, i);
            SynthSample { key: key(i), label, image }
        }))
    }
}

/// The key of image `i` in a shard.
pub fn key(i: u64) -> String {
    format!("{i:06}")
}

/// Image `i` of `spec` and its label. `i` may lie beyond `spec.images`.
///
/// # Panics
/// When [`Spec::check`] would have refused the specification.
pub fn draw(spec: &Spec, i: u64) -> (Image, u32) {
    let label = spec.label(i);
    (scene::draw(spec, i, label as usize), label)
}

/// `image` as the bytes of a PNG file.
///
/// # Errors
/// [`Error::Usage`] when the image has no pixels, or not as many as its sides say.
pub fn encode_png(image: &Image) -> Result<Vec<u8>> {
    use image::ImageEncoder as _;
    let sides = u32::try_from(image.width).ok().zip(u32::try_from(image.height).ok());
    // The encoder asserts what it is not asked.
    let Some((width, height)) = sides.filter(|_| image.is_whole()) else {
        let Image { width, height, pixels_hwc } = image;
        let bytes = pixels_hwc.len();
        let text = format!("cannot write a PNG of {width} x {height} pixels from {bytes} bytes");
        return Err(Error::Usage(text));
    };
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(&image.pixels_hwc, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|cause| Error::Usage(format!("cannot write a PNG: {cause}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
