//! What learns: the network, and what its objective wants beside it (a predictor, a momentum
//! teacher; a queue is the objective's own). The training loop drives it through the parts of a
//! step:
//!
//! ```text
//! forward   images -> embeddings (-> predictions), the teacher's embeddings
//! loss      Objective::evaluate
//! backward  predictor, then network: every gradient
//!           (the optimizer moves `params`)
//! follow    the teacher follows, the objective's queue moves on
//! ```
//!
//! Objectives that want none of it cost nothing here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};

use crate::config::RunConfig;
use crate::loss::{Embeddings, LossOutput, Needs, Objective};
use crate::model::{ModelConfig, Predictor, TwinNet};
use crate::nn::{Param, storage};

#[cfg(test)]
mod emulated;
mod micro_batches;
mod not_finite;
mod on_device;
mod step_part;
mod teacher;
#[cfg(test)]
mod tests;

use micro_batches::MicroBatches;
pub use on_device::warm_up;
pub use step_part::StepPart;
pub use teacher::Teacher;

/// The network in training.
pub struct Learner {
    net: TwinNet,
    micro_batches: MicroBatches,
    objective: Box<dyn Objective>,
    predictor: Option<Predictor>,
    teacher: Option<Teacher>,
    seen: Option<Embeddings>,
    before: not_finite::Statistics,
    device_step: Option<on_device::DeviceStep>,
    search: Option<not_finite::Search>,
}

/// Who hears of a step on its way.
#[derive(Default)]
pub struct StepHooks<'a> {
    /// Told of each part that is over.
    pub lap: Option<&'a mut dyn FnMut(StepPart)>,
    /// Called once where a device computes beside it, when that has something to do.
    pub meanwhile: Option<&'a mut dyn FnMut()>,
}

impl StepHooks<'_> {
    fn over(&mut self, part: StepPart) {
        if let Some(lap) = &mut self.lap {
            lap(part);
        }
    }

    fn beside(&mut self) {
        if let Some(meanwhile) = self.meanwhile.take() {
            meanwhile();
            self.over(StepPart::WaitForData);
        }
    }
}

/// What a step gave before the optimizer ([`Learner::gradients`]); the gradients themselves are the
/// parameters'.
#[derive(Debug)]
pub struct StepOutcome {
    /// The loss.
    pub out: LossOutput,
    /// What of it is not finite, in words: the step must not be taken.
    pub trouble: Option<String>,
}

impl StepOutcome {
    /// With the name of a parameter whose gradient is not finite; the loss comes first.
    fn of(out: LossOutput, bad_gradient: Option<String>) -> Self {
        let trouble = match bad_gradient {
            _ if !out.loss.is_finite() => Some(format!("the loss is {}", out.loss)),
            found => found.map(|name| format!("the gradient of {name} is not finite")),
        };
        Self { out, trouble }
    }
}

impl Learner {
    /// The learner that `config` describes, before its first step.
    ///
    /// # Errors
    /// A configuration that no network can be made from.
    pub fn new(config: &RunConfig, device: &Device) -> Result<Self> {
        let learner = Self::build(&config.model, config.objective()?, config.train.seed, device)?;
        Ok(learner.in_micro_batches(config.train.micro_batches))
    }

    /// As [`Learner::new`], from its parts.
    ///
    /// # Errors
    /// As [`Learner::new`].
    pub fn build(
        model: &ModelConfig,
        objective: Box<dyn Objective>,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut net = TwinNet::new(model, seed, device)?;
        let Needs { predictor, teacher } = objective.needs();
        let dim = net.embedding_dim();
        let predictor =
            predictor.map(|shape| Predictor::new(shape, dim, seed, device)).transpose()?;
        let teacher = teacher.map(|m| Teacher::of(&mut net, m, device)).transpose()?;
        let mut learner = Self {
            net,
            micro_batches: MicroBatches::new(1),
            objective,
            predictor,
            teacher,
            seen: None,
            before: Default::default(),
            device_step: None,
            search: None,
        };
        learner.before = not_finite::Statistics::of(learner.norms())?;
        Ok(learner)
    }

