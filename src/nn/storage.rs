//! A tensor's elements: how layers and optimizers read and write candle storage.
//!
//! On the CPU as slices: candle hands out read guards only; writing goes through its in-place op
//! interface, which takes the write lock. Both refuse tensors that are not contiguous `f32`. For a
//! backend that runs kernels as addresses ([`span`]), and between either and the host as copies
//! ([`host`], [`assign`]).

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::ops::Deref;

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail,
};

use rayon::prelude::*;

use super::cuda::Span;
use super::engine::Engine;

/// Floats per cache line and AVX-512 register.
const LINE: usize = 16;

/// A read guard over the elements of a contiguous `f32` CPU tensor, in row-major order.
pub struct Elements<'a> {
    guard: StorageRef<'a>,
    range: std::ops::Range<usize>,
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(v)) => &v[self.range.clone()],
            _ => unreachable!("checked by `read`"),
        }
    }
}

/// The elements of `tensor`, held under its read lock.
///
/// # Errors
/// When the tensor is not a contiguous `f32` tensor on the CPU.
pub fn read(tensor: &Tensor) -> Result<Elements<'_>> {
    let (guard, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Elements { guard, range }),
        _ => bail!("expected an f32 tensor on the CPU, got {:?}", tensor.dtype()),
    }
}

/// Runs `f` on the elements of `tensor`, held under its write lock. Every tensor that shares the
/// storage sees the change. Reading the same storage inside `f` would deadlock.
///
/// # Errors
/// When the tensor is not a contiguous `f32` tensor on the CPU.
pub fn with_mut<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = Write { f: RefCell::new(Some(f)), out: RefCell::new(None) };
    tensor.inplace_op1(&op)?;
    match op.out.into_inner() {
        Some(out) => Ok(out),
        None => bail!("the in-place write did not run"),
    }
}

/// [`with_mut`] on two tensors of different storage.
///
/// # Errors
/// As [`with_mut`].
pub fn with_mut2<R>(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&mut [f32], &mut [f32]) -> R,
) -> Result<R> {
    with_mut(a, |a| with_mut(b, |b| f(a, b)))?
}

/// A zeroed `f32` tensor on `device`; on the CPU its first element lies on a cache-line boundary,
/// so that vector loads of the engine's kernels do not straddle lines.
///
/// # Errors
/// When the device cannot allocate.
pub fn zeros(shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    let len = shape.elem_count();
    if !device.is_cpu() || len == 0 {
        return Tensor::zeros(shape, DType::F32, device);
    }
    let buffer = vec![0f32; len + LINE];
    ask_for_huge_pages(buffer.as_ptr(), buffer.len());
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    Tensor::from_vec(buffer, len + LINE, device)?.narrow(0, start, len)?.reshape(shape)
}

