//! Barlow Twins on a device: [`barlow_twins`](crate::loss::barlow::barlow_twins) with batch
//! normalisation and squares.

use candle_core::{DType, Result, bail};

use super::norm::{Moments, NormShape};
use super::{Part, THREADS, Tiling, blocks, expect, expect_scratch, launch, reduction, unsigned};
use crate::loss::barlow::{BarlowConfig, LossForm, Normalize, Terms, prefer_gram};
use crate::nn::cuda::{Arg, Backend, Gemm, Span};

/// Numbers that come out: invariance and redundancy as they stand in the loss, the mean of C's
/// diagonal, the sum of squares off it (0 where only the invariance counts).
pub const FIGURES: usize = 4;

/// Blocks that sum squares.
const SQUARES: usize = 512;

/// One evaluation.
#[derive(Clone, Copy, Debug)]
pub struct BarlowCall<'a> {
    /// Samples of a view.
    pub batch: usize,
    /// Embedding dimensions.
    pub dim: usize,
    /// Embeddings `[2 * batch, dim]`, F32, view a's first.
    pub z: Span,
    /// Their gradient, likewise.
    pub grad: Span,
    /// [`FIGURES`] numbers, F64.
    pub figures: Span,
    /// [`barlow_scratch`] elements.
    pub scratch: Span,
    /// Options.
    pub config: &'a BarlowConfig,
}

/// Whether [`barlow`] computes what `config` asks for.
pub fn barlow_supports(config: &BarlowConfig) -> bool {
    config.normalize == Normalize::Batch
        && config.loss == LossForm::Squared
        && config.predictor == 0
}

