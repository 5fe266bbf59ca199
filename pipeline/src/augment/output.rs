//! Where a finished view goes: element type, layout, destination.

use serde::{Deserialize, Serialize};

/// Order of a view's elements in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[3, height, width]`: three planes.
    Nchw,
    /// `[height, width, 3]`: interleaved channels.
    #[default]
    Nhwc,
}

/// Element type of a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Normalised, 32-bit floats.
    #[default]
    F32,
    /// Normalised, rounded to bfloat16 (nearest, ties to even).
    Bf16,
    /// The 8-bit pixels as they are; normalisation is left to the consumer.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }
}

/// The destination of one view: `height * width * 3` elements.
#[derive(Debug)]
pub enum ViewOut<'a> {
    /// Normalised: `(value / 255 - mean) / std`.
    F32(&'a mut [f32]),
    /// Normalised and rounded to bfloat16.
    Bf16(&'a mut [half::bf16]),
    /// The pixels, 0..=255, not normalised.
    U8(&'a mut [u8]),
}

impl ViewOut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            ViewOut::F32(out) => out.len(),
            ViewOut::Bf16(out) => out.len(),
            ViewOut::U8(out) => out.len(),
        }
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
