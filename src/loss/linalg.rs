//! Dense f64 linear algebra of symmetric matrices: the objectives' log-determinants and the
//! diagnostics' spectra. Row-major, in place.

use rayon::prelude::*;

use super::matmul::{Mat, matmul};

/// Columns that the factorisation takes at a time; the rest is matrix products.
const PANEL: usize = 64;

/// Replaces a symmetric positive definite `m` (`size` x `size`) by its inverse and returns its
/// log-determinant; `None` (with `m` spoilt) where it is not positive definite.
pub(crate) fn cholesky_inverse(m: &mut [f64], size: usize) -> Option<f64> {
    cholesky(m, size)?;
    let log_det = 2.0 * (0..size).map(|i| m[i * size + i].ln()).sum::<f64>();
    let inverse = invert_lower(m, size);
    let l = Mat::new(&inverse, size, size);
    m.copy_from_slice(&matmul(l.t(), l));
    Some(log_det)
}

/// m = L L^T; L in the lower triangle, the upper one is left as it was.
fn cholesky(m: &mut [f64], size: usize) -> Option<()> {
    for from in (0..size).step_by(PANEL) {
        let to = (from + PANEL).min(size);
        factor_diagonal_block(m, size, from, to)?;
        let (done, below) = m.split_at_mut(to * size);
        let block = &done[from * size..];
        below.par_chunks_mut(size).for_each(|row| {
            for j in from..to {
                let l = &block[(j - from) * size..][from..=j];
                let known: f64 = row[from..j].iter().zip(l).map(|(x, y)| x * y).sum();
                row[j] = (row[j] - known) / l[j - from];
            }
        });
        let rest = size - to;
        if rest > 0 {
            let panel = Mat::strided(&m[to * size + from..], rest, to - from, size);
            let update = matmul(panel, panel.t());
            let rows = m[to * size..].par_chunks_mut(size).zip(update.par_chunks(rest));
            rows.for_each(|(row, update)| {
                row[to..].iter_mut().zip(update).for_each(|(x, u)| *x -= u);
            });
        }
    }
    Some(())
}

fn factor_diagonal_block(m: &mut [f64], size: usize, from: usize, to: usize) -> Option<()> {
    for i in from..to {
        for j in from..=i {
            let known: f64 = (from..j).map(|p| m[i * size + p] * m[j * size + p]).sum();
            let value = m[i * size + j] - known;
            if i == j {
                if value <= 0.0 || value.is_nan() {
                    return None;
                }
                m[i * size + i] = value.sqrt();
            } else {
                m[i * size + j] = value / m[j * size + j];
            }
        }
    }
    Some(())
}

/// The inverse of the lower triangle of `m`, zeros above it.
///
/// By halves: with L = [P 0; Q R], its inverse is [P' 0; -R' Q P' R'].
fn invert_lower(m: &[f64], size: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; size * size];
    invert_lower_range(m, &mut inverse, size, 0, size);
    inverse
}

fn invert_lower_range(m: &[f64], inverse: &mut [f64], size: usize, from: usize, to: usize) {
    if to - from <= PANEL {
        for j in from..to {
            inverse[j * size + j] = 1.0 / m[j * size + j];
            for i in j + 1..to {
                let known: f64 = (j..i).map(|p| m[i * size + p] * inverse[p * size + j]).sum();
                inverse[i * size + j] = -known / m[i * size + i];
            }
        }
        return;
    }
    let middle = from + (to - from) / 2;
    invert_lower_range(m, inverse, size, from, middle);
    invert_lower_range(m, inverse, size, middle, to);
    let (upper, lower) = (middle - from, to - middle);
    let q = Mat::strided(&m[middle * size + from..], lower, upper, size);
    let p = Mat::strided(&inverse[from * size + from..], upper, upper, size);
    let r = Mat::strided(&inverse[middle * size + middle..], lower, lower, size);
    let qp = matmul(q, p);
    let block = matmul(r, Mat::new(&qp, lower, upper));
    for (i, row) in block.chunks_exact(upper).enumerate() {
        let out = &mut inverse[(middle + i) * size + from..][..upper];
        out.iter_mut().zip(row).for_each(|(o, b)| *o = -b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_times_matrix_is_the_identity() {
        for size in [1, 2, 63, 64, 65, 130, 200] {
            let x: Vec<f64> = (0..size * size)
                .map(|i| ((i * 7919 + i * i * 31) % 1009) as f64 / 1009.0)
                .collect();
            let x = Mat::new(&x, size, size);
            let mut m = matmul(x, x.t());
            (0..size).for_each(|i| m[i * size + i] += 1.0);
            let original = m.clone();
            let log_det = cholesky_inverse(&mut m, size).unwrap();
            assert!(log_det.is_finite());
            let identity = matmul(Mat::new(&m, size, size), Mat::new(&original, size, size));
            for (i, &value) in identity.iter().enumerate() {
                let want = f64::from(i % (size + 1) == 0);
                assert!((value - want).abs() < 1e-6, "{size}: {value} at {i}");
            }
        }
    }

    #[test]
    fn log_determinant_of_a_diagonal_matrix_is_the_sum_of_logarithms() {
        let size = 100;
        let mut m = vec![0.0; size * size];
        (0..size).for_each(|i| m[i * size + i] = (i + 1) as f64);
        let want: f64 = (1..=size).map(|i| (i as f64).ln()).sum();
        assert!((cholesky_inverse(&mut m, size).unwrap() - want).abs() < 1e-9);
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert!(cholesky_inverse(&mut [1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(cholesky_inverse(&mut [f64::NAN], 1).is_none());
    }
}
