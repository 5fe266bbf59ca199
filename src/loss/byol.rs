//! BYOL (Grill et al., NeurIPS 2020, equations 1 and 2); Zbontar et al., equation 4. With p the
//! predictor's output and t the momentum teacher's embedding of a view,
//!
//! ```text
//! loss = 1/2 D(p_a, t_b) + 1/2 D(p_b, t_a),   D(p, t) = -mean_b <p_b, t_b> / (|p_b| |t_b|)
//! ```
//!
//! The authors' loss is 2 + 2 D, summed over both views: the gradient is 4 times ours.

use candle_core::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cosine::{predictions, symmetric_cosine};
use super::{
    Embeddings, LossOutput, Momentum, Needs, Objective, PredictorShape, Registration, described,
    hidden_width, parse, share,
};

/// `method = "byol"`.
pub const REGISTRATION: Registration = Registration {
    name: "byol",
    summary: "BYOL: a predictor of what a momentum teacher sees, under the cosine (eq. 4)",
    described: described::<ByolConfig>,
    build: |options| {
        let config: ByolConfig = parse(options)?;
        share("momentum", config.momentum)?;
        share("final_momentum", config.final_momentum)?;
        hidden_width("predictor_hidden", config.predictor_hidden)?;
        Ok(Box::new(Byol { config }))
    },
};

/// Options of BYOL; the defaults are the authors'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ByolConfig {
    /// The teacher's momentum at the start.
    pub momentum: f64,
    /// The teacher's momentum at the end of the run, reached along half a cosine.
    pub final_momentum: f64,
    /// Whether there is a predictor; without one the embedding itself is compared.
    pub predictor: bool,
    /// Hidden width of the predictor.
    pub predictor_hidden: usize,
}

impl Default for ByolConfig {
    fn default() -> Self {
        Self { momentum: 0.996, final_momentum: 1.0, predictor: true, predictor_hidden: 4096 }
    }
}

struct Byol {
    config: ByolConfig,
}

impl Objective for Byol {
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
        let ByolConfig { momentum: base, final_momentum: last, predictor, predictor_hidden } =
            self.config;
        let shape = PredictorShape { hidden: predictor_hidden, both: true };
        Needs { predictor: predictor.then_some(shape), teacher: Some(Momentum { base, last }) }
    }

    fn evaluate(&mut self, seen: &Embeddings) -> Result<LossOutput> {
        let Some([a, b]) = &seen.teacher else {
            bail!("byol: the teacher's embeddings are missing");
        };
        let sources = if self.config.predictor { Some(predictions(seen)?) } else { None };
        symmetric_cosine(seen, sources, [a, b], true)
    }
}
