//! SimSiam (Chen and He, CVPR 2021, equations 1 to 4); Zbontar et al., equation 4. With h the
//! predictor and p = h(z),
//!
//! ```text
//! loss = 1/2 D(p_a, stopgrad(z_b)) + 1/2 D(p_b, stopgrad(z_a))
//! D(p, z) = -mean_b <p_b, z_b> / (|p_b| |z_b|)
//! ```
//!
//! Without the stop-gradient all embeddings become one: the diagnostics say so.

use candle_core::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cosine::{predictions, symmetric_cosine};
use super::{
    Embeddings, LossOutput, Needs, Objective, PredictorShape, Registration, described,
    hidden_width, parse,
};

/// `method = "simsiam"`.
pub const REGISTRATION: Registration = Registration {
    name: "simsiam",
    summary: "SimSiam: a predictor and a stop-gradient under the cosine (eq. 4)",
    described: described::<SimSiamConfig>,
    build: |options| {
        let config: SimSiamConfig = parse(options)?;
        hidden_width("predictor_hidden", config.predictor_hidden)?;
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
