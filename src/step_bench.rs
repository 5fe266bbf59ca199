//! Training steps by themselves, on random images, timed part by part: what `bt-stream bench step`
//! and `cargo bench --bench step` print.

use std::time::Instant;

use anyhow::{Result, bail};
use bt_pipeline::measure::cpu_seconds;
use bt_pipeline::rng::Rng;
use candle_core::{Device, Tensor};
use serde::{Serialize, Serializer};

use crate::config::Misconfigured;
use crate::intake::images_to;
use crate::learner::{Learner, StepHooks, StepPart};
use crate::nn::Engine;
use crate::optim::Optimizer;

/// What is measured.
pub struct StepBench {
    /// Network and objective.
    pub learner: Learner,
    /// Optimizer of the steps.
    pub optimizer: Box<dyn Optimizer>,
    /// Source images of a step; each has two views.
    pub batch: usize,
    /// Height and width of a view.
    pub size: (usize, usize),
    /// Steps before the first that counts, [`warm_up`](crate::learner::warm_up) for even times.
    pub warmup: usize,
    /// Steps that count.
    pub steps: usize,
}

/// Seconds of each part of one step, in order; a map in JSON.
#[derive(Clone, Debug, Default)]
pub struct StepTime(Vec<(StepPart, f64)>);

impl StepTime {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|(_, seconds)| seconds).sum()
    }

    /// One part.
    pub fn of(&self, part: StepPart) -> Option<f64> {
        self.0.iter().find(|(of, _)| *of == part).map(|(_, seconds)| *seconds)
    }
}

impl Serialize for StepTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(part, seconds)| (part.name(), seconds)))
    }
}

/// What [`StepBench::run`] found.
#[derive(Clone, Debug, Serialize)]
pub struct StepTimings {
    /// Wall seconds of every step that counts.
    pub wall: Vec<StepTime>,
    /// CPU seconds, all threads, of every step that counts.
    pub cpu: Vec<StepTime>,
    /// Threads of the engine.
    pub threads: usize,
    /// Source images of a step.
    pub batch: usize,
    /// Floating-point operations of a step's convolutions and linear layers: two for each
    /// multiply-add of the definition; forward, and twice that backward.
    pub flops: f64,
    /// The last step's loss: finite, or the times mean nothing.
    pub final_loss: f64,
    /// Most memory at a time in the steps that count, in MB: of the device, or of the process.
    pub peak_mb: f64,
}

impl StepTimings {
    /// Median wall seconds of a step.
    pub fn median_wall(&self) -> f64 {
        median(self.wall.iter().map(StepTime::total))
    }

    /// Median CPU seconds of a step.
    pub fn median_cpu(&self) -> f64 {
        median(self.cpu.iter().map(StepTime::total))
    }

    /// Name, median wall and median CPU seconds of each part.
    pub fn median_parts(&self) -> Vec<(&'static str, f64, f64)> {
        let Some(first) = self.wall.first() else { return Vec::new() };
        let of = |steps: &[StepTime], part| median(steps.iter().filter_map(|step| step.of(part)));
        let parts = first.0.iter().map(|(part, _)| *part);
        parts.map(|part| (part.name(), of(&self.wall, part), of(&self.cpu, part))).collect()
    }

    /// Source images per second.
    pub fn images_per_second(&self) -> f64 {
        self.batch as f64 / self.median_wall()
    }

    /// Achieved floating-point operations per second.
    pub fn flops_per_second(&self) -> f64 {
        self.flops / self.median_wall()
    }
}

/// The middle one.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl StepBench {
    /// Runs training steps on one batch of random images and times their parts.
    ///
    /// # Errors
    /// When a step fails.
    pub fn run(mut self) -> Result<StepTimings> {
        let engine = self.learner.net().engine().clone();
        let images = random_images(&engine, self.batch, self.size, 0)?;
        let all = self.warmup + self.steps;
        let (mut wall, mut cpu, mut final_loss) = (Vec::new(), Vec::new(), f64::NAN);
        for step in 0..all {
            if step == self.warmup {
                // What it took to choose algorithms is not what a step takes.
                engine.forget_peak();
            }
            let mut clock = Clock::start();
            let mut lap = |part| clock.lap(part);
            let hooks = StepHooks { lap: Some(&mut lap), meanwhile: None };
            let out = self.learner.gradients(&images, hooks)?.out;
            self.optimizer.step(&mut self.learner.params(), 1e-3, 1e-3)?;
            engine.wait()?;
            clock.lap(StepPart::Optimizer);
            self.learner.follow(step as u64, all as u64)?;
            engine.wait()?;
            clock.lap(StepPart::Follow);
            if step >= self.warmup {
                wall.push(clock.wall);
                cpu.push(clock.cpu);
            }
            final_loss = out.loss;
        }
        Ok(StepTimings {
            wall,
            cpu,
            threads: rayon::current_num_threads(),
            batch: self.batch,
            flops: 6.0 * self.learner.multiply_adds() as f64,
            final_loss,
            peak_mb: engine.peak_bytes() as f64 / 1e6,
        })
    }
}

