//! The linear probe on stored features: softmax regression on standardised
//! features, the strength of its weight decay chosen on held-out training data.
//!
//! The features do not change, so the objective is convex and smooth, and L-BFGS
//! finds its minimum without a learning rate to tune. The gradient is summed over
//! a number of parts that depends on the sizes alone, in a fixed order: the result
//! does not depend on threads. Features are standardised a few rows at a time, as
//! often as they are looked at: a copy of ImageNet's would take 10 GB.

use anyhow::{Result, bail};
use bt_pipeline::rng::Rng;
use rayon::prelude::*;

use super::Features;
use super::classify;
use super::lbfgs;
use crate::checks::PART;
use crate::loss::matmul::{Mat, matmul_serial};

/// Rows that are multiplied at a time.
const ROWS: usize = 256;

/// Parts that a pass over `rows` features is cut into, each with a gradient of `weights` values of
/// its own: as many as keep the cores of a large machine busy, beyond 16 in at most 1 GB.
fn parts(rows: usize, weights: usize) -> usize {
    const FEW: usize = 16;
    match rows {
        ..100_000 => FEW,
        _ => ((1 << 28) / weights.max(1)).clamp(FEW, 128),
    }
}

/// Options of the probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeConfig {
    /// Candidates for the weight decay lambda of
    /// `mean cross-entropy + lambda / 2 * |W|^2`.
    pub decays: Vec<f64>,
    /// Share of the training features that decides between them. Those of classes that would be held
    /// out whole do not; where none is left, as with one label a class, the strongest decay is taken.
    pub held_out: f64,
    /// Most L-BFGS iterations of one fit.
    pub max_iterations: usize,
    /// Decides which rows are held out.
    pub seed: u64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        ProbeConfig {
            decays: vec![1e-1, 1e-2, 1e-3, 1e-4],
            held_out: 0.2,
            max_iterations: 150,
            seed: 0,
        }
    }
}

/// Shares of right answers, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Accuracy {
    /// The most probable class is the label.
    pub top1: f64,
    /// The label is among the five most probable classes.
    pub top5: f64,
}

/// A fitted classifier.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `[classes, dim + 1]`, the bias last, for standardised features.
    weights: Vec<f32>,
    classes: usize,
    mean: Vec<f32>,
    inverse_std: Vec<f32>,
    /// The weight decay that was chosen.
    pub decay: f64,
}

impl Probe {
    /// Fits a classifier to `train`.
    ///
    /// # Errors
    /// When labels are missing, there is one class only, values are not finite or
    /// an option is out of range.
    pub fn fit(train: &Features, config: &ProbeConfig) -> Result<Probe> {
        train.check_labelled("the training set")?;
        if train.classes() < 2 {
            bail!("a probe needs at least two classes, the training set has {}", train.classes());
        }
        classify::check_classes(train.classes())?;
        let decay = choose_decay(train, config)?;
        let rows: Vec<usize> = (0..train.len()).collect();
        let mut probe = Probe::untrained(train, &rows);
        probe.descend(train, &rows, decay, config.max_iterations);
        Ok(probe)
    }

    /// How often the classifier is right about `test`. Labels that no training
    /// row has count as wrong.
    ///
    /// # Errors
    /// When labels are missing or the dimensions differ.
    pub fn accuracy(&self, test: &Features) -> Result<Accuracy> {
        test.check_labelled("the test set")?;
        if test.dim() != self.mean.len() {
            bail!("the probe was fitted to {} dimensions, not {}", self.mean.len(), test.dim());
        }
        let rows: Vec<usize> = (0..test.len()).collect();
        Ok(self.accuracy_of(test, &rows))
    }

    /// As [`Probe::accuracy`], about some rows.
    fn accuracy_of(&self, test: &Features, rows: &[usize]) -> Accuracy {
        let ranks = rows.par_chunks(ROWS).flat_map_iter(|rows| {
            let mut block = Vec::new();
            self.standardised(test, rows, &mut block);
            let logits = self.logits(&block);
            let of = |(row, i): (&[f32], &usize)| classify::rank(row, test.labels()[*i]);
            logits.chunks_exact(self.classes).zip(rows).map(of).collect::<Vec<_>>()
        });
        classify::accuracy(&ranks.collect::<Vec<usize>>())
    }

