//! MoCo (He et al., CVPR 2020, equation 1; v2: Chen et al., 2020, with a projector). With unit
//! queries q (the network's embeddings), unit keys k (the momentum teacher's embeddings of the
//! other view) and a queue n of keys of earlier steps,
//!
//! ```text
//! loss = mean_i [ -q_i . k_i / t + log( exp(q_i . k_i / t) + sum_j exp(q_i . n_j / t) ) ]
//! ```
//!
//! Keys and queue are fixed; after the step the keys take the place of the oldest in the queue,
//! which starts with random directions, as the authors' does, the same ones for every seed. Queries
//! are those of view a alone, as in the authors' code; with `symmetric = true` both directions count
//! (as in MoCo v3), which makes the loss twice as dear. The network's part is the same: both networks
//! compute both views either way. Keys are not shuffled before BatchNorm: on one device there are no
//! others' batches to shuffle them into.

use std::collections::HashMap;

use bt_pipeline::rng::Rng;
use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embeddings::{dot, with_pair};
use super::exp::shifted_exps;
use super::matmul::{Mat, matmul, matmul_into};
use super::normalize::{Norm, Normalized};
use super::{
    Embeddings, LossOutput, Momentum, Needs, Objective, Registration, at_least, at_most, described,
    parse, positive, share,
};
use crate::nn::cpu::micro::Isa;
use crate::nn::storage;

/// `method = "moco"`.
pub const REGISTRATION: Registration = Registration {
    name: "moco",
    summary: "MoCo: contrast with a queue of a momentum teacher's keys",
    described: described::<MocoConfig>,
    build: |options| {
        let config: MocoConfig = parse(options)?;
        positive("temperature", config.temperature)?;
        share("momentum", config.momentum)?;
        if let Some(queue) = config.queue {
            at_least("`loss.queue`", queue, 1)?;
            at_most("`loss.queue`", queue, MOST_KEYS)?;
        }
        Ok(Box::new(Moco { config, queue: None }))
    },
};

/// Options of MoCo; the defaults are v2's but for a queue that suits small data sets (theirs
/// holds 65536 keys of 128 dimensions).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MocoConfig {
    /// Temperature.
    pub temperature: f64,
    /// The teacher's momentum.
    pub momentum: f64,
    /// Keys that are kept as negatives. Without it 4096, fewer where these would be more
    /// than the paper's 65536 x 128 numbers: 1024 of 8192 dimensions.
    pub queue: Option<usize>,
    /// Whether view b's embeddings are queries too. The networks compute both views either way.
    pub symmetric: bool,
}

impl Default for MocoConfig {
    fn default() -> Self {
        Self { temperature: 0.2, momentum: 0.999, queue: None, symmetric: false }
    }
}

impl MocoConfig {
    /// Keys of `dim` dimensions that the queue holds.
    fn capacity(&self, dim: usize) -> usize {
        const NUMBERS: usize = 65_536 * 128;
        self.queue.unwrap_or_else(|| (NUMBERS / dim.max(1)).clamp(1, 4096))
    }
}

/// Keys of a queue at most: more than ImageNet-21k has images.
const MOST_KEYS: usize = 1 << 24;

/// Names in checkpoints.
const KEYS: &str = "queue.keys";
const NEXT: &str = "queue.next";

struct Moco {
    config: MocoConfig,
    /// Made by the first step, which is the first to know the dimension.
    queue: Option<Queue>,
}

/// Unit keys `[capacity, dim]`; the oldest is the one that is replaced next.
struct Queue {
    keys: Tensor,
    next: usize,
}

impl Queue {
    fn new(capacity: usize, dim: usize) -> Result<Self> {
        let mut rng = Rng::keyed(0, u64::MAX, 0, KEYS.len() as u64);
        let (len, mut values) = (capacity.saturating_mul(dim), Vec::<f32>::new());
        if values.try_reserve_exact(len).is_err() {
            bail!("moco: a queue of {capacity} keys of {dim} dimensions is too large");
        }
        // The sum of three uniform draws: close enough to a direction without preference.
        let mut draw = || (0..3).map(|_| rng.uniform(-1.0, 1.0)).sum::<f64>() as f32;
        values.extend((0..len).map(|_| draw()));
        let unit = Normalized::new(&values, dim, Norm::Unit);
        Ok(Queue { keys: Tensor::from_vec(unit.hat, (capacity, dim), &Device::Cpu)?, next: 0 })
    }

