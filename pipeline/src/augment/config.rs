//! [`ViewConfig`]: the transforms of one view, with torchvision's names.

use half::bf16;
use serde::{Deserialize, Serialize};

use super::color_jitter::ColorJitter;
use super::crop::{Interpolation, RandomResizedCrop, Resize, Size};
use super::params::{Crop, ViewParams};
use crate::kernel::store::Affine;
use crate::rng::Rng;
use crate::{Error, Result};

/// The largest side of a view or of a resized image, in pixels.
pub(crate) const MAX_SIDE: usize = 8192;

/// Mirrors left and right with probability `p`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomHorizontalFlip {
    /// Probability.
    pub p: f64,
}

/// Replaces the colours by their gray with probability `p`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomGrayscale {
    /// Probability.
    pub p: f64,
}

/// Blurs with probability `p`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianBlur {
    /// Probability.
    pub p: f64,
    /// Range of the standard deviation, in pixels of the view.
    pub sigma: [f64; 2],
}

/// Inverts the values at or above `threshold` with probability `p`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomSolarize {
    /// Probability.
    pub p: f64,
    /// The lowest value that is inverted.
    pub threshold: u8,
}

/// The central part of the resized image becomes the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CenterCrop {
    /// Size of the view.
    pub size: Size,
}

/// `(value / 255 - mean) / std` for each channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// Mean of red, green, blue in 0..=1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green, blue.
    pub std: [f32; 3],
}

/// The transforms of one view, in the order in which they are applied.
///
/// A view is either a [`RandomResizedCrop`], or a [`Resize`] followed by a
/// [`CenterCrop`]. A transform with probability 0 is off. Values start from a
/// [`super::Preset`] and are changed by a [`super::ViewPatch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// Random crop and resize.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_resized_crop: Option<RandomResizedCrop>,
    /// Resize of the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// The part of the resized image that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub center_crop: Option<CenterCrop>,
    /// Mirroring.
    pub random_horizontal_flip: RandomHorizontalFlip,
    /// Colour jitter.
    pub color_jitter: ColorJitter,
    /// Gray.
    pub random_grayscale: RandomGrayscale,
    /// Blur.
    pub gaussian_blur: GaussianBlur,
    /// Solarize.
    pub random_solarize: RandomSolarize,
    /// Normalisation of float outputs.
    pub normalize: Normalize,
}

impl ViewConfig {
    /// Draws the parameters of one view of a `width` x `height` image.
    ///
    /// # Panics
    /// When a side is 0, or for a configuration that [`ViewConfig::validate`]
    /// rejects.
    pub fn draw(&self, rng: &mut Rng, width: usize, height: usize) -> ViewParams {
        assert!(width > 0 && height > 0, "an image has pixels");
        // Crop last: its number of draws varies, that of all others is fixed.
        let flip = rng.chance(self.random_horizontal_flip.p);
        let jitter = self.color_jitter.draw(rng);
        let grayscale = rng.chance(self.random_grayscale.p);
        let blurs = rng.chance(self.gaussian_blur.p);
        let [low, high] = self.gaussian_blur.sigma;
        let sigma = rng.uniform(low, high) as f32;
        let solarizes = rng.chance(self.random_solarize.p);
        let (crop, window) = match (&self.random_resized_crop, &self.resize) {
            (Some(crop), _) => (crop.draw(rng, width, height), None),
            (None, Some(resize)) => {
                (Crop::whole(width, height), Some(resize.centered(width, height, self.out_size())))
            }
            (None, None) => panic!("a view needs a random_resized_crop or a resize"),
        };
        ViewParams {
            crop,
            window,
            flip,
            jitter,
            grayscale,
            blur_sigma: blurs.then_some(sigma),
            solarize: solarizes.then_some(self.random_solarize.threshold),
        }
    }

    /// `(height, width)` of the view.
    ///
    /// # Panics
    /// For a configuration that [`ViewConfig::validate`] rejects.
    pub fn out_size(&self) -> (usize, usize) {
        self.size().expect("a configuration was checked").height_width()
    }

