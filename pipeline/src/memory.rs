//! The memory that batches live in: the process's own, or what the consumer provides (page-locked,
//! where a GPU copies from it). Recycled from batch to batch.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::scratch::Line;

/// Where a consumer has batches written.
///
/// # Safety
/// The loader writes to what [`BatchMemory::allocate`] gives, from several threads, and lends it out
/// as slices, without a look of its own. So each pointer must be good for reads and writes of the
/// `bytes` that were asked for, from any thread; the bytes must be initialised and begin on a boundary of 64;
/// and nobody else may read or write them, nor may they be given a second time, until
/// [`BatchMemory::free`] takes them back.
pub unsafe trait BatchMemory: Send + Sync {
    /// At least `bytes` bytes, initialised, on a boundary of 64, nobody else's until they are freed.
    /// `None` where there are none: the loader then takes its own.
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
    pub(crate) fn new(bytes: usize, memory: Option<&Arc<dyn BatchMemory>>) -> Self {
        if let Some(memory) = memory
            && let Some(at) = memory.allocate(bytes)
        {
            return Buffer::Given(Given { at, bytes, memory: Arc::clone(memory) });
        }
        // Zeroed by the system, not touched here.
        let lines = vec![Line::ZERO; bytes.div_ceil(64)];
        huge_pages(&lines);
        Buffer::Own(lines)
    }

    /// No memory: a message that wakes whoever waits for a buffer.
    pub(crate) fn wake() -> Self {
        Buffer::Own(Vec::new())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Own(lines) => bytemuck::cast_slice(lines),
            // SAFETY: initialised bytes that are this value's alone, by the trait's promise.
            Buffer::Given(given) => unsafe {
                std::slice::from_raw_parts(given.at.as_ptr(), given.bytes)
            },
        }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Buffer::Own(lines) => lines.as_mut_ptr().cast(),
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

/// Asks for huge pages, which save a large buffer's page faults and most of its TLB
/// misses: the rows of a view lie in three planes, each far from the other.
#[cfg(target_os = "linux")]
fn huge_pages(lines: &[Line]) {
    const PAGE: usize = 4096;
    let bytes: &[u8] = bytemuck::cast_slice(lines);
    let start = bytes.as_ptr().align_offset(PAGE);
    if let Some(whole) = bytes.get(start..).filter(|whole| whole.len() >= HUGE_PAGE) {
        // SAFETY: the range is this buffer's own memory, of whole pages but for the
        // end, which the kernel rounds up; the advice changes no content. It may be
        // refused, which costs nothing but speed.
        unsafe {
            libc::madvise(whole.as_ptr().cast_mut().cast(), whole.len(), libc::MADV_HUGEPAGE)
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn huge_pages(_: &[Line]) {}

/// Smaller buffers would be mostly padding in a page of this size.
#[cfg(target_os = "linux")]
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
        let mut given = Buffer::new(100, Some(&memory));
        assert_eq!(given.bytes().len(), 100);
        assert_eq!(given.as_mut_ptr() as usize % 64, 0);
        assert_eq!(counted.0.load(Ordering::Relaxed), 100);
        let own = Buffer::new(4096, Some(&memory));
        assert!(matches!(own, Buffer::Own(_)) && own.bytes().len() == 4096);
        drop(given);
        assert_eq!(counted.0.load(Ordering::Relaxed), 0);
    }
}