/// F32 elements of scratch.
pub fn barlow_scratch(batch: usize, dim: usize) -> usize {
    if batch == 0 || dim == 0 { 0 } else { lengths(batch, dim).map(padded).iter().sum() }
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// F32 elements of scratch's parts, in the order of [`Scratch`]'s fields.
fn lengths(batch: usize, dim: usize) -> [usize; 8] {
    let (rows, pairs) = (reduction(batch, dim, 1).parts, reduction(batch, dim, 2).parts);
    let products = if prefer_gram(batch, dim) { 2 * batch * batch } else { dim * dim };
    [
        2 * dim,
        2 * SQUARES,
        4 * dim,
        2 * batch * dim,
        dim,
        (4 * pairs * dim).max(rows * dim),
        4 * dim,
        products,
    ]
}

struct Scratch {
    /// C's diagonal, F64.
    diagonal: Span,
    /// Blocks' sums of squares, F64.
    squares: Span,
    /// Means of both views' columns, then their factors.
    stats: Span,
    /// Normalised embeddings.
    hat: Span,
    /// What the other view's embeddings are multiplied by.
    on_diagonal: Span,
    partial: Span,
    means: Span,
    products: Span,
}

impl Scratch {
    fn new(call: &BarlowCall<'_>) -> Result<Self> {
        let (batch, dim) = (call.batch, call.dim);
        expect_scratch("Barlow Twins", call.scratch, barlow_scratch(batch, dim))?;
        let mut start = 0;
        let [diagonal, squares, stats, hat, on_diagonal, partial, means, products] =
            lengths(batch, dim).map(|len| {
                let part = call.scratch.part(start, len);
                start += padded(len);
                part
            });
        let diagonal = diagonal.cast(DType::F64);
        let squares = squares.cast(DType::F64);
        Ok(Self { diagonal, squares, stats, hat, on_diagonal, partial, means, products })
    }
}

/// The loss's figures and the embeddings' gradient.
///
/// # Errors
/// Lengths and types that do not fit, fewer than two samples, or options that [`barlow_supports`]
/// answers with false.
pub fn barlow(b: &dyn Backend, call: &BarlowCall<'_>) -> Result<()> {
    let (batch, dim, config) = (call.batch, call.dim, call.config);
    if batch < 2 || dim == 0 || !barlow_supports(config) {
        bail!("Barlow Twins of [{batch}, {dim}] with {config:?} is not for a device");
    }
    expect("embeddings", call.z, 2 * batch * dim, DType::F32)?;
    expect("embeddings' gradient", call.grad, 2 * batch * dim, DType::F32)?;
    expect("the loss's figures", call.figures, FIGURES, DType::F64)?;
    let s = Scratch::new(call)?;
    normalise(b, call, &s)?;
    let products = config.terms != Terms::Invariance;
    if products {
        squares_and_products(b, call, &s)?;
    }
    figures(b, call, &s)?;
    gradient(b, call, &s, products)?;
    if config.stop_gradient {
        b.zero(call.grad.part(batch * dim, batch * dim))?;
    }
    Ok(())
}

/// Both views' normalised embeddings and C's diagonal.
fn normalise(b: &dyn Backend, call: &BarlowCall<'_>, s: &Scratch) -> Result<()> {
    let (batch, dim) = (call.batch, call.dim);
    let shape = NormShape { rows: 2 * batch, channels: dim, groups: 2 };
    let moments = Moments {
        shape,
        x: call.z,
        running: None,
        saved: s.stats,
        partial: s.partial,
        eps: call.config.eps as f32,
        momentum: 0.0,
        zero_if_infinite: true,
        backend: b,
    };
    moments.run()?;
    let tiling = Tiling::new(dim, &[call.z, call.scratch])?;
    let Part { rows_per_part, parts } = reduction(batch, dim, 1);
    let args = [
        call.z.into(),
        s.stats.into(),
        s.hat.into(),
        s.partial.into(),
        unsigned(batch)?,
        unsigned(dim)?,
        unsigned(rows_per_part)?,
    ];
    tiling.launch(b, &format!("barlow_twins_v{}_f32", tiling.vector), [parts, 1], &args)?;
    let (invariance, redundancy) = call.config.term_weights();
    let args = [
        s.partial.into(),
        s.diagonal.into(),
        s.on_diagonal.into(),
        unsigned(batch)?,
        unsigned(dim)?,
        unsigned(parts)?,
        Arg::F32(invariance as f32),
        Arg::F32(redundancy as f32),
    ];
    launch(b, "barlow_diagonal", blocks(dim, THREADS as usize)?, &args)
}

/// b (a^T b)^T and a (a^T b) into the gradient's halves, and the blocks' sums of squares.
fn squares_and_products(b: &dyn Backend, call: &BarlowCall<'_>, s: &Scratch) -> Result<()> {
    let (batch, dim) = (call.batch, call.dim);
    let halves = |span: Span| (span.part(0, batch * dim), span.part(batch * dim, batch * dim));
    let ((a, of_b), (to_a, to_b)) = (halves(s.hat), halves(call.grad));
    let product = |m, n, k, [a, b, c]: [Span; 3], a_transposed, b_transposed| Gemm {
        m,
        n,
        k,
        a,
        a_transposed,
        b,
        b_transposed,
        c,
        alpha: 1.0,
        beta: 0.0,
    };
    let (x, y, size, skip) = if prefer_gram(batch, dim) {
        let size = batch * batch;
        let (k_a, k_b) = (s.products.part(0, size), s.products.part(size, size));
        b.gemm(&product(batch, batch, dim, [a, a, k_a], false, true))?;
        b.gemm(&product(batch, batch, dim, [of_b, of_b, k_b], false, true))?;
        b.gemm(&product(batch, dim, batch, [k_b, a, to_a], false, false))?;
        b.gemm(&product(batch, dim, batch, [k_a, of_b, to_b], false, false))?;
        (k_a, k_b, batch, false)
    } else {
        let c = s.products;
        b.gemm(&product(dim, dim, batch, [a, of_b, c], true, false))?;
        b.gemm(&product(batch, dim, dim, [of_b, c, to_a], false, true))?;
        b.gemm(&product(batch, dim, dim, [a, c, to_b], false, false))?;
        (c, c, dim, true)
    };
    let args = [x.into(), y.into(), s.squares.into(), unsigned(size)?, Arg::U32(u32::from(skip))];
    launch(b, "barlow_squares", size.min(SQUARES) as u32, &args)
}

fn figures(b: &dyn Backend, call: &BarlowCall<'_>, s: &Scratch) -> Result<()> {
    let gram = prefer_gram(call.batch, call.dim);
    // NO_SQUARES, OF_GRAMS, OF_C in `loss.cu`.
    let from = match (call.config.terms, gram) {
        (Terms::Invariance, _) => 0,
        (_, true) => 1,
        (_, false) => 2,
    };
    let size = if gram { call.batch } else { call.dim };
    let (invariance, redundancy) = call.config.term_weights();
    let args = [
        s.diagonal.into(),
        s.squares.into(),
        call.figures.into(),
        unsigned(call.batch)?,
        unsigned(call.dim)?,
        unsigned(size.min(SQUARES))?,
        Arg::U32(from),
        Arg::F32(invariance as f32),
        Arg::F32(redundancy as f32),
    ];
    launch(b, "barlow_figures", 1, &args)
}

/// The products joined with the diagonal's part, and back through the normalisation.
fn gradient(b: &dyn Backend, call: &BarlowCall<'_>, s: &Scratch, products: bool) -> Result<()> {
    let (batch, dim) = (call.batch, call.dim);
    let (_, redundancy) = call.config.term_weights();
    let n = batch as f64;
    let weight = if products { (2.0 * redundancy / (n * n)) as f32 } else { 0.0 };
    let tiling = Tiling::new(dim, &[call.grad, call.scratch])?;
    let Part { rows_per_part, parts } = reduction(batch, dim, 2);
    let sizes = [unsigned(batch)?, unsigned(dim)?];
    let args = [
        call.grad.into(),
        s.hat.into(),
        s.on_diagonal.into(),
        s.partial.into(),
        sizes[0],
        sizes[1],
        unsigned(rows_per_part)?,
        Arg::F32(weight),
    ];
    let kernel = format!("barlow_grad_sums_v{}_f32", tiling.vector);
    tiling.launch(b, &kernel, [parts, 2], &args)?;
    let args = [s.partial.into(), s.means.into(), sizes[0], sizes[1], unsigned(parts)?];
    launch(b, "barlow_grad_finish", blocks(2 * dim, THREADS as usize)?, &args)?;
    let args = [
        call.grad.into(),
        s.hat.into(),
        s.on_diagonal.into(),
        s.means.into(),
        s.stats.into(),
        sizes[0],
        sizes[1],
        unsigned(rows_per_part)?,
        Arg::F32(weight),
    ];
    tiling.launch(b, &format!("barlow_grad_v{}_f32", tiling.vector), [parts, 2], &args)
}
