//! Files that stay open behind their maps, as many as leave descriptors for others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files that are kept open.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// A file that is kept open.
#[derive(Debug)]
pub(super) struct KeptFile(File);

impl KeptFile {
    /// Keeps `file`, unless half of what the process may open is kept already.
    pub fn of(file: File) -> Option<KeptFile> {
        Self::one_of(file, most())
    }

    fn one_of(file: File, most: usize) -> Option<KeptFile> {
        let before = KEPT.fetch_add(1, Ordering::Relaxed);
        let kept = KeptFile(file);
        (before < most).then_some(kept)
    }

    /// Fills `buffer` with what lies at `offset`.
    ///
    /// # Errors
    /// When not all of it can be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Most files that are kept open: half of what the process may open.
fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a structure of the kind that is asked for.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
        if known { usize::try_from(limit.rlim_cur / 2).unwrap_or(usize::MAX) } else { 0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_kept_than_may_be_and_those_that_are_gone_make_room() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1, 2, 3], 0).unwrap();
        let another = || file.try_clone().unwrap();
        assert!(KeptFile::one_of(another(), 0).is_none());
        // Tests beside this one keep files, too.
        let kept = KeptFile::one_of(another(), usize::MAX).unwrap();
        let now = KEPT.load(Ordering::Relaxed);
        assert!(now >= 1 && most() > 1);
        let mut read = [0; 2];
        kept.read_at(&mut read, 1).unwrap();
        assert_eq!(read, [2, 3]);
        assert!(kept.read_at(&mut read, 2).is_err());
    }
}
