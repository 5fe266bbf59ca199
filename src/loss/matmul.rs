//! Matrix products of the objectives: row-major slices through the `gemm` crate.
//!
//! The output is cut into blocks whose borders depend on the shape alone; each block is one
//! single-threaded `gemm` call, so results are the same for any number of threads.

use gemm::Parallelism;
use rayon::prelude::*;

/// Rows and columns of one output block: large enough that packing the operands does not show.
const BLOCK_ROWS: usize = 256;
const BLOCK_COLS: usize = 512;
/// A long inner dimension is cut here when the output alone gives too few blocks.
const BLOCK_INNER: usize = 1024;
/// Rows of a block of a symmetric product.
const GRAM_ROWS: usize = 128;
/// Products below this many multiplications run on the calling thread.
const SERIAL_BELOW: usize = 1 << 20;

/// Element types that the products take.
pub(crate) trait Float: Copy + Default + Send + Sync + 'static {
    const ONE: Self;
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

impl Float for f32 {
    const ONE: Self = 1.0;
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Float for f64 {
    const ONE: Self = 1.0;
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f64(value: f64) -> Self {
        value
    }
}

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows lie `stride` elements apart.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        let last = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(cols <= stride && last <= data.len(), "matrix view exceeds its data");
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Columns `from .. from + count`.
    pub fn columns(self, from: usize, count: usize) -> Self {
        self.t().rows(from, count).t()
    }

    /// Rows `from .. from + count`.
    pub fn rows(self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.rows, "rows {from}+{count} of {}", self.rows);
        let skip = if count == 0 { 0 } else { from * self.row_stride };
        Self { data: &self.data[skip..], rows: count, ..self }
    }
}

/// The destination of one block; sent to the worker that fills it.
#[derive(Clone, Copy)]
struct BlockMut<T> {
    start: *mut T,
    stride: usize,
}

// SAFETY: a BlockMut stands for a rectangle of the output that no other block shares (the
// callers cut the output into disjoint rectangles), so it may move to another thread.
unsafe impl<T: Send> Send for BlockMut<T> {}
// SAFETY: as above; the pointer is only written by the one task that got the block.
unsafe impl<T: Send> Sync for BlockMut<T> {}

/// `out += or = a * b` on the calling thread.
fn gemm_block<T: Float>(a: Mat<'_, T>, b: Mat<'_, T>, out: BlockMut<T>, add: bool) {
    // SAFETY: the views were checked against their slices when built; `out` covers
    // a.rows x b.cols elements at its stride, owned by this call (see `matmul_into`).
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.start,
            1,
            out.stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `out = a * b` (or `out += a * b`) for one small block, on the calling thread; `out` is
/// row-major with rows `stride` apart.
pub(crate) fn matmul_serial<T: Float>(
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    out: &mut [T],
    stride: usize,
    add: bool,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert!(a.rows == 0 || (a.rows - 1) * stride + b.cols <= out.len(), "output too small");
    gemm_block(a, b, BlockMut { start: out.as_mut_ptr(), stride }, add);
}

/// `a * b`, row-major, with all threads of the current rayon pool.
pub(crate) fn matmul<T: Float>(a: Mat<'_, T>, b: Mat<'_, T>) -> Vec<T> {
    let mut out = vec![T::default(); a.rows * b.cols];
    matmul_into(a, b, &mut out);
    out
}

/// [`matmul`] into the caller's buffer of `a.rows * b.cols` elements.
pub(crate) fn matmul_into<T: Float>(a: Mat<'_, T>, b: Mat<'_, T>, out: &mut [T]) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert_eq!(out.len(), a.rows * b.cols, "output has another size");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m * n * k <= SERIAL_BELOW {
        return gemm_block(a, b, BlockMut { start: out.as_mut_ptr(), stride: n }, false);
    }
    if k >= 2 * BLOCK_INNER && m * n <= 2 * BLOCK_ROWS * BLOCK_COLS {
        return matmul_long_inner(a, b, out);
    }
    let blocks: Vec<(usize, usize, BlockMut<T>)> = (0..m)
        .step_by(BLOCK_ROWS)
        .flat_map(|i| (0..n).step_by(BLOCK_COLS).map(move |j| (i, j)))
        .map(|(i, j)| (i, j, BlockMut { start: out[i * n + j..].as_mut_ptr(), stride: n }))
        .collect();
    blocks.into_par_iter().for_each(|(i, j, block)| {
        let a = a.rows(i, BLOCK_ROWS.min(m - i));
        let b = b.columns(j, BLOCK_COLS.min(n - j));
        gemm_block(a, b, block, false);
    });
}

