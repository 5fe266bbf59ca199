//! `bt-stream train`

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{CacheArgs, ConfigSource, TraceArgs, flag, path_flag, text_flag};
use crate::checkpoint;
use crate::config::{CONFIG_FILE, Misconfigured, RunConfig, leaves};
use crate::metrics::BAD_SAMPLES_FILE;
use crate::optim::OptimizerKind;
use crate::train::{ResumeFrom, RunOutputs, Summary};

/// The address that `text` names: a number, or a name of a host as the system knows it.
fn resolved(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| format!("{error}; expected HOST:PORT"))?;
    found.into_iter().next().ok_or_else(|| "the host has no address".to_owned())
}

/// Arguments of `bt-stream train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// Training shards: a folder, a glob, a brace list, a manifest, URLs, or several joined by ::
    /// [data.train]
    #[arg(long, value_name = "SHARDS")]
    data: Option<String>,
    /// Labelled shards for evaluations: of knn, probe and linear, and every eval.knn_every epochs
    /// [data.val; default: none]
    #[arg(long, value_name = "SHARDS")]
    val: Option<String>,
    /// The run's folder [train.dir; default: runs/default]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Passes over the data [train.epochs; default: 100]
    #[arg(long)]
    epochs: Option<u64>,
    /// Source images of a step [train.batch_size; default: 256]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Decides weights, order and views [train.seed; default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// A torchvision or timm backbone to start from, .safetensors or .pth [train.init; default:
    /// none]
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Loader threads, 0 for one each core [data.threads; default: 0]
    #[arg(long)]
    threads: Option<usize>,
    /// Serve the run's figures for Prometheus here, as in 127.0.0.1:9100
    #[arg(long, value_name = "ADDRESS", value_parser = resolved)]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    trace: TraceArgs,
    /// Continue the run in its folder from the newest checkpoint
    #[arg(long)]
    resume: bool,
    /// Continue the run from this checkpoint in its folder; later ones are renamed to aside-*
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "resume")]
    resume_from: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl TrainArgs {
    fn resume_from(&self) -> ResumeFrom {
        match &self.resume_from {
            Some(path) => ResumeFrom::Checkpoint(path.clone()),
            None if self.resume => ResumeFrom::Latest,
            None => ResumeFrom::Scratch,
        }
    }

    /// The effective configuration: of a run that is gone on with its own, under what the command
    /// line says.
    fn config(&self) -> Result<RunConfig> {
        let mut source = self.source.clone();
        // RUN/checkpoints/step-N names its run, too.
        let run = self.resume_from.as_deref().and_then(checkpoint::run_of);
        let folder = self.dir.clone().or(run);
        if !matches!(self.resume_from(), ResumeFrom::Scratch) && source.config.is_none() {
            let Some(dir) = &folder else {
                bail!(Misconfigured("--resume needs --dir (the run's folder) or --config".into()));
            };
            let saved = dir.join(CONFIG_FILE);
            let is_there = saved.try_exists().with_context(|| saved.display().to_string())?;
            if is_there {
                source.config = Some(saved);
                source.set.extend(rates(&source)?);
            } else if self.data.is_none() && source.set.is_empty() {
                if let (Some(path), None) = (&self.resume_from, &self.dir) {
                    bail!(
                        "{}: no checkpoint of a run: expected RUN/checkpoints/step-N, or RUN for its newest one, with RUN/{CONFIG_FILE}",
                        path.display()
                    );
                }
                bail!("{}: no run's folder: there is no {CONFIG_FILE} in it", dir.display());
            }
        }
        let [cache, cache_size] = self.cache.pairs();
        source.load(&[
            cache,
            cache_size,
            text_flag("data.train", self.data.as_deref()),
            text_flag("data.val", self.val.as_deref()),
            path_flag("train.dir", folder.as_deref())?,
            flag("train.epochs", &self.epochs),
            flag("train.batch_size", &self.batch_size),
            flag("train.seed", &self.seed),
            path_flag("train.init", self.init.as_deref())?,
            flag("data.threads", &self.threads),
        ])
    }
}

/// The rates of a run that is gone on with, as `--set` pairs, where RUN/config.toml, which has both
/// spelled out, does not have those that the command line means: another optimizer's own (for a run
/// that has no step yet), and the biases' of a run that had one rate for all.
fn rates(source: &ConfigSource) -> Result<Vec<String>> {
    let keys = ["optim.optimizer", "optim.lr_weights", "optim.lr_biases"];
    // What cannot be set is told when all of it is.
    let all = source.set.iter().filter_map(|pair| leaves(pair).ok()).flatten();
    let asked: Vec<_> = all.filter(|(key, _)| keys.contains(&key.as_str())).collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let saved = ConfigSource { set: Vec::new(), ..source.clone() }.load(&[])?.optim;
    let mut set = vec![format!("{}={}", keys[0], saved.optimizer.name())];
    set.extend(asked.iter().map(|(key, value)| format!("{key}={value}")));
    let optim = ConfigSource { config: None, set }.load(&[])?.optim;
    // LARS has two, the authors'.
    let one = saved.optimizer != OptimizerKind::Lars
        && saved.lr_weights == saved.lr_biases
        && asked.iter().any(|(key, _)| key == keys[1]);
    let other = optim.optimizer != saved.optimizer;
    // `1e38` without its exponent is a whole number that TOML does not hold.
    let weights = other.then(|| format!("{}={:?}", keys[1], optim.lr_weights));
    let biases = (other || one).then(|| format!("{}={:?}", keys[2], optim.lr_biases));
    Ok(weights.into_iter().chain(biases).collect())
}

