//! PyTorch's and torchvision's default initialisation, keyed by seed and parameter.

use bt_pipeline::rng::Rng;
use candle_core::Result;

use crate::nn::Param;

/// Keeps the draws of parameters apart from those of samples, which are keyed by epoch here.
const STREAM: u64 = u64::MAX;

/// Kaiming normal, fan out, as torchvision initialises convolutions: N(0, 2 / (O KH KW)).
pub(super) fn kaiming_normal_fan_out(p: &mut Param, seed: u64, index: usize) -> Result<()> {
    let dims = p.value.dims();
    let fan_out: usize = dims[..dims.len() - 1].iter().product();
    let std = (2.0 / fan_out as f64).sqrt();
    let mut rng = Rng::keyed(seed, STREAM, index as u64, 0);
    let values: Vec<f32> = (0..p.len()).map(|_| (std * normal(&mut rng)) as f32).collect();
    p.set(&values)
}

/// PyTorch's default for linear layers: uniform within 1 / sqrt(I).
pub(super) fn linear_default(p: &mut Param, seed: u64, index: usize) -> Result<()> {
    let bound = 1.0 / (p.value.dims()[1] as f64).sqrt();
    let mut rng = Rng::keyed(seed, STREAM, index as u64, 0);
    let values: Vec<f32> = (0..p.len()).map(|_| rng.uniform(-bound, bound) as f32).collect();
    p.set(&values)
}

/// Box and Muller's transform, its cosine half.
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.unit()).cos()
}
