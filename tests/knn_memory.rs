//! What kNN takes beside the features that it is given.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bt_stream::eval::{Features, KnnConfig, knn_accuracy};

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
struct Counted;

// SAFETY: passed on as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller knows.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller knows.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTED: Counted = Counted;

#[test]
fn features_are_neither_copied_nor_moved_about() {
    const DIM: usize = 1024;
    let rows = |count: usize| {
        let mut all = Features::empty(DIM);
        all.reserve(count);
        let before = NOW.load(Ordering::Relaxed);
        for row in 0..count {
            let values: Vec<f32> = (0..DIM).map(|i| ((row + i * i) % 17) as f32).collect();
            all.append(&values, &[(row % 3) as u32], &[row as u64]).unwrap();
        }
        let grown = NOW.load(Ordering::Relaxed).saturating_sub(before);
        assert!(grown < 4096, "{grown} bytes after room was made");
        all
    };
    let (references, queries) = (rows(30_000), rows(500));
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    knn_accuracy(references, queries, KnnConfig { k: 20, temperature: 0.1 }).unwrap();
    let taken = MOST.load(Ordering::Relaxed) - before;
    let references = 4 * DIM * 30_000;
    assert!(taken < references / 4, "{taken} bytes beside {references} of references");
}
