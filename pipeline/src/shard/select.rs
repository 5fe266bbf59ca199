//! Which samples of a source are packed, and in which order: a pure
//! function of their labels and the options.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::rng::Rng;
use crate::{Error, Result};

/// What is taken of a source, applied in the order of the fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Selection {
    /// Puts all samples into a random order drawn from this seed.
    pub shuffle: Option<u64>,
    /// The first samples of each class; unlabelled samples are left out.
    pub per_class: Option<u64>,
    /// This share of each class, its first samples, rounded, at least one;
    /// unlabelled samples count as one class.
    pub fraction: Option<f64>,
    /// The first samples of what is left.
    pub limit: Option<u64>,
}

/// Samples to pack, by their number in the source, in the order of packing.
///
/// # Errors
/// [`Error::Usage`] for a fraction outside (0, 1], and for `per_class` where nothing has a label.
pub fn select(labels: &[Option<u32>], selection: &Selection) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    if let Some(seed) = selection.shuffle {
        // The epoch and sample of a key are no sample's: packing draws once.
        Rng::keyed(seed, u64::MAX, u64::MAX, 0).shuffle(&mut order);
    }
    if let Some(count) = selection.per_class {
        if labels.iter().all(Option::is_none) {
            return Err(Error::Usage(
                "a number per class needs labels, and no sample has one".to_owned(),
            ));
        }
        order.retain(|&sample| labels[sample].is_some());
        order = first_of_each(&order, labels, |_| count);
    }
    if let Some(fraction) = selection.fraction {
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Error::Usage(format!(
                "a fraction of {fraction}: it must be above 0 and at most 1"
            )));
        }
        let share = |all: u64| ((all as f64 * fraction).round() as u64).max(1);
        order = first_of_each(&order, labels, share);
    }
    if let Some(limit) = selection.limit {
        order.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    Ok(order)
}

/// Keeps the first `share(size)` samples of each class, in their order.
fn first_of_each(
    order: &[usize],
    labels: &[Option<u32>],
    share: impl Fn(u64) -> u64,
) -> Vec<usize> {
    let mut left: BTreeMap<Option<u32>, u64> = BTreeMap::new();
    for &sample in order {
        *left.entry(labels[sample]).or_default() += 1;
    }
    left.values_mut().for_each(|count| *count = share(*count));
    let mut kept = order.to_vec();
    kept.retain(|&sample| match left.get_mut(&labels[sample]) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [Option<u32>; 9] =
        [Some(0), Some(1), None, Some(0), Some(1), Some(0), Some(0), None, Some(2)];

    fn selected(selection: Selection) -> Vec<usize> {
        select(&LABELS, &selection).unwrap()
    }

    #[test]
    fn subsets_take_the_first_of_each_class_in_order() {
        let all = Selection::default();
        assert_eq!(selected(all), (0..9).collect::<Vec<_>>());
        assert_eq!(selected(Selection { per_class: Some(2), ..all }), [0, 1, 3, 4, 8]);
        assert_eq!(selected(Selection { fraction: Some(0.5), ..all }), [0, 1, 2, 3, 8]);
        assert_eq!(selected(Selection { fraction: Some(0.7), ..all }), [0, 1, 2, 3, 5, 8]);
        assert_eq!(selected(Selection { fraction: Some(0.01), ..all }), [0, 1, 2, 8], "none is 0");
        assert_eq!(selected(Selection { fraction: Some(1.0), ..all }), selected(all));
        assert_eq!(selected(Selection { per_class: Some(1), limit: Some(2), ..all }), [0, 1]);
        assert!(selected(Selection { per_class: Some(0), ..all }).is_empty());
        for fraction in [0.0, -1.0, 1.01, f64::NAN] {
            assert!(select(&LABELS, &Selection { fraction: Some(fraction), ..all }).is_err());
        }
        assert!(select(&[None], &Selection { per_class: Some(1), ..all }).is_err());
    }

    #[test]
    fn a_seed_chooses_another_subset_of_the_same_shape() {
        let labels: Vec<_> = (0..1000).map(|i| Some(i % 10)).collect();
        let chosen = |seed| {
            let selection = Selection { shuffle: seed, per_class: Some(7), ..Selection::default() };
            select(&labels, &selection).unwrap()
        };
        assert_eq!(chosen(Some(1)), chosen(Some(1)));
        assert_ne!(chosen(Some(1)), chosen(Some(2)));
        for class in 0..10 {
            let count = chosen(Some(1)).iter().filter(|&&i| labels[i] == Some(class)).count();
            assert_eq!(count, 7);
        }
    }
}
