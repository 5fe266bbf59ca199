//! The backward passes of batch normalisation.

use candle_core::{DType, Result};

use super::{NormShape, ROWS_OF_A_THREAD, expect_mask, finish, split};
use crate::nn::cuda::kernels::{Part, Tiling, expect, unsigned};
use crate::nn::cuda::{Arg, Backend, Span};

/// What the ReLU's mask is found from.
#[derive(Clone, Copy, Debug)]
pub enum Mask {
    /// There was no ReLU.
    None,
    /// What the forward pass noted.
    Bits(Span),
    /// Beta: without a residual the input says where the output was positive.
    Input(Span),
}

impl Mask {
    /// The mask's bits, beta, and what kernels are called that find it so.
    fn spans(self) -> (Option<Span>, Option<Span>, &'static str) {
        match self {
            Mask::None => (None, None, "plain"),
            Mask::Bits(relu_mask) => (Some(relu_mask), None, "by_bits"),
            Mask::Input(beta) => (None, Some(beta), "by_input"),
        }
    }
}

/// The backward pass: gradients of gamma and beta (summed over groups), and of x: in place over
/// `dout`, or into `dx`; with `dx`, `dout` afterwards holds the gradient masked by the ReLU, the
/// residual's.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn norm_backward(
    b: &dyn Backend,
    s: NormShape,
    gamma: Span,
    x: Span,
    mask: Mask,
    dout: Span,
    dx: Option<Span>,
    dgamma: Span,
    dbeta: Span,
    saved: Span,
    scratch: Span,
) -> Result<()> {
    s.check()?;
    let (relu_mask, beta, _) = mask.spans();
    for span in [Some(x), Some(dout), dx].into_iter().flatten() {
        expect("batch norm's gradient", span, s.rows * s.channels, x.dtype)?;
    }
    for span in [Some(gamma), beta, Some(dgamma), Some(dbeta)].into_iter().flatten() {
        expect("batch norm's parameters", span, s.channels, DType::F32)?;
    }
    expect("batch norm's statistics", saved, 2 * s.groups * s.channels, DType::F32)?;
    let (constants, partial) = split(s, scratch)?;
    let vectors = [gamma, beta.unwrap_or(gamma), saved, constants];
    let all = [&vectors[..], &[x, dout, dx.unwrap_or(x)]].concat();
    let tiling = Tiling::new(s.channels, &all)?;
    expect_mask(s, &tiling, relu_mask)?;

    let elements = Elements { b, s, tiling, gamma, x, dout, saved };
    // The mask is stored by the first pass where `dout` is to hold it: the second then reads less.
    let store = dx.is_some() && !matches!(mask, Mask::None);
    let part = s.reduction();
    elements.pass("sums", mask, [Arg::U32(u32::from(store)), partial.into()], part)?;
    let sums = Sums { gamma, saved, dgamma, dbeta, constants, partial };
    sums.finish(b, s, part.parts)?;
    let mask = if store { Mask::None } else { mask };
    let part = tiling.parts(s.group_rows(), ROWS_OF_A_THREAD);
    elements.pass("apply", mask, [dx.unwrap_or(dout).into(), constants.into()], part)
}

/// What both passes of [`norm_backward`] over the elements read.
struct Elements<'a> {
    b: &'a dyn Backend,
    s: NormShape,
    tiling: Tiling,
    gamma: Span,
    x: Span,
    dout: Span,
    saved: Span,
}

impl Elements<'_> {
    /// Launches `norm_grad_{pass}` with what is the pass's `own`: what it does behind `dout`, and
    /// its vectors behind `saved`.
    fn pass(&self, pass: &str, mask: Mask, own: [Arg; 2], part: Part) -> Result<()> {
        let (relu_mask, beta, name) = mask.spans();
        let args = [
            self.x.into(),
            relu_mask.into(),
            self.dout.into(),
            own[0],
            self.gamma.into(),
            beta.into(),
            self.saved.into(),
            own[1],
            unsigned(self.s.group_rows())?,
            unsigned(self.s.channels)?,
            unsigned(part.rows_per_part)?,
        ];
        let (vector, element) = (self.tiling.vector, self.x.suffix()?);
        let kernel = format!("norm_grad_{pass}_{name}_v{vector}_{element}");
        self.tiling.launch(self.b, &kernel, [part.parts, self.s.groups], &args)
    }
}

