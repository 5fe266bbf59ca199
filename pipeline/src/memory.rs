//! The memory that batches live in: the process's own, or what the consumer provides (page-locked,
//! where a GPU copies from it). Recycled from batch to batch.

use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::scratch::Line;
use crate::{Error, Result};

/// Where a consumer has batches written.
///
/// # Safety
/// The loader writes to what [`BatchMemory::allocate`] gives, from several threads, and lends it
/// out as slices, without a look of its own. So each pointer must be good for reads and writes of
/// the `bytes` that were asked for, from any thread; the bytes must be initialised and begin on a
/// boundary of 64; and nobody else may read or write them, nor may they be given a second time,
/// until [`BatchMemory::free`] takes them back.
pub unsafe trait BatchMemory: Send + Sync {
    /// At least `bytes` bytes, initialised, on a boundary of 64, nobody else's until they are
    /// freed. `None` where there are none: the loader then takes its own.
    fn allocate(&self, bytes: usize) -> Option<NonNull<u8>>;

    /// Takes back what [`BatchMemory::allocate`] gave for as many `bytes`.
    ///
    /// # Safety
    /// `at` came from this memory for `bytes` bytes and is not used again.
    unsafe fn free(&self, at: NonNull<u8>, bytes: usize);
}

/// Recycled memory of one batch.
pub(crate) enum Buffer {
    Own(Vec<Line>),
    /// A large one: whole pages of its own.
    Mapped(MmapMut),
    Given(Given),
}

/// A consumer's memory.
pub(crate) struct Given {
    at: NonNull<u8>,
    bytes: usize,
    memory: Arc<dyn BatchMemory>,
}

// SAFETY: the bytes are this value's alone and any thread's (`BatchMemory`), as a `Vec`'s are.
unsafe impl Send for Given {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Given {}

impl Buffer {
    /// # Errors
    /// [`Error::System`] where nobody has as much memory: to ask for it without a look would end
    /// the process.
    pub(crate) fn new(bytes: usize, memory: Option<&Arc<dyn BatchMemory>>) -> Result<Self> {
        if let Some(memory) = memory
            && let Some(at) = memory.allocate(bytes)
        {
            return Ok(Buffer::Given(Given { at, bytes, memory: Arc::clone(memory) }));
        }
        if let Some(map) = mapped(bytes) {
            return Ok(Buffer::Mapped(map));
        }
        let (mut lines, count) = (Vec::new(), bytes.div_ceil(64));
        lines.try_reserve_exact(count).map_err(|_| {
            let what = format!("memory for a batch of {} MB", bytes.div_ceil(1 << 20));
            Error::system(what, std::io::ErrorKind::OutOfMemory.into())
        })?;
        lines.resize(count, Line::ZERO);
        Ok(Buffer::Own(lines))
    }

    /// No memory: a message that wakes whoever waits for a buffer.
    pub(crate) fn wake() -> Self {
        Buffer::Own(Vec::new())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Own(lines) => bytemuck::cast_slice(lines),
            Buffer::Mapped(map) => map,
            // SAFETY: initialised bytes that are this value's alone, by the trait's promise.
            Buffer::Given(given) => unsafe {
                std::slice::from_raw_parts(given.at.as_ptr(), given.bytes)
            },
        }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Buffer::Own(lines) => lines.as_mut_ptr().cast(),
            Buffer::Mapped(map) => map.as_mut_ptr(),
            Buffer::Given(given) => given.at.as_ptr(),
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        // SAFETY: `allocate` gave it for as many bytes, and nothing borrows it any more.
        unsafe { self.memory.free(self.at, self.bytes) }
    }
}

/// Memory of a large buffer, of which the system makes pages, and zeros, as they are first written
/// to: by the workers, not here. None for a small buffer, and where the system has none to give.
///
/// Huge pages are asked for before, as later the small ones are there. They save the buffer's page
/// faults and most of its TLB misses: the rows of a view lie in three planes, each far from the
/// other. The advice may be refused, which costs nothing but speed.
fn mapped(bytes: usize) -> Option<MmapMut> {
    if bytes < HUGE_PAGE {
        return None;
    }
    let map = MmapMut::map_anon(bytes).ok()?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Some(map)
}

/// Smaller buffers would be mostly padding in a page of this size.
const HUGE_PAGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what is out.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    // SAFETY: a boxed slice of whole lines for each call, which only `free` makes a box again.
    unsafe impl BatchMemory for Counted {
        fn allocate(&self, bytes: usize) -> Option<NonNull<u8>> {
            (bytes <= 1024).then(|| {
                self.0.fetch_add(bytes, Ordering::Relaxed);
                let lines = vec![Line::ZERO; bytes.div_ceil(64)].into_boxed_slice();
                NonNull::new(Box::into_raw(lines).cast()).unwrap()
            })
        }

        unsafe fn free(&self, at: NonNull<u8>, bytes: usize) {
            let lines = std::ptr::slice_from_raw_parts_mut(at.as_ptr().cast(), bytes.div_ceil(64));
            // SAFETY: made by `allocate` for as many bytes.
            drop(unsafe { Box::<[Line]>::from_raw(lines) });
            self.0.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_consumers_memory_is_used_and_given_back_and_its_own_where_there_is_none() {
        let counted = Arc::new(Counted::default());
        let memory: Arc<dyn BatchMemory> = counted.clone();
        let mut given = Buffer::new(100, Some(&memory)).unwrap();
        assert_eq!(given.bytes().len(), 100);
        assert_eq!(given.as_mut_ptr() as usize % 64, 0);
        assert_eq!(counted.0.load(Ordering::Relaxed), 100);
        let own = Buffer::new(4096, Some(&memory)).unwrap();
        assert!(matches!(own, Buffer::Own(_)) && own.bytes().len() == 4096);
        drop(given);
        assert_eq!(counted.0.load(Ordering::Relaxed), 0);
    }

    /// For each page of some bytes whether it is in memory.
    #[cfg(target_os = "linux")]
    fn resident(bytes: &[u8]) -> Vec<bool> {
        let mut pages = vec![0; bytes.len().div_ceil(4096)];
        let at = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the bytes are mapped, and there is room for as many pages as they may be.
        assert_eq!(unsafe { libc::mincore(at, bytes.len(), pages.as_mut_ptr()) }, 0);
        pages.into_iter().map(|page| page & 1 == 1).collect()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_takes_memory_when_it_is_written_to() {
        let bytes = 3 * HUGE_PAGE + 100;
        let mut buffer = Buffer::new(bytes, None).unwrap();
        assert_eq!((buffer.bytes().len(), buffer.as_mut_ptr() as usize % 4096), (bytes, 0));
        assert!(!resident(buffer.bytes()).contains(&true));
        // SAFETY: within the buffer.
        unsafe { buffer.as_mut_ptr().add(HUGE_PAGE).write(7) };
        assert!(resident(buffer.bytes()).contains(&true));
        assert!(buffer.bytes()[HUGE_PAGE] == 7 && buffer.bytes()[bytes - 1] == 0);
    }
}