    /// Replaces the oldest by the rows of `keys`.
    fn push(&mut self, keys: &[f32], dim: usize) -> Result<()> {
        let capacity = self.keys.dim(0)?;
        storage::with_mut(&self.keys, |queue| {
            for key in keys.chunks_exact(dim) {
                queue[self.next * dim..][..dim].copy_from_slice(key);
                self.next = (self.next + 1) % capacity;
            }
        })
    }
}

impl Moco {
    fn teacher(seen: &Embeddings) -> Result<&[Tensor; 2]> {
        match &seen.teacher {
            Some(teacher) => Ok(teacher),
            None => bail!("moco: the teacher's embeddings are missing"),
        }
    }

    fn queue(&mut self, dim: usize) -> Result<&mut Queue> {
        let made = match self.queue.take() {
            Some(queue) => queue,
            None => Queue::new(self.config.capacity(dim), dim)?,
        };
        if made.keys.dim(1)? != dim {
            bail!("moco: the queue holds keys of {:?}, not of {dim}", made.keys.dims());
        }
        Ok(self.queue.insert(made))
    }
}

impl Objective for Moco {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn options_at(&self, dim: usize) -> toml::Table {
        let queue = Some(self.config.capacity(dim));
        super::to_table(&MocoConfig { queue, ..self.config })
    }

    fn needs(&self) -> Needs {
        let momentum = Momentum { base: self.config.momentum, last: self.config.momentum };
        Needs { predictor: None, teacher: Some(momentum) }
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        let [t_a, t_b] = Self::teacher(seen)?;
        if t_a.dims() != seen.a.dims() {
            bail!("moco: {:?} for queries, {:?} for keys", seen.a.dims(), t_a.dims());
        }
        let MocoConfig { temperature, symmetric, .. } = self.config;
        let dim = seen.a.dim(1)?;
        let queue = self.queue(dim)?;
        let negatives = storage::read(&queue.keys)?;
        // Both directions in one, so that the queue is multiplied once.
        let rows = |first: &[f32], second: &[f32]| {
            let rows = if symmetric { [first, second].concat() } else { first.to_vec() };
            Normalized::new(&rows, dim, Norm::Unit)
        };
        let q = with_pair(&seen.a, &seen.b, |pair| Ok(rows(pair.a, pair.b)))?;
        let k = with_pair(t_a, t_b, |pair| Ok(rows(pair.b, pair.a)))?;
        let Contrast { attraction, repulsion, mut grad } =
            contrast(&q, &k, &negatives, temperature);
        grad.resize(2 * seen.a.elem_count(), 0.0);
        LossOutput::new(attraction, repulsion, None, grad, dim)
    }

    fn advance(&mut self, seen: &Embeddings) -> Result<()> {
        let [t_a, t_b] = Self::teacher(seen)?;
        let symmetric = self.config.symmetric;
        let queue = self.queue(t_b.dim(1)?)?;
        with_pair(t_a, t_b, |pair| {
            let views = [pair.b, pair.a];
            for keys in &views[..if symmetric { 2 } else { 1 }] {
                queue.push(&Normalized::new(keys, pair.dim, Norm::Unit).hat, pair.dim)?;
            }
            Ok(())
        })
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let Some(queue) = &self.queue else { return Vec::new() };
        let next = Tensor::new(queue.next as i64, &Device::Cpu);
        let next = next.map(|next| (NEXT.to_owned(), next));
        next.into_iter().chain([(KEYS.to_owned(), queue.keys.clone())]).collect()
    }

    fn load_state(&mut self, state: &mut HashMap<String, Tensor>) -> Result<()> {
        let (keys, next) = match (state.remove(KEYS), state.remove(NEXT)) {
            (Some(keys), Some(next)) => (keys, next),
            // Saved before the first step, which makes it.
            (None, None) => return Ok(()),
            _ => bail!("moco: the saved state holds a part of the queue only"),
        };
        let next = usize::try_from(next.to_dtype(DType::I64)?.to_scalar::<i64>()?).ok();
        match (keys.dims2(), next) {
            (Ok((capacity, dim)), Some(next))
                if capacity == self.config.capacity(dim) && next < capacity =>
            {
                let keys = keys.to_dtype(DType::F32)?.force_contiguous()?;
                self.queue = Some(Queue { keys, next });
                Ok(())
            }
            _ => bail!(
                "moco: a saved queue of {:?} does not fit `queue` = {}",
                keys.dims(),
                self.config.capacity(keys.dims().last().copied().unwrap_or(0))
            ),
        }
    }
}

