//! Ready-made pairs of views.

use serde::{Deserialize, Serialize};

use super::color_jitter::{ColorJitter, FactorRange, HueRange};
use super::config::*;
use super::crop::{Interpolation, RandomResizedCrop, Resize, Size};
use crate::{Error, Result};

/// A named set of view configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The Barlow Twins authors' two views of 224 x 224.
    BarlowImagenet,
    /// Two views of 32 x 32 without blur, as solo-learn trains CIFAR.
    BarlowCifar,
    /// SimCLR's: two views with the same strong jitter and blur.
    Simclr,
    /// BYOL's: as the authors of Barlow Twins, who took theirs from it.
    Byol,
    /// One view for evaluation: resize to 256, central 224 x 224.
    // Nobody can train on one.
    #[cfg_attr(feature = "schema", schemars(skip))]
    Eval,
}

const IMAGENET: Normalize = Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
const CIFAR: Normalize =
    Normalize { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 5] =
        [Preset::BarlowImagenet, Preset::BarlowCifar, Preset::Simclr, Preset::Byol, Preset::Eval];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Preset::BarlowImagenet => "barlow-imagenet",
            Preset::BarlowCifar => "barlow-cifar",
            Preset::Simclr => "simclr",
            Preset::Byol => "byol",
            Preset::Eval => "eval",
        }
    }

    /// The views, in order: two for training, one for `eval`.
    pub fn views(self) -> Vec<ViewConfig> {
        let barlow = jitter(0.4, 0.4, 0.2, 0.1);
        match self {
            // github.com/facebookresearch/barlowtwins, main.py, `Transform`;
            // BYOL's appendix B has the same numbers.
            Preset::BarlowImagenet | Preset::Byol => vec![
                random_view(224, 0.08, barlow, 1.0, 0.0, IMAGENET),
                random_view(224, 0.08, barlow, 0.1, 0.2, IMAGENET),
            ],
            Preset::BarlowCifar => vec![
                random_view(32, 0.08, barlow, 0.0, 0.0, CIFAR),
                random_view(32, 0.08, barlow, 0.0, 0.2, CIFAR),
            ],
            Preset::Simclr => {
                let view = random_view(224, 0.08, jitter(0.8, 0.8, 0.8, 0.2), 0.5, 0.0, IMAGENET);
                vec![view.clone(), view]
            }
            Preset::Eval => vec![ViewConfig::eval(256, 224)],
        }
    }
}

impl std::str::FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let known = Preset::ALL.map(Preset::name).join(", ");
            Error::Usage(format!("no preset is called `{name}`; there are {known}"))
        })
    }
}

impl ViewConfig {
    /// An evaluation view: the shorter side resized to `resize`, then the
    /// central `size` x `size`, normalised with ImageNet's statistics.
    pub fn eval(resize: usize, size: usize) -> Self {
        ViewConfig {
            random_resized_crop: None,
            resize: Some(Resize {
                size: Size::Square(resize),
                interpolation: Interpolation::Bicubic,
            }),
            center_crop: Some(CenterCrop { size: Size::Square(size) }),
            random_horizontal_flip: RandomHorizontalFlip { p: 0.0 },
            color_jitter: ColorJitter::OFF,
            random_grayscale: RandomGrayscale { p: 0.0 },
            gaussian_blur: GaussianBlur { p: 0.0, sigma: [0.1, 2.0] },
            random_solarize: RandomSolarize { p: 0.0, threshold: 128 },
            normalize: IMAGENET,
        }
    }

    /// The evaluation view that belongs to a training view: the same size, filter
    /// and normalisation; the shorter side is resized to 8/7 of the view for
    /// views above 64 pixels (256 for 224), as far as a resize may go, and to the
    /// view itself for small ones.
    ///
    /// # Panics
    /// For a configuration that [`ViewConfig::validate`] rejects.
    pub fn to_eval(&self) -> Self {
        let (height, width) = self.out_size();
        let side = height.max(width);
        let resize = if side > 64 { (side * 8 / 7).min(MAX_SIDE) } else { side };
        let mut view = ViewConfig::eval(resize, side);
        view.center_crop = Some(CenterCrop { size: Size::HeightWidth([height, width]) });
        view.resize = view.resize.map(|r| Resize { interpolation: self.interpolation(), ..r });
        view.normalize = self.normalize;
        view
    }
}

fn jitter(brightness: f64, contrast: f64, saturation: f64, hue: f64) -> ColorJitter {
    ColorJitter {
        p: 0.8,
        brightness: FactorRange::Around(brightness),
        contrast: FactorRange::Around(contrast),
        saturation: FactorRange::Around(saturation),
        hue: HueRange::Around(hue),
        exact_hue: false,
    }
}