/// Asks for huge pages where whole ones fit: before memory is written to, as later the small ones
/// are there. They save page faults and most TLB misses: what a convolution makes of its input lies
/// in many places at a time. The advice may be refused, which costs nothing but speed.
pub(super) fn ask_for_huge_pages<T>(at: *const T, len: usize) {
    #[cfg(target_os = "linux")]
    {
        const HUGE_PAGE: usize = 2 << 20;
        let start = at.addr().next_multiple_of(HUGE_PAGE);
        let end = (at.addr() + len * size_of::<T>()) / HUGE_PAGE * HUGE_PAGE;
        if start < end {
            let at = at.cast_mut().wrapping_byte_add(start - at.addr()).cast();
            // SAFETY: whole pages of the caller's memory; the advice changes none of its bytes.
            unsafe { libc::madvise(at, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, len);
}

/// A zeroed tensor of any type; `f32` as [`zeros`].
///
/// # Errors
/// As [`zeros`].
pub fn zeros_of(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    match dtype {
        DType::F32 => zeros(shape, device),
        _ => Tensor::zeros(shape, dtype, device),
    }
}

/// Makes `slot` a tensor of `shape`, keeping the one that is there when it fits.
///
/// # Errors
/// As [`zeros`].
pub fn reuse(
    slot: &mut Option<Tensor>,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    match slot {
        Some(t) if t.dims() == shape && t.dtype() == dtype => Ok(t.clone()),
        _ => Ok(slot.insert(zeros_of(shape, dtype, device)?).clone()),
    }
}

/// Where a contiguous tensor's elements lie, for a [`super::cuda::Backend`] that runs on its
/// device. The tensor must outlive what is done with them.
///
/// # Errors
/// When the tensor is not contiguous.
pub fn span(tensor: &Tensor) -> Result<Span> {
    let at = Address(Cell::new(0));
    tensor.inplace_op1(&at)?;
    Ok(Span { addr: at.0.get(), len: tensor.elem_count(), dtype: tensor.dtype() })
}

/// The elements as a contiguous `f32` tensor on the CPU: the tensor itself, or a copy.
///
/// # Errors
/// What the device says.
pub fn host(tensor: &Tensor) -> Result<Tensor> {
    if tensor.device().is_cpu() && tensor.dtype() == DType::F32 {
        return tensor.contiguous();
    }
    // A copy from a device is of all memory that the tensor is a part of.
    let part = tensor.storage_and_layout().1.start_offset() > 0;
    let tensor = if part { tensor.force_contiguous()? } else { tensor.contiguous()? };
    arrived(&tensor)?.to_dtype(DType::F32)
}

/// The tensor on the CPU, of its own type: itself, or a copy that is there.
///
/// Whether a copy from a device to memory that is not pinned is done when the call returns is the
/// driver's to choose, and candle does not wait for it. Each is waited for by itself, as most are
/// read at once: converted, or turned into another layout. Where the driver has waited already this
/// takes microseconds.
fn arrived(tensor: &Tensor) -> Result<Tensor> {
    let there = tensor.to_device(&Device::Cpu)?;
    if !tensor.device().is_cpu() {
        Engine::of(tensor.device())?.wait()?;
    }
    Ok(there)
}

/// [`host`], always a copy.
///
/// # Errors
/// What the device says.
pub fn host_copy(tensor: &Tensor) -> Result<Tensor> {
    let found = host(tensor)?;
    if same(&found, tensor) { found.force_contiguous() } else { Ok(found) }
}

/// Copies on the CPU of tensors with their names, whatever they hold; `f32` of all that is no
/// whole number.
///
/// # Errors
/// What the device says.
pub fn copies(tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let copied = |tensor: &Tensor| match tensor.dtype().is_int() {
        true => arrived(tensor)?.force_contiguous(),
        false => host_copy(tensor),
    };
    tensors.into_iter().map(|(name, tensor)| Ok((name, copied(&tensor)?))).collect()
}

/// Overwrites an `f32` tensor in place with `values`, wherever it lives.
///
/// # Errors
/// When the number of elements differs; what the device says.
pub fn assign(tensor: &Tensor, values: &[f32]) -> Result<()> {
    if tensor.elem_count() != values.len() {
        bail!("{} values for a tensor of {:?}", values.len(), tensor.dims());
    }
    match Engine::of(tensor.device())?.backend() {
        Some(backend) => backend.write(bytemuck::cast_slice(values), span(tensor)?),
        None => with_mut(tensor, |to| to.copy_from_slice(values)),
    }
}

/// Whether two tensors have one storage, whichever parts of it they are.
pub fn same(a: &Tensor, b: &Tensor) -> bool {
    let place = |t: &Tensor| std::ptr::from_ref::<Storage>(&t.storage_and_layout().0);
    std::ptr::eq(place(a), place(b))
}

/// Copies one tensor's elements over another's of the same shape and type, on any device.
///
/// # Errors
/// When they do not fit; what the device says.
pub fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    if from.dims() != to.dims() || from.dtype() != to.dtype() {
        bail!("{:?} over {:?}", from.dims(), to.dims());
    }
    match Engine::of(to.device())?.backend() {
        Some(backend) => backend.copy(span(from)?, span(to)?),
        None => {
            let from = read(from)?;
            with_mut(to, |to| to.copy_from_slice(&from))
        }
    }
}

fn contiguous(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// An in-place op that hands its closure the destination's elements.
struct Write<F, R> {
    f: RefCell<Option<F>>,
    out: RefCell<Option<R>>,
}

impl<F: FnOnce(&mut [f32]) -> R, R> InplaceOp1 for Write<F, R> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let range = contiguous(layout)?;
        let CpuStorage::F32(v) = storage else { bail!("expected an f32 tensor") };
        if let Some(f) = self.f.take() {
            *self.out.borrow_mut() = Some(f(&mut v[range]));
        }
        Ok(())
    }
}

/// An in-place op that notes where the elements lie.
struct Address(Cell<u64>);

impl InplaceOp1 for Address {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let start = contiguous(layout)?.start;
        self.0.set(match storage {
            CpuStorage::F32(v) => v[start..].as_mut_ptr() as u64,
            CpuStorage::BF16(v) => v[start..].as_mut_ptr() as u64,
            CpuStorage::F64(v) => v[start..].as_mut_ptr() as u64,
            CpuStorage::U8(v) => v[start..].as_mut_ptr() as u64,
            CpuStorage::U32(v) => v[start..].as_mut_ptr() as u64,
            _ => bail!("no address for elements of this type"),
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let start = contiguous(layout)?.start;
        self.0.set(super::cuda::device::address(storage, start)?);
        Ok(())
    }
}

/// Whether every element is a number: neither infinite nor NaN. Whole numbers are. Reads all, on
/// all threads.
///
/// # Errors
/// What the device says.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    if tensor.dtype().is_int() {
        return Ok(true);
    }
    let values = host(tensor)?;
    Ok(!read(&values)?.par_chunks(CHUNK).any(has_not_finite))
}