    /// Zero weights, standardisation by some rows of `train`.
    fn untrained(train: &Features, rows: &[usize]) -> Probe {
        let (dim, count) = (train.dim(), rows.len() as f64);
        let mut mean = vec![0.0f64; dim];
        let mut square = vec![0.0f64; dim];
        for &i in rows {
            mean.iter_mut().zip(train.row(i)).for_each(|(m, v)| *m += f64::from(*v) / count);
        }
        for &i in rows {
            let off = train.row(i).iter().zip(&mean).map(|(v, m)| f64::from(*v) - m);
            square.iter_mut().zip(off).for_each(|(s, off)| *s += off * off / count);
        }
        // A dimension that never changes is left out: its scale becomes 0.
        let scale = |s: &f64| if *s > 1e-20 { (1.0 / s.sqrt()) as f32 } else { 0.0 };
        let classes = classes(train, rows);
        Probe {
            weights: vec![0.0; classes * (dim + 1)],
            classes,
            mean: mean.iter().map(|m| *m as f32).collect(),
            inverse_std: square.iter().map(scale).collect(),
            decay: 0.0,
        }
    }

    fn descend(&mut self, train: &Features, rows: &[usize], decay: f64, max_iterations: usize) {
        let mut weights = std::mem::take(&mut self.weights);
        let problem = Problem { probe: self, train, rows, decay };
        lbfgs::minimize(&mut weights, max_iterations, 1e-4, |w, g| problem.value(w, g));
        self.weights = weights;
        self.decay = decay;
    }

    /// Some rows of `features` standardised into `out`, each with a 1 for the bias behind it.
    fn standardised(&self, features: &Features, rows: &[usize], out: &mut Vec<f32>) {
        out.clear();
        for &i in rows {
            let scaled = features.row(i).iter().zip(&self.mean).zip(&self.inverse_std);
            out.extend(scaled.map(|((v, m), s)| (v - m) * s));
            out.push(1.0);
        }
    }

    fn logits(&self, rows: &[f32]) -> Vec<f32> {
        let wide = self.mean.len() + 1;
        let mut out = vec![0.0; rows.len() / wide * self.classes];
        logits_into(rows, &self.weights, wide, self.classes, &mut out);
        out
    }
}

/// `out[r, c] = rows[r] . weights[c]`.
fn logits_into(rows: &[f32], weights: &[f32], wide: usize, classes: usize, out: &mut [f32]) {
    let rows = Mat::new(rows, rows.len() / wide, wide);
    matmul_serial(rows, Mat::new(weights, classes, wide).t(), out, classes, false);
}

/// Fits each candidate to one part of the training data and takes the one that
/// is right most often about the other; of equals the stronger.
fn choose_decay(train: &Features, config: &ProbeConfig) -> Result<f64> {
    let mut decays = config.decays.clone();
    decays.sort_by(|a, b| b.total_cmp(a));
    if decays.is_empty() || decays.iter().any(|d| !d.is_finite() || *d < 0.0) {
        bail!("weight decays must be given and not be negative: {:?}", config.decays);
    }
    PART.check("the held-out share", config.held_out)?;
    let (check, fit) = split(train, config);
    if decays.len() == 1 || classes(train, &fit) < 2 || check.is_empty() {
        return Ok(decays[0]);
    }
    let mut best = (f64::NEG_INFINITY, decays[0]);
    // From strong to weak, each starting where the one before ended.
    let mut probe = Probe::untrained(train, &fit);
    for decay in decays {
        probe.descend(train, &fit, decay, config.max_iterations);
        let accuracy = probe.accuracy_of(train, &check).top1;
        if accuracy > best.0 {
            best = (accuracy, decay);
        }
    }
    Ok(best.1)
}

/// The rows that decide between decays, and those that are fitted.
fn split(train: &Features, config: &ProbeConfig) -> (Vec<usize>, Vec<usize>) {
    let mut rng = Rng::keyed(config.seed, 0, 0, HELD_OUT);
    let (mut check, mut fit): (Vec<usize>, Vec<usize>) =
        (0..train.len()).partition(|_| rng.chance(config.held_out));
    // With few labels a class may be held out whole. Nothing that is fitted can know it, whatever
    // its decay.
    let mut known = vec![false; train.classes()];
    let label = |row: &usize| train.labels()[*row] as usize;
    fit.iter().for_each(|row| known[label(row)] = true);
    fit.extend(check.extract_if(.., |row| !known[label(row)]));
    (check, fit)
}

/// Keeps these draws apart from others of the same seed.
const HELD_OUT: u64 = 0x9_0BE;

/// The largest label of some rows + 1.
fn classes(features: &Features, rows: &[usize]) -> usize {
    rows.iter().map(|&i| features.labels()[i] as usize + 1).max().unwrap_or(0)
}

