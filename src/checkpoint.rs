//! A run's state on disk: one folder a checkpoint, written under a temporary name
//! and renamed, so that it is there whole or not at all.
//!
//! ```text
//! RUN/checkpoints/step-0000000320/
//!     weights.safetensors     torchvision's names under `backbone.` and `projector.`
//!     optimizer.safetensors   the optimizer's tensors
//!     method.safetensors      predictor, teacher, queue; absent for methods without any
//!     probe.safetensors       the online linear probe; absent for runs without one
//!     state.json              step, position, configuration, checksums of the above
//! ```
//!
//! `aside-0000000320` is such a folder, too, that no run goes on from by itself: the state before a
//! step whose numbers were not finite, or one later than what [`set_aside_after`] was asked to go
//! on from. One that finds the name taken has `.2` behind it, and so on.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};

mod folder;
mod state;

use folder::{PREFIX, TEMPORARY, discard, free_name, name, name_of, prune, step_of};
pub use folder::{any, clean, list, newest_step, set_aside_after};
pub use state::State;
use state::{FORMAT, FileSum, seal_of, sum_of};

use crate::files::{parent, sync_folder};
use crate::model::TwinNet;
use crate::nn::storage;
use crate::print::one_line;

/// Folder of the checkpoints in a run's folder.
pub const FOLDER: &str = "checkpoints";

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const METHOD: &str = "method.safetensors";
const PROBE: &str = "probe.safetensors";
const STATE: &str = "state.json";

/// A checkpoint that was read and verified.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// `state.json`.
    pub state: State,
}

impl Checkpoint {
    /// The network's tensors, by name, on the CPU.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn weights(&self) -> Result<HashMap<String, Tensor>> {
        read_tensors(&self.path.join(WEIGHTS))
    }

    /// The optimizer's tensors, by name, on the CPU.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn optimizer(&self) -> Result<HashMap<String, Tensor>> {
        read_tensors(&self.path.join(OPTIMIZER))
    }

    /// What the objective keeps beside the network, by name, on the CPU.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn method(&self) -> Result<HashMap<String, Tensor>> {
        self.optional(METHOD)
    }

    /// The online probe's tensors, by name, on the CPU; none for runs without one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn probe(&self) -> Result<HashMap<String, Tensor>> {
        self.optional(PROBE)
    }

    fn optional(&self, name: &str) -> Result<HashMap<String, Tensor>> {
        match self.state.files.contains_key(name) {
            true => read_tensors(&self.path.join(name)),
            false => Ok(HashMap::new()),
        }
    }

    /// Whether a run goes on from it by itself: it was not set aside.
    pub fn is_in_line(&self) -> bool {
        step_of(&self.path).is_some()
    }

    /// Whether no checkpoint of its run is later.
    pub fn is_newest(&self) -> bool {
        let later = list(parent(&self.path));
        later
            .ok()
            .and_then(|mut all| all.pop())
            .is_some_and(|newest| name_of(&newest) == name_of(&self.path))
    }

    /// The network that was saved.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the configuration says.
    pub fn network(&self, device: &Device) -> Result<TwinNet> {
        let config = &self.state.config;
        let mut net = TwinNet::new(&config.model, config.train.seed, device)?;
        net.load_state_dict(&self.weights()?)
            .with_context(|| format!("{} does not fit", self.path.display()))?;
        Ok(net)
    }
}

/// The tensors of a checkpoint, by what they belong to.
#[derive(Default)]
pub struct Tensors {
    /// The network's, under torchvision's names.
    pub weights: Vec<(String, Tensor)>,
    /// The optimizer's.
    pub optimizer: Vec<(String, Tensor)>,
    /// The predictor's, the teacher's and the objective's.
    pub method: Vec<(String, Tensor)>,
    /// The online probe's.
    pub probe: Vec<(String, Tensor)>,
}

impl Tensors {
    /// The name of the first tensor that holds what is no number, the probe's left out: it teaches
    /// nothing to the network.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn first_not_finite(&self) -> Result<Option<String>> {
        let all = [&self.weights, &self.method, &self.optimizer];
        Ok(storage::first_not_finite(all.into_iter().flatten().map(|(name, t)| (name, t)))?)
    }
}

/// Saves a checkpoint in `run/checkpoints` and removes all but the newest `keep`.
///
/// # Errors
/// When it cannot be written; older checkpoints are then untouched.
pub fn save(run: &Path, state: State, tensors: Tensors, keep: usize) -> Result<PathBuf> {
    let folder = run.join(FOLDER);
    let target = write(folder.join(name(PREFIX, state.step)), state, tensors)?;
    // It is written: what stays beside it is no reason to end a run.
    if let Err(error) = prune(&folder, &target, keep) {
        tracing::warn!("an older checkpoint was not removed: {}", one_line(&error));
    }
    Ok(target)
}

/// Saves a state that no run goes on from by itself and that takes no checkpoint's place.
///
/// # Errors
/// When it cannot be written.
pub fn save_aside(run: &Path, state: State, tensors: Tensors) -> Result<PathBuf> {
    write(free_name(&run.join(FOLDER), state.step), state, tensors)
}

