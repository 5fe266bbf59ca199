//! Whether a run may go on from a checkpoint, and how its state is put back.

use anyhow::{Context, Result, bail};
use bt_pipeline::{Loader, ShardSet};

use super::prepare::start_from;
use crate::checkpoint::{Checkpoint, State};
use crate::config::{Misconfigured, RunConfig, ShuffleKind};
use crate::eval::OnlineProbe;
use crate::learner::Learner;
use crate::model::ModelConfig;
use crate::optim::Optimizer;

/// Tells training sets of one size apart: a checksum over keys and labels of samples from all over
/// `set`. Neither names nor sizes of shards are in it, so that a set may move, or be cut or
/// compressed otherwise. Empty where a shard's index cannot be had.
pub(crate) fn fingerprint(set: &ShardSet) -> String {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let probed = set.len().min(FINGERPRINT_SAMPLES);
    for i in 0..probed {
        let Ok(meta) = set.meta(i * (set.len() - 1) / (probed - 1).max(1)) else {
            return String::new();
        };
        hasher.update(&(meta.key.len() as u64).to_le_bytes());
        hasher.update(meta.key.as_bytes());
        hasher.update(&meta.label.map_or(u64::MAX, u64::from).to_le_bytes());
    }
    format!("{:016x}", hasher.digest())
}

/// A checksum over the numbers of samples of the shards of `set`.
pub(super) fn cuts(set: &ShardSet) -> String {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    set.shards().iter().for_each(|shard| hasher.update(&(shard.samples as u64).to_le_bytes()));
    format!("{:016x}", hasher.digest())
}

/// Samples that [`fingerprint`] looks at: each may cost a request where shards are behind URLs.
const FINGERPRINT_SAMPLES: usize = 32;

/// Refuses a checkpoint after which the order of samples, the network, or what the optimizer keeps,
/// would be another.
pub(super) fn check_unchanged(
    found: &Checkpoint,
    config: &RunConfig,
    loader: &Loader,
    fingerprint: &str,
) -> Result<()> {
    let State { step, samples, fingerprint: was, config: saved, .. } = &found.state;
    let path = found.path.display();
    if let Some((was, is)) = other_network(saved, config) {
        bail!(Misconfigured(format!("{path} was made with {was}, not {is}: resume with that")));
    }
    // Before the first step there is no order yet that could differ.
    if *step == 0 {
        return Ok(());
    }
    let here = loader.set().len() as u64;
    if *samples != here {
        bail!(
            "{path} was made with {samples} training samples, the shards hold {here}: the order of the samples would differ"
        );
    }
    if !was.is_empty() && !fingerprint.is_empty() && was != fingerprint {
        bail!(
            "{path} was made with other training samples, or with these in another order: resume with those, or begin another \
             run with train.init"
        );
    }
    let within_a_window =
        config.data.shuffle == ShuffleKind::Window && found.state.position.batch > 0;
    if within_a_window && !found.state.cuts.is_empty() && found.state.cuts != cuts(loader.set()) {
        bail!(
            "{path} is in the middle of an epoch of windows over shards of other sizes, in which the order of the samples was \
             another: resume with those shards, or from a checkpoint at the end of an epoch"
        );
    }
    match other_course(saved, config)? {
        None => Ok(()),
        Some((was, is)) => bail!(Misconfigured(format!(
            "{path} was made with {was}, not {is}: resume with that, or begin another run with train.init"
        ))),
    }
}

/// A setting of the network by which tensors would not fit: as it was, and what it is now.
fn other_network(saved: &RunConfig, config: &RunConfig) -> Option<(String, String)> {
    let described = |config: &RunConfig| {
        // How weights begin changes no shape.
        let model = ModelConfig { zero_init: false, ..config.model.clone() };
        let table = toml::Table::try_from(model).unwrap_or_default();
        table.into_iter().map(|(key, value)| (format!("model.{key}"), value.to_string())).collect()
    };
    different(described(saved), described(config))
}

/// The same of settings by which a run would take other batches or other steps.
fn other_course(saved: &RunConfig, config: &RunConfig) -> Result<Option<(String, String)>> {
    let described = |config: &RunConfig| -> Result<Vec<(String, String)>> {
        let RunConfig { method, optim, train, data, .. } = config;
        let window = match data.shuffle {
            ShuffleKind::Window => [data.window_shards, data.window_samples],
            _ => [0; 2],
        };
        let all = [
            ("method", method.0.clone()),
            ("optim.optimizer", optim.optimizer.name().to_owned()),
            ("train.batch_size", train.batch_size.to_string()),
            ("train.seed", train.seed.to_string()),
            ("data.shuffle", format!("{:?}", data.shuffle).to_lowercase()),
            ("data.window_shards", window[0].to_string()),
            ("data.window_samples", window[1].to_string()),
        ];
        let mut all = all.map(|(key, value)| (key.to_owned(), value)).to_vec();
        all.extend(shapes(config)?);
        Ok(all)
    };
    Ok(different(described(saved)?, described(config)?))
}

