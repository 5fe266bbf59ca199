//! Files that become shorter while they are mapped. Touching a page beyond the
//! new end raises SIGBUS, which ends the process. Here the page becomes zeros,
//! and the map is marked: whoever read from it asks [`Watch::hit`] afterwards and
//! reports an error instead of what it read.

use std::ptr::{self, null_mut};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A range of addresses that is looked after. Never freed, since the handler may
/// be looking at it; used again for another map.
struct Range {
    /// 0 while the entry is not in use.
    start: AtomicUsize,
    end: AtomicUsize,
    hit: AtomicBool,
    taken: AtomicBool,
    next: AtomicPtr<Range>,
}

/// All ranges: a list that only grows.
static RANGES: AtomicPtr<Range> = AtomicPtr::new(null_mut());
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
        range.hit.store(false, Ordering::Relaxed);
        range.end.store(start as usize + length, Ordering::Relaxed);
        range.start.store(start as usize, Ordering::Release);
        Watch(range)
    }

    /// Whether zeros stand in for bytes that the file no longer has.
    pub fn hit(&self) -> bool {
        self.0.hit.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
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

fn free_range() -> &'static Range {
    let take = |range: &&Range| {
        range.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    if let Some(range) = ranges().find(take) {
        return range;
    }
    let range: &'static Range = Box::leak(Box::new(Range {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        hit: AtomicBool::new(false),
        taken: AtomicBool::new(true),
        next: AtomicPtr::new(null_mut()),
    }));
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

/// Puts zeros where a watched map has lost its file. Anything else is given to
/// whoever handled the signal before: the faulting instruction runs again.
///
/// Calls nothing but `mmap` and `sigaction` and takes no lock: it may interrupt
/// anything.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system passes a valid `info` to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let watched = |range: &&Range| {
        let start = range.start.load(Ordering::Acquire);
        start != 0 && (start..range.end.load(Ordering::Relaxed)).contains(&address)
    };
    if let Some(range) = ranges().find(watched) {
        let page = address & !(PAGE.load(Ordering::Relaxed) - 1);
        let length = range.end.load(Ordering::Relaxed) - page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the pages from here to the end of the map belong to it, whose
        // owner holds the `Watch`, and none of them has a file behind it: the
        // faulting one has not, and those after it lie further beyond the end.
        let zeros = unsafe { libc::mmap(page as *mut _, length, libc::PROT_READ, flags, -1, 0) };
        if zeros as usize == page {
            range.hit.store(true, Ordering::Release);
            return;
        }
    }
    // SAFETY: stored by `install` before this handler was set, and never freed.
    unsafe { libc::sigaction(signal, BEFORE.load(Ordering::Acquire), null_mut()) };
}
