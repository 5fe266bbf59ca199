//! Optimizers, the momentum teacher, sums of gradients and the search for what is not finite, over
//! all parameters at once.
//!
//! A [`Tensors`] lists the parameters in a table in the device's memory. What changes from step to
//! step (learning rates, AdamW's corrections, the teacher's share) lies in a small buffer there, so
//! that a recorded step runs with new ones: write [`lars_rates`], [`sgd_rates`] or [`adamw_rates`]
//! to it before each step.

use candle_core::{DType, Result, bail};

use super::{launch, unsigned};
use crate::nn::cuda::{Arg, Backend, Span};
use crate::optim::{AdamWConfig, LarsConfig, SgdConfig};

/// F32 elements of the buffer of rates, whatever the optimizer.
pub const RATES: usize = 5;

/// Elements of a chunk; `CHUNK` in `optim.cu`.
const CHUNK: usize = 16384;
/// Bytes of `Parameter` in `optim.cu`.
const RECORD: usize = 56;
/// Its flags.
const WEIGHT: u32 = 1;
const ALIGNED: u32 = 2;
const HALF_GRAD: u32 = 4;

/// One parameter, as an optimizer sees it.
#[derive(Clone, Copy, Debug)]
pub struct OptimTensor {
    /// The value, F32.
    pub value: Span,
    /// The gradient, F32 or BF16; a teacher has none.
    pub grad: Option<Span>,
    /// What the optimizer keeps from step to step, F32: none, one or two.
    pub moments: [Option<Span>; 2],
    /// The value's BF16 copy, where products read one.
    pub half: Option<Span>,
    /// Whether it counts as a weight (two dimensions and more), not as a bias.
    pub is_weight: bool,
}

impl OptimTensor {
    fn check(&self) -> Result<()> {
        let len = self.value.len;
        let same = |span: Option<Span>, types: &[DType]| {
            span.is_none_or(|span| span.len == len && types.contains(&span.dtype))
        };
        let f32 = [DType::F32];
        let fits = same(Some(self.value), &f32)
            && same(self.grad, &[DType::F32, DType::BF16])
            && self.moments.iter().all(|moment| same(*moment, &f32))
            && same(self.half, &[DType::BF16]);
        if !fits || len == 0 {
            bail!("an optimizer's tensor that does not fit: {self:?}");
        }
        Ok(())
    }

    /// The record in the table; `first_chunk` is the number of its first chunk.
    fn record(&self, first_chunk: u32) -> [u64; RECORD / 8] {
        let address = |span: Option<Span>| span.map_or(0, |span| span.addr);
        let [first, second] = self.moments;
        let all = [Some(self.value), self.grad, first, second, self.half];
        let aligned = all.into_iter().flatten().all(|span| span.addr.is_multiple_of(16));
        let half_grad = self.grad.is_some_and(|grad| grad.dtype == DType::BF16);
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags =
            flag(self.is_weight, WEIGHT) | flag(aligned, ALIGNED) | flag(half_grad, HALF_GRAD);
        [
            self.value.addr,
            address(self.grad),
            address(first),
            address(second),
            address(self.half),
            self.value.len as u64,
            u64::from(flags) | u64::from(first_chunk) << 32,
        ]
    }
}

/// Parameters in a table on the device.
#[derive(Clone, Debug)]
pub struct Tensors {
    list: Vec<OptimTensor>,
    records: Span,
    owners: Span,
    norms: Span,
    trust: Span,
    chunks: u32,
}

/// Where the parts of a table lie, in bytes.
struct Plan {
    owners: usize,
    norms: usize,
    trust: usize,
    end: usize,
}

fn chunks_of(list: &[OptimTensor]) -> usize {
    list.iter().map(|tensor| tensor.value.len.div_ceil(CHUNK)).sum()
}

fn plan(list: &[OptimTensor]) -> Plan {
    let chunks = chunks_of(list);
    let owners = (list.len() * RECORD).next_multiple_of(16);
    let norms = (owners + chunks * 4).next_multiple_of(16);
    let trust = norms + chunks * 16;
    Plan { owners, norms, trust, end: (trust + list.len() * 4).next_multiple_of(16) }
}

impl Tensors {
    /// Bytes of the table that [`Tensors::new`] wants.
    pub fn table_bytes(list: &[OptimTensor]) -> usize {
        plan(list).end
    }

