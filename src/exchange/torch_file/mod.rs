//! Files that `torch.save` wrote: the zip archives of PyTorch 1.6 and later, and what was before
//! them. Tensors come out as they are stored, of whatever strides: networks that were trained in
//! `channels_last` have theirs in that order.

mod pickle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use self::pickle::{Object, Pickle, Storage, View};
use super::import::STEM;

/// Where a training program's file keeps its state dict: beside epochs, optimizers and the like.
const WRAPPERS: [&str; 3] = ["state_dict", "model", "model_state_dict"];

const ZIP: &[u8] = b"PK\x03\x04";

/// The first object of a file before PyTorch 1.6: 0x1950a86a20f9469cfc6c, by protocol 2 or 3.
const LEGACY: [&[u8]; 2] =
    [b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x03\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."];

/// The tensors of the state dict in the file at `path`; `None` where it is none of `torch.save`'s.
///
/// # Errors
/// A damaged file; one without a state dict.
pub fn read(path: &Path) -> Result<Option<HashMap<String, Tensor>>> {
    let mut file = BufReader::new(File::open(path)?);
    let start = file.fill_buf()?;
    if start.starts_with(ZIP) {
        return read_zip(file).map(Some);
    }
    if LEGACY.iter().any(|magic| start.starts_with(magic)) {
        return read_legacy(file).map(Some);
    }
    Ok(None)
}

/// `NAME/data.pkl`, `NAME/byteorder`, and each storage as `NAME/data/KEY`.
fn read_zip(file: BufReader<File>) -> Result<HashMap<String, Tensor>> {
    let length = file.get_ref().metadata()?.len();
    // PyTorch puts nothing before an archive. Where the crate looks for its beginning by itself, it
    // is wrong for names of 21 characters, since PyTorch's last record tells nothing of ZIP64's.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut zip = ZipArchive::with_config(config, file)?;
    let names: Vec<String> =
        zip.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    let folder = names.iter().find_map(|name| name.strip_suffix("data.pkl"));
    let folder = folder.context("an archive without `data.pkl`: nothing of `torch.save`")?;
    let order = format!("{folder}byteorder");
    if names.contains(&order) {
        let mut text = String::new();
        zip.by_name(&order)?.take(16).read_to_string(&mut text)?;
        ensure!(text == "little", "numbers in the byte order `{text}`");
    }
    let mut reader = BufReader::new(zip.by_name(&format!("{folder}data.pkl"))?);
    let pickle = Pickle::read(&mut reader).context("`data.pkl`")?;
    to_checksum(reader).context("`data.pkl`")?;
    let mut tensors = HashMap::new();
    for (key, views) in by_storage(state_dict(&pickle)?, length)? {
        let context = || format!("storage `{key}`, of `{}`", views[0].0);
        let mut entry = zip.by_name(&format!("{folder}data/{key}")).with_context(context)?;
        let stored = entry.size();
        convert(&views, &mut entry, stored, &mut tensors)?;
        to_checksum(entry).with_context(context)?;
    }
    Ok(tensors)
}

/// Reads what is left of an entry: its checksum is compared behind the last byte.
fn to_checksum(mut entry: impl Read) -> Result<()> {
    std::io::copy(&mut entry, &mut std::io::sink())
        .context("damaged, or saved after `torch.serialization.set_crc32_options(False)`")?;
    Ok(())
}

/// Pickles of a number, the protocol, the system, the object and the storages' keys; then each
/// storage as its number of elements (8 bytes) and these.
fn read_legacy(mut file: BufReader<File>) -> Result<HashMap<String, Tensor>> {
    let end = file.get_ref().metadata()?.len();
    file.seek(SeekFrom::Start(LEGACY[0].len() as u64))?;
    Pickle::read(&mut file).context("the protocol")?;
    let system = Pickle::read(&mut file).context("the system")?;
    let order = system.entry(system.root(), "little_endian");
    ensure!(order != Some(&Object::Bool(false)), "numbers in the byte order `big`");
    let pickle = Pickle::read(&mut file)?;
    let keys = Pickle::read(&mut file).context("the storages' keys")?;
    let Object::Items(order) = keys.root() else { bail!("the storages' keys are no list") };
    let named: HashMap<&str, &Storage> =
        pickle.storages().map(|storage| (&*storage.key, storage)).collect();
    let mut wanted = by_storage(state_dict(&pickle)?, end)?;
    let mut tensors = HashMap::new();
    for &key in order {
        let Object::Text(key) = keys.get(key) else { bail!("a storage's key is no text") };
        let storage = named.get(&**key).with_context(|| format!("nothing has storage `{key}`"))?;
        let mut count = [0; 8];
        file.read_exact(&mut count).context("the file ends before a storage")?;
        let size = element_size(&storage.class)
            .with_context(|| format!("storage `{key}` is a `{}`", storage.class))?;
        let start = file.stream_position()?;
        let stop = u64::from_le_bytes(count).checked_mul(size).and_then(|n| start.checked_add(n));
        let stop = stop.filter(|stop| *stop <= end);
        let stop = stop.with_context(|| format!("the file ends within storage `{key}`"))?;
        if let Some(views) = wanted.remove(key) {
            convert(&views, (&mut file).take(stop - start), stop - start, &mut tensors)?;
        }
        file.seek(SeekFrom::Start(stop))?;
    }
    if let Some(key) = wanted.keys().next() {
        bail!("the file has no storage `{key}`");
    }
    Ok(tensors)
}

/// Tensors by name.
type Named<'a> = BTreeMap<String, &'a View>;

/// Dicts within dicts that are looked into: `{"model": {"teacher": {...}}}`.
const DEPTH: usize = 3;

/// Entries of dicts that are looked at, and bytes of the names of tensors: a pickle of a few
/// megabytes can name billions.
const MAX_ENTRIES: usize = 1 << 20;
const MAX_NAMES: usize = 1 << 24;

/// The tensors of the state dict that a pickle is, or that it has under a usual name; else those
/// of all its dicts, behind the dicts' names (`teacher.backbone.conv1.weight`).
fn state_dict(pickle: &Pickle) -> Result<Named<'_>> {
    let mut search = Search { pickle, entries: 0, names: 0, found: Named::new() };
    search.dict(pickle.root(), "", 1)?;
    if search.found.keys().any(|name| name.ends_with(STEM)) {
        return Ok(search.found);
    }
    let bare = std::mem::take(&mut search.found);
    for wrapper in WRAPPERS {
        if let Some(inner) = pickle.entry(pickle.root(), wrapper) {
            search.dict(inner, "", 1)?;
        }
        if !search.found.is_empty() {
            return Ok(search.found);
        }
    }
    search.found = bare;
    search.dict(pickle.root(), "", DEPTH)?;
    ensure!(
        !search.found.is_empty(),
        "no state dict in it (of a whole module, `torch.save(module.state_dict(), ...)` makes one)"
    );
    Ok(search.found)
}

