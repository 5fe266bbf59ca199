//! Frames of a seekable `.tar.zst` as one thread keeps them: the last ones that it decompressed.

use std::ops::Range;
use std::path::Path;

use super::access::{beyond, window};
use super::zst::SeekTable;
use crate::{Error, Result};

/// Bytes of decompressed frames that a thread keeps. Those of a larger frame are made anew for each
/// of its samples.
const KEPT_FRAMES: usize = 128 << 20;

/// The last decompressed frames.
#[derive(Default)]
pub(super) struct Frames {
    /// Which frames `bytes` holds: set, shard, frames.
    holds: Option<(u64, usize, Range<usize>)>,
    bytes: Vec<u8>,
    context: Option<zstd::bulk::Decompressor<'static>>,
}

impl Frames {
    /// Bytes of the archive from the frames that hold them; `file` is the file of shard `key` from
    /// the given byte on, and `check` tells whether it was there when they have been decompressed.
    pub fn read(
        &mut self,
        key: (u64, usize),
        table: &SeekTable,
        file: (&[u8], u64),
        path: &Path,
        (offset, length): (u64, u64),
        check: impl FnOnce() -> Result<()>,
    ) -> Result<&[u8]> {
        let frames = table.frames(offset, length).ok_or_else(|| beyond(path, offset, length))?;
        let first = match self.held(key, &frames) {
            Some(first) => first,
            None => {
                self.holds = None;
                let context = match &mut self.context {
                    Some(context) => context,
                    empty => empty
                        .insert(zstd::bulk::Decompressor::new().map_err(|e| Error::io(path, e))?),
                };
                let (file, before) = file;
                table.decompress(file, before, path, frames.clone(), context, &mut self.bytes)?;
                check()?;
                self.holds = Some((key.0, key.1, frames.clone()));
                frames.start
            }
        };
        window(&self.bytes, table.start(first), offset, length)
            .ok_or_else(|| beyond(path, offset, length))
    }

    /// Gives back what a frame far larger than others took.
    pub fn trim(&mut self) {
        if self.bytes.capacity() > KEPT_FRAMES {
            (self.bytes, self.holds) = (Vec::new(), None);
        }
    }

    /// The first of the frames that are there, if `frames` are among them.
    pub fn held(&self, key: (u64, usize), frames: &Range<usize>) -> Option<usize> {
        let (set, shard, range) = self.holds.as_ref()?;
        let within =
            (*set, *shard) == key && range.start <= frames.start && frames.end <= range.end;
        within.then_some(range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_kept_up_to_a_size_and_never_known_where_they_are_not() {
        for (bytes, kept) in [(KEPT_FRAMES, true), (KEPT_FRAMES + 1, false)] {
            let mut frames = Frames {
                holds: Some((1, 2, 3..4)),
                bytes: Vec::with_capacity(bytes),
                context: None,
            };
            frames.trim();
            let held = frames.held((1, 2), &(3..4));
            assert_eq!((frames.bytes.capacity() > 0, held.is_some()), (kept, kept));
        }
    }
}