    /// Writes the table of `list` to `table`, of any type and [`Tensors::table_bytes`] long; all
    /// spans are used by every later call.
    ///
    /// # Errors
    /// Lengths and types that do not fit; what the device says.
    pub fn new(b: &dyn Backend, list: &[OptimTensor], table: Span) -> Result<Self> {
        let plan = plan(list);
        let table = table.cast(DType::U8);
        if list.is_empty() || table.len < plan.end || !table.addr.is_multiple_of(16) {
            bail!("a table of {} tensors wants {} bytes, got {table:?}", list.len(), plan.end);
        }
        let chunks = u32::try_from(chunks_of(list)).or_else(|_| bail!("too many parameters"))?;
        let mut bytes = vec![0; plan.norms];
        let (records, owners) = bytes.split_at_mut(plan.owners);
        let mut first_chunk = 0;
        for (number, (tensor, to)) in list.iter().zip(records.chunks_exact_mut(RECORD)).enumerate()
        {
            tensor.check()?;
            for (word, to) in tensor.record(first_chunk).iter().zip(to.chunks_exact_mut(8)) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            let end = first_chunk + tensor.value.len.div_ceil(CHUNK) as u32;
            for to in owners[first_chunk as usize * 4..end as usize * 4].chunks_exact_mut(4) {
                to.copy_from_slice(&(number as u32).to_ne_bytes());
            }
            first_chunk = end;
        }
        b.write(&bytes, table.part(0, plan.norms))?;
        Ok(Self {
            list: list.to_vec(),
            records: table.part(0, plan.owners),
            owners: table.part(plan.owners, plan.norms - plan.owners),
            norms: table.part(plan.norms, plan.trust - plan.norms),
            trust: table.part(plan.trust, plan.end - plan.trust),
            chunks,
        })
    }

    /// The parameters, in order.
    pub fn list(&self) -> &[OptimTensor] {
        &self.list
    }

    fn expect(&self, what: &str, grads: bool, moments: usize) -> Result<()> {
        for (number, tensor) in self.list.iter().enumerate() {
            let held = tensor.moments.iter().flatten().count();
            if (grads && tensor.grad.is_none()) || held < moments {
                bail!("{what}: tensor {number} lacks its gradient or its {moments} moments");
            }
        }
        Ok(())
    }

    /// One block a chunk; the tables come first among the arguments.
    fn launch(&self, b: &dyn Backend, kernel: &str, rest: &[Arg]) -> Result<()> {
        let args = [&[self.records.into(), self.owners.into()], rest].concat();
        launch(b, kernel, self.chunks, &args)
    }
}

fn expect_rates(rates: Span) -> Result<Arg> {
    if rates.len < RATES || rates.dtype != DType::F32 {
        bail!("rates want {RATES} elements of F32, got {rates:?}");
    }
    Ok(rates.into())
}

/// What [`lars_step`] reads.
pub fn lars_rates(lr_weights: f64, lr_biases: f64) -> [f32; RATES] {
    [lr_weights as f32, lr_biases as f32, 0.0, 0.0, 0.0]
}

/// What [`sgd_step`] reads.
pub fn sgd_rates(lr_weights: f64, lr_biases: f64) -> [f32; RATES] {
    lars_rates(lr_weights, lr_biases)
}

/// What [`adamw_step`] reads for step number `step`, counted from 1.
pub fn adamw_rates(c: &AdamWConfig, step: i64, lr_weights: f64, lr_biases: f64) -> [f32; RATES] {
    let t = step as f64;
    let [correction1, correction2] = c.betas.map(|beta| 1.0 - beta.powf(t));
    let biases_decay = if c.decay_biases { c.weight_decay } else { 0.0 };
    [
        (lr_weights / correction1) as f32,
        (1.0 - lr_weights * c.weight_decay) as f32,
        (lr_biases / correction1) as f32,
        (1.0 - lr_biases * biases_decay) as f32,
        (1.0 / correction2.sqrt()) as f32,
    ]
}

