//! The training step by itself, for `tools/peers/torch_step.py`: options in, timings as JSON out.
//!
//! `cargo bench --bench step -- --arch resnet18 --width 64 --stem cifar --size 32 --batch 64`

use anyhow::{Context, Result, bail};
use bt_stream::config::TrainConfig;
use bt_stream::learner::{Learner, warm_up};
use bt_stream::loss;
use bt_stream::model::{ModelConfig, Stem};
use bt_stream::nn::{Engine, Precision};
use bt_stream::optim::{OptimConfig, OptimizerKind};
use bt_stream::step_bench::{StepBench, StepTimings};

/// What the options say.
struct Options {
    model: ModelConfig,
    optimizer: OptimizerKind,
    on: TrainConfig,
    batch: usize,
    size: usize,
    warmup: Option<usize>,
    steps: usize,
    threads: usize,
    json: bool,
}

fn main() -> Result<()> {
    let mut options = Options {
        model: ModelConfig {
            arch: "resnet18".parse().map_err(anyhow::Error::msg)?,
            width: 16,
            stem: Stem::Cifar,
            zero_init: false,
            projector: "512-512".parse().map_err(anyhow::Error::msg)?,
            ..Default::default()
        },
        optimizer: OptimizerKind::AdamW,
        on: TrainConfig { device: "cpu".into(), ..Default::default() },
        batch: 64,
        size: 32,
        warmup: None,
        steps: 3,
        threads: 0,
        json: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        match key.as_str() {
            "--json" => options.json = true,
            "--bench" => {} // cargo's own
            _ => {
                let value = args.next().with_context(|| format!("{key} wants a value"))?;
                options.set(&key, &value)?;
            }
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(options.threads).build_global()?;
    let out = options.measure()?;
    if options.json {
        println!("{}", serde_json::to_string(&out)?);
    } else {
        options.print(&out);
    }
    Ok(())
}

impl Options {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "--device" => self.on.device = value.into(),
            "--precision" if value == "f32" => self.on.precision = Precision::F32,
            "--precision" if value == "bf16" => self.on.precision = Precision::Bf16,
            "--arch" => self.model.arch = value.parse().map_err(anyhow::Error::msg)?,
            "--width" => self.model.width = value.parse()?,
            "--stem" if value == "cifar-pad2" => self.model.stem = Stem::CifarPad2,
            "--stem" if value == "cifar" => self.model.stem = Stem::Cifar,
            "--stem" if value == "imagenet" => self.model.stem = Stem::Imagenet,
            "--projector" => self.model.projector = value.parse().map_err(anyhow::Error::msg)?,
            "--optimizer" if value == "adamw" => self.optimizer = OptimizerKind::AdamW,
            "--optimizer" if value == "sgd" => self.optimizer = OptimizerKind::Sgd,
            "--optimizer" if value == "lars" => self.optimizer = OptimizerKind::Lars,
            "--size" => self.size = value.parse()?,
            "--batch" => self.batch = value.parse()?,
            "--steps" => self.steps = value.parse()?,
            "--warmup" => self.warmup = Some(value.parse()?),
            "--threads" => self.threads = value.parse()?,
            _ => bail!("unknown option {key} {value}"),
        }
        Ok(())
    }

    fn measure(&self) -> Result<StepTimings> {
        let device = bt_stream::device::device(&self.on)?;
        let objective = loss::build("barlow", toml::Table::new())?;
        let bench = StepBench {
            learner: Learner::build(&self.model, objective, 1, &device)?,
            optimizer: OptimConfig { optimizer: self.optimizer, ..Default::default() }.build()?,
            batch: self.batch,
            size: (self.size, self.size),
            warmup: self.warmup.unwrap_or(warm_up(&Engine::of(&device)?)),
            steps: self.steps,
        };
        bench.run()
    }

    fn print(&self, out: &StepTimings) {
        let (wall, cpu) = (out.median_wall(), out.median_cpu());
        println!("{:?}", self.model);
        println!(
            "{} threads: {wall:.3} s, {cpu:.3} CPU s a step; {:.1} images/s, {:.1} GFLOP/s",
            out.threads,
            out.images_per_second(),
            out.flops_per_second() * 1e-9
        );
        println!("last step, CPU s: {:?}; {:.0} MB", out.cpu.last(), out.peak_mb);
    }
}