/// `a * a^T`, of whose blocks only those on and above the diagonal are computed.
pub(crate) fn gram<T: Float>(a: Mat<'_, T>) -> Vec<T> {
    let n = a.rows;
    let starts = || (0..n).step_by(GRAM_ROWS);
    let pairs: Vec<(usize, usize)> =
        starts().flat_map(|i| starts().filter(move |j| *j >= i).map(move |j| (i, j))).collect();
    let part = |from: usize| a.rows(from, GRAM_ROWS.min(n - from));
    let blocks: Vec<Vec<T>> = pairs
        .par_iter()
        .map(|&(i, j)| {
            let (rows, columns) = (part(i), part(j));
            let mut block = vec![T::default(); rows.rows * columns.rows];
            matmul_serial(rows, columns.t(), &mut block, columns.rows, false);
            block
        })
        .collect();
    let mut out = vec![T::default(); n * n];
    for ((i, j), block) in pairs.into_iter().zip(&blocks) {
        let width = part(j).rows;
        for (r, row) in block.chunks_exact(width).enumerate() {
            out[(i + r) * n + j..][..width].copy_from_slice(row);
            for (c, &value) in row.iter().enumerate() {
                out[(j + c) * n + i + r] = value;
            }
        }
    }
    out
}

/// A small output with a long inner dimension (a Gram matrix): the inner dimension is cut, and
/// the partial products are added in order, in f64.
fn matmul_long_inner<T: Float>(a: Mat<'_, T>, b: Mat<'_, T>, out: &mut [T]) {
    let k = a.cols;
    let partials: Vec<Vec<T>> = (0..k.div_ceil(BLOCK_INNER))
        .into_par_iter()
        .map(|p| {
            let (from, count) = (p * BLOCK_INNER, BLOCK_INNER.min(k - p * BLOCK_INNER));
            let mut part = vec![T::default(); out.len()];
            let stride = b.cols;
            matmul_serial(a.columns(from, count), b.rows(from, count), &mut part, stride, false);
            part
        })
        .collect();
    out.par_chunks_mut(4096).enumerate().for_each(|(c, chunk)| {
        for (i, value) in chunk.iter_mut().enumerate() {
            let sum: f64 = partials.iter().map(|p| p[c * 4096 + i].to_f64()).sum();
            *value = T::from_f64(sum);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize, seed: u64) -> Vec<f64> {
        (0..n as u64)
            .map(|i| {
                let h = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (seed << 7));
                ((h >> 40) as f64) / (1u64 << 23) as f64 - 1.0
            })
            .collect()
    }

    fn naive(a: Mat<'_, f64>, b: Mat<'_, f64>) -> Vec<f64> {
        let at = |m: Mat<'_, f64>, i: usize, j: usize| m.data[i * m.row_stride + j * m.col_stride];
        let mut out = Vec::new();
        for i in 0..a.rows {
            for j in 0..b.cols {
                out.push((0..a.cols).map(|p| at(a, i, p) * at(b, p, j)).sum());
            }
        }
        out
    }

    #[test]
    fn every_path_equals_the_naive_product() {
        for (m, n, k) in [(3, 5, 7), (300, 600, 9), (40, 30, 5000), (257, 513, 17)] {
            let (a, b) = (ramp(m * k, 1), ramp(k * n, 2));
            let mats = [
                (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                (Mat::new(&a, k, m).t(), Mat::new(&b, n, k).t()),
            ];
            for (a, b) in mats {
                let (got, want) = (matmul(a, b), naive(a, b));
                assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-9), "{m} {n} {k}");
            }
        }
    }

    #[test]
    fn a_symmetric_product_is_the_naive_one() {
        for (n, k) in [(1, 3), (128, 5), (129, 40), (300, 7)] {
            let a = ramp(n * k, 4);
            let a = Mat::new(&a, n, k);
            let (got, want) = (gram(a), naive(a, a.t()));
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-9), "{n} {k}");
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let a: Vec<f32> = ramp(300 * 4100, 3).iter().map(|&x| x as f32).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let m = Mat::new(&a, 300, 4100);
            pool.install(|| (matmul(m, m.t()), matmul(m.rows(0, 9).t(), m.rows(0, 9))))
        };
        let one = run(1);
        assert!(run(2) == one && run(5) == one);
    }
}