/// A step of [`Lars`](crate::optim::Lars).
///
/// # Errors
/// A tensor without gradient or moment.
pub fn lars_step(b: &dyn Backend, t: &Tensors, c: &LarsConfig, rates: Span) -> Result<()> {
    t.expect("LARS", true, 1)?;
    let (rates, decay) = (expect_rates(rates)?, Arg::F32(c.weight_decay as f32));
    t.launch(b, "lars_norms", &[t.norms.into(), decay])?;
    let args = [
        t.records.into(),
        t.norms.into(),
        t.trust.into(),
        rates,
        Arg::F32(c.eta as f32),
        Arg::U32(u32::from(c.clip_lr)),
    ];
    let Arg::U32(tensors) = unsigned(t.list.len())? else { bail!("too many parameters") };
    launch(b, "lars_trust", tensors, &args)?;
    t.launch(b, "lars_update", &[t.trust.into(), rates, decay, Arg::F32(c.momentum as f32)])
}

/// A step of [`Sgd`](crate::optim::Sgd).
///
/// # Errors
/// A tensor without gradient or moment.
pub fn sgd_step(b: &dyn Backend, t: &Tensors, c: &SgdConfig, rates: Span) -> Result<()> {
    t.expect("SGD", true, 1)?;
    let biases_decay = if c.decay_biases { c.weight_decay } else { 0.0 };
    let args = [
        expect_rates(rates)?,
        Arg::F32(c.weight_decay as f32),
        Arg::F32(biases_decay as f32),
        Arg::F32(c.momentum as f32),
        Arg::U32(u32::from(c.nesterov)),
    ];
    t.launch(b, "sgd_update", &args)
}

/// A step of [`AdamW`](crate::optim::AdamW).
///
/// # Errors
/// A tensor without gradient or both moments.
pub fn adamw_step(b: &dyn Backend, t: &Tensors, c: &AdamWConfig, rates: Span) -> Result<()> {
    t.expect("AdamW", true, 2)?;
    let [b1, b2] = c.betas;
    let constants = [b1, 1.0 - b1, b2, 1.0 - b2, c.eps];
    let mut args = vec![expect_rates(rates)?];
    args.extend(constants.map(|value| Arg::F32(value as f32)));
    t.launch(b, "adamw_update", &args)
}

/// Moves `own` by a share (`share`, F32, one element) of the way to `other`: a momentum teacher.
///
/// # Errors
/// Lists of tensors that differ in length.
pub fn follow(b: &dyn Backend, own: &Tensors, other: &Tensors, share: Span) -> Result<()> {
    let lens = |t: &Tensors| t.list.iter().map(|tensor| tensor.value.len).collect::<Vec<_>>();
    if lens(own) != lens(other) || share.len != 1 || share.dtype != DType::F32 {
        bail!("a teacher of other tensors than its network's, or a share {share:?}");
    }
    let args = [own.records.into(), other.records.into(), own.owners.into(), share.into()];
    launch(b, "follow", own.chunks, &args)
}

/// Which of a batch's parts gradients are of; the numbers are those of `optim.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addend {
    /// The sums become its gradients.
    First = 0,
    /// Its gradients are added to the sums.
    Between = 1,
    /// Its gradients become the sums of all.
    Last = 2,
}

/// Sums gradients over the parts of a batch, in tensors' first moments.
///
/// # Errors
/// A tensor without an F32 gradient or without a moment.
pub fn sum_gradients(b: &dyn Backend, t: &Tensors, addend: Addend) -> Result<()> {
    t.expect("a sum of gradients", true, 1)?;
    if t.list.iter().any(|tensor| tensor.grad.is_none_or(|grad| grad.dtype != DType::F32)) {
        bail!("a sum of gradients wants them in F32");
    }
    t.launch(b, "sum_gradients", &[Arg::U32(addend as u32)])
}

/// `out[0]` (U32) becomes the number of the first tensor whose gradient has a NaN or an infinity,
/// `u32::MAX` when none has.
///
/// # Errors
/// A tensor without gradient.
pub fn finite_check(b: &dyn Backend, t: &Tensors, out: Span) -> Result<()> {
    t.expect("the search for what is not finite", true, 0)?;
    if out.len == 0 || out.dtype != DType::U32 {
        bail!("the search for what is not finite answers into U32, got {out:?}");
    }
    let launch = crate::nn::cuda::Launch {
        kernel: "finite_begin",
        grid: [1; 3],
        block: [1; 3],
        shared_bytes: 0,
        args: &[out.into()],
    };
    b.launch(&launch)?;
    t.launch(b, "finite_check", &[out.into()])
}
