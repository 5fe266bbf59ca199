//! The tensors that an optimizer keeps for each parameter, their names in checkpoints, and the
//! loops over parameters' elements.

use std::collections::HashMap;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::on_device::OnDevice;
use crate::nn::cpu::micro::{Isa, vectorised};
use crate::nn::{Param, storage};

/// Elements that one task updates; the borders of partial sums, so never to depend on threads.
const CHUNK: usize = 1 << 15;

/// `K` tensors for each parameter, named `optimizer.KIND.PARAMETER`.
pub(super) struct Moments<const K: usize> {
    kinds: [&'static str; K],
    slots: Vec<Slot<K>>,
    /// A checkpoint's tensors, until the first step takes them.
    loaded: HashMap<String, Tensor>,
    /// Partial sums of [`Sums`].
    partial: Vec<[f64; 2]>,
    /// Where the parameters are on a device.
    on_device: Option<OnDevice>,
}

struct Slot<const K: usize> {
    name: String,
    moments: [Tensor; K],
}

impl<const K: usize> Moments<K> {
    pub fn new(kinds: [&'static str; K]) -> Self {
        Self {
            kinds,
            slots: Vec::new(),
            loaded: HashMap::new(),
            partial: Vec::new(),
            on_device: None,
        }
    }

    /// All tensors, by name.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state: Vec<_> = self.loaded.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
        state.sort_by(|a, b| a.0.cmp(&b.0));
        for slot in &self.slots {
            for (kind, tensor) in self.kinds.iter().zip(&slot.moments) {
                state.push((key(kind, &slot.name), tensor.clone()));
            }
        }
        state
    }

    /// Keeps a checkpoint's tensors for the next step.
    pub fn load<'a>(
        &mut self,
        state: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
    ) -> Result<()> {
        self.slots.clear();
        self.on_device = None;
        self.loaded.clear();
        for (name, tensor) in state {
            if !self.kinds.iter().any(|kind| name.starts_with(&key(kind, ""))) {
                let kinds = self.kinds.map(|kind| key(kind, "*")).join(", ");
                bail!("the optimizer state has a tensor `{name}`; this optimizer has {kinds}");
            }
            self.loaded.insert(name.clone(), tensor.clone());
        }
        Ok(())
    }

    /// Makes the tensors for `params`, from the loaded ones when there are any; later only checks
    /// that the parameters are still the same.
    pub fn bind(&mut self, params: &[&mut Param]) -> Result<()> {
        if self.slots.is_empty() {
            return self.make_slots(params);
        }
        if self.slots.len() != params.len() {
            bail!("the optimizer was given {} parameters, now {}", self.slots.len(), params.len());
        }
        for (slot, param) in self.slots.iter().zip(params) {
            if slot.name != param.name {
                bail!("the optimizer expected parameter `{}`, got `{}`", slot.name, param.name);
            }
        }
        Ok(())
    }

    fn make_slots(&mut self, params: &[&mut Param]) -> Result<()> {
        let resumed = !self.loaded.is_empty();
        let mut slots = Vec::with_capacity(params.len());
        for param in params {
            let mut moments = Vec::with_capacity(K);
            for kind in self.kinds {
                let moment = storage::zeros(param.value.shape(), param.value.device())?;
                if resumed {
                    let name = key(kind, &param.name);
                    let Some(from) = self.loaded.get(&name) else {
                        bail!("the optimizer state lacks `{name}`");
                    };
                    copy_into(&moment, from, &name)?;
                }
                moments.push(moment);
            }
            let Ok(moments) = moments.try_into() else { unreachable!("one for each kind") };
            slots.push(Slot { name: param.name.clone(), moments });
        }
        let known = |name: &&String| {
            slots.iter().any(|slot| self.kinds.iter().any(|kind| **name == key(kind, &slot.name)))
        };
        if self.loaded.len() > K * slots.len()
            && let Some(extra) = self.loaded.keys().find(|name| !known(name))
        {
            bail!("the optimizer state has `{extra}`, which no parameter matches");
        }
        self.loaded.clear();
        let longest = params.iter().map(|p| p.len()).max().unwrap_or(0);
        self.partial = vec![[0.0; 2]; longest.div_ceil(CHUNK)];
        self.slots = slots;
        let kept = |kind: usize| self.slots.iter().map(|slot| slot.moments[kind].clone()).collect();
        self.on_device = OnDevice::of(params, &(0..K).map(kept).collect::<Vec<_>>())?;
        Ok(())
    }

