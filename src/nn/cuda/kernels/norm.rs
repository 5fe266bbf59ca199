//! Batch normalisation: what [`BatchNorm`](crate::nn::BatchNorm) does, on a device. The way back is
//! in `backward`.

use candle_core::{DType, Result, bail};

use super::{Part, Tiling, blocks, expect, expect_scratch, reduction, unsigned};
use crate::nn::cuda::{Arg, Backend, Launch, Span};

mod backward;

pub(super) use backward::Sums;
pub use backward::{GradBranch, Mask, norm_backward, norm_backward_pair};

/// A batch to normalise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormShape {
    /// Rows of all groups together; group g is the g-th equal contiguous part.
    pub rows: usize,
    /// Channels.
    pub channels: usize,
    /// Groups with statistics of their own.
    pub groups: usize,
}

/// A layer's vectors, `[channels]` each, F32.
#[derive(Clone, Copy, Debug)]
pub struct NormParams {
    /// Factor.
    pub gamma: Span,
    /// Summand.
    pub beta: Span,
    /// Moved by training passes, where `moves` says so.
    pub running_mean: Span,
    /// Likewise.
    pub running_var: Span,
    /// Whether a training pass moves the running statistics.
    pub moves: bool,
    /// Added to the variance.
    pub eps: f32,
    /// How far the running statistics move.
    pub momentum: f32,
}

/// Rows of a thread in passes that write every element.
pub(super) const ROWS_OF_A_THREAD: usize = 16;
/// Channels, and most lanes, of a block that joins parts; `FINISH` in `norm.cu`.
const FINISH: u32 = 32;

impl NormShape {
    fn group_rows(&self) -> usize {
        self.rows / self.groups
    }

    fn check(&self) -> Result<()> {
        let whole = self.groups > 0 && self.rows.is_multiple_of(self.groups);
        if !whole || self.rows == 0 || self.channels == 0 {
            bail!("batch norm: {self:?} is no batch");
        }
        Ok(())
    }

    fn reduction(&self) -> Part {
        reduction(self.group_rows(), self.channels, self.groups)
    }

    /// F32 elements of the parts' sums.
    fn partial(&self) -> usize {
        self.groups * self.reduction().parts * 2 * self.channels
    }
}

/// F32 elements of scratch that every function here needs.
pub fn norm_scratch(s: NormShape) -> usize {
    if s.check().is_err() {
        return 0;
    }
    // The constants of the backward pass (of evaluation: statistics), then the parts' sums.
    (3 * s.groups * s.channels).next_multiple_of(4) + s.partial()
}

/// The two parts of scratch.
fn split(s: NormShape, scratch: Span) -> Result<(Span, Span)> {
    expect_scratch("batch norm", scratch, norm_scratch(s))?;
    let constants = (3 * s.groups * s.channels).next_multiple_of(4);
    Ok((scratch.part(0, constants), scratch.part(constants, s.partial())))
}

/// The moments of every group's channels, into `saved`: means, then 1 / sqrt(var + eps).
pub(super) struct Moments<'a> {
    pub shape: NormShape,
    pub x: Span,
    pub running: Option<(Span, Span)>,
    pub saved: Span,
    pub partial: Span,
    pub eps: f32,
    pub momentum: f32,
    /// Makes an infinite factor 0.
    pub zero_if_infinite: bool,
    pub backend: &'a dyn Backend,
}

impl Moments<'_> {
    pub fn run(&self) -> Result<()> {
        let (s, b) = (self.shape, self.backend);
        let tiling = Tiling::new(s.channels, &[self.x, self.saved, self.partial])?;
        let Part { rows_per_part, parts } = s.reduction();
        let (rows, channels) = (unsigned(s.group_rows())?, unsigned(s.channels)?);
        let kernel = format!("norm_moments_v{}_{}", tiling.vector, self.x.suffix()?);
        let args = [self.x.into(), self.partial.into(), rows, channels, unsigned(rows_per_part)?];
        tiling.launch(b, &kernel, [parts, s.groups], &args)?;
        let args = [
            self.partial.into(),
            self.running.map(|(mean, _)| mean).into(),
            self.running.map(|(_, var)| var).into(),
            self.saved.into(),
            rows,
            channels,
            unsigned(rows_per_part)?,
            unsigned(parts)?,
            unsigned(s.groups)?,
            Arg::F32(self.eps),
            Arg::F32(self.momentum),
            Arg::U32(u32::from(self.zero_if_infinite)),
        ];
        finish(b, "norm_finish", s.channels, parts, &args)
    }
}

