//! The embedded data set as a source: images are drawn when they are packed.

use super::{Loaded, Source};
use crate::shard::ReadScratch;
use crate::synth::{Spec, draw, encode_png, key};
use crate::{Error, Result};

/// The images of [`crate::synth`], as PNG.
#[derive(Debug)]
pub struct SynthSource {
    spec: Spec,
    images: usize,
    classes: Vec<String>,
}

impl SynthSource {
    /// The data set that `spec` describes.
    ///
    /// # Errors
    /// [`Error::Usage`] when a field is out of range.
    pub fn new(spec: Spec) -> Result<SynthSource> {
        spec.check()?;
        let images = usize::try_from(spec.images)
            .map_err(|_| Error::Usage(format!("{} images are too many", spec.images)))?;
        Ok(SynthSource { images, classes: spec.class_names(), spec })
    }
}

impl Source for SynthSource {
    fn len(&self) -> usize {
        self.images
    }

    fn label(&self, i: usize) -> Result<Option<u32>> {
        Ok(Some(self.spec.label(i as u64)))
    }

    fn bytes(&self, _: usize) -> Result<u64> {
        Ok((self.spec.side * self.spec.side * 2) as u64)
    }

    fn name(&self, i: usize) -> String {
        format!("drawn image {i}")
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, i: usize, _: &mut ReadScratch, into: &mut Loaded) -> Result<()> {
        let (image, label) = draw(&self.spec, i as u64);
        *into = Loaded {
            key: key(i as u64),
            label: Some(label),
            image: encode_png(&image)?,
            extension: "png".to_owned(),
            extras: Vec::new(),
        };
        Ok(())
    }
}
