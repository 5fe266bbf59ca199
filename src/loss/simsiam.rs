//! SimSiam (Chen and He, CVPR 2021, equations 1 to 4); Zbontar et al., equation 4. With h the
//! predictor and p = h(z),
//!
//! ```text
//! loss = 1/2 D(p_a, stopgrad(z_b)) + 1/2 D(p_b, stopgrad(z_a))
//! D(p, z) = -mean_b <p_b, z_b> / (|p_b| |z_b|)
//! ```
//!
//! Without the stop-gradient all embeddings become one: the diagnostics say so.

use candle_core::{Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cosine::{CosineConfig, cosine};
use super::{
    Embeddings, LossOutput, Needs, Objective, PredictorShape, Registration, at_least_one,
    described, parse,
};
use crate::nn::storage;

/// `method = "simsiam"`.
pub const REGISTRATION: Registration = Registration {
    name: "simsiam",
    summary: "SimSiam: a predictor and a stop-gradient under the cosine (eq. 4)",
    described: described::<SimSiamConfig>,
    build: |options| {
        let config: SimSiamConfig = parse(options)?;
        at_least_one("predictor_hidden", config.predictor_hidden)?;
        Ok(Box::new(SimSiam { config }))
    },
};

/// Options of SimSiam; the defaults are the authors'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimSiamConfig {
    /// Whether the other view's embedding is a fixed target.
    pub stop_gradient: bool,
    /// Whether there is a predictor; without one the embedding itself is compared.
    pub predictor: bool,
    /// Hidden width of the predictor.
    pub predictor_hidden: usize,
}

impl Default for SimSiamConfig {
    fn default() -> Self {
        Self { stop_gradient: true, predictor: true, predictor_hidden: 512 }
    }
}

struct SimSiam {
    config: SimSiamConfig,
}

impl Objective for SimSiam {
    fn name(&self) -> &'static str {
        REGISTRATION.name
    }

    fn options(&self) -> toml::Table {
        super::to_table(&self.config)
    }

    fn idle(&self) -> Vec<(&'static str, &'static str)> {
        super::idle_predictor(self.config.predictor)
    }

    fn needs(&self) -> Needs {
        let shape = PredictorShape { hidden: self.config.predictor_hidden, both: true };
        Needs { predictor: self.config.predictor.then_some(shape), teacher: None }
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        let stop_gradient = self.config.stop_gradient;
        let sources = if self.config.predictor { Some(predictions(seen)?) } else { None };
        symmetric_cosine(seen, sources, [&seen.a, &seen.b], stop_gradient)
    }
}

/// Both views' predictions.
///
/// # Errors
///
/// When one is missing.
pub(super) fn predictions(seen: &Embeddings) -> Result<[&Tensor; 2]> {
    match &seen.predicted {
        Some((a, Some(b))) => Ok([a, b]),
        _ => bail!("the objective needs a predictor's outputs at both views"),
    }
}

/// 1/2 D(s_a, t_b) + 1/2 D(s_b, t_a), where the sources s are the predictions (else the
/// embeddings) and the targets t are fixed, unless `stop_gradient` is false: then they are the
/// embeddings, and gradients reach them.
pub(super) fn symmetric_cosine(
    seen: &Embeddings,
    predicted: Option<[&Tensor; 2]>,
    targets: [&Tensor; 2],
    stop_gradient: bool,
) -> Result<LossOutput> {
    let config = CosineConfig { stop_gradient };
    let sources = predicted.unwrap_or([&seen.a, &seen.b]);
    let there = cosine(sources[0], targets[1], &config)?;
    let back = cosine(sources[1], targets[0], &config)?;
    let (batch, dim) = seen.a.dims2()?;
    let half = |source: &Tensor, to: &mut [f32]| -> Result<()> {
        let source = storage::read(source)?;
        to.iter_mut().zip(&*source).for_each(|(to, g)| *to += 0.5 * g);
        Ok(())
    };
    let mut at_sources = vec![0f32; 2 * batch * dim];
    let (first, second) = at_sources.split_at_mut(batch * dim);
    half(&there.grad_a, first)?;
    half(&back.grad_a, second)?;
    let mut at_embeddings = match predicted {
        Some(_) => vec![0f32; 2 * batch * dim],
        None => std::mem::take(&mut at_sources),
    };
    if !stop_gradient {
        let (first, second) = at_embeddings.split_at_mut(batch * dim);
        half(&back.grad_b, first)?;
        half(&there.grad_b, second)?;
    }
    let invariance = 0.5 * (there.loss + back.loss);
    let mut out = LossOutput::new(invariance, 0.0, None, at_embeddings, dim)?;
    if predicted.is_some() {
        out.grad_predicted = Some(Tensor::from_vec(at_sources, (2 * batch, dim), seen.a.device())?);
    }
    Ok(out)
}
