//! What the embeddings of a batch tell: whether they collapse, how many dimensions they use, and
//! how much of the image and of the distortion they keep.
//!
//! Nothing here takes part in training; the trainer may ask for it every n steps.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::barlow::{BarlowConfig, barlow_twins};
use super::embeddings::{Pair, column_fold, dot, with_pair};
use super::linalg::symmetric_eigenvalues;
use super::matmul::{Mat, matmul};
use super::normalize::{Norm, Normalized, column_means};

/// Samples that spectra and pairwise distances look at, at most: their cost grows with the cube.
pub const MAX_SAMPLES: usize = 512;
/// The variance below which a direction counts as noise, in units of a dimension's variance.
const NOISE: f64 = 1e-3;

/// Figures of one batch's embeddings, both views.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// Mean over dimensions of the standard deviation over the batch (view a).
    pub std_mean: f64,
    /// The smallest of those: 0 when a dimension is dead.
    pub std_min: f64,
    /// Each dimension's; not written to the metrics.
    #[serde(skip)]
    pub std: Vec<f64>,
    /// Mean standard deviation per dimension of unit-length embeddings, times sqrt(dim): 1 when
    /// they spread evenly over the sphere, 0 when they collapse to a point (Chen and He, 2021,
    /// section 4.1).
    pub spread: f64,
    /// Eigenvalues of view a's covariance, from large to small: min(samples, dim) of them, or
    /// those that [`Diagnostics::thinned`] kept.
    pub spectrum: Vec<f64>,
    /// The place of each eigenvalue in the whole spectrum, from 1 on.
    pub ranks: Vec<usize>,
    /// Eigenvalues in the whole spectrum.
    pub directions: usize,
    /// Mean of the diagonal of the views' cross-correlation C.
    pub on_diag: f64,
    /// Root mean square of C's other elements.
    pub off_diag: f64,
    /// exp(entropy of the normalised spectrum): how many directions are used (Roy and Vetterli,
    /// 2007). At most min(samples - 1, dim).
    pub effective_rank: f64,
    /// Mean squared distance of a sample's two unit-length embeddings: 0 when the views agree
    /// (Wang and Isola, 2020, equation 1).
    pub alignment: f64,
    /// log mean exp(-2 |x - y|^2) over pairs of unit-length embeddings of view a: 0 when all are
    /// equal, about -4 when spread evenly in many dimensions (Wang and Isola, 2020, equation 2).
    pub uniformity: f64,
    /// Gaussian estimate of the information that embeddings hold, in nats:
    /// 1/2 log det(I + cov(Z)/r), of embeddings with unit variance and noise r = 0.001.
    pub information: f64,
    /// The same of embeddings given the image, whose covariance is that of (a - b) / sqrt(2):
    /// what they hold of the distortion. Barlow Twins' appendix A wants `information` large and
    /// this small; lambda trades them.
    pub information_given_image: f64,
}

/// What [`Diagnostics`] amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Embeddings spread, over many directions.
    Healthy,
    /// Embeddings differ, but in few directions.
    FewDirections,
    /// All embeddings are nearly the same.
    Collapsed,
}

impl Diagnostics {
    /// Measures the embeddings `z_a` and `z_b`, both `[batch, dim]`.
    ///
    /// # Errors
    ///
    /// Shapes that differ, or are not `[batch, dim]` with at least two samples.
    pub fn measure(z_a: &Tensor, z_b: &Tensor) -> Result<Self> {
        let c = barlow_twins(z_a, z_b, &BarlowConfig::default())?.correlation;
        let (on_diag, off_diag) =
            c.map_or((0.0, 0.0), |c| (c.on_diag_mean, c.off_diag_rms.unwrap_or(0.0)));
        with_pair(z_a, z_b, |pair| Ok(Self { on_diag, off_diag, ..Self::of(pair) }))
    }

    /// With at most `most` eigenvalues, evenly spread over the logarithm of their rank, so that a
    /// line of metrics stays short.
    pub fn thinned(&self, most: usize) -> Self {
        let (count, mut ranks) = (self.spectrum.len(), Vec::new());
        let last = (count.max(2) as f64).ln();
        for step in 0..most {
            let rank = (last * step as f64 / (most.max(2) - 1) as f64).exp().round() as usize;
            if rank <= count && ranks.last() != Some(&rank) {
                ranks.push(rank);
            }
        }
        let spectrum = ranks.iter().map(|rank| self.spectrum[rank - 1]).collect();
        Self { spectrum, ranks, ..self.clone() }
    }