    /// The size of the view.
    ///
    /// # Errors
    /// [`Error::Usage`] where neither of the two that have one is there.
    pub(super) fn size(&self) -> Result<Size> {
        let crop = self.random_resized_crop.map(|crop| crop.size);
        crop.or(self.center_crop.map(|center| center.size)).ok_or_else(without_geometry)
    }

    /// The filter of the view's resize.
    pub fn interpolation(&self) -> Interpolation {
        let crop = self.random_resized_crop.map(|crop| crop.interpolation);
        crop.or(self.resize.map(|resize| resize.interpolation)).unwrap_or_default()
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the transform, the parameter and what was found.
    pub fn validate(&self) -> Result<()> {
        self.validate_geometry()?;
        probability("random_horizontal_flip", self.random_horizontal_flip.p)?;
        probability("color_jitter", self.color_jitter.p)?;
        probability("random_grayscale", self.random_grayscale.p)?;
        probability("gaussian_blur", self.gaussian_blur.p)?;
        probability("random_solarize", self.random_solarize.p)?;
        let jitter = &self.color_jitter;
        let most = crate::kernel::MAX_FACTOR;
        range("color_jitter.brightness", jitter.brightness.bounds(), 0.0, most)?;
        range("color_jitter.contrast", jitter.contrast.bounds(), 0.0, most)?;
        range("color_jitter.saturation", jitter.saturation.bounds(), 0.0, most)?;
        range("color_jitter.hue", jitter.hue.bounds(), -0.5, 0.5)?;
        let most = f64::from(crate::kernel::MAX_SIGMA);
        range("gaussian_blur.sigma", self.gaussian_blur.sigma, 0.0, most)?;
        for channel in 0..3 {
            let (mean, std) = (self.normalize.mean[channel], self.normalize.std[channel]);
            if !(mean.is_finite() && std.is_finite() && std > 0.0) {
                return usage(format!(
                    "normalize: mean must be finite and std above 0, found mean {mean} and std {std}"
                ));
            }
            // What 255 and 0 become: no number where std is next to nothing, or mean beside it
            // enormous.
            let affine = Affine::normalize(self.normalize.mean, self.normalize.std);
            let (scale, offset) = (affine.scale[channel], affine.offset[channel]);
            let ends = [255.0 * scale + offset, offset].map(bf16::from_f32);
            if !(scale.is_finite() && ends.iter().all(|end| end.is_finite())) {
                return usage(format!(
                    "normalize: (value - mean) / std must be finite, found mean {mean} and std {std}"
                ));
            }
        }
        Ok(())
    }

    fn validate_geometry(&self) -> Result<()> {
        match (&self.random_resized_crop, &self.resize, &self.center_crop) {
            (Some(crop), None, None) => {
                side("random_resized_crop.size", crop.size)?;
                range("random_resized_crop.scale", crop.scale, f64::MIN_POSITIVE, 1.0)?;
                range("random_resized_crop.ratio", crop.ratio, 1e-3, 1e3)
            }
            (None, Some(resize), Some(center)) => {
                side("resize.size", resize.size)?;
                side("center_crop.size", center.size)?;
                let (height, width) = resize.size.height_width();
                let (crop_height, crop_width) = center.size.height_width();
                if crop_height > height || crop_width > width {
                    return usage(format!(
                        "center_crop.size ({crop_height} x {crop_width}) must not exceed \
                         resize.size ({height} x {width})"
                    ));
                }
                Ok(())
            }
            _ => Err(without_geometry()),
        }
    }
}

fn without_geometry() -> Error {
    let ways = "a view is made by random_resized_crop, or by resize and center_crop together";
    Error::Usage(ways.into())
}

fn usage<T>(message: String) -> Result<T> {
    Err(Error::Usage(message))
}

fn probability(transform: &str, p: f64) -> Result<()> {
    if (0.0..=1.0).contains(&p) {
        return Ok(());
    }
    usage(format!("{transform}.p is a probability, 0 to 1; found {p}"))
}

fn range(name: &str, [low, high]: [f64; 2], least: f64, most: f64) -> Result<()> {
    if least <= low && low <= high && high <= most {
        return Ok(());
    }
    let least = if least == f64::MIN_POSITIVE { "above 0".into() } else { least.to_string() };
    usage(format!("{name} must be a range within {least} to {most}; found {low} to {high}"))
}

fn side(name: &str, size: Size) -> Result<()> {
    let (height, width) = size.height_width();
    if (1..=MAX_SIDE).contains(&height) && (1..=MAX_SIDE).contains(&width) {
        return Ok(());
    }
    usage(format!("{name} must be 1 to {MAX_SIDE} pixels; found {height} x {width}"))
}

#[cfg(test)]
mod tests {
    use super::super::params::{Jitter, JitterOp};
    use super::super::{Preset, ViewPatch};
    use super::*;

