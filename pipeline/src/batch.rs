//! Views -> one contiguous buffer, filled by several workers at once and
//! recycled when the consumer lets go of it.
//!
//! This is the only place where threads write into shared memory: a
//! `Filling` is cut into `Task`s over disjoint slots, and whoever finishes
//! the last one turns it into a [`Batch`].

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::augment::{Crop, DType, Layout, ViewOut, ViewParams};
use crate::memory::Buffer;
use crate::sync::{AtomicUsize, Sender, unpoisoned};

/// Shape and element type of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// Views of each image.
    pub views: usize,
    /// Images in a full batch.
    pub size: usize,
    /// Rows of a view.
    pub height: usize,
    /// Columns of a view.
    pub width: usize,
    /// Order of the dimensions.
    pub layout: Layout,
    /// Element type.
    pub dtype: DType,
}

impl BatchSpec {
    /// Elements of one view of one image; `usize::MAX` for more than that.
    pub fn view_len(&self) -> usize {
        self.height.saturating_mul(self.width).saturating_mul(3)
    }

    /// Bytes of a full batch; `usize::MAX`, which no buffer has, for more than that.
    pub fn bytes(&self) -> usize {
        [self.size, self.view_len(), self.dtype.size()]
            .into_iter()
            .fold(self.views, usize::saturating_mul)
    }
}

/// Views of `size` images with their labels, in the order of the epoch.
///
/// The data is `[views, size, H, W, 3]` or `[views, size, 3, H, W]`: all images'
/// first views, then all second views.
pub struct Batch {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch within the epoch, from 0.
    pub index: u64,
    /// Class of each image; [`Batch::NO_LABEL`] where the shard has none.
    pub labels: Vec<u32>,
    /// Each image's place in the whole set.
    pub samples: Vec<u64>,
    /// What was drawn for each view, in the order of the data, where the loader leaves colours,
    /// blur and solarize to the consumer ([`Finish::Consumer`](crate::Finish)); else empty.
    pub unfinished: Vec<ViewParams>,
    /// How often a sample was left out for another on the way to it.
    pub bad: u32,
    size: usize,
    spec: BatchSpec,
    buffer: Option<Buffer>,
    pool: Sender<Buffer>,
}

impl Batch {
    /// The label of a sample that has none.
    pub const NO_LABEL: u32 = u32::MAX;

    /// Images in this batch; the last one of an epoch may hold fewer than the others.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Shape and element type; `size` is that of a full batch.
    pub fn spec(&self) -> &BatchSpec {
        &self.spec
    }

    /// The data's bytes, `views * size * view_len` elements.
    pub fn as_bytes(&self) -> &[u8] {
        let spec = &self.spec;
        let bytes = spec.views * self.size * spec.view_len() * spec.dtype.size();
        match &self.buffer {
            Some(buffer) => &buffer.bytes()[..bytes],
            None => &[],
        }
    }

    /// The data as `f32`.
    ///
    /// # Panics
    /// When the loader was asked for another element type.
    pub fn as_f32(&self) -> &[f32] {
        assert_eq!(self.spec.dtype, DType::F32, "the batch holds another element type");
        bytemuck::cast_slice(self.as_bytes())
    }

    /// The data as `bf16`.
    ///
    /// # Panics
    /// When the loader was asked for another element type.
    pub fn as_bf16(&self) -> &[half::bf16] {
        assert_eq!(self.spec.dtype, DType::Bf16, "the batch holds another element type");
        bytemuck::cast_slice(self.as_bytes())
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("epoch", &self.epoch)
            .field("index", &self.index)
            .field("size", &self.size)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            // The pool has room for every buffer; it is gone when the stream is.
            let _ = self.pool.try_send(buffer);
        }
    }
}

/// Which batch it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub epoch: u64,
    /// Within the epoch.
    pub index: u64,
    /// Within the stream.
    pub number: u64,
}

/// What a worker is to put into a slot.
pub(crate) struct Item {
    /// Place in the whole set.
    pub sample: u64,
    /// Position in the epoch's global order; keys the draw of a replacement.
    pub position: u64,
    /// The sample, or what is wrong with it, where the set can only be streamed.
    pub owned: Option<crate::Result<crate::lent::LentSample>>,
}

