//! The gradients of a step on a device: asked for as a whole, so that the host can see to the next
//! batch meanwhile, and recorded once, so that later steps are asked for with one call.
//!
//! That goes for objectives that a device computes by itself ([`Objective::on_device`]) and that
//! want neither predictor nor teacher. Others go part by part, their loss on the CPU.
//!
//! [`Objective::on_device`]: crate::loss::Objective::on_device

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};

use super::not_finite::Search;
use super::{Learner, StepOutcome};
use crate::loss::{DeviceObjective, Embeddings};
use crate::nn::cuda::Replay;
use crate::nn::{Engine, storage};
use crate::optim::Table;

/// Steps that are done call by call before one is recorded: by then every algorithm is chosen and
/// every buffer made.
const WARM_UP: u32 = 3;

/// Steps on one batch's memory after which `engine` takes the same time for each: where a device
/// records steps, up to the one that was recorded; elsewhere the first, which makes buffers.
pub fn warm_up(engine: &Engine) -> usize {
    match engine.backend() {
        Some(_) if engine.options().graphs => WARM_UP as usize + 1,
        _ => 1,
    }
}

/// What a step on a device keeps.
pub(super) struct DeviceStep {
    engine: Engine,
    loss: Box<dyn DeviceObjective>,
    /// Embeddings' gradient, `[2 * batch, dim]`.
    grad: Tensor,
    search: Search,
    /// Steps since anything changed.
    steady: u32,
    recorded: Option<Recorded>,
    images: Option<Tensor>,
    generation: u64,
}

/// A step that was recorded.
struct Recorded {
    replay: Box<dyn Replay>,
    embeddings: Tensor,
}

impl Learner {
    /// Begins to compute the batch's loss with every gradient, where the device can do all of it;
    /// [`Learner::finish`] waits for it. Images, `[2 * batch, H, W, C]`, must stay as they are
    /// until then. False where it cannot: nothing has happened.
    ///
    /// # Errors
    /// When `images` is of another form; what the device says.
    pub fn begin(&mut self, images: &Tensor) -> Result<bool> {
        if !self.prepare_device_step(images)? {
            return Ok(false);
        }
        let mut step = self.device_step.take().context("prepared")?;
        let begun = self.begin_with(&mut step, images);
        self.device_step = Some(step);
        begun.map(|()| true)
    }

    fn begin_with(&mut self, step: &mut DeviceStep, images: &Tensor) -> Result<()> {
        let same = step.images.as_ref().is_some_and(|known| {
            let (known, now) = (storage::span(known), storage::span(images));
            matches!((known, now), (Ok(known), Ok(now)) if known == now)
        });
        if !same || step.generation != self.net.generation() {
            (step.recorded, step.steady) = (None, 0);
            step.images = Some(images.clone());
            step.generation = self.net.generation();
        }
        let batch = images.dim(0)? / 2;
        let z = if let Some(recorded) = &step.recorded {
            recorded.replay.run()?;
            let norms = self.net.norms_mut().into_iter();
            let groups = self.micro_batches.groups() as i64;
            norms.for_each(|norm| norm.num_batches_tracked += groups);
            recorded.embeddings.clone()
        } else if step.steady >= WARM_UP {
            self.record(step, images)?
        } else {
            self.ask_for(step, images)?
        };
        step.steady = step.steady.saturating_add(1);
        let (a, b) = (z.narrow(0, 0, batch)?, z.narrow(0, batch, batch)?);
        self.seen = Some(Embeddings::of(&a, &b));
        Ok(())
    }

    /// Asks for a step while it is recorded, then for the recording; without recording where the
    /// device has none or `train.cuda_graph` wants none.
    fn record(&mut self, step: &mut DeviceStep, images: &Tensor) -> Result<Tensor> {
        let backend = step.engine.shared_backend().filter(|_| step.engine.options().graphs);
        let Some(backend) = backend else {
            return self.ask_for(step, images);
        };
        let mut made = None;
        let replay = backend.capture(&mut || {
            let z = self.ask_for(step, images);
            let z = z.map_err(|error| candle_core::Error::Msg(format!("{error:#}")))?;
            made = Some(z);
            Ok(())
        });
        let replay = replay
            .context("a step could not be recorded; train.cuda_graph = false does without")?;
        let embeddings = made.context("a recorded step has embeddings")?;
        if let Some(replay) = replay {
            replay.run()?;
            step.recorded = Some(Recorded { replay, embeddings: embeddings.clone() });
        }
        Ok(embeddings)
    }

    /// Forward, loss, backward and the search for what is not finite.
    fn ask_for(&mut self, step: &mut DeviceStep, images: &Tensor) -> Result<Tensor> {
        let backend = step.engine.backend().context("a device step on a device")?;
        let z = self.micro_batches.forward(&mut self.net, images)?;
        step.loss.ask_for(backend, &z, &step.grad)?;
        self.micro_batches.backward(&mut self.net, &step.grad)?;
        step.search.ask_for(backend)?;
        Ok(z)
    }

    /// Waits for what [`Learner::begin`] began: the loss, and what is not finite.
    ///
    /// # Errors
    /// Without it before; what the device says.
    pub fn finish(&mut self) -> Result<StepOutcome> {
        let step = self.device_step.as_mut().context("nothing was begun")?;
        let backend = step.engine.backend().context("a device step on a device")?;
        let out = step.loss.read(backend, &step.grad)?;
        let number = step.search.read(backend)?;
        let bad = self.params().get(number).map(|param| param.name.clone());
        Ok(StepOutcome::of(out, bad))
    }

    /// Makes what a step on a device keeps, where there can be one.
    fn prepare_device_step(&mut self, images: &Tensor) -> Result<bool> {
        let engine = self.net.engine().clone();
        if engine.backend().is_none() || self.predictor.is_some() || self.teacher.is_some() {
            return Ok(false);
        }
        let dims = (images.dim(0)?, self.net.embedding_dim());
        if self.device_step.as_ref().is_some_and(|step| step.grad.dims() == [dims.0, dims.1]) {
            return Ok(true);
        }
        let Some(loss) = self.objective.on_device(&engine, dims.0 / 2, dims.1)? else {
            return Ok(false);
        };
        let device = engine.device().clone();
        let backend = engine.shared_backend().context("looked for above")?;
        let table = Table::new(&*backend, &self.net.params(), &[])?;
        self.device_step = Some(DeviceStep {
            loss,
            grad: storage::zeros(dims, &device)?,
            search: Search { table, found: storage::zeros_of(&[1], DType::U32, &device)? },
            steady: 0,
            recorded: None,
            images: None,
            generation: 0,
            engine,
        });
        Ok(true)
    }
}