    #[test]
    fn every_preset_is_valid_and_survives_toml() {
        for preset in Preset::ALL {
            for view in preset.views() {
                view.validate().unwrap();
                let text = toml::to_string(&view).unwrap();
                assert_eq!(toml::from_str::<ViewConfig>(&text).unwrap(), view);
            }
        }
    }

    #[test]
    fn a_patch_changes_only_what_it_names() {
        let base = Preset::BarlowImagenet.views().remove(1);
        let patch: ViewPatch = toml::from_str(
            "[gaussian_blur]\np = 0.5\n[random_resized_crop]\nsize = 96\n\
             [color_jitter]\nbrightness = [0.5, 2.0]\n",
        )
        .unwrap();
        let view = patch.apply(&base).unwrap();
        assert_eq!(view.gaussian_blur, GaussianBlur { p: 0.5, sigma: [0.1, 2.0] });
        assert_eq!(view.out_size(), (96, 96));
        assert_eq!(view.color_jitter.brightness.bounds(), [0.5, 2.0]);
        assert_eq!(view.random_solarize, base.random_solarize);
    }

    #[test]
    fn a_patch_may_change_every_value() {
        let common = "[random_horizontal_flip]\np = 0.1\n[random_grayscale]\np = 0.3\n\
             [color_jitter]\np = 0.2\nbrightness = 0.7\ncontrast = 0.6\nsaturation = 0.5\n\
             hue = 0.3\nexact_hue = true\n[gaussian_blur]\np = 0.4\nsigma = [0.2, 0.9]\n\
             [random_solarize]\np = 0.6\nthreshold = 9\n\
             [normalize]\nmean = [0.1, 0.2, 0.3]\nstd = [0.4, 0.5, 0.6]\n";
        for geometry in [
            "[random_resized_crop]\nsize = 96\nscale = [0.2, 0.5]\nratio = [0.5, 2.0]\n\
             interpolation = \"bilinear\"\n",
            "[resize]\nsize = 99\ninterpolation = \"bilinear\"\n[center_crop]\nsize = 90\n",
        ] {
            let text = format!("{common}{geometry}");
            let whole: ViewConfig = toml::from_str(&text).unwrap();
            let patch: ViewPatch = toml::from_str(&text).unwrap();
            for base in [Preset::BarlowImagenet.views().remove(0), ViewConfig::eval(256, 224)] {
                assert_eq!(patch.apply(&base).unwrap(), whole);
            }
        }
    }

    #[test]
    fn an_eval_view_can_be_made_from_a_random_crop_by_naming_both_tables() {
        let base = Preset::BarlowCifar.views().remove(0);
        let patch: ViewPatch =
            toml::from_str("[resize]\nsize = 40\n[center_crop]\nsize = 32\n").unwrap();
        let view = patch.apply(&base).unwrap();
        assert_eq!(view.random_resized_crop, None);
        assert_eq!(view.out_size(), (32, 32));
    }

