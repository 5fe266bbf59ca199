//! A mapped file read once from its front, as an archive is: the pages behind are let go of on the
//! way, so that a process that streams a data set does not seem to hold it.

use std::io::{self, BufRead, Read};

use xxhash_rust::xxh3::Xxh3;

use super::map::{Map, PIECE};
use super::tar::Source;

/// Bytes that may lie behind before they are let go of: a window reads tens of shards side by side.
const BEHIND: usize = 1 << 20;

/// Where a reader stands in a map. For a tar a [`Source`], for a decompressor a [`BufRead`].
pub(super) struct Passage {
    map: Map,
    at: usize,
    /// Before it this reader has let go of everything.
    held_from: usize,
}

impl Passage {
    /// At the front of `map`.
    pub fn new(map: Map) -> Passage {
        Passage { map, at: 0, held_from: 0 }
    }

    fn rest(&self) -> &[u8] {
        &self.map.as_ref()[self.at..]
    }

    /// Goes on to `at`; what lies before it was read, or is not wanted.
    fn move_to(&mut self, at: usize) {
        self.at = at;
        if at - self.held_from >= BEHIND {
            self.release(at);
        }
    }

    /// Lets go of what lies before `end`.
    fn release(&mut self, end: usize) {
        // What was read first since the last time has brought some of what was let go of then.
        self.map.release_range(self.held_from.saturating_sub(PIECE)..end);
        self.held_from = end;
    }
}

/// XXH3-64 of a whole file.
pub(super) fn checksum(map: &Map) -> u64 {
    let (mut passage, mut hasher) = (Passage::new(map.clone()), Xxh3::new());
    while !passage.rest().is_empty() {
        let length = passage.rest().len().min(BEHIND);
        hasher.update(&passage.rest()[..length]);
        passage.move_to(passage.at + length);
    }
    hasher.digest()
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.release(self.map.as_ref().len());
    }
}

impl Source for Passage {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let rest = self.rest().len();
        let skipped = usize::try_from(count).map_or(rest, |count| count.min(rest));
        self.move_to(self.at + skipped);
        Ok(skipped as u64)
    }
}

impl Read for Passage {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.rest().len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest()[..count]);
        self.move_to(self.at + count);
        Ok(count)
    }
}

impl BufRead for Passage {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.rest())
    }

    fn consume(&mut self, count: usize) {
        self.move_to(self.at + count);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Bytes of the file at `path` that are mapped.
    fn resident(path: &std::path::Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_was_passed_is_let_go_of_whether_it_was_read_or_skipped() {
        const LENGTH: usize = 10 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..LENGTH / 8).flat_map(|word| word.to_le_bytes()).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Map::open(&path).unwrap();
        if std::hint::black_box(map.as_ref())[0] == 0 && resident(&path) == 0 {
            println!("skipped: the system does not tell what is mapped");
            return;
        }
        map.release();
        let mut passage = Passage::new(map.clone());
        let mut read = vec![0; LENGTH];
        let mut at = 0;
        while at < LENGTH {
            let end = (at + 100_000).min(LENGTH);
            assert_eq!(passage.fill(&mut read[at..end]).unwrap(), end - at);
            at = end;
            assert!(resident(&path) <= BEHIND + 2 * PIECE, "{at}");
        }
        assert!(read == bytes);
        assert!(resident(&path) > 0, "the test would see nothing");
        assert_eq!(passage.fill(&mut read[..1]).unwrap(), 0);
        drop(passage);
        assert_eq!(resident(&path), 0);

        let mut passage = Passage::new(map.clone());
        for sample in 1..100 {
            assert_eq!(passage.fill(&mut read[..10]).unwrap(), 10);
            assert_eq!(passage.skip(99_990).unwrap(), 99_990);
            assert!(resident(&path) <= BEHIND + 2 * PIECE, "{sample}");
            assert_eq!(passage.fill_buf().unwrap(), &bytes[sample * 100_000..]);
            // The comparison has mapped all of it.
            map.release();
        }
        assert_eq!(passage.skip(u64::MAX).unwrap(), (LENGTH - 9_900_000) as u64);
        assert!(passage.fill_buf().unwrap().is_empty());
        drop(passage);
        assert_eq!(checksum(&map), xxhash_rust::xxh3::xxh3_64(&bytes));
        assert_eq!(resident(&path), 0);
    }
}
