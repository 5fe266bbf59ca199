//! What Barlow Twins' losses share: both views' normalised embeddings, C's diagonal, and products
//! with C by the shorter of two ways (see [`super::barlow`]).

use rayon::prelude::*;

use super::barlow::{BarlowConfig, Normalize, Terms, prefer_gram};
use super::embeddings::{Pair, column_fold2};
use super::matmul::{Mat, matmul, matmul_into};
use super::normalize::Normalized;

/// Both views' normalised embeddings and the diagonal of C = c_scale a^T b.
pub(crate) struct Twins {
    pub a: Normalized,
    pub b: Normalized,
    /// The factor that makes a mean of the sum: 1/n, except with feature normalisation.
    pub c_scale: f64,
    /// C_ii.
    pub diagonal: Vec<f64>,
}

/// The loss's terms, and what was learnt about C on the way.
pub(crate) struct BarlowTerms {
    pub invariance: f64,
    pub redundancy: f64,
    pub off_diagonal_squares: Option<f64>,
}

impl Twins {
    pub fn new(pair: Pair<'_>, config: &BarlowConfig) -> Self {
        let a = Normalized::new(pair.a, pair.dim, config.norm());
        let b = Normalized::new(pair.b, pair.dim, config.norm());
        let c_scale = match config.normalize {
            Normalize::Feature => 1.0,
            Normalize::Batch | Normalize::None => 1.0 / pair.batch as f64,
        };
        let diagonal =
            column_fold2(&a.hat, &b.hat, pair.dim, |_, a, b| f64::from(a) * f64::from(b))
                .into_iter()
                .map(|sum| sum * c_scale)
                .collect();
        Self { a, b, c_scale, diagonal }
    }

    pub fn a_mat(&self) -> Mat<'_, f32> {
        Mat::new(&self.a.hat, self.a.batch, self.a.dim)
    }

    pub fn b_mat(&self) -> Mat<'_, f32> {
        Mat::new(&self.b.hat, self.b.batch, self.b.dim)
    }

    /// Equation 1: the terms and the gradient with respect to the normalised embeddings.
    pub fn squared(&self, config: &BarlowConfig) -> (BarlowTerms, Vec<f32>) {
        let mut grad = vec![0.0; 2 * self.a.hat.len()];
        let (grad_a, grad_b) = grad.split_at_mut(self.a.hat.len());
        let (invariance_weight, redundancy_weight) = config.term_weights();
        let squares =
            (config.terms != Terms::Invariance).then(|| self.squares_and_products(grad_a, grad_b));
        // d loss / d C_ii, less what the products with all of C already hold.
        let on_diagonal: Vec<f64> = self
            .diagonal
            .iter()
            .map(|&c| 2.0 * invariance_weight * (c - 1.0) - 2.0 * redundancy_weight * c)
            .collect();
        let along_products = 2.0 * redundancy_weight * self.c_scale * self.c_scale;
        self.combine(grad_a, &self.b.hat, along_products, &on_diagonal);
        self.combine(grad_b, &self.a.hat, along_products, &on_diagonal);
        let invariance: f64 = self.diagonal.iter().map(|c| (1.0 - c) * (1.0 - c)).sum();
        let terms = BarlowTerms {
            invariance: invariance_weight * invariance,
            redundancy: redundancy_weight * squares.unwrap_or(0.0),
            off_diagonal_squares: squares,
        };
        (terms, grad)
    }

    /// `grad = products_weight * grad + c_scale * other * on_diagonal` (by column).
    pub fn combine(
        &self,
        grad: &mut [f32],
        other: &[f32],
        products_weight: f64,
        on_diagonal: &[f64],
    ) {
        let products_weight = products_weight as f32;
        let columns: Vec<f32> = on_diagonal.iter().map(|d| (d * self.c_scale) as f32).collect();
        let dim = columns.len();
        grad.par_chunks_mut(dim).zip(other.par_chunks(dim)).for_each(|(grad, other)| {
            for (g, (&x, &d)) in grad.iter_mut().zip(other.iter().zip(&columns)) {
                *g = products_weight * *g + x * d;
            }
        });
    }

    /// Writes b (a^T b)^T and a (a^T b) into `to_a` and `to_b`; returns the sum of C_ij^2 off the
    /// diagonal.
    fn squares_and_products(&self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        if prefer_gram(self.a.batch, self.a.dim) {
            self.through_gram(to_a, to_b)
        } else {
            self.through_c(to_a, to_b)
        }
    }

    fn through_gram(&self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        let (a, b) = (self.a_mat(), self.b_mat());
        let (k_a, k_b) = (matmul(a, a.t()), matmul(b, b.t()));
        let n = self.a.batch;
        matmul_into(Mat::new(&k_b, n, n), a, to_a);
        matmul_into(Mat::new(&k_a, n, n), b, to_b);
        let squares = ordered_sum(n, |i| {
            let (k_a, k_b) = (&k_a[i * n..][..n], &k_b[i * n..][..n]);
            k_a.iter().zip(k_b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        });
        let diagonal: f64 = self.diagonal.iter().map(|c| c * c).sum();
        (squares * self.c_scale * self.c_scale - diagonal).max(0.0)
    }

    fn through_c(&self, to_a: &mut [f32], to_b: &mut [f32]) -> f64 {
        let (a, b, dim) = (self.a_mat(), self.b_mat(), self.a.dim);
        let c = matmul(a.t(), b);
        let c_mat = Mat::new(&c, dim, dim);
        matmul_into(b, c_mat.t(), to_a);
        matmul_into(a, c_mat, to_b);
        let squares = ordered_sum(dim, |i| {
            let row = &c[i * dim..][..dim];
            let square =
                |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            square(&row[..i]) + square(&row[i + 1..])
        });
        squares * self.c_scale * self.c_scale
    }
}