fn write(target: PathBuf, mut state: State, tensors: Tensors) -> Result<PathBuf> {
    let folder = parent(&target);
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .tempdir_in(folder)?;
        let Tensors { weights, optimizer, method, probe } = tensors;
        let files = [(WEIGHTS, weights), (OPTIMIZER, optimizer), (METHOD, method), (PROBE, probe)];
        for (name, tensors) in files {
            if tensors.is_empty() && [METHOD, PROBE].contains(&name) {
                continue;
            }
            let sum = write_tensors(&temporary.path().join(name), tensors)?;
            state.files.insert(name.into(), sum);
        }
        let text = state.to_json()?;
        // JSON has no infinity: what could not be read back must not take a good checkpoint's
        // place.
        serde_json::from_slice::<State>(&text).context("the state cannot be read back")?;
        crate::files::write_atomically(&temporary.path().join(STATE), &text)?;
        sync_folder(temporary.path())?;
        if target.exists() {
            discard(&target)?;
        }
        fs::rename(temporary.path(), &target)?;
        // The folder has its final name; there is nothing left to remove.
        let _ = temporary.keep();
        Ok(sync_folder(folder)?)
    };
    write().with_context(|| format!("cannot write the checkpoint {}", target.display()))?;
    Ok(target)
}

/// Reads the newest checkpoint of a run that is intact; `None` when there is none
/// at all. `warn` is told of those that are not.
///
/// # Errors
/// When there are checkpoints and none is intact, or their folder cannot be read.
pub fn latest(run: &Path, warn: impl Fn(&str)) -> Result<Option<Checkpoint>> {
    let folder = run.join(FOLDER);
    let mut last_error = None;
    let mut paths = list(&folder)?;
    let mut newest = paths.last().and_then(|path| step_of(path));
    while let Some(path) = paths.pop() {
        match open(&path) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            // Nothing is damaged: an older one would be another run's result.
            Err(error) if !is_damage(&error) => return Err(error),
            // The run goes on meanwhile, and has removed it for a later one.
            Err(_) if newest_step(run) > newest => {
                paths = list(&folder)?;
                newest = paths.last().and_then(|path| step_of(path));
            }
            Err(error) => {
                warn(&format!("{}; trying the checkpoint before it", one_line(&error)));
                last_error = Some(error);
            }
        }
    }
    match last_error {
        None => Ok(None),
        Some(error) => Err(error.context("no checkpoint of this run is intact")),
    }
}

/// Reads the checkpoint that `path` names: a checkpoint's folder, or a run's, whose
/// newest one is taken.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn find(path: &Path) -> Result<Checkpoint> {
    if path.join(STATE).exists() {
        return match path.file_name() {
            Some(_) => open(path),
            // `.`, and its name tells the step.
            None => open(&path.canonicalize().with_context(|| path.display().to_string())?),
        };
    }
    let found = latest(path, |text| tracing::warn!("{text}"))?;
    found.with_context(|| {
        format!("{} holds no checkpoint: expected a run's folder or a checkpoint's", path.display())
    })
}

/// As [`find`], with what `take` reads of the checkpoint, such as its network. A run that goes on
/// meanwhile may have removed it for a later one: that one is taken then.
///
/// # Errors
/// As [`find`], and those of `take`.
pub fn find_with<T>(
    path: &Path,
    take: impl Fn(&Checkpoint) -> Result<T>,
) -> Result<(Checkpoint, T)> {
    let mut found = find(path)?;
    let mut taken = take(&found);
    if taken.is_err() && !found.is_newest() {
        found = find(path)?;
        taken = take(&found);
    }
    Ok((found, taken?))
}

/// The run's folder that holds the checkpoint at `path`: RUN of RUN/checkpoints/step-N, however
/// much of it `path` names, and of RUN itself, as [`find`] takes it. `None` where there is no such
/// folder.
pub fn run_of(path: &Path) -> Option<PathBuf> {
    if path.join(FOLDER).is_dir() {
        return Some(path.to_owned());
    }
    let whole = match path.file_name() {
        Some(_) => path.to_owned(),
        None => path.canonicalize().ok()?,
    };
    let folder = parent(&whole);
    match folder.file_name() {
        Some(_) => Some(parent(folder).to_owned()),
        None => folder.canonicalize().ok()?.parent().map(Path::to_owned),
    }
}

/// Whether an error tells of what is stored, so that an older checkpoint may take its place.
fn is_damage(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_none_or(bt_pipeline::is_damage)
}

fn open(path: &Path) -> Result<Checkpoint> {
    let context = || format!("checkpoint {}", path.display());
    let text = fs::read(path.join(STATE)).with_context(context)?;
    if let Some((sum, digits)) = seal_of(&text)
        && text[digits] != *sum.as_bytes()
    {
        bail!("{}: {STATE} does not match its checksum", context());
    }
    let state: State = serde_json::from_slice(&text).with_context(context)?;
    if state.format != FORMAT {
        bail!("{}: format {} is not known, only {FORMAT} is", context(), state.format);
    }
    state.config.check().with_context(context)?;
    for name in [WEIGHTS, OPTIMIZER] {
        if !state.files.contains_key(name) {
            bail!("{}: state.json does not list {name}", context());
        }
    }
    for (name, expected) in &state.files {
        if Path::new(name).components().count() != 1 {
            bail!("{}: state.json lists {name:?}, which is no file of it", context());
        }
        let found = sum_of(&path.join(name)).with_context(context)?;
        if found != *expected {
            bail!(
                "{}: {name} is damaged ({} bytes with checksum {}, expected {} with {})",
                context(),
                found.bytes,
                found.xxh3,
                expected.bytes,
                expected.xxh3
            );
        }
    }
    Ok(Checkpoint { path: path.to_path_buf(), state })
}

fn write_tensors(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<FileSum> {
    let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
    crate::files::write_tensors(&tensors, path)?;
    Ok(sum_of(path)?)
}

fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, &Device::Cpu).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests;
