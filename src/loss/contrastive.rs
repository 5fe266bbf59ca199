//! What InfoNCE and NT-Xent share: a soft-max over each row of similarities, with its gradient.

use rayon::prelude::*;

use super::exp::shifted_exps;
use crate::nn::cpu::micro::Isa;

/// The two parts of a contrastive loss, each the mean over the rows.
pub(crate) struct ContrastiveTerms {
    /// Minus the positives' scaled similarity.
    pub attraction: f64,
    /// The logarithm of the sum over the others.
    pub repulsion: f64,
}

/// Replaces similarities (rows of `columns`) by the gradient of
/// mean_i [ -s_ip / t + log sum_{j != skip} exp(s_ij / t) ] with respect to them;
/// `positive_and_skip(i)` gives p and the column that is left out.
pub(crate) fn softmax_rows(
    s: &mut [f32],
    columns: usize,
    temperature: f64,
    positive_and_skip: impl Fn(usize) -> (usize, usize) + Sync,
) -> ContrastiveTerms {
    let count = (s.len() / columns) as f64;
    let (isa, inverse_t) = (Isa::best(), 1.0 / temperature);
    let rows: Vec<(f64, f64)> = s
        .par_chunks_mut(columns)
        .enumerate()
        .map(|(i, row)| {
            let (positive, skip) = positive_and_skip(i);
            let similarity = f64::from(row[positive]) * inverse_t;
            row[skip] = f32::NEG_INFINITY;
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Kept apart from the other terms: adding a dominant positive first would round their
            // sum away.
            let own = match positive == skip {
                true => 0.0,
                false => (similarity - f64::from(max) * inverse_t).exp(),
            };
            row[positive] = f32::NEG_INFINITY;
            let others = shifted_exps(isa, row, max, inverse_t as f32);
            let sum = own + others;
            let to_grad = (inverse_t / (sum * count)) as f32;
            row.iter_mut().for_each(|e| *e *= to_grad);
            row[skip] = 0.0;
            let pull = if positive == skip { 1.0 } else { others / sum };
            row[positive] = -(pull * inverse_t / count) as f32;
            (similarity, f64::from(max) * inverse_t + sum.ln())
        })
        .collect();
    ContrastiveTerms {
        attraction: -rows.iter().map(|r| r.0).sum::<f64>() / count,
        repulsion: rows.iter().map(|r| r.1).sum::<f64>() / count,
    }
}
