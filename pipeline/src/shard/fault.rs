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
        let handler: Handler = on_fault;
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

/// What a handler with SA_SIGINFO is.
type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Puts zeros where a page of a watched map cannot be had. Anything else is given to
/// whoever handled the signal before.
///
/// Calls nothing but `mmap`, `sigaction`, `raise` and the handler before, and takes no lock: it may
/// interrupt anything.
extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the system passes a valid `info` to a handler with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // One that a process sent has its number where a fault has an address.
    let sent = code <= 0;
    if !sent && puts_zeros(address) {
        return;
    }
    // SAFETY: stored by `install` before this handler was set, and never freed.
    let before = unsafe { &*BEFORE.load(Ordering::Acquire) };
    match before.sa_sigaction {
        libc::SIG_IGN if sent => {}
        // Called here, so that this handler stays; one that wants to be called once alone is called
        // by the system.
        handler
            if ![libc::SIG_DFL, libc::SIG_IGN].contains(&handler)
                && before.sa_flags & libc::SA_RESETHAND == 0 =>
        {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: what the flag says that it is, as the system would call it.
                let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: as above; without the flag it takes the signal alone.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
                handler(signal);
            }
        }
        _ => {
            // The faulting instruction runs again; what was sent is sent again, and comes when this
            // handler returns.
            // SAFETY: plain system calls, the first with what it gave to `install`.
            unsafe {
                libc::sigaction(signal, before, null_mut());
                if sent {
                    libc::raise(signal);
                }
            }
        }
    }
}

/// Puts zeros into the page at `address` if a watched map has it; false where none has, or the
/// system has no page.
fn puts_zeros(address: usize) -> bool {
    let watched = |range: &'static Range| {
        let (start, end) = range.get()?;
        (start..end).contains(&address).then_some((range, start, end))
    };
    let Some((range, start, end)) = ranges().find_map(watched) else { return false };
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
    zeros as usize == page
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

    /// Calls of the handlers below.
    static CALLS: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn counts(_: libc::c_int) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts, and makes a page of zeros where one faulted.
    extern "C" fn mends(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: a signal's `info`, and the page of a map that the test holds.
        unsafe {
            if (*info).si_code > 0 {
                let page = (*info).si_addr() as usize & !(PAGE.load(Ordering::Relaxed) - 1);
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                libc::mmap(page as *mut _, 1, libc::PROT_READ, flags, -1, 0);
            }
        }
    }

    /// A file of a few bytes, to be mapped and made shorter.
    fn short(folder: &std::path::Path, name: &str) -> std::fs::File {
        let path = folder.join(name);
        std::fs::write(&path, [7; 100]).unwrap();
        std::fs::File::options().read(true).write(true).open(&path).unwrap()
    }

    /// What a process does whose handler before is `BT_FAULT_CHILD`: a signal is sent to it, it
    /// reads what no watched map has, then what one has.
    #[test]
    #[ignore = "run by other tests"]
    fn child() {
        let Ok(case) = std::env::var("BT_FAULT_CHILD") else { return };
        let info: Handler = mends;
        let plain: extern "C" fn(libc::c_int) = counts;
        let (handler, flags) = match case.as_str() {
            "info" => (info as usize, libc::SA_SIGINFO),
            "plain" => (plain as usize, 0),
            "ignored" => (libc::SIG_IGN, 0),
            _ => (libc::SIG_DFL, 0),
        };
        // SAFETY: handlers that do what one may, before anything else is installed here.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (handler, flags);
            assert_eq!(libc::sigaction(libc::SIGBUS, &action, null_mut()), 0);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = short(folder.path(), "watched");
        let watched = crate::shard::map::Map::open(&folder.path().join("watched")).unwrap();
        // SAFETY: a plain system call.
        unsafe { libc::raise(libc::SIGBUS) };
        if case == "info" {
            let file = short(folder.path(), "other");
            // SAFETY: what is read of it is made up by `mends`.
            let other = unsafe { memmap2::Mmap::map(&file).unwrap() };
            file.set_len(0).unwrap();
            assert_eq!(std::hint::black_box(&other)[0], 0);
        }
        file.set_len(0).unwrap();
        assert_eq!(std::hint::black_box(watched.as_ref())[0], 0);
        println!("{} calls", CALLS.load(Ordering::Relaxed));
    }

    #[test]
    fn who_handled_the_signal_before_gets_what_is_not_the_maps_and_takes_nothing_from_them() {
        use std::os::unix::process::ExitStatusExt;
        for (case, calls) in
            [("info", Some(2)), ("plain", Some(1)), ("ignored", Some(0)), ("default", None)]
        {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "shard::fault::tests::child", "--ignored", "--nocapture"])
                .env("BT_FAULT_CHILD", case)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            match calls {
                Some(calls) => {
                    assert!(output.status.success(), "{case}: {:?} {said}", output.status);
                    assert!(said.contains(&format!("{calls} calls")), "{case}: {said}");
                }
                None => assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{case}: {said}"),
            }
        }
    }
}
