//! Batch normalisation with ReLU and the max pool behind it in one, as in an ImageNet stem: the
//! tensor between them, the network's largest, is never written, nor is its gradient.

use candle_core::{DType, Result, bail};

use super::norm::{NormParams, NormShape, ROWS_OF_A_THREAD, Sums, running, statistics};
use super::{Part, Tiling, expect, expect_scratch, reduction, unsigned};
use crate::nn::cpu::pool::PoolShape;
use crate::nn::cuda::{Arg, Backend, Span};

/// The only window that there are kernels for: kernel, stride and border.
pub const WINDOW: (usize, usize, usize) = (3, 2, 1);

/// A batch to normalise and pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormPoolShape {
    /// The pool, on what is normalised.
    pub pool: PoolShape,
    /// As [`NormShape::groups`]; whole images each.
    pub groups: usize,
}

impl NormPoolShape {
    fn norm(&self) -> NormShape {
        let PoolShape { n, h, w, c, .. } = self.pool;
        NormShape { rows: n * h * w, channels: c, groups: self.groups }
    }

    /// Windows of all groups together. The backward pass goes by them, too: each has four pixels to
    /// itself.
    fn windows(&self) -> usize {
        let (oh, ow) = self.pool.out();
        self.pool.n * oh * ow
    }

    fn check(&self, x: Span, y: Span, winner: Option<Span>) -> Result<()> {
        let PoolShape { n, h, w, c, kernel, stride, pad } = self.pool;
        let whole = self.groups > 0 && n.is_multiple_of(self.groups);
        if (kernel, stride, pad) != WINDOW || !whole || [n, h, w, c].contains(&0) {
            bail!("batch norm and max pool: no kernels for {self:?}");
        }
        // Windows are counted over all images.
        unsigned(n * h * w)?;
        let len = self.windows() * c;
        expect("batch norm and max pool", x, n * h * w * c, x.dtype)?;
        expect("batch norm's pooled output", y, len, x.dtype)?;
        winner.map_or(Ok(()), |winner| expect("max pool's winners", winner, len, DType::U8))
    }

    /// Windows of a group, as they are cut for sums.
    fn reduction(&self) -> Part {
        reduction(self.windows() / self.groups, self.pool.c, self.groups)
    }

    fn constants(&self) -> usize {
        (3 * self.groups * self.pool.c).next_multiple_of(4)
    }

    /// What every kernel here takes at its end.
    fn sizes(&self, rows_per_part: usize) -> Result<[Arg; 5]> {
        let PoolShape { h, w, c, .. } = self.pool;
        let rows = self.windows() / self.groups;
        Ok([unsigned(h)?, unsigned(w)?, unsigned(rows)?, unsigned(c)?, unsigned(rows_per_part)?])
    }
}

/// F32 elements of scratch that every function here needs.
pub fn norm_pool_scratch(s: NormPoolShape) -> usize {
    if s.groups == 0 {
        return 0;
    }
    let sums = s.constants() + s.groups * s.reduction().parts * 2 * s.pool.c;
    super::norm::norm_scratch(s.norm()).max(sums)
}

/// Training's forward pass: [`norm_train`](super::norm::norm_train) with ReLU, then
/// [`max_pool`](super::pool::max_pool).
///
/// # Errors
/// As theirs, or another window than [`WINDOW`].
pub fn norm_pool_train(
    b: &dyn Backend,
    s: NormPoolShape,
    p: &NormParams,
    x: Span,
    y: Span,
    winner: Option<Span>,
    saved: Span,
    scratch: Span,
) -> Result<()> {
    s.check(x, y, winner)?;
    p.check(s.pool.c)?;
    statistics(b, s.norm(), p, x, saved, scratch)?;
    apply(b, s, p, x, y, winner, saved)
}

/// Evaluation's forward pass, by the running statistics.
///
/// # Errors
/// As [`norm_pool_train`].
pub fn norm_pool_eval(
    b: &dyn Backend,
    pool: &PoolShape,
    p: &NormParams,
    x: Span,
    y: Span,
    scratch: Span,
) -> Result<()> {
    let s = NormPoolShape { pool: *pool, groups: 1 };
    s.check(x, y, None)?;
    p.check(s.pool.c)?;
    let saved = running(b, s.norm(), p, scratch)?;
    apply(b, s, p, x, y, None, saved)
}

fn apply(
    b: &dyn Backend,
    s: NormPoolShape,
    p: &NormParams,
    x: Span,
    y: Span,
    winner: Option<Span>,
    saved: Span,
) -> Result<()> {
    let all = [x, y, winner.unwrap_or(x), p.gamma, p.beta, saved];
    let tiling = Tiling::new(s.pool.c, &all)?;
    let Part { rows_per_part, parts } = tiling.parts(s.windows() / s.groups, ROWS_OF_A_THREAD);
    let args = [x.into(), y.into(), winner.into(), p.gamma.into(), p.beta.into(), saved.into()];
    let args = [&args[..], &s.sizes(rows_per_part)?].concat();
    let kernel = format!("norm_pool_v{}_{}", tiling.vector, x.suffix()?);
    tiling.launch(b, &kernel, [parts, s.groups], &args)
}

/// The backward pass from the pool's gradient `dy`:
/// [`max_pool_backward`](super::pool::max_pool_backward), then
/// [`norm_backward`](super::norm::norm_backward). `dx` may lie over `x`.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn norm_pool_backward(
    b: &dyn Backend,
    s: NormPoolShape,
    [gamma, beta]: [Span; 2],
    x: Span,
    winner: Span,
    dy: Span,
    dx: Span,
    [dgamma, dbeta]: [Span; 2],
    saved: Span,
    scratch: Span,
) -> Result<()> {
    s.check(x, dy, Some(winner))?;
    expect("batch norm's gradient", dx, x.len, x.dtype)?;
    for span in [gamma, beta, dgamma, dbeta] {
        expect("batch norm's parameters", span, s.pool.c, DType::F32)?;
    }
    expect("batch norm's statistics", saved, 2 * s.groups * s.pool.c, DType::F32)?;
    expect_scratch("batch norm and max pool", scratch, norm_pool_scratch(s))?;
    let Part { rows_per_part, parts } = s.reduction();
    let constants = scratch.part(0, s.constants());
    let partial = scratch.part(s.constants(), s.groups * parts * 2 * s.pool.c);
    let tiling = Tiling::new(s.pool.c, &[x, winner, dy, dx, gamma, beta, saved, constants])?;
    let suffix = format!("v{}_{}", tiling.vector, x.suffix()?);
    let vectors = [gamma, beta, saved].map(Arg::from);

    let read = [x.into(), dy.into(), winner.into()];
    let args = [&read[..], &vectors, &[partial.into()], &s.sizes(rows_per_part)?].concat();
    tiling.launch(b, &format!("norm_pool_grad_sums_{suffix}"), [parts, s.groups], &args)?;
    let sums = Sums { gamma, saved, dgamma, dbeta, constants, partial };
    sums.finish(b, s.norm(), parts)?;

    let Part { rows_per_part, parts } = tiling.parts(s.windows() / s.groups, ROWS_OF_A_THREAD);
    let write = [&[dx.into()], &vectors[..], &[constants.into()]].concat();
    let args = [&read[..], &write, &s.sizes(rows_per_part)?].concat();
    tiling.launch(b, &format!("norm_pool_grad_apply_{suffix}"), [parts, s.groups], &args)
}