    /// Sends batches through the network in `count` parts, for less memory: 1, or an even number
    /// that divides their views. For before the first step.
    #[must_use]
    pub fn in_micro_batches(mut self, count: usize) -> Self {
        self.micro_batches = MicroBatches::new(count);
        if let Some(teacher) = &mut self.teacher {
            teacher.in_micro_batches(count);
        }
        self
    }

    /// The network that is trained.
    pub fn net(&mut self) -> &mut TwinNet {
        &mut self.net
    }

    /// Takes the backbone's weights from `tensors`, in torchvision's names; a teacher becomes a
    /// copy of the network again. For before the first step.
    ///
    /// # Errors
    /// Names the tensor that is missing, unexpected or of another shape.
    pub fn start_from(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.net.load_backbone(tensors)?;
        if let Some(teacher) = &mut self.teacher {
            teacher.copy(&mut self.net)?;
        }
        Ok(())
    }

    /// As [`TwinNet::give_up_on`], for each of the networks.
    pub fn give_up_on(&mut self, flag: &Arc<AtomicBool>) {
        self.net.give_up_on(flag);
        self.teacher.iter_mut().for_each(|teacher| teacher.net().give_up_on(flag));
    }

    /// What the networks made of the last batch.
    pub fn seen(&self) -> Option<&Embeddings> {
        self.seen.as_ref()
    }

    /// The features, `[2 * batch, F]`, that the network computed in the last step; a copy.
    ///
    /// # Errors
    /// Without a step before.
    pub fn last_features(&self) -> Result<Tensor> {
        Ok(self.micro_batches.last_features(&self.net)?)
    }

    /// Multiply-adds of the last batch's forward pass by the definition, convolutions and linear
    /// layers of the network that is trained; what is computed once more does not count.
    pub fn multiply_adds(&self) -> u64 {
        self.micro_batches.count() as u64 * self.net.multiply_adds()
    }

    /// Sends images, `[2 * batch, H, W, 3]` with view a's first, through the networks.
    ///
    /// # Errors
    /// When `images` is of another form.
    pub fn forward(&mut self, images: &Tensor) -> Result<()> {
        let batch = images.dim(0)? / 2;
        let views = |z: &Tensor| -> candle_core::Result<[Tensor; 2]> {
            Ok([z.narrow(0, 0, batch)?, z.narrow(0, batch, batch)?])
        };
        let z = self.micro_batches.forward(&mut self.net, images)?;
        let [a, b] = views(&z)?;
        let predicted = match &mut self.predictor {
            None => None,
            Some(predictor) if predictor.both() => {
                let [a, b] = views(&predictor.forward(&z, 2)?)?;
                Some((a, Some(b)))
            }
            Some(predictor) => Some((predictor.forward(&a, 1)?, None)),
        };
        let teacher = match &mut self.teacher {
            None => None,
            Some(teacher) => Some(views(&teacher.forward(images)?)?),
        };
        self.seen = Some(Embeddings { a, b, predicted, teacher });
        Ok(())
    }

    /// The loss of the last batch, with its gradients.
    ///
    /// # Errors
    /// Without [`Learner::forward`] before.
    pub fn loss(&mut self) -> Result<LossOutput> {
        let seen = self.seen.as_ref().context("a loss without a forward pass before it")?;
        Ok(self.objective.evaluate(&seen.on_host()?)?)
    }

    /// The batch's loss with every gradient set, and what of it is not finite: all of a step before
    /// the optimizer. Moves nothing that [`Learner::take_back`] does not undo, if
    /// [`Learner::remember`] was asked before.
    ///
    /// # Errors
    /// When `images` is of another form; what the device says.
    pub fn gradients(&mut self, images: &Tensor, mut hooks: StepHooks<'_>) -> Result<StepOutcome> {
        if self.begin(images)? {
            hooks.over(StepPart::Launch);
            hooks.beside();
            let found = self.finish()?;
            hooks.over(StepPart::Device);
            return Ok(found);
        }
        self.forward(images)?;
        hooks.over(StepPart::Forward);
        if self.net.engine().backend().is_some() {
            hooks.beside();
        }
        let mut out = self.loss()?;
        hooks.over(StepPart::Loss);
        if !out.loss.is_finite() {
            return Ok(StepOutcome::of(out, None));
        }
        self.backward(&mut out)?;
        let bad = self.bad_gradient()?;
        hooks.over(StepPart::Backward);
        Ok(StepOutcome::of(out, bad))
    }