/// The sum of `f(0) .. f(count)`: terms in parallel, added in order.
fn ordered_sum(count: usize, f: impl Fn(usize) -> f64 + Sync + Send) -> f64 {
    let terms: Vec<f64> = (0..count).into_par_iter().map(f).collect();
    terms.iter().sum()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::loss::barlow::barlow_twins;
    use crate::loss::embeddings::with_pair;
    use crate::loss::tests::{pair_of, relative};

    #[test]
    fn both_ways_round_c_agree() {
        for (batch, dim) in [(20, 30), (64, 300), (7, 9)] {
            let (z_a, z_b) = pair_of(batch, dim, 5);
            with_pair(&z_a, &z_b, |pair| {
                let twins = Twins::new(pair, &BarlowConfig::default());
                let mut products = vec![vec![0f32; batch * dim]; 4];
                let [gram_a, gram_b, c_a, c_b] = &mut products[..] else { unreachable!() };
                let gram = twins.through_gram(gram_a, gram_b);
                let c = twins.through_c(c_a, c_b);
                assert!((gram / c - 1.0).abs() < 1e-5, "{gram} {c}");
                assert!(relative(gram_a, c_a) < 1e-5 && relative(gram_b, c_b) < 1e-5);
                Ok(())
            })
            .unwrap();
        }
    }

    #[test]
    fn one_live_dimension_has_next_to_nothing_off_the_diagonal() {
        let (batch, dim) = (12, 64);
        let values = |z: Tensor| z.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (z_a, z_b) = pair_of(batch, dim, 5);
        let [a, b] = [z_a, z_b].map(|z| {
            let mut alone = vec![0.25f32; batch * dim];
            for (to, from) in alone.chunks_mut(dim).zip(values(z).chunks(dim)) {
                to[3] = from[3];
            }
            Tensor::from_vec(alone, (batch, dim), &Device::Cpu).unwrap()
        });
        with_pair(&a, &b, |pair| {
            let twins = Twins::new(pair, &BarlowConfig::default());
            let diagonal = twins.diagonal[3] * twins.diagonal[3];
            assert!(diagonal > 1e-3, "{diagonal}");
            let mut products = vec![vec![0f32; batch * dim]; 4];
            let [gram_a, gram_b, c_a, c_b] = &mut products[..] else { unreachable!() };
            let gram = twins.through_gram(gram_a, gram_b);
            assert!((0.0..1e-6 * diagonal).contains(&gram), "{gram} beside {diagonal}");
            assert_eq!(twins.through_c(c_a, c_b), 0.0);
            assert!(relative(gram_a, c_a) < 1e-6 && relative(gram_b, c_b) < 1e-6);
            Ok(())
        })
        .unwrap();
        let out = barlow_twins(&a, &b, &BarlowConfig::default()).unwrap();
        assert!(out.loss.is_finite() && values(out.grad).iter().all(|g| g.is_finite()));
    }
}