/// The terms, means over the queries, and the gradient with respect to these.
struct Contrast {
    attraction: f64,
    repulsion: f64,
    grad: Vec<f32>,
}

fn contrast(q: &Normalized, k: &Normalized, negatives: &[f32], t: f64) -> Contrast {
    let (n, dim) = (q.batch, q.dim);
    let queue = Mat::new(negatives, negatives.len() / dim, dim);
    let mut s = matmul(Mat::new(&q.hat, n, dim), queue.t());
    let (count, inverse_t) = (queue.rows, 1.0 / t);
    let (isa, to_mean) = (Isa::best(), 1.0 / n as f64);
    // Similarities become the gradient with respect to them; of the positive it is returned.
    let rows: Vec<(f64, f64, f32)> = s
        .par_chunks_mut(count)
        .enumerate()
        .map(|(i, row)| {
            let own = dot(&q.hat[i * dim..][..dim], &k.hat[i * dim..][..dim]);
            let max = row.iter().copied().fold(own as f32, f32::max);
            let others = shifted_exps(isa, row, max, inverse_t as f32);
            let positive = ((own - f64::from(max)) * inverse_t).exp();
            let sum = positive + others;
            let to_grad = (to_mean * inverse_t / sum) as f32;
            row.iter_mut().for_each(|e| *e *= to_grad);
            let pull = -(others / sum) * to_mean * inverse_t;
            (own * inverse_t, f64::from(max) * inverse_t + sum.ln(), pull as f32)
        })
        .collect();
    let mut grad = vec![0f32; n * dim];
    matmul_into(Mat::new(&s, n, count), queue, &mut grad);
    grad.par_chunks_mut(dim).zip(k.hat.par_chunks(dim)).zip(&rows).for_each(|((g, k), row)| {
        g.iter_mut().zip(k).for_each(|(g, k)| *g += row.2 * k);
    });
    q.backward(&mut grad);
    Contrast {
        attraction: -to_mean * rows.iter().map(|r| r.0).sum::<f64>(),
        repulsion: to_mean * rows.iter().map(|r| r.1).sum::<f64>(),
        grad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::tests::{pair_of, relative};

    fn seen(batch: usize, dim: usize, seed: u64) -> Embeddings {
        let ((a, b), (t_a, t_b)) = (pair_of(batch, dim, seed), pair_of(batch, dim, seed + 1));
        Embeddings { teacher: Some([t_a, t_b]), ..Embeddings::of(&a, &b) }
    }

    fn of(z: &Tensor) -> Vec<f32> {
        z.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn small() -> Moco {
        let config = MocoConfig { queue: Some(10), symmetric: true, ..Default::default() };
        Moco { config, queue: None }
    }

    #[test]
    fn the_loss_and_its_gradient_follow_the_definition() {
        let (batch, dim, t) = (4, 6, 0.2);
        let seen = seen(batch, dim, 3);
        let mut moco = small();
        let out = moco.evaluate(&seen).unwrap();
        let unit = |z: &Tensor| {
            let rows: Vec<f32> = z.flatten_all().unwrap().to_vec1().unwrap();
            Normalized::new(&rows, dim, Norm::Unit).hat
        };
        let queue = unit(&moco.queue.as_ref().unwrap().keys);
        let [t_a, t_b] = seen.teacher.as_ref().unwrap();
        let mut want = 0.0;
        for (q, k) in [(unit(&seen.a), unit(t_b)), (unit(&seen.b), unit(t_a))] {
            for (q, k) in q.chunks(dim).zip(k.chunks(dim)) {
                let own = dot(q, k) / t;
                let others = queue.chunks(dim).map(|n| (dot(q, n) / t).exp());
                want += (-own + (own.exp() + others.sum::<f64>()).ln()) / (2 * batch) as f64;
            }
        }
        assert!((out.loss - want).abs() < 1e-6, "{} {want}", out.loss);

        // Along the gradient, where the difference is largest.
        let norm = of(&out.grad).iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        let mut at = |by: f64| {
            let step = |grad: &Tensor| grad.affine(by / norm, 0.0).unwrap();
            let (a, b) =
                ((&seen.a + step(&out.grad_a)).unwrap(), (&seen.b + step(&out.grad_b)).unwrap());
            let moved = Embeddings { teacher: seen.teacher.clone(), ..Embeddings::of(&a, &b) };
            moco.evaluate(&moved).unwrap().loss
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((slope / norm - 1.0).abs() < 0.01, "{slope} {norm}");
    }

    #[test]
    fn one_direction_is_view_as_alone() {
        let (batch, dim) = (4, 6);
        let seen = seen(batch, dim, 3);
        let mut moco = small();
        moco.config.symmetric = false;
        let out = moco.evaluate(&seen).unwrap();
        let q = Normalized::new(&of(&seen.a), dim, Norm::Unit);
        let k = Normalized::new(&of(&seen.teacher.as_ref().unwrap()[1]), dim, Norm::Unit);
        let keys = of(&moco.queue.as_ref().unwrap().keys);
        let alone = contrast(&q, &k, &keys, moco.config.temperature);
        assert_eq!(out.loss, alone.attraction + alone.repulsion);
        let grad = of(&out.grad);
        assert_eq!(grad[..batch * dim], alone.grad);
        assert!(grad[batch * dim..].iter().all(|&g| g == 0.0));
    }

    #[test]
    fn the_queue_takes_the_keys_that_queries_were_compared_with() {
        let (batch, dim) = (4, 6);
        let seen = seen(batch, dim, 3);
        let [t_a, t_b] = seen.teacher.as_ref().unwrap();
        let unit = |z: &Tensor| Normalized::new(&of(z), dim, Norm::Unit).hat;
        for (symmetric, pushed) in [(false, unit(t_b)), (true, [unit(t_b), unit(t_a)].concat())] {
            let mut moco = small();
            moco.config.symmetric = symmetric;
            moco.evaluate(&seen).unwrap();
            let before = of(&moco.queue.as_ref().unwrap().keys);
            moco.advance(&seen).unwrap();
            let queue = moco.queue.as_ref().unwrap();
            assert_eq!(queue.next * dim, pushed.len(), "symmetric: {symmetric}");
            let after = of(&queue.keys);
            assert_eq!(after[..pushed.len()], pushed);
            assert_eq!(after[pushed.len()..], before[pushed.len()..]);
        }
    }

    #[test]
    fn the_default_queue_holds_no_more_numbers_than_the_papers() {
        let config = MocoConfig::default();
        assert_eq!(
            [128, 2048, 4096, 8192].map(|dim| config.capacity(dim)),
            [4096, 4096, 2048, 1024]
        );
    }

    #[test]
    fn the_oldest_keys_make_room_and_the_queue_survives_a_checkpoint() {
        let (batch, dim) = (4, 6);
        let mut moco = small();
        for seed in 0..3 {
            moco.advance(&seen(batch, dim, seed)).unwrap();
        }
        // 24 keys went through 10 places: the last 10 of them remain, the newest ends at place 3.
        let queue = moco.queue.as_ref().unwrap();
        assert_eq!(queue.next, 4);
        let [t_a, _] = seen(batch, dim, 2).teacher.unwrap();
        let newest: Vec<f32> = t_a.flatten_all().unwrap().to_vec1().unwrap();
        let newest = Normalized::new(&newest, dim, Norm::Unit).hat;
        let keys: Vec<f32> = queue.keys.flatten_all().unwrap().to_vec1().unwrap();
        assert!(relative(&keys[..4 * dim], &newest) < 1e-6);

        let mut again = small();
        again.load_state(&mut moco.state().into_iter().collect()).unwrap();
        let (one, other) = (seen(batch, dim, 9), seen(batch, dim, 9));
        let (one, other) = (moco.evaluate(&one).unwrap(), again.evaluate(&other).unwrap());
        assert_eq!(one.loss.to_bits(), other.loss.to_bits());
        assert!(Queue::new(MOST_KEYS, 1 << 40).is_err());
        let mut narrow = small();
        narrow.config.queue = Some(11);
        assert!(narrow.load_state(&mut moco.state().into_iter().collect()).is_err());
    }
}
