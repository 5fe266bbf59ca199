//! What a long evaluation goes on from when its process ended: a safetensors file, replaced after
//! each epoch, that says of which evaluation it is.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use xxhash_rust::xxh3::Xxh3;

use crate::config::Misconfigured;

/// A file that keeps how far an evaluation is.
#[derive(Clone, Debug)]
pub struct Progress {
    path: PathBuf,
    /// What is evaluated and how.
    of: String,
}

/// Metadata: what it is the state of, and how many epochs are done.
const OF: &str = "evaluation";
const EPOCHS: &str = "epochs";
/// Metadata: XXH3 of the tensors, by name.
const SUM: &str = "xxh3";

impl Progress {
    /// The state in `path` of what `of` describes.
    pub fn new(path: PathBuf, of: String) -> Self {
        Progress { path, of }
    }

    /// Epochs done, and the tensors after them; `None` before the first.
    ///
    /// # Errors
    /// A file that cannot be read, or is that of something else.
    pub fn read(&self) -> Result<Option<(u64, HashMap<String, Tensor>)>> {
        let path = self.path.display();
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.to_string()),
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(|| path.to_string())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let of = metadata.get(OF).map_or("no evaluation", String::as_str);
        if of != self.of {
            bail!(Misconfigured(format!(
                "{path} is the state of another evaluation: of {of}, not {}; name another file or remove it",
                self.of
            )));
        }
        let epochs = metadata.get(EPOCHS).and_then(|epochs| epochs.parse().ok());
        let epochs = epochs.with_context(|| format!("{path}: it does not say its epochs"))?;
        if metadata.get(SUM) != Some(&sum(&SafeTensors::deserialize(&bytes)?)) {
            bail!(
                "{path} is damaged: its tensors do not match their checksum; remove it to begin anew"
            );
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu);
        Ok(Some((epochs, tensors.with_context(|| path.to_string())?)))
    }

    /// Replaces the file by the state after `epochs` epochs.
    ///
    /// # Errors
    /// When it cannot be written; the one before is then intact.
    pub fn write(&self, epochs: u64, tensors: Vec<(String, Tensor)>) -> Result<()> {
        let plain = safetensors::serialize(tensors, None)?;
        let tensors = SafeTensors::deserialize(&plain)?;
        let metadata = HashMap::from([
            (OF.to_owned(), self.of.clone()),
            (EPOCHS.to_owned(), epochs.to_string()),
            (SUM.to_owned(), sum(&tensors)),
        ]);
        let bytes = safetensors::serialize(tensors.tensors(), Some(metadata))?;
        crate::files::write_atomically(&self.path, &bytes)
    }
}

/// Of names, shapes and bytes, in the names' order.
fn sum(tensors: &SafeTensors<'_>) -> String {
    let mut all = tensors.tensors();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut hash = Xxh3::new();
    for (name, tensor) in all {
        hash.update(format!("{name:?} {:?} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
        hash.update(tensor.data());
    }
    format!("{:016x}", hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_by_what_it_is_of_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let own = Progress::new(path.clone(), "a, seed 1".into());
        assert!(own.read().unwrap().is_none());
        let tensor = Tensor::from_vec(vec![1f32, 2.], 2, &Device::Cpu).unwrap();
        own.write(3, vec![("x".into(), tensor)]).unwrap();
        let (epochs, tensors) = own.read().unwrap().unwrap();
        assert_eq!((epochs, tensors["x"].to_vec1::<f32>().unwrap()), (3, vec![1., 2.]));

        let other = Progress::new(path.clone(), "a, seed 2".into());
        let error = other.read().unwrap_err();
        assert!(error.is::<Misconfigured>() && error.to_string().contains("seed 2"), "{error}");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        assert!(own.read().unwrap_err().to_string().contains("damaged"));
        std::fs::write(&path, "torn").unwrap();
        assert!(format!("{:#}", own.read().unwrap_err()).contains("state.safetensors"));
    }
}