struct Search<'a> {
    pickle: &'a Pickle,
    entries: usize,
    names: usize,
    found: Named<'a>,
}

impl<'a> Search<'a> {
    /// Adds the tensors of a dict, behind `prefix`, and of the dicts in it, `depth` in all. As in
    /// Python, the last of equal keys is the one that stays.
    fn dict(&mut self, dict: &'a Object, prefix: &str, depth: usize) -> Result<()> {
        let Object::Dict(entries) = dict else { return Ok(()) };
        for &(key, value) in entries {
            self.entries += 1;
            ensure!(self.entries <= MAX_ENTRIES, "more than {MAX_ENTRIES} entries of dicts");
            let Object::Text(key) = self.pickle.get(key) else { continue };
            let value = self.pickle.get(value);
            let inner = matches!(value, Object::Dict(_)) && depth > 1;
            let tensor = match value {
                Object::Tensor(view) if dtype(&view.storage.class).is_some() => Some(view),
                _ => None,
            };
            if !inner && tensor.is_none() {
                continue;
            }
            self.names += prefix.len() + key.len() + 1;
            ensure!(self.names <= MAX_NAMES, "names of more than {MAX_NAMES} bytes");
            match tensor {
                Some(view) => drop(self.found.insert(format!("{prefix}{key}"), view)),
                None => self.dict(value, &format!("{prefix}{key}."), depth - 1)?,
            }
        }
        Ok(())
    }
}

type Storages<'a> = BTreeMap<Rc<str>, Vec<(String, &'a View)>>;