/// A batch's views, `[2 * batch, height, width, channels]`, as the engine takes them: uniform in
/// [-1, 1), the same for the same seed.
///
/// # Errors
/// More than the memory holds; what the device says.
pub fn random_images(
    engine: &Engine,
    batch: usize,
    (height, width): (usize, usize),
    seed: u64,
) -> Result<Tensor> {
    check_room(batch, (height, width))?;
    let mut rng = Rng::keyed(seed, 0, 0, 0);
    let count = 2 * batch * height * width * 3;
    let values: Vec<f32> = (0..count).map(|_| rng.uniform(-1.0, 1.0) as f32).collect();
    let host = Tensor::from_vec(values, (2 * batch, height, width, 3), &Device::Cpu)?;
    Ok(images_to(&host, engine)?)
}

/// Refuses a batch whose views no memory holds: who asks for it all the same is ended without a
/// word.
fn check_room(batch: usize, (height, width): (usize, usize)) -> Result<()> {
    let values = [2, height, width, 3].into_iter().fold(batch, usize::saturating_mul);
    if Vec::<f32>::new().try_reserve_exact(values).is_err() {
        let gb = 4e-9 * values as f64;
        bail!(Misconfigured(format!(
            "the views of a batch of {batch} images take {gb:.0} GB, more than the memory has"
        )));
    }
    Ok(())
}

/// Wall and CPU time of a step's parts, one after the other.
struct Clock {
    last: (Instant, f64),
    wall: StepTime,
    cpu: StepTime,
}

impl Clock {
    fn start() -> Self {
        let last = (Instant::now(), cpu_seconds());
        Self { last, wall: StepTime::default(), cpu: StepTime::default() }
    }

    fn lap(&mut self, part: StepPart) {
        let now = (Instant::now(), cpu_seconds());
        self.wall.0.push((part, (now.0 - self.last.0).as_secs_f64()));
        self.cpu.0.push((part, now.1 - self.last.1));
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss;
    use crate::model::{Arch, ModelConfig, ProjectorWidths, Stem};
    use crate::optim::OptimConfig;

    #[test]
    fn a_batch_that_no_memory_holds_is_refused() {
        assert!(check_room(2, (8, 8)).is_ok());
        for batch in [1 << 40, usize::MAX] {
            assert!(check_room(batch, (224, 224)).unwrap_err().is::<Misconfigured>());
        }
    }

    #[test]
    fn a_step_is_timed_and_its_arithmetic_counted() -> Result<()> {
        let model = ModelConfig {
            arch: Arch::ResNet18,
            width: 8,
            stem: Stem::Cifar,
            zero_init: false,
            projector: ProjectorWidths(vec![16]),
            ..Default::default()
        };
        let objective = loss::build("barlow", toml::Table::new())?;
        let learner = Learner::build(&model, objective, 1, &Device::Cpu)?;
        let optimizer = OptimConfig::default().build()?;
        let bench = StepBench { learner, optimizer, batch: 2, size: (8, 8), warmup: 1, steps: 2 };
        let out = bench.run()?;
        assert_eq!((out.wall.len(), out.cpu.len()), (2, 2));
        assert!(out.final_loss.is_finite() && out.median_wall() > 0.0);
        let parts: Vec<_> = out.median_parts().into_iter().map(|(part, ..)| part).collect();
        assert_eq!(parts, ["forward", "loss", "backward", "optimizer", "follow"]);
        // Stem: 4 images x 64 pixels x 8 x 27; two blocks of layer 1: 4 convolutions of 8 x 72.
        assert!(out.flops > 6.0 * 4.0 * 64.0 * (8.0 * 27.0 + 4.0 * 8.0 * 72.0));
        let json = serde_json::to_value(&out)?;
        assert!(json["wall"][1]["forward"].as_f64().is_some_and(|seconds| seconds > 0.0), "{json}");
        Ok(())
    }
}
