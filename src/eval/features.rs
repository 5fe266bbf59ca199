//! Features of a shard set: one row for each sample.

use std::collections::HashSet;

use anyhow::{Result, bail};
use bt_pipeline::Batch;
use bt_pipeline::shard::{Selection, select};

/// A feature that is no number, or infinite: the network's weights are ruined.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the feature of sample {sample} of {what} is not finite: {value}")]
pub struct NotFinite {
    /// Number in its set.
    pub sample: u64,
    /// The set.
    pub what: String,
    /// The feature.
    pub value: f32,
}

/// A row-major matrix `[samples, dim]` with the samples' labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    dim: usize,
    values: Vec<f32>,
    labels: Vec<u32>,
    samples: Vec<u64>,
}

impl Features {
    /// The label of a sample that has none, a batch's.
    pub const NO_LABEL: u32 = Batch::NO_LABEL;

    /// No rows yet; each will have `dim` values.
    pub fn empty(dim: usize) -> Self {
        Features { dim, ..Features::default() }
    }

    /// Features from their parts, in one order: `values` is `[labels.len(), dim]`;
    /// the samples are numbered from 0.
    ///
    /// # Errors
    /// When the lengths do not fit together.
    pub fn from_parts(dim: usize, values: Vec<f32>, labels: Vec<u32>) -> Result<Self> {
        let mut features = Features::empty(dim);
        let samples: Vec<u64> = (0..labels.len() as u64).collect();
        features.append(&values, &labels, &samples)?;
        Ok(features)
    }

    /// Takes memory for as many more rows, so that what is appended is not moved about.
    pub fn reserve(&mut self, rows: usize) {
        self.values.reserve_exact(rows.saturating_mul(self.dim));
        self.labels.reserve_exact(rows);
        self.samples.reserve_exact(rows);
    }

    /// Adds rows: `values` is `[labels.len(), dim]`, `samples` the places in the set.
    ///
    /// # Errors
    /// When the lengths do not fit together.
    pub fn append(&mut self, values: &[f32], labels: &[u32], samples: &[u64]) -> Result<()> {
        if values.len() != labels.len() * self.dim || labels.len() != samples.len() {
            bail!(
                "{} values for {} labels, {} samples and {} dimensions",
                values.len(),
                labels.len(),
                samples.len(),
                self.dim
            );
        }
        self.values.extend_from_slice(values);
        self.labels.extend_from_slice(labels);
        self.samples.extend_from_slice(samples);
        Ok(())
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Columns.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Row `i`.
    ///
    /// # Panics
    /// When `i` is no row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dim..][..self.dim]
    }

    /// The class of each row.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The place of each row in its shard set.
    pub fn samples(&self) -> &[u64] {
        &self.samples
    }

    /// One more than the largest label; 0 when no row has one.
    pub fn classes(&self) -> usize {
        let labels = self.labels.iter().filter(|label| **label != Self::NO_LABEL);
        labels.max().map_or(0, |largest| *largest as usize + 1)
    }

    /// The rows for which `keep(row)` holds.
    pub fn select(&self, mut keep: impl FnMut(usize) -> bool) -> Features {
        let mut kept = Features::empty(self.dim);
        for i in (0..self.len()).filter(|i| keep(*i)) {
            kept.values.extend_from_slice(self.row(i));
            kept.labels.push(self.labels[i]);
            kept.samples.push(self.samples[i]);
        }
        kept
    }

    /// A share of each class's rows, at least one of each, drawn by `seed`: few labels.
    ///
    /// # Errors
    /// A share outside (0, 1].
    pub fn few_labels(&self, share: f64, seed: u64) -> Result<Features> {
        let labels: Vec<Option<u32>> =
            self.labels.iter().map(|l| (*l != Self::NO_LABEL).then_some(*l)).collect();
        let selection =
            Selection { shuffle: Some(seed), fraction: Some(share), ..Selection::default() };
        let chosen: HashSet<usize> = select(&labels, &selection)?.into_iter().collect();
        Ok(self.select(|row| chosen.contains(&row)))
    }

    /// Makes every row a unit vector; rows of zeros stay.
    pub fn normalize(&mut self) {
        for row in self.values.chunks_exact_mut(self.dim.max(1)) {
            let square: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            if square > 0.0 {
                let scale = (1.0 / square.sqrt()) as f32;
                row.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }

    /// Checks that every row has a label and only finite values, and that there
    /// are rows at all; `what` names the set in the answer.
    ///
    /// # Errors
    /// When something is missing or not finite.
    pub fn check_labelled(&self, what: &str) -> Result<()> {
        if self.is_empty() {
            bail!("{what} holds no samples");
        }
        let unlabelled = self.labels.iter().filter(|label| **label == Self::NO_LABEL).count();
        if unlabelled > 0 {
            bail!("{unlabelled} of {} samples of {what} have no label", self.len());
        }
        self.check_finite(what)
    }

    /// Checks that every value is finite; `what` names the set in the answer.
    ///
    /// # Errors
    /// [`NotFinite`], with the first that is not.
    pub fn check_finite(&self, what: &str) -> Result<()> {
        if let Some(bad) = self.values.iter().position(|v| !v.is_finite()) {
            let sample = self.samples[bad / self.dim];
            bail!(NotFinite { sample, what: what.to_owned(), value: self.values[bad] });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selecting_rows_keeps_values_labels_and_places_together() {
        let mut all = Features::empty(2);
        all.append(&[1., 2., 3., 4., 5., 6.], &[0, 1, 2], &[7, 8, 9]).unwrap();
        let kept = all.select(|i| i != 1);
        assert_eq!(
            (kept.row(1), kept.labels(), kept.samples()),
            (&[5., 6.][..], &[0, 2][..], &[7, 9][..])
        );
        assert_eq!(kept.classes(), 3);
    }

    #[test]
    fn few_labels_are_a_share_of_each_class() {
        let labels: Vec<u32> = (0..1000).map(|i| u32::from(i % 10 == 0)).collect();
        let all = Features::from_parts(1, vec![0.5; 1000], labels).unwrap();
        let few = all.few_labels(0.05, 3).unwrap();
        assert_eq!((few.len(), few.labels().iter().sum::<u32>()), (50, 5));
        assert_ne!(few.samples(), all.few_labels(0.05, 4).unwrap().samples());
        assert!(all.few_labels(0.0, 1).is_err());
    }

    #[test]
    fn what_cannot_be_evaluated_is_named() {
        let text = |f: &Features| f.check_labelled("the test set").unwrap_err().to_string();
        assert!(text(&Features::empty(2)).contains("holds no samples"));
        let none = Features::from_parts(1, vec![0.0], vec![Features::NO_LABEL]).unwrap();
        assert!(text(&none).contains("1 of 1 samples of the test set have no label"));
        let nan = Features::from_parts(1, vec![0.0, f32::NAN], vec![0, 1]).unwrap();
        assert!(text(&nan).contains("sample 1 of the test set is not finite"));
        assert!(nan.check_finite("the test set").unwrap_err().is::<NotFinite>());
        assert!(Features::from_parts(2, vec![0.0; 3], vec![0, 1]).is_err());
    }
}
