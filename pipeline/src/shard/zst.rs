//! Frames of a `.tar.zst` shard, by the zstd seekable format: independent
//! frames, and behind them a skippable frame that says how long each is.
//! Used by `set` for random access and by the writer.

use std::path::Path;

use xxhash_rust::xxh64::xxh64;

use super::map::slice;
use super::{Limits, damaged};
use crate::Result;

/// First bytes of a zstd frame.
pub(crate) const ZSTD_MAGIC: u32 = 0xFD2F_B528;
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEK_MAGIC: u32 = 0x8F92_EAB1;
/// Bytes of the seek table's footer: frames, descriptor, magic.
pub(crate) const FOOTER: usize = 9;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Whether a file that begins with `head` is compressed with zstd.
pub(crate) fn is_zstd(head: &[u8]) -> bool {
    // A skippable frame may come first too.
    word(head, 0).is_some_and(|magic| magic == ZSTD_MAGIC || magic & 0xFFFF_FFF0 == 0x184D_2A50)
}

/// Whether a file that ends with `tail` has a seek table.
pub(crate) fn has_table(tail: &[u8]) -> bool {
    tail.len() >= FOOTER && word(tail, tail.len() - 4) == Some(SEEK_MAGIC)
}

/// Whether a shard that begins with `head` and ends with `tail` can be read in any order.
pub(crate) fn is_seekable(head: &[u8], tail: &[u8]) -> bool {
    !is_zstd(head) || has_table(tail)
}

/// Bytes of the seek table at the end of a file, by its footer in `tail`, with the header of its
/// frame.
#[cfg(feature = "remote")]
pub(crate) fn table_bytes(tail: &[u8]) -> Option<u64> {
    let footer = tail.len().checked_sub(FOOTER)?;
    let width = if tail[footer + 4] & 0x80 != 0 { 12 } else { 8 };
    Some(u64::from(word(tail, footer)?) * width + 8 + FOOTER as u64)
}

/// Where each frame begins, in the file and decompressed; one more entry
/// than frames, the last being the ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SeekTable {
    compressed: Vec<u64>,
    decompressed: Vec<u64>,
    /// The lower half of XXH64 of each frame's content, where the table has it.
    checksums: Option<Vec<u32>>,
    /// Decompressed bytes that a frame may have: `Limits::frame_bytes`.
    limit: u64,
}

impl SeekTable {
    /// Reads the table at the end of `file`; `None` where there is none.
    pub fn parse(file: &[u8], path: &Path, limits: &Limits) -> Result<Option<SeekTable>> {
        SeekTable::parse_end(file, file.len() as u64, path, limits)
    }

    /// As `parse`, from the last bytes of a file of `length` bytes: [`table_bytes`] or more.
    pub fn parse_end(
        file: &[u8],
        length: u64,
        path: &Path,
        limits: &Limits,
    ) -> Result<Option<SeekTable>> {
        let before = length.saturating_sub(file.len() as u64);
        let Some(footer) = file.len().checked_sub(FOOTER).filter(|_| has_table(file)) else {
            return Ok(None);
        };
        let bad = |cause: String| {
            damaged(path, before + footer as u64, format!("zstd seek table: {cause}"))
        };
        let frames = word(file, footer).unwrap_or(0) as usize;
        let descriptor = file[footer + 4];
        if descriptor & 0x7C != 0 {
            return Err(bad(format!("unknown descriptor {descriptor:#04x}")));
        }
        let width = if descriptor & 0x80 != 0 { 12 } else { 8 };
        let table =
            frames.checked_mul(width).filter(|size| size + 8 <= footer).map(|size| footer - size);
        let start =
            table.ok_or_else(|| bad(format!("{frames} frames do not fit into the file")))?;
        let size = file.len() - start;
        if word(file, start - 8) != Some(SKIPPABLE_MAGIC)
            || word(file, start - 4) != u32::try_from(size).ok()
        {
            return Err(bad("its frame header does not belong to it".to_owned()));
        }
        let table = SeekTable::sum(&file[start..footer], width, limits.frame_bytes);
        let end = *table.compressed.last().unwrap_or(&0);
        let frames_end = before + (start - 8) as u64;
        if end != frames_end {
            return Err(bad(format!("its frames are {end} bytes, the file has {frames_end}")));
        }
        Ok(Some(table))
    }