/// Mean cross-entropy with weight decay as a function of the weights, over some rows of `train`.
struct Problem<'a> {
    probe: &'a Probe,
    train: &'a Features,
    rows: &'a [usize],
    decay: f64,
}

impl Problem<'_> {
    fn value(&self, weights: &[f32], gradient: &mut [f32]) -> f64 {
        let count = self.rows.len();
        let share = count.div_ceil(parts(count, weights.len())).max(1);
        let parts: Vec<(f64, Vec<f32>)> =
            self.rows.par_chunks(share).map(|rows| self.part(weights, rows)).collect();
        let wide = weights.len() / self.probe.classes;
        let mut value: f64 = parts.iter().map(|(loss, _)| loss).sum();
        value /= count as f64;
        let mut norm = 0.0f64;
        for (i, (g, w)) in gradient.iter_mut().zip(weights).enumerate() {
            let sum: f64 = parts.iter().map(|(_, part)| f64::from(part[i])).sum();
            *g = (sum / count as f64) as f32;
            // The bias, last in its row, is not decayed.
            if i % wide != wide - 1 {
                norm += f64::from(*w) * f64::from(*w);
                *g += (self.decay * f64::from(*w)) as f32;
            }
        }
        value + 0.5 * self.decay * norm
    }

    /// The sums of loss and gradient over some rows.
    fn part(&self, weights: &[f32], rows: &[usize]) -> (f64, Vec<f32>) {
        let classes = self.probe.classes;
        let wide = weights.len() / classes;
        let mut gradient = vec![0.0f32; weights.len()];
        let mut loss = 0.0;
        let (mut block, mut scores) = (Vec::new(), vec![0.0f32; ROWS * classes]);
        for rows in rows.chunks(ROWS) {
            self.probe.standardised(self.train, rows, &mut block);
            let scores = &mut scores[..rows.len() * classes];
            logits_into(&block, weights, wide, classes, scores);
            for (row, &i) in scores.chunks_exact_mut(classes).zip(rows) {
                loss += classify::softmax_minus_target(row, self.train.labels()[i] as usize);
            }
            let (scores, block) =
                (Mat::new(scores, rows.len(), classes), Mat::new(&block, rows.len(), wide));
            matmul_serial(scores.t(), block, &mut gradient, wide, true);
        }
        (loss, gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Classes around corners of a cube, at unequal scales, `noise` apart.
    fn blobs(rows: usize, classes: u32, noise: f64, seed: u64) -> Features {
        let mut rng = Rng::keyed(seed, 1, 0, 0);
        let dim = 6;
        let mut values = Vec::new();
        let mut labels = Vec::new();
        for i in 0..rows {
            let label = i as u32 % classes;
            for d in 0..dim {
                let corner = f64::from((label >> (d % 3)) & 1);
                let value = corner + noise * rng.uniform(-1.0, 1.0);
                values.push((value * 10f64.powi(d - 2) + 3.0) as f32);
            }
            labels.push(label);
        }
        Features::from_parts(dim as usize, values, labels).unwrap()
    }

    #[test]
    fn the_decay_that_is_right_most_often_is_chosen_and_of_equals_the_strongest() {
        // A feature that is the class, which each `nth` sample has.
        let chosen = |nth: usize, strong: f64| {
            let labels: Vec<u32> = (0..500).map(|i| u32::from(i % nth == 0)).collect();
            let values = labels.iter().map(|label| *label as f32).collect();
            let train = Features::from_parts(1, values, labels).unwrap();
            let config = ProbeConfig { decays: vec![1e-4, strong], ..ProbeConfig::default() };
            Probe::fit(&train, &config).unwrap().decay
        };
        // With small weights the bias decides, for the class that most have.
        assert_eq!(chosen(5, 10.0), 1e-4);
        assert_eq!(chosen(2, 1.0), 1.0);
    }

    #[test]
    fn separable_classes_are_separated_whatever_their_scale() {
        let (train, test) = (blobs(400, 8, 0.3, 1), blobs(100, 8, 0.3, 2));
        let probe = Probe::fit(&train, &ProbeConfig::default()).unwrap();
        let accuracy = probe.accuracy(&test).unwrap();
        assert_eq!(accuracy, Accuracy { top1: 1.0, top5: 1.0 });
    }

    #[test]
    fn features_without_information_give_chance() {
        let mut rng = Rng::keyed(5, 0, 0, 0);
        let mut noise = |rows: usize| {
            let values = (0..rows * 4).map(|_| rng.unit() as f32).collect();
            Features::from_parts(4, values, (0..rows as u32).map(|i| i % 10).collect()).unwrap()
        };
        let (train, test) = (noise(1000), noise(1000));
        let probe = Probe::fit(&train, &ProbeConfig::default()).unwrap();
        let accuracy = probe.accuracy(&test).unwrap();
        assert!((0.05..0.16).contains(&accuracy.top1), "{accuracy:?}");
        assert!((0.42..0.58).contains(&accuracy.top5), "{accuracy:?}");
    }

    #[test]
    fn more_than_sixteen_parts_take_at_most_a_gigabyte() {
        assert_eq!(parts(99_999, 10 * 513), 16);
        assert_eq!(parts(1_281_167, 1000 * 2049), 128);
        assert_eq!(parts(14_000_000, 21_841 * 2049), 16);
        assert_eq!(parts(200_000, 2_900_000), 92);
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_value() {
        let features = blobs(37, 5, 0.5, 3);
        let rows: Vec<usize> = (0..features.len()).filter(|i| i % 7 != 3).collect();
        let probe = Probe::untrained(&features, &rows);
        let problem = Problem { probe: &probe, train: &features, rows: &rows, decay: 0.3 };
        let mut rng = Rng::keyed(9, 0, 0, 0);
        let w: Vec<f32> = probe.weights.iter().map(|_| rng.uniform(-0.5, 0.5) as f32).collect();
        let mut gradient = vec![0.0; w.len()];
        problem.value(&w, &mut gradient);
        let mut unused = gradient.clone();
        for i in 0..w.len() {
            let mut at = |by: f32| {
                let mut moved = w.clone();
                moved[i] += by;
                problem.value(&moved, &mut unused)
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[i])).abs() < 2e-4, "{i}: {slope} {}", gradient[i]);
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let train = blobs(300, 4, 0.9, 4);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Probe::fit(&train, &ProbeConfig::default()).unwrap().weights)
        };
        assert_eq!(with(1), with(3));
    }

    /// Of few labels a class some classes are drawn whole: no decay is told from another by them.
    #[test]
    fn a_class_is_not_held_out_whole() {
        let share = |each: u32| {
            let labels: Vec<u32> = (0..100 * each).map(|i| i / each).collect();
            let train = Features::from_parts(1, vec![0.0; labels.len()], labels.clone()).unwrap();
            let (check, fit) = split(&train, &ProbeConfig::default());
            let known = |row: &usize| fit.iter().any(|other| labels[*other] == labels[*row]);
            assert!(check.iter().all(known), "{each}");
            assert_eq!(check.len() + fit.len(), labels.len());
            check.len() as f64 / labels.len() as f64
        };
        assert_eq!(share(1), 0.0);
        assert!((0.1..0.2).contains(&share(2)), "{}", share(2));
        assert!((0.15..0.25).contains(&share(20)), "{}", share(20));
    }

    #[test]
    fn one_class_and_foreign_dimensions_are_refused() {
        let one = Features::from_parts(1, vec![0.0, 1.0], vec![0, 0]).unwrap();
        assert!(Probe::fit(&one, &ProbeConfig::default()).is_err());
        let probe = Probe::fit(&blobs(40, 4, 0.3, 1), &ProbeConfig::default()).unwrap();
        assert!(probe.accuracy(&one).is_err());
    }

    #[test]
    fn a_label_that_counts_something_else_is_refused_before_memory_is_taken() {
        let rows = Features::from_parts(1, vec![0.0, 1.0], vec![0, 16_000_000]).unwrap();
        let error = Probe::fit(&rows, &ProbeConfig::default()).unwrap_err().to_string();
        assert!(error.contains("16000000"), "{error}");
    }

    #[test]
    fn features_that_are_all_alike_give_chance() {
        let labels: Vec<u32> = (0..64).map(|i| i % 8).collect();
        let alike = Features::from_parts(2, vec![0.5; 128], labels).unwrap();
        let probe = Probe::fit(&alike, &ProbeConfig::default()).unwrap();
        let accuracy = probe.accuracy(&alike).unwrap();
        assert_eq!(accuracy, Accuracy { top1: 0.125, top5: 0.625 });
    }

    #[test]
    fn a_label_that_training_never_saw_is_wrong() {
        let train = Features::from_parts(1, vec![-1.0, 1.0, -1.1, 1.2], vec![0, 1, 0, 1]).unwrap();
        let probe = Probe::fit(&train, &ProbeConfig::default()).unwrap();
        let test = Features::from_parts(1, vec![-1.0, 1.0], vec![0, 9]).unwrap();
        assert_eq!(probe.accuracy(&test).unwrap(), Accuracy { top1: 0.5, top5: 0.5 });
    }
}