/// Joins `parts` parts' sums of every channel.
fn finish(
    b: &dyn Backend,
    kernel: &str,
    channels: usize,
    parts: usize,
    args: &[Arg],
) -> Result<()> {
    let grid = [blocks(channels, FINISH as usize)?, 1, 1];
    let lanes = parts.next_power_of_two().min(FINISH as usize) as u32;
    b.launch(&Launch { kernel, grid, block: [FINISH, lanes, 1], shared_bytes: 0, args })
}

/// Bytes that tell for each element of activations whether a ReLU let it through: a bit each, where
/// the kernels go over `spans` by vectors, else a byte.
///
/// # Errors
/// More channels than a grid holds.
pub fn mask_len(s: NormShape, spans: &[Span]) -> Result<usize> {
    Ok(s.rows * s.channels / Tiling::new(s.channels, spans)?.vector)
}

/// Training's forward pass: y from x and the batch's statistics, which `saved` (F32 `[2, groups,
/// channels]`: mean, 1 / sqrt(var + eps)) keeps for the backward pass and the running ones move
/// towards, once for each group. `relu_mask` (U8, [`mask_len`]) then tells where y is positive. `y`
/// may not be `x`.
///
/// # Errors
/// Lengths and types that do not fit, or a group with fewer than two rows.
pub fn norm_train(
    b: &dyn Backend,
    s: NormShape,
    p: &NormParams,
    x: Span,
    residual: Option<Span>,
    y: Span,
    relu_mask: Option<Span>,
    saved: Span,
    scratch: Span,
    relu: bool,
) -> Result<()> {
    check(s, p, x, residual, y)?;
    statistics(b, s, p, x, saved, scratch)?;
    apply(b, s, p, x, residual, y, relu_mask, saved, relu)
}

/// Finds the batch's statistics, to which the running ones move where they do.
pub(super) fn statistics(
    b: &dyn Backend,
    s: NormShape,
    p: &NormParams,
    x: Span,
    saved: Span,
    scratch: Span,
) -> Result<()> {
    expect("batch norm's statistics", saved, 2 * s.groups * s.channels, DType::F32)?;
    if s.group_rows() < 2 {
        bail!("batch norm: training wants more than one value a channel, got {s:?}");
    }
    let (_, partial) = split(s, scratch)?;
    let running = p.moves.then_some((p.running_mean, p.running_var));
    let (eps, momentum) = (p.eps, p.momentum);
    let zero_if_infinite = false;
    Moments { shape: s, x, running, saved, partial, eps, momentum, zero_if_infinite, backend: b }
        .run()
}

/// Evaluation's forward pass, by the running statistics. `y` may not be `x`.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn norm_eval(
    b: &dyn Backend,
    s: NormShape,
    p: &NormParams,
    x: Span,
    residual: Option<Span>,
    y: Span,
    scratch: Span,
    relu: bool,
) -> Result<()> {
    check(s, p, x, residual, y)?;
    let saved = running(b, s, p, scratch)?;
    apply(b, NormShape { groups: 1, ..s }, p, x, residual, y, None, saved, relu)
}

/// The running statistics as training saves a batch's, of one group; in `scratch`.
pub(super) fn running(
    b: &dyn Backend,
    s: NormShape,
    p: &NormParams,
    scratch: Span,
) -> Result<Span> {
    let (constants, _) = split(s, scratch)?;
    let saved = constants.part(0, 2 * s.channels);
    let args = [
        p.running_mean.into(),
        p.running_var.into(),
        saved.into(),
        unsigned(s.channels)?,
        Arg::F32(p.eps),
    ];
    super::launch(b, "norm_running", blocks(s.channels, 256)?, &args)?;
    Ok(saved)
}

/// One of two layers whose outputs are added, in the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a> {
    /// The layer's vectors.
    pub params: &'a NormParams,
    /// Its input.
    pub x: Span,
    /// As [`norm_train`]'s.
    pub saved: Span,
    /// Each has its own.
    pub scratch: Span,
}

