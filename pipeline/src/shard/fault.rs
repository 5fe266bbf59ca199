//! Mapped files whose pages cannot be had: the file became shorter, or the disk or
//! the server behind it gave up. Touching such a page raises SIGBUS, which ends
//! the process. Here the page becomes zeros, and the map is marked: whoever read
//! from it asks [`Watch::hit`] afterwards and reports an error instead of what it
//! read.

use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// A range of addresses that is looked after. Never freed, since the handler may
/// be looking at it; used again for another map.
struct Range {
    /// Changes with each change of `start` and `end`, and is odd while they change: the
    /// handler must not take the start of one map and the end of another for a range.
    changes: AtomicUsize,
    /// 0 while the entry is not in use.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Where in the map the first page was lost; [`NEVER`] while none was.
    hit: AtomicUsize,
    /// How many pages were lost.
    hits: AtomicUsize,
    next: AtomicPtr<Range>,
}

const NEVER: usize = usize::MAX;

/// Pages of one map that are replaced one by one, as each may be followed by one that is there.
/// Each makes the system keep a piece of the map apart, of which a process has some 65,000; after
/// so many the rest of the map goes at once.
const ONE_BY_ONE: usize = 1024;

impl Range {
    const fn new() -> Range {
        Range {
            changes: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            hit: AtomicUsize::new(NEVER),
            hits: AtomicUsize::new(0),
            next: AtomicPtr::new(null_mut()),
        }
    }

    /// Sets the addresses; for the one who has taken the entry.
    fn set(&self, start: usize, end: usize) {
        let changes = self.changes.load(Ordering::Relaxed);
        self.changes.store(changes.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.changes.store(changes.wrapping_add(2), Ordering::Release);
    }

    /// The addresses, if they are in use and nobody changes them at this moment. Whoever reads a
    /// map keeps its range as it is meanwhile, so that a range under change is never the one that a
    /// fault is about; and the handler, which may have interrupted the change, cannot wait for it.
    fn get(&self) -> Option<(usize, usize)> {
        let changes = self.changes.load(Ordering::Acquire);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let same = self.changes.load(Ordering::Relaxed) == changes;
        (same && changes.is_multiple_of(2) && start != 0).then_some((start, end))
    }
}

/// All ranges: a list that only grows.
static RANGES: AtomicPtr<Range> = AtomicPtr::new(null_mut());
/// Those that are not in use; nothing for the handler, which takes no lock.
static FREE: Mutex<Vec<&'static Range>> = Mutex::new(Vec::new());
/// What handled SIGBUS before.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// Looks after a map from its making to its end.
pub(super) struct Watch(&'static Range);

impl Watch {
    /// Looks after `length` bytes at `start`, which must be a mapped file.
    pub fn new(start: *const u8, length: usize) -> Watch {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        let range = free_range();
        range.hit.store(NEVER, Ordering::Relaxed);
        range.hits.store(0, Ordering::Relaxed);
        range.set(start as usize, start as usize + length);
        Watch(range)
    }

    /// The first place, that is known, where zeros stand in for bytes that could not be had.
    pub fn hit(&self) -> Option<usize> {
        Some(self.0.hit.load(Ordering::Acquire)).filter(|&offset| offset != NEVER)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.set(0, 0);
        free_ranges().push(self.0);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("hit", &self.hit()).finish()
    }
}

fn ranges() -> impl Iterator<Item = &'static Range> {
    let mut at = RANGES.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: entries are leaked boxes, so a pointer that is not null is good
        // for ever.
        let range = unsafe { at.as_ref() }?;
        at = range.next.load(Ordering::Acquire);
        Some(range)
    })
}

fn free_ranges() -> MutexGuard<'static, Vec<&'static Range>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn free_range() -> &'static Range {
    // Not looked for among all of them: a set maps thousands of files one after the other.
    let free = free_ranges().pop();
    if let Some(range) = free {
        return range;
    }
    let range: &'static Range = Box::leak(Box::new(Range::new()));
    let mut first = RANGES.load(Ordering::Acquire);
    loop {
        range.next.store(first, Ordering::Release);
        let new = ptr::from_ref(range).cast_mut();
        match RANGES.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return range,
            Err(now) => first = now,
        }
    }
}

fn install() {
    // SAFETY: plain system calls on memory of this function; the handler only
    // does what a signal handler may (see there).
    unsafe {
        if let Ok(page @ 1..) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) {
            PAGE.store(page, Ordering::Relaxed);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, null_mut(), &mut before) == 0 {
            // Before the handler, which needs it.
            BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
            libc::sigaction(libc::SIGBUS, &action, null_mut());
        }
    }
}

/// Puts zeros where a page of a watched map cannot be had. Anything else is given to
/// whoever handled the signal before: the faulting instruction runs again.
///
/// Calls nothing but `mmap` and `sigaction` and takes no lock: it may interrupt
/// anything.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system passes a valid `info` to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let watched = |range: &'static Range| {
        let (start, end) = range.get()?;
        (start..end).contains(&address).then_some((range, start, end))
    };
    if let Some((range, start, end)) = ranges().find_map(watched) {
        let page_bytes = PAGE.load(Ordering::Relaxed);
        let page = address & !(page_bytes - 1);
        let one_by_one = range.hits.fetch_add(1, Ordering::Relaxed) < ONE_BY_ONE;
        let length = if one_by_one { page_bytes } else { end - page };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // Before the zeros can be read.
        range.hit.fetch_min(page - start, Ordering::Release);
        // SAFETY: start and end are of one map, which is there: the faulting thread
        // reads from it, so that its owner holds the `Watch`. The pages from here to the end
        // of the map, which begins and ends with a page, are its own.
        let zeros = unsafe { libc::mmap(page as *mut _, length, libc::PROT_READ, flags, -1, 0) };
        if zeros as usize == page {
            return;
        }
    }
    // SAFETY: stored by `install` before this handler was set, and never freed.
    unsafe { libc::sigaction(signal, BEFORE.load(Ordering::Acquire), null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_map_takes_the_place_of_one_that_has_ended() {
        let bytes = [0u8; 64];
        let known = || ranges().count();
        let held: Vec<_> = (0..20).map(|at| Watch::new(&bytes[at], 1)).collect();
        let before = known();
        drop(held);
        (0..100_000).for_each(|_| drop(Watch::new(&bytes[0], 1)));
        // Tests beside this one may take some 20,000.
        assert!(known() < before + 50_000, "{before} {}", known());
    }

    #[test]
    fn a_range_is_never_half_of_one_map_and_half_of_another() {
        static RANGE: Range = Range::new();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut map = 1;
                while !stop.load(Ordering::Relaxed) {
                    RANGE.set(map * 1000, map * 1000 + map);
                    RANGE.set(0, 0);
                    map = map % 900 + 1;
                }
            });
            let (mut seen, mut torn) = (0, None);
            let start = std::time::Instant::now();
            while seen < 100_000 && start.elapsed().as_secs() < 20 && torn.is_none() {
                if let Some((from, to)) = RANGE.get() {
                    torn = (to.wrapping_sub(from) != from / 1000).then_some((from, to));
                    seen += 1;
                }
            }
            // First, or the other thread goes on for ever.
            stop.store(true, Ordering::Relaxed);
            assert_eq!(torn, None);
            assert!(seen > 0, "no range was ever seen");
        });
    }
}
