//! The training step by itself, for `tools/peers/torch_step.py`: options in, timings as JSON out.
//!
//! `cargo bench --bench step -- --arch resnet18 --width 64 --stem cifar --size 32 --batch 64`

use anyhow::{Context, Result, bail};
use bt_stream::config::TrainConfig;
use bt_stream::learner::warm_up;
use bt_stream::model::{ModelConfig, Stem, StepBench, bench_step};
use bt_stream::nn::{Engine, Precision};
use bt_stream::optim::OptimizerKind;

fn main() -> Result<()> {
    let mut bench = StepBench {
        model: ModelConfig {
            arch: "resnet18".parse().map_err(anyhow::Error::msg)?,
            width: 16,
            stem: Stem::Cifar,
            zero_init: false,
            projector: "512-512".parse().map_err(anyhow::Error::msg)?,
            ..Default::default()
        },
        optimizer: OptimizerKind::AdamW,
        batch: 64,
        size: (32, 32),
        warmup: 0,
        steps: 3,
    };
    let (mut threads, mut json, mut warmup) = (0, false, None);
    let mut on = TrainConfig { device: "cpu".into(), ..Default::default() };
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        match key.as_str() {
            "--json" => json = true,
            "--bench" => {} // cargo's own
            "--warmup" => {
                warmup = Some(args.next().context("--warmup wants a value")?.parse()?);
            }
            "--device" => on.device = args.next().context("--device wants a value")?,
            "--precision" => {
                on.precision = match args.next().as_deref() {
                    Some("f32") => Precision::F32,
                    Some("bf16") => Precision::Bf16,
                    other => bail!("--precision is f32 or bf16, not {other:?}"),
                }
            }
            _ => {
                let value = args.next().with_context(|| format!("{key} wants a value"))?;
                set(&mut bench, &mut threads, &key, &value)?;
            }
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let device = bt_stream::train::device(&on)?;
    bench.warmup = warmup.unwrap_or(warm_up(&Engine::of(&device)?));
    let out = bench_step(&bench, &device)?;
    if json {
        println!("{}", serde_json::to_string(&out)?);
    } else {
        let (wall, cpu) = (out.median_wall(), out.median_cpu());
        println!("{:?}", bench.model);
        println!(
            "{} threads: {wall:.3} s, {cpu:.3} CPU s a step; {:.1} images/s, {:.1} GFLOP/s",
            out.threads,
            out.images_per_second(),
            out.flops_per_second() * 1e-9
        );
        println!("last step, CPU s: {:?}; {:.0} MB", out.cpu.last(), out.peak_mb);
    }
    Ok(())
}

fn set(bench: &mut StepBench, threads: &mut usize, key: &str, value: &str) -> Result<()> {
    match key {
        "--arch" => bench.model.arch = value.parse().map_err(anyhow::Error::msg)?,
        "--width" => bench.model.width = value.parse()?,
        "--stem" if value == "cifar" => bench.model.stem = Stem::Cifar,
        "--stem" if value == "imagenet" => bench.model.stem = Stem::Imagenet,
        "--projector" => bench.model.projector = value.parse().map_err(anyhow::Error::msg)?,
        "--optimizer" if value == "adamw" => bench.optimizer = OptimizerKind::AdamW,
        "--optimizer" if value == "sgd" => bench.optimizer = OptimizerKind::Sgd,
        "--optimizer" if value == "lars" => bench.optimizer = OptimizerKind::Lars,
        "--size" => bench.size = (value.parse()?, value.parse()?),
        "--batch" => bench.batch = value.parse()?,
        "--steps" => bench.steps = value.parse()?,
        "--threads" => *threads = value.parse()?,
        _ => bail!("unknown option {key} {value}"),
    }
    Ok(())
}
