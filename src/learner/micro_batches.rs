//! A batch that goes through the network in parts, its micro-batches: the activations of one part at
//! a time are in memory, and the objective sees the batch whole. (For contrastive losses: Gao et
//! al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.)
//!
//! ```text
//! forward    each part: embeddings, running statistics
//! loss       of all embeddings, with their gradient
//! backward   the last part, whose activations are still there;
//!            then each other part forward once more, and backward; gradients are summed
//! ```
//!
//! The work is that of a step and of all parts' forward passes but one. A part has images of one
//! view, and BatchNorm statistics of its own, so that `count` parts give what one pass with `count`
//! groups ([`TwinNet::forward_train`]) does, but for the order of sums; two parts what one pass of
//! both views does.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::model::TwinNet;
use crate::nn::cuda::kernels::optim::{self as kernels, Addend};
use crate::nn::{Engine, Param, storage};
use crate::optim::Table;

/// Elements that one task adds up.
const CHUNK: usize = 1 << 15;

/// How both views of a batch are cut.
pub(super) struct Parts {
    count: usize,
    /// A part's images, and everyone's embeddings.
    images: Option<Tensor>,
    embeddings: Option<Tensor>,
}

impl Parts {
    /// One part holds both views; more hold one view's images each.
    pub fn new(count: usize) -> Self {
        Self { count, images: None, embeddings: None }
    }

    /// Whether the batch stays whole.
    pub fn whole(&self) -> bool {
        self.count == 1
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Part number `part` of `images`, until the next is asked for. On a device it begins where
    /// whole vectors may be read, wherever it is cut.
    fn images(&mut self, images: &Tensor, part: usize) -> Result<Tensor> {
        let cut = self.cut(images, part)?;
        let engine = Engine::of(images.device())?;
        if engine.backend().is_none() {
            return Ok(cut);
        }
        let own = storage::reuse(&mut self.images, cut.dims(), cut.dtype(), engine.device())?;
        storage::copy(&cut, &own)?;
        Ok(own)
    }

    /// Rows of part number `part`.
    fn cut(&self, of: &Tensor, part: usize) -> Result<Tensor> {
        let (rows, count) = (of.dim(0)?, self.count);
        ensure!(
            count.is_multiple_of(2) && rows.is_multiple_of(count),
            "{rows} views are not {count} parts of one view each"
        );
        Ok(of.narrow(0, part * (rows / count), rows / count)?)
    }

    /// Everyone's embeddings, `[2 * batch, D]`, of what `pass` makes of each part's images.
    pub fn embeddings(
        &mut self,
        images: &Tensor,
        mut pass: impl FnMut(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        let mut all = None;
        for part in 0..self.count {
            let of_part = pass(&self.images(images, part)?)?;
            let all = match &all {
                Some(all) => all,
                None => {
                    let dims = [images.dim(0)?, of_part.dim(1)?];
                    let slot = &mut self.embeddings;
                    let device = of_part.device().clone();
                    all.insert(storage::reuse(slot, &dims, DType::F32, &device)?)
                }
            };
            storage::copy(&of_part, &self.cut(all, part)?)?;
        }
        all.context("a batch has a part")
    }
}

/// A step's passes through the network that is trained.
pub(super) struct MicroBatches {
    parts: Parts,
    /// Those of the last forward pass, for the backward pass.
    images: Option<Tensor>,
    /// Everyone's features.
    features: Option<Tensor>,
    sums: Option<Sums>,
}

impl MicroBatches {
    /// As [`Parts::new`].
    pub fn new(count: usize) -> Self {
        Self { parts: Parts::new(count), images: None, features: None, sums: None }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.parts.count()
    }

    /// Passes with BatchNorm statistics of their own that a step makes.
    pub fn groups(&self) -> usize {
        self.parts.count().max(2)
    }

    /// Embeddings `[2 * batch, D]` of `[2 * batch, H, W, 3]` in training mode, view a's first; until
    /// the next pass.
    pub fn forward(&mut self, net: &mut TwinNet, images: &Tensor) -> Result<Tensor> {
        if self.parts.whole() {
            return Ok(net.forward_train(images, 2)?);
        }
        let z = self.parts.embeddings(images, |part| net.forward_train(part, 1))?;
        self.images = Some(images.clone());
        Ok(z)
    }

    /// Sets every gradient of the network from the embeddings', `[2 * batch, D]`.
    pub fn backward(&mut self, net: &mut TwinNet, grad: &Tensor) -> Result<()> {
        if self.parts.whole() {
            return Ok(net.backward(grad)?);
        }
        let images = self.images.take().context("a backward pass without a forward pass")?;
        let sums = match &mut self.sums {
            Some(sums) => sums,
            none => none.insert(Sums::of(&net.params())?),
        };
        let last = self.parts.count - 1;
        for part in std::iter::once(last).chain(0..last) {
            if part != last {
                net.recompute(&self.parts.images(&images, part)?)?;
            }
            net.backward(&self.parts.cut(grad, part)?)?;
            let features = net.last_features_there()?;
            let dims = [images.dim(0)?, features.dim(1)?];
            let (dtype, device) = (features.dtype(), features.device().clone());
            let all = storage::reuse(&mut self.features, &dims, dtype, &device)?;
            storage::copy(features, &self.parts.cut(&all, part)?)?;
            // The part before `last` is the last of all.
            let addend = match part {
                _ if part == last => Addend::First,
                _ if part + 1 == last => Addend::Last,
                _ => Addend::Between,
            };
            sums.add(&net.params(), addend)?;
        }
        Ok(())
    }

    /// The features, `[2 * batch, F]`, of the last step's passes; a copy.
    pub fn last_features(&self, net: &TwinNet) -> candle_core::Result<Tensor> {
        match &self.features {
            Some(features) => storage::host_copy(features),
            None => storage::host_copy(net.last_features_there()?),
        }
    }
}

/// Sums of every parameter's gradients.
struct Sums {
    of: Vec<Tensor>,
    /// They and the gradients, on a device.
    there: Option<Table>,
}

impl Sums {
    fn of(params: &[&mut Param]) -> Result<Self> {
        let zeros = |p: &&mut Param| storage::zeros(p.grad.shape(), p.grad.device());
        let of = params.iter().map(zeros).collect::<candle_core::Result<Vec<_>>>()?;
        let first = params.first().context("a network has parameters")?;
        let engine = Engine::of(first.grad.device())?;
        let table = |backend| Table::new(backend, params, std::slice::from_ref(&of));
        let there = engine.backend().map(table).transpose()?;
        Ok(Self { of, there })
    }

    /// Adds the gradients of `params`, which behind the last addend are the sums.
    fn add(&self, params: &[&mut Param], addend: Addend) -> Result<()> {
        let engine = Engine::of(self.of[0].device())?;
        if let Some((backend, table)) = engine.backend().zip(self.there.as_ref()) {
            return Ok(kernels::sum_gradients(backend, table.tensors(), addend)?);
        }
        for (param, sum) in params.iter().zip(&self.of) {
            storage::with_mut2(&param.grad, sum, |grad, sum| {
                let pieces = grad.par_chunks_mut(CHUNK).zip(sum.par_chunks_mut(CHUNK));
                pieces.for_each(|(grad, sum)| match addend {
                    Addend::First => sum.copy_from_slice(grad),
                    Addend::Between => sum.iter_mut().zip(grad).for_each(|(s, g)| *s += *g),
                    Addend::Last => grad.iter_mut().zip(sum).for_each(|(g, s)| *g += *s),
                });
            })?;
        }
        Ok(())
    }
}
