//! What a pass through the network carries along: its mode and the buffers that it reuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Engine, storage};

/// Buffers kept for reuse: more than a network has sizes of activations, twice. The largest are
/// kept.
const KEPT: usize = 24;

/// What a pass through the network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// BatchNorm uses the batch's statistics, and layers keep what a backward pass needs.
    Training,
    /// Training once more on images that have been through the network since its weights moved: the
    /// same numbers, and running statistics stay.
    Recomputing,
    /// The same numbers as in training, and nothing is kept: for networks that get no gradients.
    Following,
    /// BatchNorm uses its running statistics, and nothing is kept.
    Evaluation,
}

/// What a pass through the network carries along: its mode and the buffers that it reuses.
pub struct Workspace {
    engine: Engine,
    /// What the pass is for.
    pub mode: Mode,
    /// Equal, contiguous parts of the batch with BatchNorm statistics of their own, in order: two
    /// views that travel together are two passes to BatchNorm.
    pub groups: usize,
    /// Raised from elsewhere to end the pass: the next layer that asks for memory gets an error.
    pub cancelled: Arc<AtomicBool>,
    /// Flat.
    free: Vec<Tensor>,
    /// What tensors that were taken, and not given back yet, are parts of.
    lent: Vec<Tensor>,
    /// Tensors that were taken over, and not given back yet.
    overwritten: Vec<Tensor>,
    generation: u64,
}

impl Workspace {
    /// An empty workspace on `device`, in training mode with one group.
    ///
    /// # Errors
    /// A device without an [`Engine`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            engine: Engine::of(device)?,
            mode: Mode::Training,
            groups: 1,
            cancelled: Arc::default(),
            free: Vec::new(),
            lent: Vec::new(),
            overwritten: Vec::new(),
            generation: 0,
        })
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        self.engine.device()
    }

    /// Who computes.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether layers keep what a backward pass needs.
    pub fn keeps(&self) -> bool {
        matches!(self.mode, Mode::Training | Mode::Recomputing)
    }

    /// Whether BatchNorm's running statistics move towards the batch's.
    pub fn moves_statistics(&self) -> bool {
        matches!(self.mode, Mode::Training | Mode::Following)
    }

    /// Whether BatchNorm uses the batch's statistics.
    pub fn batch_statistics(&self) -> bool {
        self.mode != Mode::Evaluation
    }

    /// How often memory of an earlier pass was let go of: what was captured of that pass must not
    /// be replayed when it has changed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A tensor of `shape` with unspecified content: one that was given back, or a new one.
    ///
    /// # Errors
    /// When the device cannot allocate, or the pass was given up.
    pub fn take(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.take_of(shape, self.engine.dtype())
    }

    fn take_of(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.check_cancelled()?;
        let len: usize = shape.iter().product();
        // A stage's gradients are half those of the stage before: in a buffer for those, they would
        // keep it from them. On a device gradients lie over dead activations, and the little that
        // is taken may lie in a larger buffer.
        let most = if self.engine.backend().is_some() { 9 * len } else { 2 * len };
        let fits = |t: &Tensor| (len..most).contains(&t.elem_count()) && t.dtype() == dtype;
        let smallest = (0..self.free.len())
            .filter(|&i| fits(&self.free[i]))
            .min_by_key(|&i| self.free[i].elem_count());
        let whole = match smallest {
            Some(i) => self.free.swap_remove(i),
            None => storage::zeros_of(&[len], dtype, self.engine.device())?,
        };
        let part = whole.narrow(0, 0, len)?.reshape(shape)?;
        self.lent.push(whole);
        Ok(part)
    }

    /// A tensor in place of `dead`, a layer's own that nobody reads again until the next pass
    /// writes it, but for a kernel that writes each element after reading it: on a device its
    /// memory, else as [`Workspace::take`]. On a device activations fill the memory, and their
    /// gradients need none.
    ///
    /// # Errors
    /// As [`Workspace::take`].
    pub fn take_over(&mut self, dead: &Tensor) -> Result<Tensor> {
        if self.engine.backend().is_none() {
            return self.take(dead.dims());
        }
        self.check_cancelled()?;
        self.overwritten.push(dead.clone());
        Ok(dead.clone())
    }

    /// Gives a tensor back; nobody may use it any more.
    ///
    /// # Panics
    /// When it came neither from [`Workspace::take`] nor from [`Workspace::take_over`].
    pub fn put_back(&mut self, tensor: Tensor) {
        if let Some(i) = self.overwritten.iter().position(|t| storage::same(t, &tensor)) {
            self.overwritten.swap_remove(i);
            return;
        }
        let mine = self.lent.iter().position(|whole| storage::same(whole, &tensor));
        self.free.push(self.lent.swap_remove(mine.expect("a tensor of this workspace's")));
        if self.free.len() > KEPT {
            let smallest = (0..KEPT + 1).min_by_key(|&i| self.free[i].elem_count());
            self.free.swap_remove(smallest.expect("more than none"));
            self.generation += 1;
        }
    }

    /// An output for a layer: `slot`, its own, where it is kept, else one to give back.
    pub(super) fn output(&mut self, slot: &mut Option<Tensor>, shape: &[usize]) -> Result<Tensor> {
        self.output_of(slot, shape, self.engine.dtype())
    }

    /// [`Workspace::output`] of a type of its own.
    pub(super) fn output_of(
        &mut self,
        slot: &mut Option<Tensor>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        self.check_cancelled()?;
        if !self.keeps() {
            return self.take_of(shape, dtype);
        }
        self.generation += u64::from(slot.as_ref().is_some_and(|t| t.dims() != shape));
        storage::reuse(slot, shape, dtype, self.engine.device())
    }

    /// Groups of a pass with statistics of their own: evaluation's are the running ones.
    pub(super) fn normed_groups(&self) -> usize {
        if self.batch_statistics() { self.groups } else { 1 }
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            bail!("the pass was given up");
        }
        Ok(())
    }

    /// Gives back a layer's output; in training it stays the layer's.
    pub fn release(&mut self, output: Tensor) {
        if !self.keeps() {
            self.put_back(output);
        }
    }

    /// Lets go of what a pass that failed has taken, given back or not: training may go on after an
    /// evaluation that found no memory, and needs it.
    pub fn discard_buffers(&mut self) {
        self.free.clear();
        self.lent.clear();
        self.overwritten.clear();
        self.generation += 1;
    }

    /// Tensors that were taken and not given back: none between two passes.
    pub fn in_use(&self) -> usize {
        self.lent.len() + self.overwritten.len()
    }

    /// Elements of the buffers that were given back.
    pub fn kept(&self) -> usize {
        self.free.iter().map(Tensor::elem_count).sum()
    }

    /// Notes that a pass of another shape or mode comes between: layers then make buffers of their
    /// own anew, and what was captured must not be replayed.
    pub fn invalidate_recordings(&mut self) {
        self.generation += 1;
    }
}