/// A batch that is being filled.
pub(crate) struct Filling {
    spec: BatchSpec,
    size: usize,
    place: Place,
    pool: Sender<Buffer>,
    /// Slots not yet finished.
    remaining: AtomicUsize,
    /// Each slot's label and sample as the workers found them (a bad sample is replaced).
    labels: Vec<AtomicU32>,
    samples: Vec<AtomicU64>,
    bad: AtomicU32,
    /// Empty until the first is left.
    unfinished: Mutex<Vec<ViewParams>>,
    /// Until the last slot is finished.
    buffer: Mutex<Option<Buffer>>,
    /// Into `buffer`.
    slots: Slots,
}

/// The first element of a batch's buffer; workers write through it, each to its slots.
struct Slots(*mut u8);

// SAFETY: each slot is written by the one task that has it (`split` hands out each once), and read
// when all are finished: what was written is there for whoever takes `remaining` to zero (release on
// each decrement, acquire on the last).
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Filling {
    /// Starts a batch with one item a slot, and cuts it into tasks of at most
    /// `grain` slots.
    pub(crate) fn split(
        spec: BatchSpec,
        place: Place,
        mut buffer: Buffer,
        pool: Sender<Buffer>,
        items: Vec<Item>,
        grain: usize,
    ) -> Vec<Task> {
        let size = items.len();
        assert!(size <= spec.size && spec.bytes() <= buffer.bytes().len());
        let slots = Slots(buffer.as_mut_ptr());
        let filling = Arc::new(Filling {
            spec,
            size,
            place,
            pool,
            remaining: AtomicUsize::new(size),
            labels: (0..size).map(|_| Batch::NO_LABEL.into()).collect(),
            samples: (0..size).map(|_| 0.into()).collect(),
            bad: 0.into(),
            unfinished: Mutex::default(),
            buffer: Mutex::new(Some(buffer)),
            slots,
        });
        let mut tasks = Vec::with_capacity(size.div_ceil(grain));
        let mut items = items.into_iter();
        let mut start = 0;
        while start < size {
            let end = (start + grain).min(size);
            let items = items.by_ref().take(end - start).collect();
            tasks.push(Task { filling: Arc::clone(&filling), slots: start..end, items });
            start = end;
        }
        tasks
    }
}

/// The exclusive right to fill some slots of a batch.
pub(crate) struct Task {
    filling: Arc<Filling>,
    slots: Range<usize>,
    items: Vec<Item>,
}

impl Task {
    pub(crate) fn epoch(&self) -> u64 {
        self.filling.place.epoch
    }

    /// The batch's number in the stream.
    pub(crate) fn number(&self) -> u64 {
        self.filling.place.number
    }

    /// The items, one for each slot, in order.
    pub(crate) fn take_items(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// Where view `view` of the task's item `nth` is written.
    pub(crate) fn view(&mut self, nth: usize, view: usize) -> ViewOut<'_> {
        let Filling { spec, size, .. } = *self.filling;
        let slot = self.slots.start + nth;
        assert!(slot < self.slots.end && view < spec.views);
        let bytes = spec.view_len() * spec.dtype.size();
        // SAFETY: the offset lies in the buffer (`slot < size <= spec.size`, and
        // `split` checked the buffer against the spec). Nobody else has this slot
        // (`split` hands out disjoint ranges and `Task` is not cloned), `&mut self`
        // lets one view live at a time, and the buffer is not taken before this
        // task is finished, which consumes it.
        let target = unsafe {
            let start = self.filling.slots.0.add((view * size + slot) * bytes);
            std::slice::from_raw_parts_mut(start, bytes)
        };
        match spec.dtype {
            DType::F32 => ViewOut::F32(bytemuck::cast_slice_mut(target)),
            DType::Bf16 => ViewOut::Bf16(bytemuck::cast_slice_mut(target)),
            DType::U8 => ViewOut::U8(target),
        }
    }

    /// Notes what was put into item `nth`'s slot.
    pub(crate) fn note(&mut self, nth: usize, sample: u64, label: Option<u32>) {
        let slot = self.slots.start + nth;
        let label = label.unwrap_or(Batch::NO_LABEL);
        self.filling.labels[slot].store(label, Ordering::Relaxed);
        self.filling.samples[slot].store(sample, Ordering::Relaxed);
    }

    /// Notes that a sample was left out.
    pub(crate) fn note_bad(&self) {
        self.filling.bad.fetch_add(1, Ordering::Relaxed);
    }

