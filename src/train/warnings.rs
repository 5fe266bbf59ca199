//! What a run is told before its first step: settings that it did not begin with, settings that do
//! nothing, a warm-up that does not end, and memory that there is not, since who asks for more than
//! there is, is ended by the system without a word.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::checkpoint::State;
use crate::config::{RunConfig, flattened};

/// Values that an optimizer step keeps for each parameter: value, gradient, and one or two moments.
const PER_PARAMETER: u64 = 4;

/// Keys and sections that decide a run's result, the online probe's among it.
const DECIDE: [&str; 13] = [
    "method",
    "views",
    "model",
    "loss",
    "optim",
    "data.exif",
    "data.max_megapixels",
    "data.limits",
    "train.epochs",
    "train.micro_batches",
    "train.precision",
    "eval.online_probe",
    "eval.online_lr",
];

/// What a person should know of `config` before a run begins with it, or goes on with it from
/// `found`; `parameters` are those of a network on the CPU.
///
/// # Errors
/// None that a configuration which was checked can have.
pub(super) fn warnings(
    config: &RunConfig,
    found: Option<&State>,
    parameters: Option<u64>,
) -> Result<Vec<String>> {
    let mut all = Vec::new();
    match found {
        Some(found) if found.step == 0 => all.extend(other_beginning(&found.config, config)),
        Some(found) => all.extend(other_settings(&found.config, config)?),
        None => {}
    }
    if config.eval.online_probe && found.is_some_and(|found| found.probe_given_up) {
        all.push(
            "warning: no online probe: it was given up in an earlier step, see eval.online_lr"
                .into(),
        );
    }
    all.extend(config.idle()?.into_iter().map(|said| format!("warning: {said}")));
    let (warmup, epochs) = (config.optim.warmup_epochs, config.train.epochs);
    if warmup >= epochs as f64 {
        all.push(format!(
            "warning: the learning rate never reaches its maximum: warm-up lasts the whole run (optim.warmup_epochs = {warmup}, \
             train.epochs = {epochs})"
        ));
    }
    if let Some(parameters) = parameters {
        all.extend(memory(config, config.views.views()?[0].out_size(), parameters));
    }
    Ok(all)
}

/// What is said where a run that has no step yet begins otherwise than its checkpoint was made for.
fn other_beginning(saved: &RunConfig, now: &RunConfig) -> Vec<String> {
    let mut all = Vec::new();
    let (was, is) = (&saved.train.init, &now.train.init);
    if was != is && !is.as_os_str().is_empty() {
        let init = is.display();
        all.push(format!("train.init = \"{init}\" takes the place of the checkpoint's backbone"));
    }
    let (was, is) = (saved.train.seed, now.train.seed);
    if was != is {
        all.push(format!(
            "warning: train.seed = {is} decides order and views; the checkpoint's weights were made with train.seed = {was}"
        ));
    }
    all
}

/// What is said where a run that has steps goes on otherwise than it did.
fn other_settings(saved: &RunConfig, now: &RunConfig) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let changed = changed(saved, now)?;
    if !changed.is_empty() {
        all.push(format!("warning: goes on with other settings: {}", changed.join(", ")));
    }
    let (was, is) = (&saved.train.init, &now.train.init);
    if was != is {
        let init = is.display();
        all.push(format!(
            "warning: train.init = \"{init}\" is not read: the run goes on from its checkpoint"
        ));
    }
    Ok(all)
}

/// Keys that decide a run's result and that are not what they were, each with both values.
fn changed(saved: &RunConfig, now: &RunConfig) -> Result<Vec<String>> {
    let flat = |config: &RunConfig| -> Result<BTreeMap<String, String>> {
        Ok(flattened(&toml::Table::try_from(config)?))
    };
    let (was, is) = (flat(saved)?, flat(now)?);
    let keys: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let shown = |of: &BTreeMap<String, String>, key: &str| {
        of.get(key).cloned().unwrap_or_else(|| "the default".into())
    };
    let decides = |key: &&&String| {
        DECIDE.iter().any(|part| key.as_str() == *part || key.starts_with(&format!("{part}.")))
    };
    let differs = keys.iter().filter(decides).filter(|key| was.get(**key) != is.get(**key));
    Ok(differs.map(|key| format!("{key} {} -> {}", shown(&was, key), shown(&is, key))).collect())
}

