//! From `train.device` and `train.precision` to a device.

use std::sync::Once;

use anyhow::{Result, bail};
use candle_core::Device;

use crate::config::{Misconfigured, Named, TrainConfig};
use crate::nn::{Engine, EngineOptions, Precision};

/// The device that `[train]` names, opened with its precision. `auto` is the first CUDA device that
/// is not too old where this build and machine have one, else the CPU.
///
/// # Errors
/// A name that is not known, a device that this build or machine lacks, bfloat16 on the CPU.
pub fn device(config: &TrainConfig) -> Result<Device> {
    let options = EngineOptions {
        precision: config.precision,
        deterministic: config.deterministic,
        graphs: config.cuda_graph,
    };
    let number = match config.named_device()? {
        Named::Auto => first_here(),
        Named::Cpu => None,
        Named::Cuda(number) => Some(number),
    };
    match number {
        Some(number) => Ok(Engine::open(number, options)?.device().clone()),
        None if config.precision == Precision::Bf16 => {
            bail!(Misconfigured(
                "train.precision = \"bf16\" wants a CUDA device; the CPU computes in f32".into()
            ))
        }
        None => Ok(Device::Cpu),
    }
}

/// [`device`], for evaluation: a run that was trained on a CUDA device which is not here, or too
/// old, is measured on the first one, or on the CPU, in f32, where this build or machine has none;
/// standard error says so, once.
///
/// # Errors
/// As [`device`].
pub fn evaluation_device(config: &TrainConfig) -> Result<Device> {
    static SAID: Once = Once::new();
    let (here, named) = (devices_here(), config.named_device()?);
    if let Some(number) = instead(named, &here) {
        let first = format!("cuda:{number}");
        SAID.call_once(|| {
            eprintln!("there is no {} here, as the run had: evaluated on {first}", config.device)
        });
        return device(&TrainConfig { device: first, ..config.clone() });
    }
    if !here.is_empty() {
        return device(config);
    }
    let cpu = TrainConfig { device: "cpu".into(), precision: Precision::F32, ..config.clone() };
    if matches!(named, Named::Cuda(_)) || config.precision != Precision::F32 {
        SAID.call_once(|| {
            eprintln!("there is no CUDA device here, as the run had: evaluated on the CPU, in f32");
        });
    }
    device(&cpu)
}

/// The device of `here` that stands in for the named one where that is not among them.
fn instead(named: Named, here: &[usize]) -> Option<usize> {
    match named {
        Named::Cuda(number) if !here.contains(&number) => here.first().copied(),
        _ => None,
    }
}

/// The numbers of the CUDA devices of this machine that this build can use.
fn devices_here() -> Vec<usize> {
    #[cfg(feature = "cuda")]
    {
        crate::nn::cuda::usable()
    }
    #[cfg(not(feature = "cuda"))]
    {
        Vec::new()
    }
}

/// The device that `auto` is. Where a driver has none to use, standard error says so, once.
fn first_here() -> Option<usize> {
    let first = devices_here().first().copied();
    #[cfg(feature = "cuda")]
    if first.is_none() && crate::nn::cuda::present() {
        static SAID: Once = Once::new();
        SAID.call_once(|| eprintln!("the CUDA driver has no device to use: computing on the CPU"));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(device: &str, precision: Precision) -> Result<Device> {
        super::device(&TrainConfig { device: device.into(), precision, ..Default::default() })
    }

    #[test]
    fn what_this_machine_cannot_do_is_said_and_not_fallen_back_from() {
        assert!(named("cpu", Precision::F32).unwrap().is_cpu());
        let text = |device, precision| named(device, precision).unwrap_err().to_string();
        assert!(text("cpu", Precision::Bf16).contains("wants a CUDA device"));
        assert!(text("gpu", Precision::F32).contains("none of"));
        assert!(text("cuda:x", Precision::F32).contains("none of"));
        #[cfg(not(feature = "cuda"))]
        assert!(text("cuda:0", Precision::F32).contains("--features cuda"));
    }

    #[test]
    fn a_device_that_is_not_here_is_stood_in_for_by_the_first_that_is() {
        // Device 0 is too old.
        let here = [1, 3];
        assert_eq!(instead(Named::Cuda(0), &here), Some(1));
        assert_eq!(instead(Named::Cuda(2), &here), Some(1));
        assert_eq!(instead(Named::Cuda(3), &here), None);
        assert_eq!(instead(Named::Auto, &here), None);
        assert_eq!(instead(Named::Cpu, &here), None);
        assert_eq!(instead(Named::Cuda(0), &[]), None);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn what_was_trained_on_a_device_is_evaluated_without_one() {
        for (device, precision) in [("cuda:1", Precision::F32), ("auto", Precision::Bf16)] {
            let config = TrainConfig { device: device.into(), precision, ..Default::default() };
            assert!(evaluation_device(&config).unwrap().is_cpu());
        }
    }
}