    /// What does the steps where the parameters are on a device; after [`Moments::bind`].
    pub fn on_device(&self) -> Option<&OnDevice> {
        self.on_device.as_ref()
    }

    /// Parameter number `index`'s tensors, and the buffer for sums over its elements.
    pub fn of(&mut self, index: usize) -> (&[Tensor; K], Sums<'_>) {
        (&self.slots[index].moments, Sums { partial: &mut self.partial })
    }
}

fn key(kind: &str, parameter: &str) -> String {
    format!("optimizer.{kind}.{parameter}")
}

fn copy_into(moment: &Tensor, from: &Tensor, name: &str) -> Result<()> {
    if from.dims() != moment.dims() {
        bail!(
            "the optimizer state's `{name}` has shape {:?}, the parameter {:?}",
            from.dims(),
            moment.dims()
        );
    }
    let from = from.to_dtype(candle_core::DType::F32)?.contiguous()?;
    storage::assign(moment, &storage::read(&from)?)
}

/// Sums over elements in a fixed order, without allocating.
pub(super) struct Sums<'a> {
    partial: &'a mut [[f64; 2]],
}

impl Sums<'_> {
    /// The sums of w^2 and of (g + decay w)^2 over the elements of two slices.
    pub fn squares(&mut self, w: &[f32], g: &[f32], decay: f32) -> [f64; 2] {
        let partial = &mut self.partial[..w.len().div_ceil(CHUNK)];
        let (chunks, isa) = (w.par_chunks(CHUNK).zip(g.par_chunks(CHUNK)), Isa::best());
        partial.par_iter_mut().zip(chunks).for_each(|(sums, (w, g))| {
            let (mut of_w, mut of_d) = ([0f64; LANES], [0f64; LANES]);
            add_squares(isa, w, g, decay, &mut of_w, &mut of_d);
            *sums = [of_w.iter().sum(), of_d.iter().sum()];
        });
        [0, 1].map(|of| partial.iter().map(|sums| sums[of]).sum())
    }
}

/// Sums that run side by side.
const LANES: usize = 8;

vectorised! {
    /// Adds the squares of every eighth w, and of every eighth g + decay w, in order.
    fn add_squares(
        w: &[f32],
        g: &[f32],
        decay: f32,
        of_w: &mut [f64; LANES],
        of_d: &mut [f64; LANES],
    ) {
        let (mut a, mut b) = (*of_w, *of_d);
        let ((whole_w, rest_w), (whole_g, rest_g)) = (w.as_chunks(), g.as_chunks());
        for (w, g) in whole_w.iter().zip(whole_g) {
            let (w, g): (&[f32; LANES], &[f32; LANES]) = (w, g);
            for i in 0..LANES {
                let (w, d) = (f64::from(w[i]), f64::from(g[i] + decay * w[i]));
                a[i] += w * w;
                b[i] += d * d;
            }
        }
        for (i, (w, g)) in rest_w.iter().zip(rest_g).enumerate() {
            let (w, d) = (f64::from(*w), f64::from(*g + decay * *w));
            a[i] += w * w;
            b[i] += d * d;
        }
        (*of_w, *of_d) = (a, b);
    }
}

/// Runs `f` on pieces of the value, the gradient and one moment.
pub(super) fn update1(
    param: &mut Param,
    moment: &Tensor,
    f: impl Fn(&mut f32, f32, &mut f32) + Sync,
) -> Result<()> {
    param.update(|value, grad| {
        storage::with_mut(moment, |moment| {
            let pieces = value
                .par_chunks_mut(CHUNK)
                .zip(grad.par_chunks(CHUNK))
                .zip(moment.par_chunks_mut(CHUNK));
            pieces.for_each(|((value, grad), moment)| {
                for ((value, &grad), moment) in value.iter_mut().zip(grad).zip(moment) {
                    f(value, grad, moment);
                }
            });
        })
    })?
}

/// [`update1`] with two moments.
pub(super) fn update2(
    param: &mut Param,
    [first, second]: &[Tensor; 2],
    f: impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync,
) -> Result<()> {
    param.update(|value, grad| {
        storage::with_mut2(first, second, |first, second| {
            let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
            let pieces = value.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments);
            pieces.for_each(|((value, grad), (first, second))| {
                let moments = first.iter_mut().zip(second);
                for ((value, &grad), (first, second)) in value.iter_mut().zip(grad).zip(moments) {
                    f(value, grad, first, second);
                }
            });
        })
    })?
}
