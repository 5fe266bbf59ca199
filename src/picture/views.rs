//! Samples with their views as the network gets them, for people to look at:
//! the same draws as the loader's, before normalisation.

use bt_pipeline::augment::{Augmenter, DType, Layout, ViewConfig, ViewOut};
use bt_pipeline::decode::Decoder;
use bt_pipeline::shard::{OwnedSample, ReadScratch, Sample as Encoded, ShardSet};
use bt_pipeline::{Batch, Image, LoaderConfig, Result};

/// A sample with its views.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Class or key.
    pub name: String,
    /// As it lies in the shard.
    pub original: Image,
    /// View A, view B, before normalisation.
    pub views: Vec<Image>,
}

/// Reads `wanted` samples of `set` (places in the set, rising) and draws the views
/// that `config` describes as the loader does in epoch `epoch`. A sample that
/// cannot be used is told in the second list instead.
///
/// # Errors
/// A shard that cannot be read.
pub fn draw(
    set: &ShardSet,
    wanted: &[u64],
    config: &LoaderConfig,
    epoch: u64,
) -> Result<(Vec<Sample>, Vec<String>)> {
    let mut artist = Artist {
        config,
        epoch,
        decoder: Decoder::new(config.decode),
        augmenter: Augmenter::new(),
        classes: set.classes(),
    };
    let (mut drawn, mut failed) = (Vec::new(), Vec::new());
    let mut keep = |outcome: Result<Sample>| match outcome {
        Ok(sample) => drawn.push(sample),
        Err(error) => failed.push(error.to_string()),
    };
    if set.seekable() {
        let mut scratch = ReadScratch::default();
        for place in wanted {
            let outcome = set
                .read(*place as usize, &mut scratch)
                .and_then(|encoded| artist.draw(*place, &encoded));
            keep(outcome);
        }
        return Ok((drawn, failed));
    }
    for (number, shard) in set.shards().iter().enumerate() {
        let first = shard.first_sample as u64;
        let here = first..first + shard.samples as u64;
        let Some(last) = wanted.iter().rev().find(|place| here.contains(place)) else { continue };
        let mut stream = set.stream(number)?;
        let mut owned = OwnedSample::default();
        for place in first..=*last {
            if !stream.next_into(&mut owned)? {
                break;
            }
            if wanted.binary_search(&place).is_ok() {
                keep(artist.draw(place, &owned.borrowed(&shard.path)));
            }
        }
    }
    Ok((drawn, failed))
}

/// The first `count` samples' views in a training batch, normalisation undone: a row for each view.
///
/// # Panics
/// When the batch is not `f32` or `u8` in NHWC.
pub fn of_batch(batch: &Batch, views: &[ViewConfig], count: usize) -> Vec<Vec<Image>> {
    let spec = batch.spec();
    assert_eq!(spec.layout, Layout::Nhwc);
    let len = spec.view_len();
    let image = |view: usize, slot: usize| {
        let (normalize, start) = (views[view].normalize, (view * batch.size() + slot) * len);
        let pixels_hwc = if spec.dtype == DType::U8 {
            batch.as_bytes()[start..][..len].to_vec()
        } else {
            let values = batch.as_f32()[start..][..len].iter().enumerate();
            let pixel = |(i, value): (usize, &f32)| {
                let value = value * normalize.std[i % 3] + normalize.mean[i % 3];
                (value * 255.0).round().clamp(0.0, 255.0) as u8
            };
            values.map(pixel).collect()
        };
        Image { width: spec.width, height: spec.height, pixels_hwc }
    };
    let slots = batch.size().min(count);
    (0..spec.views).map(|view| (0..slots).map(|slot| image(view, slot)).collect()).collect()
}

/// `count` places spread evenly over `0..len`, rising.
pub fn spread(count: usize, len: usize) -> Vec<u64> {
    let count = count.min(len);
    (0..count).map(|i| (i * len / count.max(1)) as u64).collect()
}

struct Artist<'a> {
    config: &'a LoaderConfig,
    epoch: u64,
    decoder: Decoder,
    augmenter: Augmenter,
    classes: &'a [String],
}

impl Artist<'_> {
    fn draw(&mut self, place: u64, encoded: &Encoded<'_>) -> Result<Sample> {
        let mut original = Image::default();
        self.decoder.decode_into(encoded.format, encoded.image, &mut original)?;
        let mut views = Vec::with_capacity(self.config.views.len());
        let drawn = self.config.draw(self.epoch, place, original.width, original.height);
        for (view, params) in self.config.views.iter().zip(drawn) {
            let (height, width) = view.out_size();
            let mut image = Image::new(width, height);
            let out = ViewOut::U8(&mut image.pixels_hwc);
            self.augmenter.apply_into(&original, view, &params, Layout::Nhwc, out)?;
            views.push(image);
        }
        let class = encoded.label.map(|label| match self.classes.get(label as usize) {
            Some(name) => name.clone(),
            None => format!("class {label}"),
        });
        let name = class.unwrap_or_else(|| encoded.key.to_owned());
        Ok(Sample { name, original, views })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bt_pipeline::augment::Preset;
    use bt_pipeline::synth::{self, Spec};
    use bt_pipeline::{Loader, Position};

    use super::*;

    #[test]
    fn what_people_are_shown_are_the_views_that_the_loader_gives() {
        let folder = tempfile::tempdir().unwrap();
        let mut tar =
            tar::Builder::new(std::fs::File::create(folder.path().join("a.tar")).unwrap());
        let spec = Spec { images: 12, side: 40, ..Spec::default() };
        for sample in 0..12 {
            let drawn = synth::draw(&spec, sample).0;
            let (mut bytes, mut ending) = (synth::encode_png(&drawn).unwrap(), "png");
            if sample % 2 == 1 {
                // Of a JPEG the loader decodes no more than its views need.
                let picture = image::RgbImage::from_raw(40, 40, drawn.pixels_hwc).unwrap();
                bytes.clear();
                picture
                    .write_with_encoder(image::codecs::jpeg::JpegEncoder::new(&mut bytes))
                    .unwrap();
                ending = "jpg";
            }
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("{sample}.{ending}"), &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap();
        let pattern = folder.path().to_string_lossy();
        let set = Arc::new(ShardSet::open(&pattern, &Default::default()).unwrap());
        let config = LoaderConfig::training(Preset::BarlowCifar.views(), 4, 5);
        let config = LoaderConfig { dtype: DType::U8, ..config };
        let loader = Loader::new(Arc::clone(&set), config.clone()).unwrap();
        for epoch in [0, 1] {
            let wanted: Vec<u64> = (0..12).collect();
            let (drawn, failed) = draw(&set, &wanted, &config, epoch).unwrap();
            assert!(failed.is_empty(), "{failed:?}");
            for batch in loader.start(Position { epoch, batch: 0 }, epoch + 1).unwrap() {
                let batch = batch.unwrap();
                for (view, images) in of_batch(&batch, &config.views, 4).iter().enumerate() {
                    for (image, &sample) in images.iter().zip(&batch.samples) {
                        let shown = &drawn[sample as usize].views[view];
                        assert!(image == shown, "view {view} of {sample} in epoch {epoch}");
                    }
                }
            }
        }
    }

    #[test]
    fn places_are_spread_over_the_whole_set() {
        assert_eq!(spread(4, 100), [0, 25, 50, 75]);
        assert_eq!(spread(5, 3), [0, 1, 2]);
        assert!(spread(3, 0).is_empty());
    }
}