    fn of(pair: Pair<'_>) -> Self {
        let std = column_std(pair.a, pair.dim);
        let some = pair.first(MAX_SAMPLES);
        let spectrum = spectrum(some.a, some.dim, 0.0);
        let unit_a = Normalized::new(some.a, some.dim, Norm::Unit);
        let unit_b = Normalized::new(some.b, some.dim, Norm::Unit);
        let spread = mean(&column_std(&unit_a.hat, some.dim)) * (some.dim as f64).sqrt();
        let (information, information_given_image) = information(some);
        Self {
            std_mean: mean(&std),
            std_min: std.iter().copied().fold(f64::INFINITY, f64::min),
            std,
            spread,
            effective_rank: effective_rank(&spectrum),
            ranks: (1..=spectrum.len()).collect(),
            directions: spectrum.len(),
            spectrum,
            on_diag: 0.0,
            off_diag: 0.0,
            alignment: alignment(&unit_a, &unit_b),
            uniformity: uniformity(&unit_a),
            information,
            information_given_image,
        }
    }

    /// The judgement in one word; [`Diagnostics::describe`] gives its reasons.
    pub fn health(&self) -> Health {
        let possible = self.directions.saturating_sub(1).max(1) as f64;
        if self.spread.is_nan() || self.spread < 0.1 {
            Health::Collapsed
        } else if self.effective_rank < (possible / 3.0).clamp(1.0, 3.0).max(0.02 * possible) {
            Health::FewDirections
        } else {
            Health::Healthy
        }
    }

    /// The judgement in a sentence, with the figures that it rests on.
    pub fn describe(&self) -> String {
        let figures = format!(
            "spread {:.2} of 1, effective rank {:.1} of {}",
            self.spread, self.effective_rank, self.directions
        );
        match self.health() {
            Health::Healthy => format!("embeddings are spread ({figures})"),
            Health::FewDirections => format!("embeddings vary in few directions only ({figures})"),
            Health::Collapsed => {
                format!("embeddings look collapsed: all are nearly the same ({figures})")
            }
        }
    }
}