    /// Leaves it to the consumer to finish item `nth`'s views, of which `params` were drawn.
    pub(crate) fn leave(&mut self, nth: usize, params: &[ViewParams]) {
        let Filling { spec, size, .. } = *self.filling;
        let slot = self.slots.start + nth;
        let mut all = unpoisoned(self.filling.unfinished.lock());
        if all.is_empty() {
            all.resize(spec.views * size, ViewParams::plain(Crop::whole(0, 0)));
        }
        for (view, params) in params.iter().enumerate() {
            all[view * size + slot] = *params;
        }
    }

    /// Declares the slots filled. The last task of a batch returns it.
    pub(crate) fn finish(self) -> Option<Batch> {
        let filling = &self.filling;
        let mine = self.slots.len();
        if filling.remaining.fetch_sub(mine, Ordering::AcqRel) != mine {
            return None;
        }
        // Every other task has been consumed.
        let unfinished = std::mem::take(&mut *unpoisoned(filling.unfinished.lock()));
        let buffer = unpoisoned(filling.buffer.lock()).take();
        Some(Batch {
            epoch: filling.place.epoch,
            index: filling.place.index,
            size: filling.size,
            labels: filling.labels.iter().map(|v| v.load(Ordering::Relaxed)).collect(),
            samples: filling.samples.iter().map(|v| v.load(Ordering::Relaxed)).collect(),
            unfinished,
            bad: filling.bad.load(Ordering::Relaxed),
            spec: filling.spec,
            buffer,
            pool: filling.pool.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(n: u64) -> Vec<Item> {
        (0..n).map(|sample| Item { sample, position: sample, owned: None }).collect()
    }

    fn spec(size: usize) -> BatchSpec {
        BatchSpec { views: 2, size, height: 3, width: 5, layout: Layout::Nhwc, dtype: DType::F32 }
    }

    /// Writes view number + 10 * sample into every element.
    fn fill(mut task: Task) -> Option<Batch> {
        for (nth, item) in task.take_items().into_iter().enumerate() {
            for view in 0..2 {
                let ViewOut::F32(out) = task.view(nth, view) else { panic!("asked for f32") };
                out.fill(view as f32 + 10.0 * item.sample as f32);
            }
            task.note(nth, item.sample, Some(item.sample as u32));
        }
        task.finish()
    }

    #[test]
    fn tasks_on_several_threads_fill_one_batch_and_its_buffer_returns() {
        let spec = spec(13);
        let (pool, free) = crate::sync::bounded(1);
        let buffer = Buffer::new(spec.bytes(), None).unwrap();
        let tasks = Filling::split(
            spec,
            Place { epoch: 4, index: 7, number: 0 },
            buffer,
            pool,
            items(13),
            3,
        );
        assert_eq!(tasks.len(), 5);
        let batches: Vec<Batch> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                tasks.into_iter().map(|task| scope.spawn(move || fill(task))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        let [batch] = &batches[..] else { panic!("one task finishes the batch") };
        assert_eq!((batch.epoch, batch.index, batch.size), (4, 7, 13));
        assert_eq!(batch.samples, (0..13).collect::<Vec<_>>());
        for (i, pixel) in batch.as_f32().iter().enumerate() {
            let (view, sample) = (i / (13 * 45), i / 45 % 13);
            assert_eq!(*pixel, view as f32 + 10.0 * sample as f32);
        }
        assert!(free.is_empty());
        drop(batches);
        assert_eq!(free.len(), 1);
    }

    #[test]
    fn a_shape_beyond_all_memory_has_no_small_size() {
        // The low 64 bits of 2 * 2^62 * 45 * 4 are 0.
        let huge = BatchSpec { size: 1 << 62, ..spec(1) };
        assert_eq!(huge.bytes(), usize::MAX);
        let huge = BatchSpec { height: 1 << 63, width: 2, ..spec(1) };
        assert_eq!((huge.view_len(), huge.bytes()), (usize::MAX, usize::MAX));
        assert_eq!(spec(3).bytes(), 2 * 3 * 3 * 5 * 3 * 4);
    }

    #[test]
    fn a_short_batch_is_contiguous_too() {
        let (pool, _free) = crate::sync::bounded(1);
        let buffer = Buffer::new(spec(8).bytes(), None).unwrap();
        let mut tasks = Filling::split(spec(8), Place::default(), buffer, pool, items(3), 8);
        let batch = fill(tasks.pop().unwrap()).unwrap();
        assert_eq!(batch.as_f32().len(), 2 * 3 * 45);
        assert_eq!(batch.as_f32()[3 * 45], 1.0);
    }
}
