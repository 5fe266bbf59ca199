//! Barlow Twins' training step by itself, on synthetic images, every step's seconds one by one: what
//! `cargo bench --bench step` compares between networks and threads. `bt-stream bench step` prints medians of
//! any method.

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::Serialize;

use super::ModelConfig;
use crate::learner::Learner;
use crate::nn::Engine;
use crate::optim::{OptimConfig, OptimizerKind};
use crate::train::images_to;

/// What is measured.
#[derive(Clone, Debug)]
pub struct StepBench {
    /// The network.
    pub model: ModelConfig,
    /// Optimizer of the step.
    pub optimizer: OptimizerKind,
    /// Source images of a step; each has two views.
    pub batch: usize,
    /// Height and width of a view.
    pub size: (usize, usize),
    /// Steps before the first that counts.
    pub warmup: usize,
    /// Steps that count.
    pub steps: usize,
}

/// Seconds of each part of one step.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StepTime {
    /// Forward pass of both views; on a device, what it takes to ask for the gradients.
    pub forward: f64,
    /// Loss and its gradient.
    pub loss: f64,
    /// Backward pass; on a device, the wait for the gradients.
    pub backward: f64,
    /// Optimizer.
    pub optimizer: f64,
}

impl StepTime {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.forward + self.loss + self.backward + self.optimizer
    }
}

/// What [`bench_step`] found.
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
    /// The last step's loss: finite, or the time means nothing.
    pub final_loss: f64,
    /// Most memory at a time, in MB: of the device, or of the process.
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

    /// Source images per second.
    pub fn images_per_second(&self) -> f64 {
        self.batch as f64 / self.median_wall()
    }

    /// Achieved floating-point operations per second.
    pub fn flops_per_second(&self) -> f64 {
        self.flops / self.median_wall()
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs training steps on fixed synthetic images and times their parts.
///
/// # Errors
/// When the network cannot be made or a step fails.
pub fn bench_step(bench: &StepBench, device: &Device) -> Result<StepTimings> {
    let objective = crate::loss::build("barlow", toml::Table::new())?;
    let mut learner = Learner::build(&bench.model, objective, 1, device)?;
    let engine = Engine::of(device)?;
    let config = OptimConfig { optimizer: bench.optimizer, ..Default::default() };
    let mut optimizer = config.build()?;
    let shape = (2 * bench.batch, bench.size.0, bench.size.1, 3);
    let images = images_to(&Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?, &engine)?;
    let mut out = StepTimings {
        wall: Vec::new(),
        cpu: Vec::new(),
        threads: rayon::current_num_threads(),
        batch: bench.batch,
        flops: 0.0,
        final_loss: f64::NAN,
        peak_mb: 0.0,
    };
    for step in 0..bench.warmup + bench.steps {
        let mut clock = Clock::start();
        let (found, _) = learner.gradients(&images, &mut |part| {
            clock.lap(|t| match part {
                "forward" | "launch" => &mut t.forward,
                "loss" => &mut t.loss,
                _ => &mut t.backward,
            });
        })?;
        optimizer.step(&mut learner.params(), 1e-3, 1e-3)?;
        engine.wait()?;
        clock.lap(|t| &mut t.optimizer);
        if step >= bench.warmup {
            out.wall.push(clock.wall);
            out.cpu.push(clock.cpu);
        }
        out.final_loss = found.loss;
    }
    out.flops = 6.0 * learner.net().multiply_adds() as f64;
    out.peak_mb = engine.peak_bytes() as f64 / 1e6;
    Ok(out)
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

    fn lap(&mut self, part: impl Fn(&mut StepTime) -> &mut f64) {
        let now = (Instant::now(), cpu_seconds());
        *part(&mut self.wall) = (now.0 - self.last.0).as_secs_f64();
        *part(&mut self.cpu) = now.1 - self.last.1;
        self.last = now;
    }
}

/// CPU seconds of this process, all threads, from the scheduler's nanosecond counts; NaN where there
/// are none (not Linux).
fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return f64::NAN };
    let nanoseconds = |thread: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    threads.filter_map(nanoseconds).sum::<f64>() * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Arch, ProjectorWidths, Stem};

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
        let optimizer = OptimizerKind::AdamW;
        let bench = StepBench { model, optimizer, batch: 2, size: (8, 8), warmup: 1, steps: 2 };
        let out = bench_step(&bench, &Device::Cpu)?;
        assert_eq!((out.wall.len(), out.cpu.len()), (2, 2));
        assert!(out.final_loss.is_finite() && out.median_wall() > 0.0);
        // Stem: 4 images x 64 pixels x 8 x 27; two blocks of layer 1: 4 convolutions of 8 x 72.
        assert!(out.flops > 6.0 * 4.0 * 64.0 * (8.0 * 27.0 + 4.0 * 8.0 * 72.0));
        Ok(())
    }
}