    /// Running sums of the entries; 32-bit sizes of at most 2^32 frames fit into 64 bits.
    fn sum(entries: &[u8], width: usize, limit: u64) -> SeekTable {
        let mut table = SeekTable {
            compressed: vec![0],
            decompressed: vec![0],
            checksums: (width == 12).then(Vec::new),
            limit,
        };
        let (mut compressed, mut decompressed) = (0u64, 0u64);
        for entry in entries.chunks_exact(width) {
            compressed += u64::from(word(entry, 0).unwrap_or(0));
            decompressed += u64::from(word(entry, 4).unwrap_or(0));
            table.compressed.push(compressed);
            table.decompressed.push(decompressed);
            if let (Some(checksums), Some(checksum)) = (&mut table.checksums, word(entry, 8)) {
                checksums.push(checksum);
            }
        }
        table
    }

    /// Frames.
    pub fn len(&self) -> usize {
        self.decompressed.len().saturating_sub(1)
    }

    /// Decompressed bytes of all frames.
    pub fn length(&self) -> u64 {
        *self.decompressed.last().unwrap_or(&0)
    }

    /// The frames that hold the decompressed range, `None` beyond the end.
    pub fn frames(&self, offset: u64, length: u64) -> Option<std::ops::Range<usize>> {
        let end = offset.checked_add(length).filter(|&end| end <= self.length())?;
        let first = self.decompressed.partition_point(|&start| start <= offset).checked_sub(1)?;
        let last = self.decompressed.partition_point(|&start| start < end);
        Some(first..last.max(first))
    }

    /// Why `frames` cannot be decompressed: one of them is too large. The samples in it cannot be
    /// read, then; those of other frames can.
    pub fn too_large(&self, frames: &std::ops::Range<usize>) -> Option<String> {
        let mut sizes = frames.clone().map(|frame| self.end(frame) - self.start(frame));
        let large = sizes.find(|&size| size > self.limit)?;
        Some(format!("a frame of {large} bytes is over the limit of {}", self.limit))
    }

    /// Where frame `frame` begins, decompressed.
    pub fn start(&self, frame: usize) -> u64 {
        self.decompressed[frame]
    }

    /// Where frame `frame` ends, decompressed.
    pub fn end(&self, frame: usize) -> u64 {
        self.decompressed[frame + 1]
    }

    /// The bytes of the file that hold `frames`: offset and length.
    pub fn file_range(&self, frames: &std::ops::Range<usize>) -> (u64, u64) {
        let start = self.compressed[frames.start];
        (start, self.compressed[frames.end] - start)
    }

    /// Decompresses `frames` into `out`, which is replaced. `file` is the file from byte `before`
    /// on.
    pub fn decompress(
        &self,
        file: &[u8],
        before: u64,
        path: &Path,
        frames: std::ops::Range<usize>,
        context: &mut zstd::bulk::Decompressor<'static>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if let Some(cause) = self.too_large(&frames) {
            return Err(damaged(path, self.compressed[frames.start], cause));
        }
        let total = self.decompressed[frames.end] - self.decompressed[frames.start];
        let total =
            usize::try_from(total).map_err(|_| damaged(path, 0, "a frame larger than memory"))?;
        out.resize(total, 0);
        let mut filled = 0;
        for frame in frames {
            let at = self.compressed[frame];
            let size = (self.decompressed[frame + 1] - self.decompressed[frame]) as usize;
            let bytes = at
                .checked_sub(before)
                .and_then(|from| slice(file, from, self.compressed[frame + 1] - at))
                .ok_or_else(|| damaged(path, at, "a frame lies beyond the end of the file"))?;
            let part = &mut out[filled..filled + size];
            let count = context.decompress_to_buffer(bytes, part).map_err(|e| {
                damaged(path, at, format!("a zstd frame cannot be decompressed: {e}"))
            })?;
            if count != size {
                return Err(damaged(
                    path,
                    at,
                    format!("a zstd frame holds {count} bytes, the seek table says {size}"),
                ));
            }
            if let Some(checksums) = &self.checksums
                && checksums.get(frame) != Some(&(xxh64(part, 0) as u32))
            {
                return Err(damaged(
                    path,
                    at,
                    "a zstd frame does not match its checksum in the seek table",
                ));
            }
            filled += size;
        }
        Ok(())
    }
}

/// Bytes of the seek table of so many frames, as [`seek_table`] makes it.
pub(crate) fn seek_table_bytes(frames: usize) -> u64 {
    (frames as u64).saturating_mul(8) + 8 + FOOTER as u64
}

