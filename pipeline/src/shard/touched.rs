//! Places of maps that a thread reads at random, as a loader's worker does: it lets go of each a few
//! samples later. Beside `passage`, for who reads a map in order.

use std::ops::Range;

use super::map::{FAULT_AROUND, Map, PIECE};

/// Bytes that one thread may have mapped of samples that it is done with.
const OF_A_THREAD: usize = 512 << 10;

/// What a thread has read of maps and not let go of.
#[derive(Default)]
pub(super) struct Touched {
    places: Vec<(Map, Range<usize>)>,
    /// Of all places together.
    bytes: usize,
}

impl Touched {
    /// Notes that this thread reads `length` bytes of `map` at `offset`, and now and then lets go of
    /// what it read before. Of small pieces the system maps far more than their bytes, and to let go
    /// of whole maps as often would take longer than to read the samples.
    pub fn note(&mut self, map: &Map, (offset, length): (u64, u64)) {
        if self.bytes > OF_A_THREAD {
            self.bytes = 0;
            self.places.drain(..).for_each(|(map, place)| map.release_range(place));
        }
        // A place beyond the end is refused by who reads it.
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let (start, end) = (at(offset), at(offset.saturating_add(length)));
        self.bytes += (end - start).saturating_add(2 * FAULT_AROUND);
        self.places.push((map.clone(), with_pieces(start, end)));
    }
}

/// A place with the pieces of the page cache that it lies in: of a large one the system maps all.
fn with_pieces(start: usize, end: usize) -> Range<usize> {
    start / PIECE * PIECE..end.checked_next_multiple_of(PIECE).unwrap_or(usize::MAX)
}
