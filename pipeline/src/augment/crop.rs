//! The geometry of a view: RandomResizedCrop, Resize, CenterCrop.

use serde::{Deserialize, Serialize};

use super::params::{Crop, Window};
use crate::rng::Rng;

/// Height and width of an output, in pixels: a number (square) or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected pixels or `[height, width]`")]
pub enum Size {
    /// Both sides.
    Square(usize),
    /// Height, width.
    HeightWidth([usize; 2]),
}

impl Size {
    /// `(height, width)`.
    pub fn height_width(self) -> (usize, usize) {
        match self {
            Size::Square(side) => (side, side),
            Size::HeightWidth([height, width]) => (height, width),
        }
    }
}

/// The filter of a resize. Both are antialiased, as Pillow's are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Cubic convolution with a = -0.5.
    #[default]
    Bicubic,
    /// Triangle filter.
    Bilinear,
}

/// torchvision's RandomResizedCrop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Size of the view.
    pub size: Size,
    /// Range of the crop's area, as a fraction of the image's.
    pub scale: [f64; 2],
    /// Range of the crop's width / height, uniform in its logarithm.
    pub ratio: [f64; 2],
    /// The filter.
    pub interpolation: Interpolation,
}

/// torchvision's Resize. With one number the shorter side gets that length and
/// the other follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Length of the shorter side, or `[height, width]`.
    pub size: Size,
    /// The filter.
    pub interpolation: Interpolation,
}

impl RandomResizedCrop {
    /// `RandomResizedCrop.get_params`: ten tries, then the largest central crop
    /// whose ratio is in range.
    pub(super) fn draw(&self, rng: &mut Rng, width: usize, height: usize) -> Crop {
        let area = (width * height) as f64;
        let (log_low, log_high) = (self.ratio[0].ln(), self.ratio[1].ln());
        for _ in 0..10 {
            let target = area * rng.uniform(self.scale[0], self.scale[1]);
            let ratio = rng.uniform(log_low, log_high).exp();
            // Python's `round` takes ties to even.
            let crop_width = (target * ratio).sqrt().round_ties_even() as usize;
            let crop_height = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                let top = rng.below((height - crop_height + 1) as u64) as usize;
                let left = rng.below((width - crop_width + 1) as u64) as usize;
                return Crop { top, left, height: crop_height, width: crop_width };
            }
        }
        self.central(width, height)
    }

    fn central(&self, width: usize, height: usize) -> Crop {
        let ratio = width as f64 / height as f64;
        let round = |x: f64, most: usize| (x.round_ties_even() as usize).clamp(1, most);
        let (crop_width, crop_height) = if ratio < self.ratio[0] {
            (width, round(width as f64 / self.ratio[0], height))
        } else if ratio > self.ratio[1] {
            (round(height as f64 * self.ratio[1], width), height)
        } else {
            (width, height)
        };
        Crop {
            top: (height - crop_height) / 2,
            left: (width - crop_width) / 2,
            height: crop_height,
            width: crop_width,
        }
    }
}

impl Resize {
    /// `(height, width)` of an image of this size after the resize.
    pub(super) fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        match self.size {
            Size::HeightWidth([height, width]) => (height, width),
            // `int(size * long / short)`
            Size::Square(short) if width <= height => (short * height / width, short),
            Size::Square(short) => (short, short * width / height),
        }
    }

    /// The window of torchvision's CenterCrop after this resize. The resize is
    /// never smaller than the window (`ViewConfig::validate` sees to that).
    pub(super) fn centered(&self, width: usize, height: usize, out: (usize, usize)) -> Window {
        let (resized_height, resized_width) = self.resized(width, height);
        let offset = |resized: usize, out: usize| {
            ((resized.saturating_sub(out)) as f64 / 2.0).round_ties_even() as usize
        };
        Window {
            resized_height,
            resized_width,
            top: offset(resized_height, out.0),
            left: offset(resized_width, out.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_crop_fits_it_is_the_largest_central_one_within_the_ratios() {
        let whole_area = RandomResizedCrop {
            size: Size::Square(8),
            scale: [1.0, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bilinear,
        };
        for (width, height, expected) in [
            (400, 100, Crop { top: 0, left: 133, height: 100, width: 133 }),
            (100, 400, Crop { top: 133, left: 0, height: 133, width: 100 }),
            (1, 5, Crop { top: 2, left: 0, height: 1, width: 1 }),
            (9, 1, Crop { top: 0, left: 4, height: 1, width: 1 }),
        ] {
            for sample in 0..5 {
                let mut rng = Rng::keyed(1, 0, sample, 0);
                assert_eq!(whole_area.draw(&mut rng, width, height), expected);
            }
        }
        let larger = RandomResizedCrop { scale: [2.0, 2.0], ..whole_area };
        let drawn = larger.draw(&mut Rng::keyed(1, 0, 0, 0), 50, 60);
        assert_eq!(drawn, Crop::whole(50, 60));
    }
}