/// The seek table of frames with the given (compressed, decompressed) sizes,
/// as a skippable frame to be put behind them. The frames carry zstd's own
/// checksums, so the table has none.
pub(crate) fn seek_table(frames: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(seek_table_bytes(frames.len()) as usize);
    bytes.extend(SKIPPABLE_MAGIC.to_le_bytes());
    bytes.extend(((frames.len() * 8 + FOOTER) as u32).to_le_bytes());
    for (compressed, decompressed) in frames {
        bytes.extend(compressed.to_le_bytes());
        bytes.extend(decompressed.to_le_bytes());
    }
    bytes.extend((frames.len() as u32).to_le_bytes());
    bytes.push(0);
    bytes.extend(SEEK_MAGIC.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_finds_the_frames_of_any_range() {
        let mut file = vec![0; 30];
        file.extend(seek_table(&[(10, 100), (15, 200), (5, 50)]));
        assert_eq!(file.len() as u64, 30 + seek_table_bytes(3));
        let table = SeekTable::parse(&file, Path::new("x"), &Limits::default()).unwrap().unwrap();
        assert_eq!(table.length(), 350);
        assert_eq!(table.frames(0, 100), Some(0..1));
        assert_eq!(table.frames(99, 2), Some(0..2));
        assert_eq!(table.frames(100, 200), Some(1..2));
        assert_eq!(table.frames(349, 1), Some(2..3));
        assert_eq!(table.frames(349, 2), None);
        assert_eq!(table.frames(u64::MAX, 2), None);
        assert_eq!(table.file_range(&(1..3)), (10, 20));
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let mut file = vec![0; 30];
        file.extend(seek_table(&[(10, 100), (20, 200)]));
        let parse = |file: &[u8], limits: &Limits| SeekTable::parse(file, Path::new("x"), limits);
        let end = file.len();
        for (at, value) in [(end - 9, 3), (end - 8, 9), (end - 5, 4), (30, 0), (34, 1), (38, 11)] {
            let mut file = file.clone();
            file[at] = value;
            assert!(parse(&file, &Limits::default()).is_err(), "byte {at} = {value}");
        }
        file.pop();
        assert_eq!(parse(&file, &Limits::default()).unwrap(), None);
    }

    #[test]
    fn checksums_in_a_table_are_those_of_the_frames() {
        let frames = [vec![7u8; 100], vec![9u8; 50]];
        let packed = frames.each_ref().map(|frame| zstd::bulk::compress(frame, 1).unwrap());
        let read = |sums: [u32; 2], frame: usize| {
            let mut file = packed.concat();
            file.extend(SKIPPABLE_MAGIC.to_le_bytes());
            file.extend(((2 * 12 + FOOTER) as u32).to_le_bytes());
            for ((packed, frame), sum) in packed.iter().zip(&frames).zip(sums) {
                for word in [packed.len() as u32, frame.len() as u32, sum] {
                    file.extend(word.to_le_bytes());
                }
            }
            file.extend(2u32.to_le_bytes());
            file.push(0x80);
            file.extend(SEEK_MAGIC.to_le_bytes());
            let path = Path::new("x");
            let table = SeekTable::parse(&file, path, &Limits::default()).unwrap().unwrap();
            assert_eq!((table.len(), table.length()), (2, 150));
            let mut context = zstd::bulk::Decompressor::new().unwrap();
            let mut out = Vec::new();
            let done = table.decompress(&file, 0, path, frame..frame + 1, &mut context, &mut out);
            done.map(|()| out)
        };
        let [one, two] = frames.each_ref().map(|frame| xxh64(frame, 0) as u32);
        for (number, frame) in frames.iter().enumerate() {
            assert_eq!(read([one, two], number).unwrap(), *frame);
        }
        assert_eq!(read([one, two ^ 1], 0).unwrap(), frames[0]);
        for sums in [[one, two ^ 1], [two, one]] {
            let error = read(sums, 1).unwrap_err().to_string();
            assert!(error.contains("does not match its checksum"), "{error}");
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_not_decompressed_and_others_are() {
        let frames = [100usize, 200, 50].map(|size| vec![7u8; size]);
        let packed: Vec<_> =
            frames.iter().map(|frame| zstd::bulk::compress(frame, 1).unwrap()).collect();
        let sizes = packed.iter().zip(&frames).map(|(a, b)| (a.len() as u32, b.len() as u32));
        let mut file = packed.concat();
        file.extend(seek_table(&sizes.collect::<Vec<_>>()));
        let limits = Limits { frame_bytes: 199, ..Limits::default() };
        let path = Path::new("x");
        let table = SeekTable::parse(&file, path, &limits).unwrap().unwrap();
        let mut context = zstd::bulk::Decompressor::new().unwrap();
        let mut out = Vec::new();
        for (frames, bytes) in [(0..1, Some(100)), (2..3, Some(50)), (1..2, None), (0..3, None)] {
            let done = table.decompress(&file, 0, path, frames.clone(), &mut context, &mut out);
            assert_eq!(done.is_ok().then_some(out.len()), bytes, "{frames:?}");
            assert_eq!(table.too_large(&frames).is_some(), bytes.is_none());
        }
    }
}