    /// Sets every gradient. What comes through the predictor is added to `out.grad`.
    ///
    /// # Errors
    /// Without [`Learner::forward`] before.
    pub fn backward(&mut self, out: &mut LossOutput) -> Result<()> {
        match (&mut self.predictor, &out.grad_predicted) {
            (None, None) => {}
            (Some(predictor), Some(at_predictions)) => {
                // View a's rows come first in both: its part, or all.
                // Losses with a predictor are computed on the CPU, and so are their gradients.
                predictor.backward(at_predictions, |d| {
                    let d = storage::host(d)?;
                    let d = storage::read(&d)?;
                    storage::with_mut(&out.grad, |grad| {
                        grad.iter_mut().zip(&*d).for_each(|(g, d)| *g += d);
                    })
                })?;
            }
            _ => bail!("predictor and gradient of predictions go together"),
        }
        self.micro_batches.backward(&mut self.net, &out.grad)
    }

    /// Every trained parameter: the network's, then the predictor's.
    pub fn params(&mut self) -> Vec<&mut Param> {
        let mut all = self.net.params();
        all.extend(self.predictor.iter_mut().flat_map(Predictor::params));
        all
    }

    /// Ends step number `step` (from 0) of `steps`, after the optimizer: the teacher follows the
    /// network, the objective takes up what the next step depends on.
    ///
    /// # Errors
    /// Without [`Learner::forward`] before.
    pub fn follow(&mut self, step: u64, steps: u64) -> Result<()> {
        // Weights have moved: what was kept of the statistics goes with those before.
        self.before.counts.clear();
        let seen = self.seen.as_ref().context("a step without a forward pass before it")?;
        self.objective.advance(seen)?;
        if let Some(teacher) = &mut self.teacher {
            teacher.follow(&mut self.net, step, steps)?;
        }
        Ok(())
    }

    /// What a checkpoint needs beside the network and the optimizer: `predictor.*`, `teacher.*` and
    /// the objective's own tensors, copies on the CPU. Empty for objectives without any.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn state(&mut self) -> Result<Vec<(String, Tensor)>> {
        let mut all = storage::copies(self.objective.state())?;
        if let Some(predictor) = &mut self.predictor {
            all.extend(predictor.state_dict()?);
        }
        if let Some(teacher) = &mut self.teacher {
            all.extend(teacher.state()?);
        }
        Ok(all)
    }

    /// Takes what [`Learner::state`] gave.
    ///
    /// # Errors
    /// Names the tensor that is missing, unexpected or of another shape.
    pub fn load_state(&mut self, mut state: HashMap<String, Tensor>) -> Result<()> {
        let mut taken = |prefix: &str| -> HashMap<String, Tensor> {
            let names: Vec<String> =
                state.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
            names.into_iter().filter_map(|name| state.remove_entry(&name)).collect()
        };
        let (for_predictor, for_teacher) = (taken("predictor."), taken(teacher::PREFIX));
        match &mut self.predictor {
            Some(predictor) => predictor.load_state_dict(&for_predictor)?,
            None => refuse(for_predictor)?,
        }
        match &mut self.teacher {
            Some(teacher) => teacher.load_state(for_teacher)?,
            None => refuse(for_teacher)?,
        }
        self.objective.load_state(&mut state)?;
        refuse(state)
    }
}

/// What nobody took.
fn refuse(rest: HashMap<String, Tensor>) -> Result<()> {
    match rest.keys().min() {
        None => Ok(()),
        Some(name) => bail!("the saved tensor `{name}` belongs to another objective"),
    }
}
