//! An image to one view of it: parameters are drawn first, then applied.
//!
//! `decode -> draw -> apply_into -> batch`
//!
//! A [`ViewConfig`] says which transforms a view is made of, with torchvision's
//! names and parameters. [`ViewConfig::draw`] turns it and the image's size into
//! [`ViewParams`], a small plain struct; all randomness is there. An
//! [`Augmenter`] applies parameters to pixels, purely: the same image and
//! parameters give the same bytes on every CPU.
//!
//! The order is that of the authors' code: crop and resize, flip, colour jitter,
//! grayscale, Gaussian blur, solarize, normalise.

mod apply;
mod color_jitter;
mod config;
mod crop;
mod output;
mod params;
mod patch;
mod presets;

pub use apply::Augmenter;
pub use color_jitter::{ColorJitter, FactorRange, HueRange};
pub use config::{
    CenterCrop, GaussianBlur, Normalize, RandomGrayscale, RandomHorizontalFlip, RandomSolarize,
    ViewConfig,
};
pub use crop::{Interpolation, RandomResizedCrop, Resize, Size};
pub use output::{DType, Layout, ViewOut};
pub use params::{Crop, Jitter, JitterOp, ViewParams, Window};
pub use patch::{
    ColorJitterPatch, GaussianBlurPatch, NormalizePatch, ProbabilityPatch, RandomResizedCropPatch,
    RandomSolarizePatch, ResizePatch, ViewPatch,
};
pub use presets::Preset;
