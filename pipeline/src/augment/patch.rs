//! [`ViewPatch`]: the part of a view that a configuration file changes.

use serde::{Deserialize, Serialize};

use super::color_jitter::{FactorRange, HueRange};
use super::config::{CenterCrop, ViewConfig};
use super::crop::{Interpolation, RandomResizedCrop, Resize, Size};
use crate::{Error, Result};

/// Declares a table of optional parameters and how it overrides the full one.
macro_rules! patch {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* #[serde(default, skip_serializing_if = "Option::is_none")]
              pub $field: Option<$type>,)*
        }
    };
}

macro_rules! override_fields {
    ($patch:expr, $target:expr, $($field:ident),*) => {
        if let Some(patch) = &$patch {
            $(if let Some(value) = patch.$field { $target.$field = value; })*
        }
    };
}

patch!(
    /// Changes to a random resized crop.
    RandomResizedCropPatch {
        /// Size of the view.
        size: Size,
        /// Range of the crop's share of the image's area.
        scale: [f64; 2],
        /// Range of width / height.
        ratio: [f64; 2],
        /// The filter.
        interpolation: Interpolation,
    }
);
patch!(
    /// Changes to a resize.
    ResizePatch {
        /// Shorter side, or height and width. In a view that had no resize: the longer side of the
        /// view.
        size: Size,
        /// The filter.
        interpolation: Interpolation,
    }
);
patch!(
    /// Changes to a transform that has only a probability.
    ProbabilityPatch {
        /// Probability.
        p: f64,
    }
);
patch!(
    /// Changes to the colour jitter.
    ColorJitterPatch {
        /// Probability.
        p: f64,
        /// Range of the factor: `[low, high]`, or x for `[max(0, 1 - x), 1 + x]`.
        brightness: FactorRange,
        /// Range of the factor, as of the brightness.
        contrast: FactorRange,
        /// Range of the factor, as of the brightness.
        saturation: FactorRange,
        /// Range of the shift in turns, from -0.5 to 0.5: `[low, high]`, or x for `[-x, x]`.
        hue: HueRange,
        /// Turn the hue exactly, as torchvision does for tensors, not in 8-bit HSV, as it does for
        /// Pillow's images and so in the authors' code.
        exact_hue: bool,
    }
);
patch!(
    /// Changes to the blur.
    GaussianBlurPatch {
        /// Probability.
        p: f64,
        /// Range of the standard deviation in pixels.
        sigma: [f64; 2],
    }
);
patch!(
    /// Changes to solarize.
    RandomSolarizePatch {
        /// Probability.
        p: f64,
        /// Values from here on, of 255, are inverted.
        threshold: u8,
    }
);
patch!(
    /// Changes to the normalisation.
    NormalizePatch {
        /// Mean.
        mean: [f32; 3],
        /// Standard deviation.
        std: [f32; 3],
    }
);
patch!(
    /// A view's configuration with everything optional: what it names replaces
    /// the value of the view it is applied to. Naming `resize` or `center_crop`
    /// turns a random crop off; naming `random_resized_crop` does the opposite. A
    /// `resize` without a size makes the shorter side as long as the longer side of
    /// the view, and keeps the image's shape.
    ViewPatch {
        /// Random crop and resize.
        random_resized_crop: RandomResizedCropPatch,
        /// Resize.
        resize: ResizePatch,
        /// Central crop.
        center_crop: CenterCrop,
        /// Mirroring.
        random_horizontal_flip: ProbabilityPatch,
        /// Colour jitter.
        color_jitter: ColorJitterPatch,
        /// Gray.
        random_grayscale: ProbabilityPatch,
        /// Blur.
        gaussian_blur: GaussianBlurPatch,
        /// Solarize.
        random_solarize: RandomSolarizePatch,
        /// Normalisation.
        normalize: NormalizePatch,
    }
);

impl ViewPatch {
    /// The view with these changes.
    ///
    /// # Errors
    /// [`Error::Usage`] when a changed value is out of range.
    pub fn apply(&self, base: &ViewConfig) -> Result<ViewConfig> {
        let mut view = base.clone();
        self.apply_geometry(&mut view)?;
        override_fields!(self.random_horizontal_flip, view.random_horizontal_flip, p);
        override_fields!(
            self.color_jitter,
            view.color_jitter,
            p,
            brightness,
            contrast,
            saturation,
            hue,
            exact_hue
        );
        override_fields!(self.random_grayscale, view.random_grayscale, p);
        override_fields!(self.gaussian_blur, view.gaussian_blur, p, sigma);
        override_fields!(self.random_solarize, view.random_solarize, p, threshold);
        override_fields!(self.normalize, view.normalize, mean, std);
        view.validate()?;
        Ok(view)
    }

    fn apply_geometry(&self, view: &mut ViewConfig) -> Result<()> {
        let interpolation = view.interpolation();
        if self.random_resized_crop.is_some() {
            if self.resize.is_some() || self.center_crop.is_some() {
                return Err(Error::Usage(
                    "random_resized_crop excludes resize and center_crop in one view".into(),
                ));
            }
            let asked = self.random_resized_crop.and_then(|crop| crop.size);
            let size = asked.map_or_else(|| kept_size(view), Ok)?;
            (view.resize, view.center_crop) = (None, None);
            let crop = view.random_resized_crop.get_or_insert(RandomResizedCrop {
                size,
                scale: [0.08, 1.0],
                ratio: [3.0 / 4.0, 4.0 / 3.0],
                interpolation,
            });
            override_fields!(self.random_resized_crop, crop, size, scale, ratio, interpolation);
        } else if self.resize.is_some() || self.center_crop.is_some() {
            let asked = self.center_crop.map(|center| center.size);
            let size = asked.map_or_else(|| kept_size(view), Ok)?;
            view.random_resized_crop = None;
            view.center_crop = Some(CenterCrop { size });
            // Of the shorter side alone: what is not said to change does not change the shape.
            let (height, width) = size.height_width();
            let side = Size::Square(height.max(width));
            let resize = view.resize.get_or_insert(Resize { size: side, interpolation });
            override_fields!(self.resize, resize, size, interpolation);
        }
        Ok(())
    }
}

/// The size of a view that is not given another.
fn kept_size(view: &ViewConfig) -> Result<Size> {
    let (height, width) = view.size()?.height_width();
    Ok(Size::HeightWidth([height, width]))
}