/// What a person is told at the end.
fn tell(summary: &Summary, dir: &Path) {
    println!(
        "{} steps done; {:.0} images/s; limited by {}; newest checkpoint {}",
        summary.steps,
        summary.images as f64 / summary.seconds.max(1e-9),
        summary.limit,
        summary.checkpoint.display()
    );
    if summary.bad > 0 {
        println!(
            "{} times another sample was taken for one that could not be used: {}",
            summary.bad,
            dir.join(BAD_SAMPLES_FILE).display()
        );
    }
    if !summary.advice.is_empty() {
        println!("{}", summary.advice);
    }
    if !summary.embeddings.is_empty() {
        println!("{}", summary.embeddings);
    }
}

/// Runs the command.
///
/// # Errors
/// As [`crate::train::train`].
pub fn run(args: TrainArgs) -> Result<()> {
    let config = args.config()?;
    set_threads(config.train.threads)?;
    if !args.json {
        eprintln!("# effective configuration\n{}", config.in_full()?.to_toml()?);
    }
    let stop = crate::signals::Stop::on_signals()?;
    let trace = args.trace.begin()?;
    let outputs =
        RunOutputs { prometheus: args.metrics, trace: trace.clone(), ..Default::default() };
    let outcome = crate::train::train(&config, &args.resume_from(), &stop, &outputs);
    // A trace may be large. One that cannot be written takes no summary away.
    let _hold = stop.hold();
    let traced = args.trace.write(trace.as_ref());
    let summary = outcome?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        tell(&summary, &config.train.dir);
    }
    match stop.interrupted() {
        Some(interrupted) if summary.interrupted => {
            Err(interrupted).context("the run can be continued with --resume")
        }
        _ => traced,
    }
}

/// Makes the computing threads of the process, 0 for one each core. Once, before the first is
/// wanted: where they cannot be had then, that is a panic.
///
/// # Errors
/// When threads cannot be made.
pub fn set_threads(threads: usize) -> Result<()> {
    let made = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    made.context("the threads that compute (train.threads)")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TrainArgs,
    }

    /// The rates of a run that was begun with some settings and is gone on with others.
    fn rates_of(begun: &[&str], set: &[&str]) -> (f64, f64) {
        let dir = tempfile::tempdir().unwrap();
        let begun: Vec<String> = begun.iter().map(|pair| (*pair).to_owned()).collect();
        let saved = RunConfig::load(None, &begun).unwrap().to_toml().unwrap();
        std::fs::write(dir.path().join(CONFIG_FILE), saved).unwrap();
        let line = ["train", "--resume", "--dir", dir.path().to_str().unwrap()];
        let set = set.iter().flat_map(|pair| ["--set", pair]);
        let optim = Line::parse_from(line.into_iter().chain(set)).args.config().unwrap().optim;
        (optim.lr_weights, optim.lr_biases)
    }

    #[test]
    fn flags_are_the_keys_that_their_help_names() {
        let config = |more: &[&str]| {
            let line = ["train", "--data", "a"].iter().chain(more);
            Line::parse_from(line).args.config().unwrap()
        };
        let usual = config(&[]);
        assert_eq!((usual.train.epochs, usual.train.batch_size, usual.train.seed), (100, 256, 0));
        let line = "--val b --dir c --epochs 7 --batch-size 24 --seed 9 --init d --threads 3 \
                    --cache e --cache-size 3GB";
        let RunConfig { data, train, .. } = config(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((&data.train[..], &data.val[..]), ("a", "b"));
        assert_eq!((train.dir.as_path(), train.init.as_path()), (Path::new("c"), Path::new("d")));
        assert_eq!((train.epochs, train.batch_size, train.seed), (7, 24, 9));
        assert_eq!((data.threads, train.threads), (3, usual.train.threads));
        assert_eq!((&data.cache[..], &data.cache_size[..]), ("e", "3GB"));
    }

    #[test]
    fn one_rate_for_all_stays_one_however_it_is_set() {
        let sgd = ["optim.optimizer=sgd"];
        assert_eq!(rates_of(&sgd, &["optim.lr_weights=0.5"]), (0.5, 0.5));
        assert_eq!(rates_of(&sgd, &["optim={lr_weights=0.5}"]), (0.5, 0.5));
        assert_eq!(rates_of(&sgd, &["optim.lr_weights=1e38"]), (1e38, 1e38));
        assert_eq!(rates_of(&sgd, &["optim={lr_weights=0.5, lr_biases=0.1}"]), (0.5, 0.1));
        assert_eq!(rates_of(&sgd, &["optim={momentum=0.5}"]), (0.06, 0.06));
        let two = ["optim.optimizer=sgd", "optim.lr_biases=0.1"];
        assert_eq!(rates_of(&two, &["optim.lr_weights=0.5"]), (0.5, 0.1));
        assert_eq!(rates_of(&[], &["optim.lr_weights=0.5"]), (0.5, 0.0048));
    }

    #[test]
    fn another_optimizer_has_its_own_rates_unless_they_are_given() {
        assert_eq!(rates_of(&[], &["optim.optimizer=sgd"]), (0.06, 0.06));
        assert_eq!(rates_of(&[], &["optim={optimizer='adamw'}"]), (1e-3, 1e-3));
        let given = ["optim.optimizer=adamw", "optim.lr_weights=0.5"];
        assert_eq!(rates_of(&[], &given), (0.5, 0.5));
        let given = ["optim.lr_biases=0.5", "optim.optimizer=adamw"];
        assert_eq!(rates_of(&[], &given), (1e-3, 0.5));
        assert_eq!(rates_of(&["optim.optimizer=sgd"], &["optim.optimizer=lars"]), (0.2, 0.0048));
        // The same one keeps what it had.
        assert_eq!(rates_of(&["optim.lr_weights=0.3"], &["optim.optimizer=lars"]), (0.3, 0.0048));
    }
}