/// What the backward pass's sums become: parameters' gradients, and the constants of the input's.
pub(in super::super) struct Sums {
    pub gamma: Span,
    pub saved: Span,
    pub dgamma: Span,
    pub dbeta: Span,
    pub constants: Span,
    pub partial: Span,
}

impl Sums {
    pub fn finish(&self, b: &dyn Backend, s: NormShape, parts: usize) -> Result<()> {
        let args = [
            self.partial.into(),
            self.gamma.into(),
            self.saved.into(),
            self.dgamma.into(),
            self.dbeta.into(),
            self.constants.into(),
            unsigned(s.group_rows())?,
            unsigned(s.channels)?,
            unsigned(parts)?,
            unsigned(s.groups)?,
        ];
        finish(b, "norm_grad_finish", s.channels, parts, &args)
    }
}

/// One of two layers whose outputs were added, in the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct GradBranch {
    /// Factor.
    pub gamma: Span,
    /// Its input.
    pub x: Span,
    /// The input's gradient; may lie over `x`, and one of both over `dout`.
    pub dx: Span,
    /// The factor's gradient.
    pub dgamma: Span,
    /// The summand's.
    pub dbeta: Span,
    /// What the forward pass saved.
    pub saved: Span,
    /// Each has its own.
    pub scratch: Span,
}

/// The backward pass of [`super::norm_train_pair`]: each of its passes reads `dout` once for both
/// layers.
///
/// # Errors
/// Lengths and types that do not fit.
pub fn norm_backward_pair(
    b: &dyn Backend,
    s: NormShape,
    pair: [GradBranch; 2],
    relu_mask: Span,
    dout: Span,
) -> Result<()> {
    s.check()?;
    let mut all = vec![dout];
    let mut sums = Vec::new();
    for GradBranch { gamma, x, dx, dgamma, dbeta, saved, scratch } in pair {
        for span in [x, dx, dout] {
            expect("batch norm's gradient", span, s.rows * s.channels, pair[0].x.dtype)?;
        }
        for span in [gamma, dgamma, dbeta] {
            expect("batch norm's parameters", span, s.channels, DType::F32)?;
        }
        expect("batch norm's statistics", saved, 2 * s.groups * s.channels, DType::F32)?;
        let (constants, partial) = split(s, scratch)?;
        all.extend([x, dx, saved, constants]);
        sums.push(Sums { gamma, saved, dgamma, dbeta, constants, partial });
    }
    let tiling = Tiling::new(s.channels, &all)?;
    expect_mask(s, &tiling, Some(relu_mask))?;
    let ([own, other], suffix) = (pair, format!("v{}_{}", tiling.vector, dout.suffix()?));
    let sizes = |rows_per_part| -> Result<[Arg; 3]> {
        Ok([unsigned(s.group_rows())?, unsigned(s.channels)?, unsigned(rows_per_part)?])
    };
    let read = [own.x.into(), other.x.into(), relu_mask.into(), dout.into()];

    let Part { rows_per_part, parts } = s.reduction();
    let [of_own, of_other] = [&sums[0], &sums[1]];
    let vectors = [own.saved, other.saved, of_own.partial, of_other.partial].map(Arg::from);
    let args = [&read[..], &vectors, &sizes(rows_per_part)?].concat();
    tiling.launch(b, &format!("norm_grad_sums_pair_{suffix}"), [parts, s.groups], &args)?;
    sums.iter().try_for_each(|sums| sums.finish(b, s, parts))?;

    let Part { rows_per_part, parts } = tiling.parts(s.group_rows(), ROWS_OF_A_THREAD);
    let write = [own.dx, other.dx, of_own.constants, of_other.constants].map(Arg::from);
    let args = [&read[..], &write, &sizes(rows_per_part)?].concat();
    tiling.launch(b, &format!("norm_grad_apply_pair_{suffix}"), [parts, s.groups], &args)
}
