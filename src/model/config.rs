//! What a twin network is made of: the `[model]` table of a run's configuration.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Features and dimensions of a network at most.
pub(crate) const MOST_WIDTH: usize = 1 << 16;

/// The backbone, torchvision's layout ("v1.5": a bottleneck strides in its 3x3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// Basic blocks, 2-2-2-2.
    ResNet18,
    /// Basic blocks, 3-4-6-3.
    ResNet34,
    /// Bottlenecks, 3-4-6-3.
    ResNet50,
}

impl Arch {
    /// Blocks of each of the four layers.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::ResNet18 => [2, 2, 2, 2],
            Self::ResNet34 | Self::ResNet50 => [3, 4, 6, 3],
        }
    }

    /// Whether blocks are bottlenecks.
    pub fn bottleneck(self) -> bool {
        self == Self::ResNet50
    }

    /// Output channels of a block per base channel of its layer.
    pub fn expansion(self) -> usize {
        if self.bottleneck() { 4 } else { 1 }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResNet18 => "resnet18",
            Self::ResNet34 => "resnet34",
            Self::ResNet50 => "resnet50",
        })
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::ResNet18, Self::ResNet34, Self::ResNet50]
            .into_iter()
            .find(|a| a.to_string() == s.to_ascii_lowercase())
            .ok_or_else(|| format!("no architecture '{s}'; there are resnet18, resnet34, resnet50"))
    }
}

/// How the backbone begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7x7 with stride 2, then a 3x3 max pool with stride 2.
    Imagenet,
    /// 3x3 with stride 1, no pool: for 32 x 32 images.
    Cifar,
    /// The same with a padding of 2, as solo-learn has it: maps of 34 x 34, 17, 9 and 5.
    #[serde(rename = "cifar-pad2")]
    CifarPad2,
}

impl Stem {
    /// Kernel, stride and padding of its convolution.
    pub fn window(self) -> (usize, usize, usize) {
        match self {
            Self::Imagenet => (7, 2, 3),
            Self::Cifar => (3, 1, 1),
            Self::CifarPad2 => (3, 1, 2),
        }
    }

    /// Whether a max pool follows.
    pub fn is_pooled(self) -> bool {
        self == Self::Imagenet
    }
}

/// Output widths of the projector's linear layers; written `8192-8192-8192`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ProjectorWidths(pub Vec<usize>);

impl FromStr for ProjectorWidths {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let width = |part: &str| match part.trim().parse() {
            Ok(w) if (1..=1 << 20).contains(&w) => Ok(w),
            _ => Err(format!("projector '{s}': expected widths as in 8192-8192-8192")),
        };
        s.split('-').map(width).collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<String> for ProjectorWidths {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ProjectorWidths> for String {
    fn from(widths: ProjectorWidths) -> Self {
        widths.to_string()
    }
}

impl fmt::Display for ProjectorWidths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|w| w.to_string()).collect();
        f.write_str(&words.join("-"))
    }
}

/// The network's description; the default is the authors'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Backbone.
    pub arch: Arch,
    /// Channels of the stem and of the first layer; the others double it.
    pub width: usize,
    /// How the backbone begins: `imagenet` with a 7 x 7 convolution of stride 2 and a max pool,
    /// `cifar` with a 3 x 3 one and no pool, `cifar-pad2` with the same padded by 2 instead of 1, as
    /// in solo-learn.
    pub stem: Stem,
    /// Initialise the scale of each block's last BatchNorm to zero, so that blocks begin as
    /// identities.
    pub zero_init: bool,
    /// Widths of the projector.
    pub projector: ProjectorWidths,
    /// Whether BatchNorm stands between the projector's layers; without it they have biases, which
    /// begin at zero.
    pub projector_batch_norm: bool,
    /// Whether BatchNorm (without scale and shift, without ReLU) ends the projector, as in SimSiam
    /// and MoCo v3. Barlow Twins normalises in its loss instead.
    pub projector_output_norm: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            arch: Arch::ResNet50,
            width: 64,
            stem: Stem::Imagenet,
            zero_init: true,
            projector: ProjectorWidths(vec![8192; 3]),
            projector_batch_norm: true,
            projector_output_norm: false,
        }
    }
}

