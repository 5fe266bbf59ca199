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

/// The eigenvalues of a symmetric `m` (`size` x `size`, spoilt), from large to small.
pub(crate) fn symmetric_eigenvalues(m: &mut [f64], size: usize) -> Vec<f64> {
    let (mut diagonal, mut off) = tridiagonal(m, size);
    // A matrix with NaN has none; the caller sees NaN instead of a loop without end.
    if !diagonal.iter().chain(&off).all(|x| x.is_finite()) {
        return vec![f64::NAN; size];
    }
    for low in 0..size {
        // Each sweep converges cubically; 60 are far beyond what any finite matrix takes.
        for _ in 0..60 {
            let small = |i: usize| {
                let scale = diagonal[i].abs() + diagonal[i + 1].abs();
                off[i].abs() <= f64::EPSILON * scale
            };
            let high = (low..size - 1).find(|&i| small(i)).unwrap_or(size - 1);
            if high == low {
                break;
            }
            ql_sweep(&mut diagonal, &mut off, low, high);
        }
    }
    diagonal.sort_by(|a, b| b.total_cmp(a));
    diagonal
}

/// Householder reduction: the diagonal and the elements beside it of a similar tridiagonal matrix.
fn tridiagonal(m: &mut [f64], size: usize) -> (Vec<f64>, Vec<f64>) {
    let mut off = vec![0.0; size];
    for k in 0..size.saturating_sub(2) {
        let (from, rest) = (k + 1, size - k - 1);
        let mut v: Vec<f64> = (from..size).map(|i| m[i * size + k]).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            continue;
        }
        off[k] = -norm.copysign(v[0]);
        v[0] -= off[k];
        let beta = 2.0 / v.iter().map(|x| x * x).sum::<f64>();
        // A -= v q^T + q v^T with p = beta A v, q = p - (beta/2) (v . p) v.
        let mut q: Vec<f64> = m[from * size..]
            .par_chunks(size)
            .map(|row| beta * row[from..].iter().zip(&v).map(|(a, v)| a * v).sum::<f64>())
            .collect();
        let along = 0.5 * beta * q.iter().zip(&v).map(|(p, v)| p * v).sum::<f64>();
        q.iter_mut().zip(&v).for_each(|(q, v)| *q -= along * v);
        m[from * size..].par_chunks_mut(size).take(rest).enumerate().for_each(|(i, row)| {
            let (v_i, q_i) = (v[i], q[i]);
            for (a, (v, q)) in row[from..].iter_mut().zip(v.iter().zip(&q)) {
                *a -= v_i * q + q_i * v;
            }
        });
    }
    if size > 1 {
        off[size - 2] = m[(size - 1) * size + size - 2];
    }
    ((0..size).map(|i| m[i * size + i]).collect(), off)
}

/// One implicitly shifted QL sweep over `low ..= high` (EISPACK's imtql1; Golub and Van Loan,
/// "Matrix Computations", section 8.3): the shift is the eigenvalue of the leading 2 x 2 block.
fn ql_sweep(diagonal: &mut [f64], off: &mut [f64], low: usize, high: usize) {
    let slope = (diagonal[low + 1] - diagonal[low]) / (2.0 * off[low]);
    let shift = diagonal[low] - off[low] / (slope + slope.hypot(1.0).copysign(slope));
    let (mut g, mut sine, mut cosine, mut p) = (diagonal[high] - shift, 1.0, 1.0, 0.0);
    for i in (low..high).rev() {
        let (f, b) = (sine * off[i], cosine * off[i]);
        let r = f.hypot(g);
        off[i + 1] = r;
        if r == 0.0 {
            // The matrix splits here: what is below is done.
            diagonal[i + 1] -= p;
            off[high] = 0.0;
            return;
        }
        (sine, cosine) = (f / r, g / r);
        g = diagonal[i + 1] - p;
        let t = (diagonal[i] - g) * sine + 2.0 * cosine * b;
        p = sine * t;
        diagonal[i + 1] = g + p;
        g = cosine * t - b;
    }
    diagonal[low] -= p;
    off[low] = g;
    off[high] = 0.0;
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
    fn eigenvalues_are_those_that_the_matrix_was_made_with() {
        // H diag(1 .. size, two of them 0) H with a reflection H.
        for size in [1, 2, 3, 50, 130] {
            let v: Vec<f64> = (0..size).map(|i| 1.0 + ((i * 37) % 11) as f64).collect();
            let squared: f64 = v.iter().map(|x| x * x).sum();
            let mut h = vec![0.0; size * size];
            for (i, row) in h.chunks_exact_mut(size).enumerate() {
                for (j, x) in row.iter_mut().enumerate() {
                    *x = f64::from(i == j) - 2.0 * v[i] * v[j] / squared;
                }
            }
            let mut want: Vec<f64> = (0..size).map(|i| (size - i) as f64).collect();
            want.iter_mut().skip(size.max(3) - 2).for_each(|x| *x = 0.0);
            let scaled: Vec<f64> = h.iter().enumerate().map(|(i, x)| x * want[i % size]).collect();
            let h = Mat::new(&h, size, size);
            let mut m = matmul(Mat::new(&scaled, size, size), h.t());
            let got = symmetric_eigenvalues(&mut m, size);
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-9 * size as f64, "{size}: {got} for {want}");
            }
        }
    }

    #[test]
    fn a_matrix_with_nan_has_eigenvalues_nan() {
        assert!(symmetric_eigenvalues(&mut [1.0, f64::NAN, f64::NAN, 1.0], 2)[0].is_nan());
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert!(cholesky_inverse(&mut [1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(cholesky_inverse(&mut [f64::NAN], 1).is_none());
    }
}