/// [`norm_train`] of two layers at once: y is the sum of both their outputs behind a ReLU, and
/// neither is written by itself.
///
/// # Errors
/// As [`norm_train`].
pub fn norm_train_pair(
    b: &dyn Backend,
    s: NormShape,
    pair: [Branch<'_>; 2],
    y: Span,
    relu_mask: Option<Span>,
) -> Result<()> {
    for Branch { params, x, saved, scratch } in pair {
        check(s, params, x, Some(pair[0].x), y)?;
        statistics(b, s, params, x, saved, scratch)?;
    }
    apply_pair(b, s, pair, y, relu_mask)
}

/// [`norm_eval`] of two layers at once; what they have `saved` is not looked at.
///
/// # Errors
/// As [`norm_eval`].
pub fn norm_eval_pair(
    b: &dyn Backend,
    s: NormShape,
    mut pair: [Branch<'_>; 2],
    y: Span,
) -> Result<()> {
    for branch in &mut pair {
        check(s, branch.params, branch.x, None, y)?;
        branch.saved = running(b, s, branch.params, branch.scratch)?;
    }
    apply_pair(b, NormShape { groups: 1, ..s }, pair, y, None)
}

fn apply_pair(
    b: &dyn Backend,
    s: NormShape,
    [own, other]: [Branch<'_>; 2],
    y: Span,
    relu_mask: Option<Span>,
) -> Result<()> {
    let vectors = |of: Branch<'_>| [of.params.gamma, of.params.beta, of.saved];
    let [of_own, of_other] = [vectors(own), vectors(other)];
    let all = [&[own.x, other.x, y], &of_own[..], &of_other[..]].concat();
    let tiling = Tiling::new(s.channels, &all)?;
    expect_mask(s, &tiling, relu_mask)?;
    let rows = s.group_rows();
    let Part { rows_per_part, parts } = tiling.parts(rows, ROWS_OF_A_THREAD);
    let mut args = vec![own.x.into(), other.x.into(), y.into(), relu_mask.into()];
    args.extend([of_own, of_other].concat().into_iter().map(Arg::from));
    args.extend([unsigned(rows)?, unsigned(s.channels)?, unsigned(rows_per_part)?]);
    let kernel = format!("norm_apply_pair_v{}_{}", tiling.vector, y.suffix()?);
    tiling.launch(b, &kernel, [parts, s.groups], &args)
}

fn expect_mask(s: NormShape, tiling: &Tiling, relu_mask: Option<Span>) -> Result<()> {
    let len = s.rows * s.channels / tiling.vector;
    relu_mask.map_or(Ok(()), |relu_mask| expect("batch norm's mask", relu_mask, len, DType::U8))
}

impl NormParams {
    pub(super) fn check(&self, channels: usize) -> Result<()> {
        for (what, span) in [
            ("batch norm's gamma", self.gamma),
            ("batch norm's beta", self.beta),
            ("batch norm's running mean", self.running_mean),
            ("batch norm's running variance", self.running_var),
        ] {
            expect(what, span, channels, DType::F32)?;
        }
        Ok(())
    }
}

fn check(s: NormShape, p: &NormParams, x: Span, residual: Option<Span>, y: Span) -> Result<()> {
    s.check()?;
    p.check(s.channels)?;
    let len = s.rows * s.channels;
    for span in [Some(x), residual, Some(y)].into_iter().flatten() {
        expect("batch norm", span, len, x.dtype)?;
    }
    Ok(())
}

fn apply(
    b: &dyn Backend,
    s: NormShape,
    p: &NormParams,
    x: Span,
    residual: Option<Span>,
    y: Span,
    relu_mask: Option<Span>,
    saved: Span,
    relu: bool,
) -> Result<()> {
    let all = [x, residual.unwrap_or(x), y, p.gamma, p.beta, saved];
    let tiling = Tiling::new(s.channels, &all)?;
    expect_mask(s, &tiling, relu_mask)?;
    let rows = s.group_rows();
    let Part { rows_per_part, parts } = tiling.parts(rows, ROWS_OF_A_THREAD);
    let kernel = format!("norm_apply_v{}_{}", tiling.vector, x.suffix()?);
    let args = [
        x.into(),
        residual.into(),
        y.into(),
        relu_mask.into(),
        p.gamma.into(),
        p.beta.into(),
        saved.into(),
        unsigned(rows)?,
        unsigned(s.channels)?,
        unsigned(rows_per_part)?,
        Arg::U32(u32::from(relu)),
    ];
    tiling.launch(b, &kernel, [parts, s.groups], &args)
}