/// The name of the first tensor of which an element is no number.
///
/// # Errors
/// What the device says.
pub fn first_not_finite<N: Into<String>, T: Borrow<Tensor>>(
    tensors: impl IntoIterator<Item = (N, T)>,
) -> Result<Option<String>> {
    for (name, tensor) in tensors {
        if !is_finite(tensor.borrow())? {
            return Ok(Some(name.into()));
        }
    }
    Ok(None)
}

/// Elements that one thread looks at in [`is_finite`].
const CHUNK: usize = 1 << 16;

/// Whether an exponent is all ones: infinity or NaN. Without a branch in the loop,
/// so that it becomes vector code.
fn has_not_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7F80_0000;
    values.iter().fold(false, |found, value| found | (value.to_bits() & EXPONENT == EXPONENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinity_and_nan_are_found_and_nothing_else() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 99] {
                let mut values = [1.5f32; 100];
                assert!(!has_not_finite(&values));
                values[at] = bad;
                assert!(has_not_finite(&values), "{bad} at {at}");
            }
        }
        assert!(!has_not_finite(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0, -0.0, 1e-45]));
    }

    #[test]
    fn writes_are_seen_through_clones_and_are_line_aligned() -> Result<()> {
        let t = zeros((3, 5), &Device::Cpu)?;
        let clone = t.clone();
        with_mut(&t, |v| v[7] = 2.5)?;
        assert_eq!(read(&clone)?[7], 2.5);
        assert_eq!(read(&t)?.as_ptr() as usize % 64, 0);
        assert_eq!(t.to_vec2::<f32>()?[1][2], 2.5);
        Ok(())
    }

    #[test]
    fn copies_stay_what_they_were() -> Result<()> {
        let (values, count) =
            (zeros((2, 3), &Device::Cpu)?, Tensor::new(1i64 << 40, &Device::Cpu)?);
        let half = Tensor::new(&[0.5f32, -2.0], &Device::Cpu)?.to_dtype(DType::BF16)?;
        let given = [("part", values.narrow(0, 1, 1)?), ("count", count), ("half", half)];
        let copied = copies(given.map(|(name, tensor)| (name.to_owned(), tensor)).to_vec())?;
        with_mut(&values, |v| v.fill(7.0))?;
        let names: Vec<_> = copied.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["part", "count", "half"]);
        assert_eq!(copied[0].1.to_vec2::<f32>()?, [[0.0; 3]]);
        assert_eq!(copied[1].1.to_scalar::<i64>()?, 1 << 40);
        assert_eq!(copied[2].1.to_vec1::<f32>()?, [0.5, -2.0]);
        Ok(())
    }

    #[test]
    fn strided_and_integer_tensors_are_refused() -> Result<()> {
        let t = zeros((3, 5), &Device::Cpu)?.t()?;
        assert!(read(&t).is_err());
        assert!(with_mut(&t, |_| ()).is_err());
        let t = Tensor::zeros(3, candle_core::DType::U32, &Device::Cpu)?;
        assert!(read(&t).is_err());
        assert!(with_mut(&t, |_| ()).is_err());
        Ok(())
    }

    #[test]
    fn a_fitting_buffer_is_kept() -> Result<()> {
        let mut slot = None;
        let a = reuse(&mut slot, &[2, 3], DType::F32, &Device::Cpu)?;
        with_mut(&a, |v| v[0] = 1.0)?;
        assert_eq!(read(&reuse(&mut slot, &[2, 3], DType::F32, &Device::Cpu)?)?[0], 1.0);
        assert_eq!(read(&reuse(&mut slot, &[3, 3], DType::F32, &Device::Cpu)?)?[0], 0.0);
        Ok(())
    }
}
