//! `bt-stream bench train`: loader and step together, beside each alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bt_pipeline::measure::measure_traced;
use bt_pipeline::{Loader, LoaderConfig, Position, ShardSet};
use candle_core::Device;
use clap::Args;

use super::step;
use crate::commands::{ConfigSource, train::set_threads};
use crate::config::RunConfig;
use crate::device::device;
use crate::intake::Intake;
use crate::learner::{Learner, StepHooks};

#[derive(Args, Debug)]
pub(super) struct TrainArgs {
    /// A folder, a glob, a brace list or a manifest; read over and over
    shards: String,
    #[command(flatten)]
    source: ConfigSource,
    /// Steps that count
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Steps before them
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Images/s of the loader, the step and both, and who waits.
pub(super) fn train(args: TrainArgs) -> Result<()> {
    let config = args.source.load(&[])?;
    set_threads(config.train.threads)?;
    let set = Arc::new(ShardSet::open(&args.shards, &config.open_options())?);
    let batch = config.train.batch_size.min(set.len());
    step::check(("train.batch_size", batch), args.warmup, args.steps)?;
    let device = device(&config.train)?;
    let intake = Intake::new(&device, &config.views.views()?, config.augment.device)?;
    let settings = intake.adapt(LoaderConfig { batch_size: batch, ..config.loader()? });
    let images = (batch * args.steps) as u64;
    let loader_alone = measure_traced(&set, settings.clone(), images, None)?;
    let step_alone = step::measure(&config, batch, args.warmup.max(1), args.steps)?;
    let step_images_per_s = step_alone.images_per_second();

    let loader = intake.with_memory(Loader::new(Arc::clone(&set), settings)?);
    let (seconds, waited) = together(&config, &loader, intake, &device, [args.warmup, args.steps])?;
    let both = images as f64 / seconds;
    let share = waited / seconds;
    if args.json {
        let line = serde_json::json!({
            "batch": batch, "threads": loader.threads(), "steps": args.steps,
            "loader_images_per_s": loader_alone.images_per_s,
            "step_images_per_s": step_images_per_s,
            "train_images_per_s": both, "waiting_for_data": share,
            "tflop_per_s": 1e-12 * step_alone.flops / batch as f64 * both,
            "peak_mb": step_alone.peak_mb,
        });
        println!("{line}");
        return Ok(());
    }
    println!("batch {batch}, {} loader threads, {} steps", loader.threads(), args.steps);
    println!("loader alone {:>9.1} images/s", loader_alone.images_per_s);
    println!("step alone   {:>9.1} images/s", step_images_per_s);
    println!(
        "together     {both:>9.1} images/s, {:.1}% of the step alone; the step waits for data {:.1}% \
         of the time",
        100.0 * both / step_images_per_s,
        100.0 * share
    );
    Ok(())
}

/// Seconds that `steps` training steps on `loader`'s batches take after `warmup` others, and how
/// many of them they wait for data.
fn together(
    config: &RunConfig,
    loader: &Loader,
    mut intake: Intake,
    device: &Device,
    [warmup, steps]: [usize; 2],
) -> Result<(f64, f64)> {
    let epochs = 1 + ((warmup + steps) as u64).div_ceil(loader.batches_per_epoch());
    let mut stream = loader.start(Position::default(), epochs)?;
    let mut learner = Learner::new(config, device)?;
    let mut optimizer = config.optim.for_run(config.train.batch_size)?;
    let mut waited = Duration::ZERO;
    let mut fetch = |intake: &mut Intake, waited: &mut Duration| -> Result<_> {
        let begun = Instant::now();
        let batch = stream.next().ok_or_else(|| anyhow::anyhow!("the stream ended"))??;
        *waited += begun.elapsed();
        intake.begin(batch)
    };
    let mut ahead = Some(fetch(&mut intake, &mut waited)?);
    let mut begun = Instant::now();
    for step in 0..warmup + steps {
        if step == warmup {
            (begun, waited) = (Instant::now(), Duration::ZERO);
        }
        let arriving = match ahead.take() {
            Some(arriving) => arriving,
            None => fetch(&mut intake, &mut waited)?,
        };
        let images = intake.images(&arriving)?;
        learner.remember()?;
        let mut fetched = None;
        let mut meanwhile = || fetched = Some(fetch(&mut intake, &mut waited));
        let hooks = StepHooks { lap: None, meanwhile: Some(&mut meanwhile) };
        let out = learner.gradients(&images, hooks)?.out;
        ahead = fetched.transpose()?;
        ensure!(out.loss.is_finite(), "the loss is {}", out.loss);
        optimizer.step(&mut learner.params(), 1e-3, 1e-3)?;
        learner.follow(step as u64, (warmup + steps) as u64)?;
    }
    learner.net().engine().wait()?;
    Ok((begun.elapsed().as_secs_f64(), waited.as_secs_f64()))
}