    #[test]
    fn a_view_without_geometry_is_patched_to_one_that_has_it_or_refused() {
        let bare = ViewConfig { random_resized_crop: None, ..ViewConfig::eval(256, 224) };
        let bare = ViewConfig { resize: None, center_crop: None, ..bare };
        let patched = |text| toml::from_str::<ViewPatch>(text).unwrap().apply(&bare);
        let view = patched("[random_resized_crop]\nsize = 96\n").unwrap();
        assert_eq!(view.out_size(), (96, 96));
        let view = patched("[center_crop]\nsize = [96, 64]\n").unwrap();
        assert_eq!((view.out_size(), view.resize.unwrap().size), ((96, 64), Size::Square(96)));
        for text in [
            "",
            "[random_resized_crop]\nscale = [0.5, 1.0]\n",
            "[resize]\nsize = 96\n",
            "[gaussian_blur]\np = 0.5\n",
        ] {
            let error = patched(text).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{text}: {error}");
        }
    }

    #[test]
    fn a_resize_that_is_not_given_a_size_keeps_the_shape() {
        let base = Preset::BarlowImagenet.views().remove(0);
        for (text, side) in [
            ("[center_crop]\nsize = 96\n", 96),
            ("[center_crop]\nsize = [96, 64]\n", 96),
            ("[center_crop]\nsize = [64, 96]\n", 96),
            ("[resize]\ninterpolation = \"bilinear\"\n", 224),
        ] {
            let patch: ViewPatch = toml::from_str(text).unwrap();
            let view = patch.apply(&base).unwrap();
            assert_eq!(view.resize.unwrap().size, Size::Square(side), "{text}");
        }
    }

    #[test]
    fn draws_come_as_often_and_reach_as_far_as_they_are_asked_to() {
        const DRAWS: u64 = 20_000;
        let patch: ViewPatch = toml::from_str(
            "[random_horizontal_flip]\np = 0.1\n[color_jitter]\np = 0.3\nbrightness = [0.2, 0.4]\n\
             contrast = [0.5, 0.9]\nsaturation = [1.1, 1.9]\nhue = [-0.3, 0.1]\n\
             [random_grayscale]\np = 0.45\n[gaussian_blur]\np = 0.6\nsigma = [0.5, 1.5]\n\
             [random_solarize]\np = 0.75\nthreshold = 77\n",
        )
        .unwrap();
        let view = patch.apply(&Preset::BarlowImagenet.views().remove(0)).unwrap();
        let draw = |sample| view.draw(&mut Rng::keyed(3, 0, sample, 0), 60, 40);
        let draws: Vec<ViewParams> = (0..DRAWS).map(draw).collect();
        let share = |happens: fn(&ViewParams) -> bool| {
            draws.iter().filter(|drawn| happens(drawn)).count() as f64 / DRAWS as f64
        };
        // Four standard errors are 0.0139 at most.
        for (name, got, want) in [
            ("flip", share(|drawn| drawn.flip), 0.1),
            ("jitter", share(|drawn| drawn.jitter.is_some()), 0.3),
            ("gray", share(|drawn| drawn.grayscale), 0.45),
            ("blur", share(|drawn| drawn.blur_sigma.is_some()), 0.6),
            ("solarize", share(|drawn| drawn.solarize == Some(77)), 0.75),
            ("neither flip nor gray", share(|drawn| !drawn.flip && !drawn.grayscale), 0.495),
        ] {
            assert!((got - want).abs() < 0.014, "{name}: {got} for {want}");
        }
        assert!(draws.iter().all(|drawn| drawn.solarize.is_none_or(|threshold| threshold == 77)));

        let jitters: Vec<_> = draws.iter().filter_map(|drawn| drawn.jitter).collect();
        let of = |value: fn(&Jitter) -> f32| jitters.iter().map(value).collect::<Vec<_>>();
        for (name, values, [low, high]) in [
            ("sigma", draws.iter().filter_map(|drawn| drawn.blur_sigma).collect(), [0.5, 1.5]),
            ("brightness", of(|jitter| jitter.brightness), [0.2, 0.4]),
            ("contrast", of(|jitter| jitter.contrast), [0.5, 0.9]),
            ("saturation", of(|jitter| jitter.saturation), [1.1, 1.9]),
            ("hue", of(|jitter| jitter.hue), [-0.3, 0.1]),
        ] {
            let least = values.iter().copied().fold(f32::INFINITY, f32::min);
            let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let near = |got: f32, want: f32| (got - want).abs() < 0.02 * (high - low);
            let middle = (low + high) / 2.0;
            let fits = near(least, low) && near(most, high) && near(mean, middle);
            assert!(fits && least >= low && most <= high, "{name}: {least} {mean} {most}");
        }
        // Each operation as often in each place.
        for op in [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation, JitterOp::Hue] {
            for place in 0..4 {
                let there = jitters.iter().filter(|jitter| jitter.order[place] == op).count();
                let share = there as f64 / jitters.len() as f64;
                assert!((share - 0.25).abs() < 0.023, "{op:?} at {place}: {share}");
            }
        }
    }

