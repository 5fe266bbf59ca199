//! torchvision's ColorJitter inside a RandomApply, as the authors use it.

use serde::{Deserialize, Serialize};

use super::params::{Jitter, JitterOp};
use crate::rng::Rng;

/// A factor's range: `x` stands for `[max(0, 1 - x), 1 + x]`, or `[low, high]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected a strength or `[low, high]`")]
pub enum FactorRange {
    /// Strength.
    Around(f64),
    /// Lowest and highest factor.
    Range([f64; 2]),
}

/// A hue shift's range in turns: `x` stands for `[-x, x]`, or `[low, high]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "expected a strength or `[low, high]`")]
pub enum HueRange {
    /// Largest shift either way.
    Around(f64),
    /// Lowest and highest shift.
    Range([f64; 2]),
}

impl FactorRange {
    /// Lowest and highest factor.
    pub fn bounds(self) -> [f64; 2] {
        match self {
            FactorRange::Around(x) => [(1.0 - x).max(0.0), 1.0 + x],
            FactorRange::Range(bounds) => bounds,
        }
    }
}

impl HueRange {
    /// Lowest and highest shift.
    pub fn bounds(self) -> [f64; 2] {
        match self {
            HueRange::Around(x) => [-x, x],
            HueRange::Range(bounds) => bounds,
        }
    }
}

/// torchvision's ColorJitter, applied with probability `p`; the four operations
/// come in random order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    /// Probability that any of it happens.
    pub p: f64,
    /// Brightness factor.
    pub brightness: FactorRange,
    /// Contrast factor.
    pub contrast: FactorRange,
    /// Saturation factor.
    pub saturation: FactorRange,
    /// Hue shift.
    pub hue: HueRange,
    /// Turn the hue exactly, as torchvision does for tensors, not in 8-bit HSV, as it does for
    /// Pillow's images and so in the authors' code.
    #[serde(default)]
    pub exact_hue: bool,
}

impl ColorJitter {
    /// No jitter.
    pub const OFF: ColorJitter = ColorJitter {
        p: 0.0,
        brightness: FactorRange::Around(0.0),
        contrast: FactorRange::Around(0.0),
        saturation: FactorRange::Around(0.0),
        hue: HueRange::Around(0.0),
        exact_hue: false,
    };

    /// Draws, whether or not the jitter happens: the number of draws is fixed.
    pub(super) fn draw(&self, rng: &mut Rng) -> Option<Jitter> {
        let happens = rng.chance(self.p);
        let mut order =
            [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation, JitterOp::Hue];
        rng.shuffle(&mut order);
        let mut between = |[low, high]: [f64; 2]| rng.uniform(low, high) as f32;
        let jitter = Jitter {
            order,
            brightness: between(self.brightness.bounds()),
            contrast: between(self.contrast.bounds()),
            saturation: between(self.saturation.bounds()),
            hue: between(self.hue.bounds()),
            exact_hue: self.exact_hue,
        };
        happens.then_some(jitter)
    }
}
