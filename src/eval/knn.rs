//! The weighted k-nearest-neighbour classifier of Wu et al., "Unsupervised
//! Feature Learning via Non-Parametric Instance Discrimination" (2018), sec. 3.4:
//! the k references most similar by cosine vote with weight exp(similarity / t).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::Features;
use crate::checks::positive;
use crate::loss::matmul::{Mat, matmul_serial};

/// Queries that one task classifies, and references it compares at a time: the
/// block of similarities (256 KB) stays in the second-level cache.
const QUERIES: usize = 64;
const REFERENCES: usize = 1024;

/// Options of the classifier.
#[derive(Clone, Copy, Debug, PartialEq)]
///
/// The code of Wu et al. has k = 200 with t = 0.07 for ImageNet and 0.1 for CIFAR-10.
pub struct KnnConfig {
    /// Neighbours; all references when there are fewer.
    pub k: usize,
    /// Temperature t of the weights.
    pub temperature: f64,
}

/// Share (0 to 1) of `queries` whose class the neighbours in `references` find. Takes both, to
/// normalise them where they are: those of ImageNet are 10 GB.
///
/// # Errors
/// When labels are missing, values are not finite, the dimensions differ or an
/// option is out of range.
pub fn knn_accuracy(references: Features, queries: Features, config: KnnConfig) -> Result<f64> {
    knn_accuracy_unless(references, queries, config, &AtomicBool::new(false))
}

/// As [`knn_accuracy`], until `given_up` is raised.
///
/// # Errors
/// As [`knn_accuracy`], and when it was given up.
pub fn knn_accuracy_unless(
    references: Features,
    queries: Features,
    config: KnnConfig,
    given_up: &AtomicBool,
) -> Result<f64> {
    queries.check_labelled("the query set")?;
    let labels = queries.labels().to_vec();
    let predicted = predict(references, queries, config, given_up)?;
    let right = predicted.iter().zip(&labels).filter(|(p, l)| p == l).count();
    Ok(right as f64 / labels.len() as f64)
}

/// The class that the neighbours of each query vote for; the smallest of equals.
///
/// # Errors
/// As [`knn_accuracy`].
pub fn knn_predict(references: Features, queries: Features, config: KnnConfig) -> Result<Vec<u32>> {
    predict(references, queries, config, &AtomicBool::new(false))
}

fn predict(
    mut references: Features,
    queries: Features,
    config: KnnConfig,
    given_up: &AtomicBool,
) -> Result<Vec<u32>> {
    references.check_labelled("the reference set")?;
    positive("the temperature", config.temperature)?;
    let neighbours = nearest_unless(&mut references, queries, config.k, given_up)?;
    let vote = |near: &Vec<Neighbour>| {
        // Of the classes that are near alone: labels may be any numbers.
        let mut votes = BTreeMap::<u32, f64>::new();
        for one in near {
            // Relative to the nearest, so that a small t cannot overflow.
            let relative = f64::from(one.similarity - near[0].similarity);
            let label = references.labels()[one.index as usize];
            *votes.entry(label).or_default() += (relative / config.temperature).exp();
        }
        let best = votes.iter().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(a.0)));
        best.map_or(0, |(label, _)| *label)
    };
    Ok(neighbours.par_iter().map(vote).collect())
}

/// A reference near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Cosine of the angle between the two, -1 to 1.
    pub similarity: f32,
    /// The reference's row.
    pub index: u32,
}

/// The `k` references most similar to each query, nearest first; of equals the
/// one that comes first.
///
/// # Errors
/// When the dimensions differ, `k` is 0 or there are no references.
pub fn nearest(
    mut references: Features,
    queries: Features,
    k: usize,
) -> Result<Vec<Vec<Neighbour>>> {
    nearest_unless(&mut references, queries, k, &AtomicBool::new(false))
}

/// As [`nearest`], unless it is given up; the references are unit vectors afterwards.
fn nearest_unless(
    references: &mut Features,
    mut queries: Features,
    k: usize,
    given_up: &AtomicBool,
) -> Result<Vec<Vec<Neighbour>>> {
    if references.dim() != queries.dim() {
        bail!(
            "references have {} dimensions, queries {}: are they of one network?",
            references.dim(),
            queries.dim()
        );
    }
    if k == 0 || references.is_empty() {
        bail!("k = {k} neighbours of {} references", references.len());
    }
    if u32::try_from(references.len()).is_err() {
        bail!("{} references are too many", references.len());
    }
    references.normalize();
    queries.normalize();
    let references = &*references;
    let starts: Vec<usize> = (0..queries.len()).step_by(QUERIES).collect();
    let blocks: Option<Vec<_>> =
        starts.par_iter().map(|start| block(references, &queries, *start, k, given_up)).collect();
    let blocks = blocks.context("the search for neighbours was given up")?;
    Ok(blocks.into_iter().flatten().collect())
}

/// The neighbours of the queries from row `start` on, unless they are given up.
fn block(
    references: &Features,
    queries: &Features,
    start: usize,
    k: usize,
    given_up: &AtomicBool,
) -> Option<Vec<Vec<Neighbour>>> {
    let dim = queries.dim();
    let count = QUERIES.min(queries.len() - start);
    let rows = Mat::new(&queries.values()[start * dim..][..count * dim], count, dim);
    let all = Mat::new(references.values(), references.len(), dim);
    let mut similarities = vec![0.0f32; count * REFERENCES];
    let mut found = vec![Nearest::new(k); count];
    for first in (0..references.len()).step_by(REFERENCES) {
        if given_up.load(Ordering::Relaxed) {
            return None;
        }
        let wide = REFERENCES.min(references.len() - first);
        let some = all.rows(first, wide);
        matmul_serial(rows, some.t(), &mut similarities, REFERENCES, false);
        for (row, near) in similarities.chunks_exact(REFERENCES).zip(&mut found) {
            for (i, similarity) in row[..wide].iter().enumerate() {
                near.offer(Neighbour { similarity: *similarity, index: (first + i) as u32 });
            }
        }
    }
    Some(found.into_iter().map(Nearest::sorted).collect())
}