impl<'a> Pair<'a> {
    /// At most the first `count` samples.
    fn first(self, count: usize) -> Pair<'a> {
        let batch = self.batch.min(count);
        let end = batch * self.dim;
        Pair { a: &self.a[..end], b: &self.b[..end], batch, dim: self.dim }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Each column's standard deviation (over n).
fn column_std(z: &[f32], dim: usize) -> Vec<f64> {
    let (mean, n) = (column_means(z, dim), (z.len() / dim) as f64);
    let squares = column_fold(z, dim, |j, x| (f64::from(x) - mean[j]).powi(2));
    squares.into_iter().map(|sum| (sum / n).sqrt()).collect()
}

/// Eigenvalues of the covariance (over n - 1) of the rows of `z`, each plus `ridge`, through the
/// smaller of X X^T and X^T X, which share the eigenvalues that are not zero.
fn spectrum(z: &[f32], dim: usize, ridge: f64) -> Vec<f64> {
    let (mean, batch) = (column_means(z, dim), z.len() / dim);
    let centred: Vec<f64> =
        z.par_iter().enumerate().map(|(i, &x)| f64::from(x) - mean[i % dim]).collect();
    let rows = Mat::new(&centred, batch, dim);
    let (mut m, size) =
        if batch < dim { (matmul(rows, rows.t()), batch) } else { (matmul(rows.t(), rows), dim) };
    let scale = 1.0 / (batch - 1) as f64;
    m.iter_mut().for_each(|m| *m *= scale);
    let values = symmetric_eigenvalues(&mut m, size);
    // Rounding leaves tiny negative ones.
    values.into_iter().map(|value| if value < 0.0 { ridge } else { value + ridge }).collect()
}

fn effective_rank(spectrum: &[f64]) -> f64 {
    let sum: f64 = spectrum.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    let shares = spectrum.iter().map(|value| value / sum).filter(|&p| p > 0.0);
    shares.map(|p| -p * p.ln()).sum::<f64>().exp()
}

fn alignment(a: &Normalized, b: &Normalized) -> f64 {
    let rows = a.hat.par_chunks(a.dim).zip(b.hat.par_chunks(b.dim));
    let distances: Vec<f64> = rows.map(|(a, b)| 2.0 - 2.0 * dot(a, b)).collect();
    mean(&distances).max(0.0)
}

fn uniformity(unit: &Normalized) -> f64 {
    let n = unit.batch;
    let z = Mat::new(&unit.hat, n, unit.dim);
    let similarities = matmul(z, z.t());
    let rows: Vec<f64> = (1..n)
        .into_par_iter()
        .map(|i| {
            let row = &similarities[i * n..][..i];
            row.iter().map(|&s| (-4.0 * (1.0 - f64::from(s))).exp()).sum()
        })
        .collect();
    (rows.iter().sum::<f64>() / (n * (n - 1) / 2) as f64).ln()
}

/// The two Gaussian estimates, of view a scaled to unit variance; view b takes a's scale, so that
/// the difference is the distortion's.
fn information(pair: Pair<'_>) -> (f64, f64) {
    let (mean, std) = (column_means(pair.a, pair.dim), column_std(pair.a, pair.dim));
    // A dead dimension holds nothing; dividing its rounding errors by its own size would.
    let scale: Vec<f64> = std.iter().map(|&s| if s > 1e-12 { 1.0 / s } else { 0.0 }).collect();
    let column = |i: usize| i % pair.dim;
    let a: Vec<f32> = pair
        .a
        .par_iter()
        .enumerate()
        .map(|(i, &a)| ((f64::from(a) - mean[column(i)]) * scale[column(i)]) as f32)
        .collect();
    let rows = pair.a.par_iter().zip(pair.b).enumerate();
    let difference: Vec<f32> = rows
        .map(|(i, (&a, &b))| {
            let difference = f64::from(a) - f64::from(b);
            (difference * scale[column(i)] * std::f64::consts::FRAC_1_SQRT_2) as f32
        })
        .collect();
    let nats = |x: &[f32]| {
        let spectrum = spectrum(x, pair.dim, NOISE);
        0.5 * spectrum.iter().map(|value| (value / NOISE).ln()).sum::<f64>()
    };
    (nats(&a), nats(&difference))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::tests::pair_of;

    #[test]
    fn independent_dimensions_are_healthy_and_of_full_rank() {
        let (z_a, z_b) = pair_of(400, 16, 1);
        let got = Diagnostics::measure(&z_a, &z_b).unwrap();
        assert_eq!(got.health(), Health::Healthy);
        assert!(got.effective_rank > 15.0 && got.effective_rank <= 16.0, "{got:?}");
        assert!((got.spread - 1.0).abs() < 0.05, "{got:?}");
        assert!(got.information > got.information_given_image, "{got:?}");
        assert!(got.on_diag > 0.5 && got.off_diag < 0.2, "{got:?}");
        let thin = got.thinned(5);
        assert_eq!(
            (thin.ranks.clone(), thin.spectrum[4]),
            (vec![1, 2, 4, 8, 16], got.spectrum[15])
        );
        assert_eq!(thin.describe(), got.describe());
        assert!(got.spectrum.is_sorted_by(|a, b| a >= b) && got.spectrum.len() == 16);
        // The trace is the sum of the variances over n - 1.
        let variance = got.std_mean * got.std_mean * 400.0 / 399.0;
        assert!((got.spectrum.iter().sum::<f64>() / 16.0 / variance - 1.0).abs() < 0.01);
    }

    #[test]
    fn equal_embeddings_are_called_collapsed() {
        let row = Tensor::randn(0f32, 1.0, (1, 12), &Device::Cpu).unwrap();
        let z = row.repeat((20, 1)).unwrap();
        let got = Diagnostics::measure(&z, &z).unwrap();
        assert_eq!(got.health(), Health::Collapsed);
        assert!(got.describe().contains("collapsed"));
        assert!(got.uniformity.abs() < 1e-3 && got.alignment < 1e-3 && got.std_min < 1e-6);
    }

    /// A batch of n has n - 1 directions.
    #[test]
    fn small_batches_are_not_few_directions_by_their_size() {
        for batch in [2, 3, 4, 6] {
            let (z_a, z_b) = pair_of(batch, 64, 1);
            let got = Diagnostics::measure(&z_a, &z_b).unwrap();
            assert_eq!(got.health(), Health::Healthy, "{batch}: {got:?}");
        }
    }

    #[test]
    fn one_direction_is_told_from_many() {
        let along = Tensor::randn(0f32, 1.0, (50, 1), &Device::Cpu).unwrap();
        let direction = Tensor::randn(0f32, 1.0, (1, 30), &Device::Cpu).unwrap();
        let z = along.matmul(&direction).unwrap();
        let got = Diagnostics::measure(&z, &z).unwrap();
        assert_eq!(got.health(), Health::FewDirections);
        assert!((got.effective_rank - 1.0).abs() < 1e-3, "{}", got.effective_rank);
        assert!(got.information_given_image.abs() < 1e-9);
    }

    #[test]
    fn both_gram_matrices_give_the_same_rank_and_information() {
        // Fewer samples than dimensions, then the same embeddings padded with dead dimensions.
        let (z_a, z_b) = pair_of(30, 20, 4);
        let dead = Tensor::zeros((30, 40), candle_core::DType::F32, &Device::Cpu).unwrap();
        let wide = |z: &Tensor| Tensor::cat(&[z, &dead], 1).unwrap();
        let narrow = Diagnostics::measure(&z_a, &z_b).unwrap();
        let padded = Diagnostics::measure(&wide(&z_a), &wide(&z_b)).unwrap();
        assert!((narrow.effective_rank - padded.effective_rank).abs() < 1e-6);
        assert!((narrow.information - padded.information).abs() < 1e-6);
        assert_eq!(padded.std_min, 0.0);
    }

    #[test]
    fn information_is_a_gaussians_and_of_no_dimensions_scale() {
        let variance = |x: &[f64], over: f64| {
            let mean = mean(x);
            x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / over
        };
        let (z_a, z_b) = pair_of(30, 1, 4);
        let [a, b] = [&z_a, &z_b].map(|z| {
            let values = z.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f64::from).collect::<Vec<_>>()
        });
        let halves: Vec<f64> = a.iter().zip(&b).map(|(a, b)| (a - b) / 2f64.sqrt()).collect();
        let nats = |x: &[f64]| 0.5 * (variance(x, 29.0) / variance(&a, 30.0) / NOISE).ln_1p();
        let got = Diagnostics::measure(&z_a, &z_b).unwrap();
        assert!((got.information - nats(&a)).abs() < 1e-5, "{got:?}");
        assert!((got.information_given_image - nats(&halves)).abs() < 1e-5, "{got:?}");

        let (z_a, z_b) = pair_of(30, 4, 5);
        let scales = Tensor::new(&[1f32, 7.0, 0.2, 30.0], &Device::Cpu).unwrap();
        let scaled = |z: &Tensor| z.broadcast_mul(&scales).unwrap();
        let plain = Diagnostics::measure(&z_a, &z_b).unwrap();
        let other = Diagnostics::measure(&scaled(&z_a), &scaled(&z_b)).unwrap();
        for (one, two) in [
            (plain.information, other.information),
            (plain.information_given_image, other.information_given_image),
        ] {
            assert!((one - two).abs() < 1e-4, "{one} {two}");
        }
    }

    #[test]
    fn alignment_and_uniformity_follow_their_definitions() {
        let (z_a, z_b) = pair_of(12, 5, 7);
        let unit = |z: &Tensor| {
            let norm = z.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
            z.broadcast_div(&norm).unwrap().to_vec2::<f32>().unwrap()
        };
        let (a, b) = (unit(&z_a), unit(&z_b));
        let distance = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum()
        };
        let alignment = a.iter().zip(&b).map(|(a, b)| distance(a, b)).sum::<f64>() / 12.0;
        let mut pairs = Vec::new();
        for i in 0..12 {
            pairs.extend((0..i).map(|j| (-2.0 * distance(&a[i], &a[j])).exp()));
        }
        let uniformity = mean(&pairs).ln();
        let got = Diagnostics::measure(&z_a, &z_b).unwrap();
        assert!((got.alignment - alignment).abs() < 1e-5);
        assert!((got.uniformity - uniformity).abs() < 1e-5);
    }
}
