//! Which maps of a set are let go of, and when. Otherwise a process would seem to hold as much of
//! the data set as the page cache does.

use std::sync::atomic::Ordering;

use super::{Shard, ShardSet};

/// Bytes read from the maps after which their pages are let go.
const RESIDENT: u64 = 32 << 20;

/// Maps are let go of twice after they were read: a reader may still be at its sample when it
/// happens first.
const ROUNDS: u8 = 2;

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