/// Said where a step on the CPU will not fit the memory that is free; `parameters` are the
/// network's.
fn memory(config: &RunConfig, view: (usize, usize), parameters: u64) -> Option<String> {
    let wanted = step_bytes(config, view, parameters);
    let free = free_bytes()?;
    let gb = |bytes: u64| bytes as f64 / 1e9;
    (wanted > free).then(|| {
        format!(
            "warning: a step will want some {:.0} GB of memory and {:.0} GB are free: a smaller train.batch_size, model or \
             view (views.both.random_resized_crop.size) wants less, as do more train.micro_batches",
            gb(wanted),
            gb(free)
        )
    })
}

/// Bytes of both views' activations, which wait for the backward pass, and of all that belongs to
/// parameters. Within a quarter of what `bench step` measures.
fn step_bytes(config: &RunConfig, view: (usize, usize), parameters: u64) -> u64 {
    let images = 2 * config.train.batch_size as u64;
    let parts = config.train.micro_batches as u64;
    let activations = (images / parts).saturating_mul(config.model.activations(view));
    // Sums of gradients, where there are parts; the views themselves, which a part's activations
    // need not outweigh.
    let per_parameter = PER_PARAMETER + u64::from(parts > 1);
    let views = images.saturating_mul(3 * view.0 as u64 * view.1 as u64);
    let all = per_parameter.saturating_mul(parameters).saturating_add(views);
    activations.saturating_add(all).saturating_mul(4)
}

/// What the system says is free, and no more than its group may have.
fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    Some(limit.map_or(free, |limit| free.min(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_a_run_did_not_begin_with_are_named() {
        let (was, mut is) = (RunConfig::default(), RunConfig::default());
        assert!(changed(&was, &is).unwrap().is_empty());
        is.loss.insert("lambda".into(), 1.0.into());
        is.optim.lr_weights = 0.5;
        is.data.limits.member_bytes = 9;
        is.eval.online_lr = 0.5;
        is.train.micro_batches = 2;
        // Where it runs changes nothing.
        is.train.dir = "elsewhere".into();
        is.data.threads = 3;
        let found = changed(&was, &is).unwrap();
        let keys: Vec<&str> = found.iter().map(|said| said.split(' ').next().unwrap()).collect();
        let expected = [
            "data.limits.member_bytes",
            "eval.online_lr",
            "loss.lambda",
            "optim.lr_weights",
            "train.micro_batches",
        ];
        assert_eq!(keys, expected);
        assert_eq!(found[2..4], ["loss.lambda the default -> 1.0", "optim.lr_weights 0.2 -> 0.5"]);
    }

    #[test]
    fn the_default_run_wants_more_than_a_small_machine_has() {
        // `bench step` at batches of 2 and 4: 2842 and 3256 MB, so that an image takes 207 MB.
        let config = RunConfig::default();
        let of = |batch_size: usize| {
            let mut config = config.clone();
            config.train.batch_size = batch_size;
            step_bytes(&config, (224, 224), 174_000_000) as f64 / 1e6
        };
        let each = (of(4) - of(2)) / 2.0;
        assert!((170.0..230.0).contains(&each), "{each}");
        assert!((2270.0..3400.0).contains(&of(2)), "{}", of(2));
        assert!(memory(&config, (224, 224), u64::MAX / 64).is_some());
        // In eight parts a batch wants little more than its views and the activations of an eighth.
        let mut cut = config.clone();
        (cut.train.batch_size, cut.train.micro_batches) = (64, 8);
        let more = step_bytes(&cut, (224, 224), 0) as f64 - 8e6 * each;
        let views = 4.0 * 128.0 * 3.0 * 224.0 * 224.0;
        assert!((0.8 * views..views).contains(&more), "{more} beside {views}");
        let mut small = config.clone();
        small.train.batch_size = 2;
        small.model.width = 8;
        assert_eq!(memory(&small, (32, 32), 1000), None);
    }
}
