//! Where the bytes of an archive come from.

use std::io::{self, Read};

/// Where a tar's bytes come from: a slice, or a stream that is read once.
pub(crate) trait Source {
    /// Fills `buffer` as far as the source reaches; how much that was.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Skips up to `count` bytes; how many there were.
    fn skip(&mut self, count: u64) -> io::Result<u64>;
}

/// Bytes in memory or in a map; skipping costs nothing.
pub(crate) struct SliceSource<B> {
    bytes: B,
    at: usize,
}

impl<B: AsRef<[u8]>> SliceSource<B> {
    pub fn new(bytes: B) -> Self {
        SliceSource { bytes, at: 0 }
    }
}

impl<B: AsRef<[u8]>> Source for SliceSource<B> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.bytes.as_ref()[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let rest = self.bytes.as_ref().len() - self.at;
        let skipped = usize::try_from(count).unwrap_or(usize::MAX).min(rest);
        self.at += skipped;
        Ok(skipped as u64)
    }
}

/// A stream, such as a decompressor.
pub(crate) struct ReadSource<R>(pub R);

impl<R: Read> Source for ReadSource<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(count), &mut io::sink())
    }
}

impl Source for Box<dyn Source + Send> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).fill(buffer)
    }
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        (**self).skip(count)
    }
}