/// The objective's options by which its tensors would not fit.
fn shapes(config: &RunConfig) -> Result<Vec<(String, String)>> {
    let (options, idle) = (config.full_loss()?, config.objective()?.idle());
    let of = |key: &str| match options.get(key) {
        Some(value) if idle.iter().all(|(idle, _)| *idle != key) => value.to_string(),
        _ => String::new(),
    };
    let keys = ["predictor", "predictor_hidden", "queue"];
    Ok(keys.map(|key| (format!("loss.{key}"), of(key))).to_vec())
}

/// The first of the settings that differs.
fn different(was: Vec<(String, String)>, is: Vec<(String, String)>) -> Option<(String, String)> {
    let (was, is) = was.into_iter().zip(is).find(|(was, is)| was != is)?;
    Some((format!("{} = {}", was.0, was.1), is.1))
}

/// Puts a checkpoint's state into the network and the optimizer. One of no step (`bt-stream
/// import`) gives what a run begins with: another `train.init`, or another method than it was made
/// for, is taken up as by a run that begins.
pub(super) fn restore(
    found: &Checkpoint,
    config: &RunConfig,
    learner: &mut Learner,
    optimizer: &mut dyn Optimizer,
    probe: Option<&mut OnlineProbe>,
) -> Result<()> {
    let context = || format!("{} does not fit this configuration", found.path.display());
    learner.net().load_state_dict(&found.weights()?).with_context(context)?;
    let (saved, begins) = (&found.state.config, found.state.step == 0);
    if begins && (saved.method.0 != config.method.0 || saved.loss != config.loss) {
        // Predictor and queue stay new ones, the teacher becomes a copy of the network.
        let backbone = learner.net().backbone_state_dict()?.into_iter().collect();
        learner.start_from(&backbone).with_context(context)?;
    } else {
        learner.load_state(found.method()?).with_context(context)?;
    }
    if begins && saved.train.init != config.train.init {
        start_from(config, |tensors| learner.start_from(tensors))?;
    }
    optimizer.load_state(&found.optimizer()?).with_context(context)?;
    if let Some(probe) = probe {
        // A run that did without one so far may take one up.
        probe.load_state(&found.probe()?).with_context(context)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[&str]) -> RunConfig {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        RunConfig::load(None, &pairs).unwrap()
    }

    #[test]
    fn what_would_change_batches_or_steps_is_named_and_the_rest_may_change() {
        let other = |order: &str, pair: &str| {
            other_course(&config(&[order]), &config(&[order, pair])).unwrap()
        };
        let (global, window) = ("data.shuffle=global", "data.shuffle=window");
        for (order, pair) in [
            (global, "method=infonce"),
            (global, "optim.optimizer=sgd"),
            (global, "train.batch_size=64"),
            (global, "train.seed=3"),
            (global, "data.shuffle=none"),
            (window, "data.window_shards=3"),
            (window, "data.window_samples=9"),
            (global, "loss.predictor=8"),
        ] {
            let (key, value) = pair.split_once('=').unwrap();
            let (was, is) = other(order, pair).expect(pair);
            assert!(was.starts_with(&format!("{key} = ")) && is == value, "{was} {is}");
        }
        for pair in [
            "train.epochs=7",
            "optim.lr_weights=0.5",
            "loss.lambda=0.1",
            "data.threads=3",
            "data.on_bad=stop",
            "data.window_shards=3",
        ] {
            assert_eq!(other(global, pair), None, "{pair}");
        }
    }

    #[test]
    fn what_would_change_tensors_is_named_and_how_they_begin_may_change() {
        let plain = config(&[]);
        let other = |pair: &str| other_network(&plain, &config(&[pair]));
        let flipped = |key: &str, value: bool| format!("model.{key}={}", !value);
        for pair in [
            "model.arch=resnet18",
            "model.width=32",
            "model.stem=cifar",
            "model.projector='64-64'",
            &flipped("projector_batch_norm", plain.model.projector_batch_norm),
            &flipped("projector_output_norm", plain.model.projector_output_norm),
        ] {
            let key = pair.split('=').next().unwrap();
            let (was, _) = other(pair).expect(pair);
            assert!(was.starts_with(&format!("{key} = ")), "{pair}: {was}");
        }
        assert_eq!(other(&flipped("zero_init", plain.model.zero_init)), None);
        assert_eq!(other("train.epochs=7"), None);
    }
}