fn random_view(
    size: usize,
    min_scale: f64,
    color_jitter: ColorJitter,
    blur: f64,
    solarize: f64,
    normalize: Normalize,
) -> ViewConfig {
    ViewConfig {
        random_resized_crop: Some(RandomResizedCrop {
            size: Size::Square(size),
            scale: [min_scale, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
        }),
        resize: None,
        center_crop: None,
        random_horizontal_flip: RandomHorizontalFlip { p: 0.5 },
        color_jitter,
        random_grayscale: RandomGrayscale { p: 0.2 },
        gaussian_blur: GaussianBlur { p: blur, sigma: [0.1, 2.0] },
        random_solarize: RandomSolarize { p: solarize, threshold: 128 },
        normalize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size; probabilities of flip, jitter, gray, blur, solarize; strengths of the jitter.
    fn figures(view: &ViewConfig) -> ((usize, usize), [f64; 5], [[f64; 2]; 4]) {
        let jitter = view.color_jitter;
        let p = [
            view.random_horizontal_flip.p,
            jitter.p,
            view.random_grayscale.p,
            view.gaussian_blur.p,
            view.random_solarize.p,
        ];
        let strengths = [jitter.brightness, jitter.contrast, jitter.saturation];
        let [brightness, contrast, saturation] = strengths.map(FactorRange::bounds);
        (view.out_size(), p, [brightness, contrast, saturation, jitter.hue.bounds()])
    }

    #[test]
    fn training_views_have_the_papers_numbers() {
        let mild = [[0.6, 1.4], [0.6, 1.4], [0.8, 1.2], [-0.1, 0.1]];
        let strong = [[1.0 - 0.8, 1.8], [1.0 - 0.8, 1.8], [1.0 - 0.8, 1.8], [-0.2, 0.2]];
        let barlow = [
            ((224, 224), [0.5, 0.8, 0.2, 1.0, 0.0], mild),
            ((224, 224), [0.5, 0.8, 0.2, 0.1, 0.2], mild),
        ];
        let cifar = [
            ((32, 32), [0.5, 0.8, 0.2, 0.0, 0.0], mild),
            ((32, 32), [0.5, 0.8, 0.2, 0.0, 0.2], mild),
        ];
        let simclr = [((224, 224), [0.5, 0.8, 0.2, 0.5, 0.0], strong); 2];
        for (preset, expected, normalize) in [
            (Preset::BarlowImagenet, barlow, IMAGENET),
            (Preset::Byol, barlow, IMAGENET),
            (Preset::BarlowCifar, cifar, CIFAR),
            (Preset::Simclr, simclr, IMAGENET),
        ] {
            let views = preset.views();
            assert_eq!(views.iter().map(figures).collect::<Vec<_>>(), expected, "{preset:?}");
            for view in views {
                let crop = view.random_resized_crop.unwrap();
                assert_eq!((crop.scale, crop.ratio), ([0.08, 1.0], [3.0 / 4.0, 4.0 / 3.0]));
                assert_eq!(crop.interpolation, Interpolation::Bicubic);
                assert_eq!(view.gaussian_blur.sigma, [0.1, 2.0]);
                assert_eq!(view.random_solarize.threshold, 128);
                assert_eq!(view.normalize, normalize);
                assert!(!view.color_jitter.exact_hue);
            }
        }
    }

    #[test]
    fn an_evaluation_view_is_a_resize_and_a_central_crop_alone() {
        let [eval] = Preset::Eval.views().try_into().unwrap();
        let off = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]];
        assert_eq!(figures(&eval), ((224, 224), [0.0; 5], off));
        assert_eq!(eval.resize.unwrap().size, Size::Square(256));
        assert!(eval.random_resized_crop.is_none());
        let largest = [(7168, 8192), (7169, 8192), (8192, 8192)];
        for (size, resize) in [(224, 256), (65, 74), (64, 64), (32, 32)].into_iter().chain(largest)
        {
            let mut training = Preset::BarlowCifar.views().swap_remove(1);
            let crop = training.random_resized_crop.as_mut().unwrap();
            (crop.size, crop.interpolation) = (Size::Square(size), Interpolation::Bilinear);
            let view = training.to_eval();
            view.validate().unwrap();
            assert_eq!(figures(&view), ((size, size), [0.0; 5], off));
            assert_eq!(view.resize.unwrap().size, Size::Square(resize));
            assert_eq!(view.resize.unwrap().interpolation, Interpolation::Bilinear);
            assert_eq!(view.normalize, CIFAR);
        }
    }
}
