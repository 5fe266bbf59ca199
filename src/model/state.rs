//! State dicts: torchvision's names and layouts on the outside, the engine's inside.
//!
//! Inside a convolution's weight is O,KH,KW,I; outside O,I,KH,KW. All else is alike.

use std::collections::{HashMap, HashSet};

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::nn::{BatchNorm, Param, storage};

/// A parameter's or gradient's tensor on the CPU in PyTorch's layout, a copy.
pub(super) fn outside(tensor: &Tensor) -> Result<Tensor> {
    match tensor.rank() {
        4 => storage::host(tensor)?.permute((0, 3, 1, 2))?.force_contiguous(),
        _ => storage::host_copy(tensor),
    }
}

/// The shape that [`outside`] gives.
fn outside_shape(tensor: &Tensor) -> Vec<usize> {
    match *tensor.dims() {
        [o, h, w, i] => vec![o, i, h, w],
        _ => tensor.dims().to_vec(),
    }
}

/// Copies a tensor in PyTorch's layout into a parameter.
fn set_inside(target: &Tensor, name: &str, given: &Tensor) -> Result<()> {
    let want = outside_shape(target);
    if given.dims() != want {
        bail!("tensor '{name}': expected shape {want:?}, got {:?}", given.dims());
    }
    let given = storage::host(given)?;
    let given = if given.rank() == 4 { given.permute((0, 2, 3, 1))? } else { given };
    let given = given.contiguous()?;
    storage::assign(target, &storage::read(&given)?)
}

/// A BatchNorm's buffers under PyTorch's names.
pub(super) fn buffers(norm: &BatchNorm) -> Result<[(String, Tensor); 3]> {
    let name = |part: &str| format!("{}.{part}", norm.name());
    let count = Tensor::new(norm.num_batches_tracked, &Device::Cpu)?;
    Ok([
        (name("running_mean"), outside(&norm.running_mean)?),
        (name("running_var"), outside(&norm.running_var)?),
        (name("num_batches_tracked"), count),
    ])
}

/// Fills parameters and buffers from `tensors`, whose names lack `strip`. All names and shapes are
/// checked first: on an error nothing has changed.
///
/// # Errors
/// Names the tensor that is missing, unexpected (unless `ignored` says so) or of another shape.
pub(super) fn load(
    tensors: &HashMap<String, Tensor>,
    strip: &str,
    params: &[(String, Tensor)],
    norms: &mut [&mut BatchNorm],
    ignored: impl Fn(&str) -> bool,
) -> Result<()> {
    let outer = |name: &str| name.strip_prefix(strip).unwrap_or(name).to_string();
    let mut targets: Vec<(String, Tensor)> =
        params.iter().map(|(name, t)| (outer(name), t.clone())).collect();
    let mut counts = HashSet::new();
    for norm in norms.iter() {
        let name = |part: &str| outer(&format!("{}.{part}", norm.name()));
        targets.push((name("running_mean"), norm.running_mean.clone()));
        targets.push((name("running_var"), norm.running_var.clone()));
        counts.insert(name("num_batches_tracked"));
    }
    for (name, target) in &targets {
        let Some(given) = tensors.get(name) else { bail!("tensor '{name}' is missing") };
        let want = outside_shape(target);
        if given.dims() != want {
            bail!("tensor '{name}': expected shape {want:?}, got {:?}", given.dims());
        }
    }
    let known: HashSet<&str> =
        targets.iter().map(|(n, _)| n.as_str()).chain(counts.iter().map(String::as_str)).collect();
    let mut strangers: Vec<&String> =
        tensors.keys().filter(|n| !known.contains(n.as_str()) && !ignored(n)).collect();
    strangers.sort();
    if let Some(name) = strangers.first() {
        bail!("tensor '{name}' is not part of this network ({} such)", strangers.len());
    }
    for (name, target) in &targets {
        set_inside(target, name, &tensors[name])?;
    }
    for norm in norms.iter_mut() {
        // Old PyTorch checkpoints have no count; nothing here depends on it.
        let name = outer(&format!("{}.num_batches_tracked", norm.name()));
        if let Some(count) = tensors.get(&name) {
            let count = count.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
            norm.num_batches_tracked = count.first().copied().unwrap_or(0);
        }
    }
    Ok(())
}

/// Names and tensors of parameters, for [`load`].
pub(super) fn named(params: Vec<&mut Param>) -> Vec<(String, Tensor)> {
    params.into_iter().map(|p| (p.name.clone(), p.value.clone())).collect()
}