/// The k best of what was offered: kept up to twice k, cut back now and then.
#[derive(Clone)]
struct Nearest {
    k: usize,
    kept: Vec<Neighbour>,
    /// What is below this cannot be among the k best.
    floor: f32,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Nearest { k, kept: Vec::new(), floor: f32::NEG_INFINITY }
    }

    fn offer(&mut self, one: Neighbour) {
        if one.similarity > self.floor || self.kept.len() < self.k {
            self.kept.push(one);
            if self.kept.len() >= self.k.saturating_mul(2) {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.kept.len() > self.k {
            self.kept.select_nth_unstable_by(self.k - 1, nearer);
            self.kept.truncate(self.k);
            self.floor = self.kept[self.k - 1].similarity;
        }
    }

    fn sorted(mut self) -> Vec<Neighbour> {
        self.cut();
        self.kept.sort_unstable_by(nearer);
        self.kept
    }
}

/// Larger similarity first, then the smaller row: a total order, so that the
/// result does not depend on how the references were cut into blocks.
fn nearer(a: &Neighbour, b: &Neighbour) -> std::cmp::Ordering {
    b.similarity.total_cmp(&a.similarity).then(a.index.cmp(&b.index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bt_pipeline::rng::Rng;

    fn random(rows: usize, dim: usize, classes: u64, seed: u64) -> Features {
        let mut rng = Rng::keyed(seed, 0, 0, 0);
        let values = (0..rows * dim).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
        let labels = (0..rows).map(|_| rng.below(classes) as u32).collect();
        Features::from_parts(dim, values, labels).unwrap()
    }

    /// The definition, in f64, one query at a time.
    fn naive(references: &Features, query: &[f32], config: KnnConfig) -> u32 {
        let cosine = |a: &[f32], b: &[f32]| -> f64 {
            let dot = |x: &[f32], y: &[f32]| -> f64 {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let mut all: Vec<(f64, u32)> = (0..references.len())
            .map(|i| (cosine(references.row(i), query), references.labels()[i]))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut votes = vec![0.0; references.classes()];
        for (similarity, label) in all.iter().take(config.k) {
            votes[*label as usize] += (similarity / config.temperature).exp();
        }
        (0..votes.len()).max_by(|a, b| votes[*a].total_cmp(&votes[*b])).unwrap() as u32
    }

    #[test]
    fn predictions_are_those_of_the_definition() {
        // More references than a block, an odd dimension, a last block of queries that is short.
        let (references, queries) = (random(2500, 17, 7, 1), random(150, 17, 7, 2));
        for (k, temperature) in [(1, 0.1), (20, 0.1), (200, 0.5), (5000, 0.07)] {
            let config = KnnConfig { k, temperature };
            let predicted = knn_predict(references.clone(), queries.clone(), config).unwrap();
            for (i, class) in predicted.iter().enumerate() {
                assert_eq!(*class, naive(&references, queries.row(i), config), "query {i}, k {k}");
            }
        }
    }

    #[test]
    fn a_label_is_a_name_and_not_an_amount_of_memory() {
        let labels = vec![Features::NO_LABEL - 1, Features::NO_LABEL - 1, 7];
        let references = Features::from_parts(2, vec![1., 0., 1., 0.1, 0., 1.], labels).unwrap();
        let config = KnnConfig { k: 2, temperature: 0.1 };
        let queries = Features::from_parts(2, vec![1., 0., 0., 1.], vec![7, 7]).unwrap();
        let predicted = knn_predict(references, queries, config).unwrap();
        assert_eq!(predicted, [Features::NO_LABEL - 1, 7]);
    }

    #[test]
    fn neighbours_are_in_order_and_equals_by_their_place() {
        let references = Features::from_parts(1, vec![-1., 2., 1., 3.], vec![0, 1, 2, 3]).unwrap();
        let queries = Features::from_parts(1, vec![5.], vec![1]).unwrap();
        let near = nearest(references, queries, 4).unwrap();
        let indices: Vec<u32> = near[0].iter().map(|one| one.index).collect();
        assert_eq!(indices, [1, 2, 3, 0]);
    }

    #[test]
    fn predictions_do_not_depend_on_the_number_of_threads() {
        let (references, queries) = (random(1500, 8, 5, 3), random(200, 8, 5, 4));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| nearest(references.clone(), queries.clone(), 10).unwrap())
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (references, queries) = (random(5, 3, 2, 1), random(5, 4, 2, 2));
        assert!(
            knn_predict(references.clone(), queries, KnnConfig { k: 20, temperature: 0.1 })
                .is_err()
        );
        let zero = KnnConfig { k: 0, temperature: 0.1 };
        assert!(knn_predict(references.clone(), references.clone(), zero).is_err());
        for temperature in [0.0, -0.1, f64::NAN, f64::INFINITY] {
            let config = KnnConfig { k: 1, temperature };
            assert!(knn_predict(references.clone(), references.clone(), config).is_err());
        }
    }
}
