//! Which maps of a set are let go of, and when. Otherwise a process would seem to hold as much of
//! the data set as the page cache does.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Shard, ShardSet};
use crate::shard::map::{FAULT_AROUND, Map};

/// Bytes read from the maps after which their pages are let go.
const RESIDENT: u64 = 32 << 20;

/// Bytes that one thread may have mapped of samples that it is done with.
const OF_A_THREAD: usize = 512 << 10;

/// Maps are let go of twice after they were read: a reader may still be at its sample when it
/// happens first.
const ROUNDS: u8 = 2;

/// What a thread has read of the maps of a set and not let go of.
#[derive(Default)]
pub(in crate::shard) struct Touched {
    set: u64,
    /// Shard, and what of its map.
    places: Vec<(usize, Range<usize>)>,
    /// Of all places together.
    bytes: usize,
}

impl Shard {
    /// Notes that the maps are read. Written only where it is news: other threads read the flag,
    /// too.
    pub fn mark_read(&self) {
        if self.releases_left.load(Ordering::Relaxed) < ROUNDS {
            self.releases_left.fetch_max(ROUNDS, Ordering::Relaxed);
        }
    }

    /// Lets go of the maps, if they were read; returns whether they were.
    fn release(&self) -> bool {
        let fewer = |left: u8| left.checked_sub(1);
        if self.releases_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err() {
            return false;
        }
        if let Some(data) = self.data.get() {
            data.map.release();
        }
        if let Some(remote) = &self.remote {
            remote.release();
        }
        if let Some(index) = self.index.get() {
            index.release();
        }
        true
    }
}

impl ShardSet {
    /// Notes that `bytes` of a shard's maps are read, and now and then lets go of those that were,
    /// which are few of the thousands that a set may have. Returns how many shards' that were.
    pub(in crate::shard) fn count_bytes_read(&self, shard: usize, bytes: u64) -> usize {
        self.shards[shard].mark_read();
        let before = self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        if before / RESIDENT == before.wrapping_add(bytes) / RESIDENT {
            return 0;
        }
        self.shards.iter().filter(|shard| shard.release()).count()
    }

    /// Notes that a thread reads `place` of a shard, which is mapped as `map`, and now and then lets
    /// go of what it read before. Of small samples the system maps far more than their bytes, and
    /// to let go of whole maps as often would take longer than to read the samples.
    pub(in crate::shard) fn touch(
        &self,
        touched: &mut Touched,
        (shard, map): (usize, &Map),
        place: Range<u64>,
    ) {
        if touched.set != self.id {
            *touched = Touched { set: self.id, ..Touched::default() };
        }
        if touched.bytes > OF_A_THREAD {
            touched.bytes = 0;
            for (shard, place) in touched.places.drain(..) {
                if let Some(data) = self.shards[shard].data.get() {
                    data.map.release_range(place);
                }
            }
        }
        // A place beyond the end is refused by who reads it.
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let end = at(place.end).saturating_add(FAULT_AROUND).min(map.as_ref().len());
        let start = at(place.start).saturating_sub(FAULT_AROUND).min(end);
        touched.bytes += end - start;
        touched.places.push((shard, start..end));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::shard::{OpenOptions, ReadScratch};

    #[test]
    fn only_maps_that_were_read_are_let_go_of_and_twice() {
        let folder = tempfile::tempdir().unwrap();
        for shard in 0..12 {
            let path = folder.path().join(format!("{shard:02}.tar"));
            let mut tar = tar::Builder::new(File::create(path).unwrap());
            let mut header = tar::Header::new_ustar();
            header.set_size(100);
            tar.append_data(&mut header, "0.png", &[1; 100][..]).unwrap();
            tar.finish().unwrap();
        }
        let set = ShardSet::open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        let mut scratch = ReadScratch::default();
        for sample in 0..set.len() {
            set.read(sample, &mut scratch).unwrap();
        }
        let shards = set.shards().len();
        assert_eq!(shards, 12);
        assert_eq!(set.count_bytes_read(0, RESIDENT), shards, "all were read");
        set.read(set.len() - 1, &mut scratch).unwrap();
        assert_eq!(set.count_bytes_read(0, RESIDENT), shards, "samples may have been in use still");
        assert_eq!(
            set.count_bytes_read(0, RESIDENT),
            2,
            "the first, and the one that was read since"
        );
        assert_eq!(set.count_bytes_read(0, RESIDENT), 1);
    }
}