/// # Errors
/// Tensors that take far more memory together than the file of `length` bytes accounts for: one
/// storage may be named often.
fn by_storage(tensors: Named<'_>, length: u64) -> Result<Storages<'_>> {
    const TIMES: u64 = 16;
    let bytes = |view: &View| {
        let elements = view.shape.iter().fold(1u64, |all, n| all.saturating_mul(*n));
        elements.saturating_mul(element_size(&view.storage.class).unwrap_or(0))
    };
    let all = tensors.values().fold(0u64, |all, view| all.saturating_add(bytes(view)));
    ensure!(all <= length.saturating_mul(TIMES), "tensors of {all} bytes in a file of {length}");
    let mut storages = Storages::new();
    for (name, view) in tensors {
        storages.entry(view.storage.key.clone()).or_default().push((name, view));
    }
    Ok(storages)
}

/// Reads a storage of `stored` bytes, as far as `views` reach, and makes them tensors.
fn convert(
    views: &[(String, &View)],
    reader: impl Read,
    stored: u64,
    tensors: &mut HashMap<String, Tensor>,
) -> Result<()> {
    let mut needed = 0;
    for (name, view) in views {
        let end = end(view).with_context(|| format!("`{name}`: a shape of {:?}", view.shape))?;
        ensure!(
            end <= stored,
            "`{name}` wants {end} bytes of storage `{}`, which has {stored}",
            view.storage.key
        );
        needed = needed.max(end);
    }
    let mut bytes = Vec::new();
    let read = reader.take(needed).read_to_end(&mut bytes)?;
    ensure!(read as u64 == needed, "storage `{}` ends too early", views[0].1.storage.key);
    for (name, view) in views {
        let tensor = tensor(view, &bytes).with_context(|| format!("`{name}`"))?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(())
}

/// Where in its storage, in bytes, a tensor ends; `None` where that is beyond numbers.
fn end(view: &View) -> Option<u64> {
    let size = element_size(&view.storage.class)?;
    // Dimensions of 0 hide none that are too large.
    view.shape.iter().filter(|n| **n > 0).try_fold(size, |all, n| all.checked_mul(*n))?;
    if view.shape.contains(&0) {
        return view.offset.checked_mul(size);
    }
    let mut last = view.offset;
    for (n, stride) in view.shape.iter().zip(&view.strides) {
        last = last.checked_add((n - 1).checked_mul(*stride)?)?;
    }
    last.checked_add(1)?.checked_mul(size)
}

/// The elements of `view`, in the order of its dimensions.
fn tensor(view: &View, bytes: &[u8]) -> Result<Tensor> {
    let dtype = dtype(&view.storage.class).context("a type that is not read")?;
    let size = dtype.size_in_bytes();
    let shape: Vec<usize> = view.shape.iter().map(|n| *n as usize).collect();
    let strides: Vec<usize> = view.strides.iter().map(|n| *n as usize).collect();
    let count: usize = shape.iter().product();
    let mut packed = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        let at = (view.offset as usize + at) * size;
        packed.extend_from_slice(&bytes[at..at + size]);
        for (i, n) in index.iter_mut().zip(&shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    Ok(Tensor::from_raw_buffer(&packed, dtype, &shape, &Device::Cpu)?)
}

/// The type of a storage's elements, where candle has it.
fn dtype(class: &str) -> Option<DType> {
    Some(match class {
        "torch.FloatStorage" => DType::F32,
        "torch.DoubleStorage" => DType::F64,
        "torch.HalfStorage" => DType::F16,
        "torch.BFloat16Storage" => DType::BF16,
        "torch.ByteStorage" => DType::U8,
        "torch.IntStorage" => DType::I32,
        "torch.LongStorage" => DType::I64,
        _ => return None,
    })
}

/// Bytes of an element.
fn element_size(class: &str) -> Option<u64> {
    Some(match class {
        "torch.ByteStorage" | "torch.CharStorage" | "torch.BoolStorage" => 1,
        "torch.ShortStorage" | "torch.HalfStorage" | "torch.BFloat16Storage" => 2,
        "torch.IntStorage" | "torch.FloatStorage" => 4,
        "torch.LongStorage" | "torch.DoubleStorage" | "torch.ComplexFloatStorage" => 8,
        "torch.ComplexDoubleStorage" => 16,
        _ => return None,
    })
}