    #[test]
    fn unknown_names_and_bad_ranges_are_refused_with_their_name() {
        let unknown = toml::from_str::<ViewPatch>("[gaussian_blur]\nsigmas = [0.1, 2.0]\n");
        assert!(unknown.unwrap_err().to_string().contains("sigmas"));
        let base = Preset::BarlowImagenet.views().remove(0);
        for (text, name) in [
            ("[gaussian_blur]\np = 1.5\n", "gaussian_blur.p"),
            ("[gaussian_blur]\nsigma = [2.0, 0.1]\n", "gaussian_blur.sigma"),
            ("[random_resized_crop]\nscale = [0.0, 1.0]\n", "random_resized_crop.scale"),
            ("[random_resized_crop]\nsize = 0\n", "random_resized_crop.size"),
            ("[random_resized_crop]\nratio = [0.0, 1.0]\n", "random_resized_crop.ratio"),
            ("[resize]\nsize = 0\n[center_crop]\nsize = 8\n", "resize.size"),
            ("[resize]\nsize = 8\n[center_crop]\nsize = 0\n", "center_crop.size"),
            ("[resize]\nsize = 8\n[center_crop]\nsize = [9, 8]\n", "center_crop.size"),
            ("[resize]\nsize = 8\n[center_crop]\nsize = [8, 9]\n", "center_crop.size"),
            ("[random_resized_crop]\nsize = 9\n[center_crop]\nsize = 8\n", "excludes"),
            ("[random_horizontal_flip]\np = -0.1\n", "random_horizontal_flip.p"),
            ("[random_grayscale]\np = 1.5\n", "random_grayscale.p"),
            ("[random_solarize]\np = 1.5\n", "random_solarize.p"),
            ("[color_jitter]\np = 1.5\n", "color_jitter.p"),
            ("[color_jitter]\nbrightness = [2.0, 1.0]\n", "color_jitter.brightness"),
            ("[color_jitter]\ncontrast = [-0.5, 1.0]\n", "color_jitter.contrast"),
            ("[color_jitter]\nsaturation = [0.5, 1e30]\n", "color_jitter.saturation"),
            ("[color_jitter]\nhue = 0.7\n", "color_jitter.hue"),
            ("[normalize]\nstd = [0.2, 0.0, 0.2]\n", "normalize"),
            // 1 / (255 std), 1 / std and mean / std are beyond 32-bit floats.
            ("[normalize]\nstd = [1e-44, 1.0, 1.0]\n", "normalize"),
            ("[normalize]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 2e-39, 1.0]\n", "normalize"),
            ("[normalize]\nmean = [0.0, 0.0, 1e38]\n", "normalize"),
        ] {
            let patch: ViewPatch = toml::from_str(text).unwrap();
            let error = patch.apply(&base).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
