//! What the classifiers share: the cross-entropy's gradient, and how right a row of logits is.

use anyhow::{Result, ensure};

use super::Accuracy;

/// Classes of a linear classifier at most: ImageNet-21k has 21,841.
const MOST_CLASSES: usize = 1 << 17;

/// Whether labels below `classes` can be classes, before memory is taken for each.
///
/// # Errors
/// A label that is a number of something else.
pub(super) fn check_classes(classes: usize) -> Result<()> {
    ensure!(
        classes <= MOST_CLASSES,
        "labels go up to {}; a linear classifier takes {MOST_CLASSES} classes",
        classes - 1
    );
    Ok(())
}

/// Turns logits into probabilities minus the one-hot label (the gradient), and returns the
/// cross-entropy.
pub(super) fn softmax_minus_target(row: &mut [f32], label: usize) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = f64::from(row[label] - top);
    let mut sum = 0.0f64;
    for value in row.iter_mut() {
        *value = (*value - top).exp();
        sum += f64::from(*value);
    }
    row.iter_mut().for_each(|value| *value /= sum as f32);
    row[label] -= 1.0;
    sum.ln() - own
}

/// Classes that stand before `label`: those of larger logits, and of equal ones those with smaller
/// numbers, so that a classifier that tells nothing apart is right by chance alone. `usize::MAX`
/// for a label that there is no logit for, or none that is a number.
pub(super) fn rank(logits: &[f32], label: u32) -> usize {
    let label = label as usize;
    match logits.get(label) {
        Some(own) if !own.is_nan() => {
            let before = |(class, other): (usize, &f32)| match other.partial_cmp(own) {
                Some(order) => order.is_gt() || (order.is_eq() && class < label),
                None => true,
            };
            logits.iter().enumerate().filter(|one| before(*one)).count()
        }
        _ => usize::MAX,
    }
}

/// How many of `ranks` are right, and among the best five.
pub(super) fn accuracy(ranks: &[usize]) -> Accuracy {
    let share =
        |best: usize| ranks.iter().filter(|rank| **rank < best).count() as f64 / ranks.len() as f64;
    Accuracy { top1: share(1), top5: share(5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_are_right_by_chance_and_numbers_that_are_none_never() {
        let flat = [0.0f32; 8];
        let ranks: Vec<usize> = (0..8).map(|label| rank(&flat, label)).collect();
        assert_eq!(ranks, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(accuracy(&ranks), Accuracy { top1: 0.125, top5: 0.625 });
        assert_eq!(rank(&[0.5, 2.0, -1.0, 2.0], 3), 1);
        assert_eq!(rank(&[0.5, 2.0], 2), usize::MAX);
        assert_eq!(rank(&[f32::NAN; 3], 0), usize::MAX);
        assert_eq!(rank(&[f32::NAN, 1.0], 1), 1);
    }
}
