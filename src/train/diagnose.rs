//! What is measured and drawn beside the training: probe, diagnostics, pictures.

use anyhow::Result;
use bt_pipeline::Batch;
use candle_core::Tensor;

use super::run::Run;
use crate::config::RunConfig;
use crate::eval::OnlineProbe;
use crate::loss::Embeddings;
use crate::loss::diagnostics::Diagnostics;
use crate::nn::storage;
use crate::picture::correlation::{MOST_ROWS, correlation_image};
use crate::picture::{Correlation, sheet, views};

/// Pairs of views in TensorBoard's picture, and the least side of each of them in pixels.
const PAIRS: usize = 8;
const LEAST_SIDE: usize = 64;

impl Run {
    /// The online probe learns from the step's features and tells how often it was right.
    pub(super) fn step_probe(&mut self, batch: &Batch) -> Result<()> {
        let Some(probe) = &mut self.probe else { return Ok(()) };
        let features = self.learner.last_features()?;
        match probe.step(&features, &batch.labels) {
            Ok(accuracy) => accuracy.into_iter().for_each(|share| self.metrics.online(share)),
            // It stands beside the training and does not end it.
            Err(error) => self.give_up_probe(&error.to_string()),
        }
        Ok(())
    }

    /// Gives up an online probe that the last step has ruined, which the next one would notice.
    pub(super) fn check_probe(&mut self) -> Result<()> {
        let state = self.probe.as_ref().map(OnlineProbe::state).unwrap_or_default();
        if let Some(name) = storage::first_not_finite(state)? {
            self.give_up_probe(&format!("{name} is not finite; lower eval.online_lr"));
        }
        Ok(())
    }

    fn give_up_probe(&mut self, why: &str) {
        self.metrics.say(&format!("warning: no online probe from here on: {why}"));
        self.probe = None;
        self.probe_given_up = true;
    }

    /// What the step's embeddings tell, when it is time to ask.
    pub(super) fn diagnose(&mut self, config: &RunConfig, batch: &Batch) -> Result<()> {
        let (every, step) = (config.train.diagnose_every, self.progress.step);
        let last = step == self.schedule.steps;
        if every == 0 || !(last || step.is_multiple_of(every)) {
            return Ok(());
        }
        let Some(seen) = self.learner.seen() else { return Ok(()) };
        // On the CPU: candle would compile its kernels for a device, seconds for one product.
        let seen = seen.on_host()?;
        let found = Diagnostics::measure(&seen.a, &seen.b)?;
        self.metrics.diagnostics(step, &found)?;
        self.embeddings = found.describe();
        if self.metrics.takes_pictures() && self.pictured != Some(batch.epoch) {
            self.pictured = Some(batch.epoch);
            self.pictures(config, batch, &seen)?;
        }
        Ok(())
    }

    /// Pairs of views and C of the present batch, for TensorBoard.
    fn pictures(&mut self, config: &RunConfig, batch: &Batch, seen: &Embeddings) -> Result<()> {
        let views = views::of_batch(batch, &config.views.views()?, PAIRS);
        let (height, width) = (batch.spec().height, batch.spec().width);
        let side = height.max(width).max(LEAST_SIDE);
        self.metrics.picture(self.progress.step, "views", &sheet(&views, side, 4, [255; 3]));
        let dim = seen.a.dim(1)?.min(MOST_ROWS);
        let part =
            |z: &Tensor| -> candle_core::Result<Tensor> { z.narrow(1, 0, dim)?.contiguous() };
        let eps = crate::loss::BarlowConfig::default().eps;
        let c = crate::loss::cross_correlation(&part(&seen.a)?, &part(&seen.b)?, eps)?;
        let values = c.flatten_all()?.to_vec1()?;
        let c = Correlation { name: "C".into(), dim, values };
        self.metrics.picture(self.progress.step, "correlation", &correlation_image(&c));
        Ok(())
    }
}