impl ModelConfig {
    /// Dimensions of a feature.
    pub fn feature_dim(&self) -> usize {
        self.width * 8 * self.arch.expansion()
    }

    /// Values that a training pass keeps of one view of (height, width) until its backward pass, to
    /// within a quarter: the output of each convolution and of the BatchNorm behind it.
    pub fn activations(&self, (height, width): (usize, usize)) -> u64 {
        let halved = |(h, w): (usize, usize)| (h.div_ceil(2), w.div_ceil(2));
        let values = |channels: usize, (h, w): (usize, usize)| 2 * (channels * h * w) as u64;
        let mut at = (height, width);
        let mut all = 0;
        let (kernel, stride, padding) = self.stem.window();
        let side = |side: usize| (side + 2 * padding).saturating_sub(kernel) / stride + 1;
        at = (side(at.0), side(at.1));
        all += values(self.width, at);
        if self.stem.is_pooled() {
            at = halved(at);
        }
        for (layer, blocks) in self.arch.blocks().into_iter().enumerate() {
            let inner = self.width << layer;
            let outer = inner * self.arch.expansion();
            for block in 0..blocks {
                let before = at;
                if block == 0 && layer > 0 {
                    at = halved(at);
                }
                all += match self.arch.bottleneck() {
                    true => values(inner, before) + values(inner, at) + values(outer, at),
                    false => 2 * values(inner, at),
                };
                if block == 0 && (layer > 0 || self.arch.bottleneck()) {
                    all += values(outer, at);
                }
            }
        }
        all + self.projector.0.iter().map(|width| 2 * *width as u64).sum::<u64>()
    }

    /// Whether such a network can be: what is made of it is allocated at once.
    ///
    /// # Errors
    /// A width that is nothing, or beyond any network that was ever trained.
    pub fn check(&self) -> anyhow::Result<()> {
        let width = 1..=MOST_WIDTH / (8 * self.arch.expansion());
        let (least, most) = (width.start(), width.end());
        anyhow::ensure!(
            width.contains(&self.width),
            "`model.width` must lie between {least} and {most}, got {}",
            self.width
        );
        anyhow::ensure!(
            self.projector.0.iter().all(|width| *width <= MOST_WIDTH),
            "the widths of `model.projector` are at most {MOST_WIDTH}, got {}",
            self.projector
        );
        Ok(())
    }

    /// Dimensions of an embedding.
    pub fn embedding_dim(&self) -> usize {
        self.projector.0.last().copied().unwrap_or(self.feature_dim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_no_memory_holds_is_refused() {
        for width in [0, 2049, 10_000_000_000] {
            let config = ModelConfig { arch: Arch::ResNet50, width, ..Default::default() };
            assert!(config.check().unwrap_err().to_string().contains("model.width"), "{width}");
        }
        let projector = ProjectorWidths(vec![64, MOST_WIDTH + 1]);
        let config = ModelConfig { projector, ..Default::default() };
        assert!(config.check().unwrap_err().to_string().contains("model.projector"));
        assert!(ModelConfig::default().check().is_ok());
    }

    #[test]
    fn projector_widths_are_read_and_written_as_the_authors_do() {
        let widths: ProjectorWidths = "8192-8192-16".parse().unwrap();
        assert_eq!(widths.0, [8192, 8192, 16]);
        assert_eq!(widths.to_string(), "8192-8192-16");
        for bad in ["", "512-", "a", "0", "-5"] {
            assert!(bad.parse::<ProjectorWidths>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_config_goes_through_toml_unchanged() {
        let config = ModelConfig { arch: Arch::ResNet18, width: 16, ..Default::default() };
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains("resnet18") && text.contains("8192-8192-8192"), "{text}");
        assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), config);
    }
}
