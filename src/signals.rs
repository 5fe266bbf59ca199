//! SIGINT, SIGTERM and SIGHUP end the process within two seconds, and the time that writing its
//! checkpoint takes, and lose no step that was done.
//!
//! ```text
//! first signal     work that has something to save (`Stop::hold`) sees `raised` and ends after its
//!                  step; where there is none the process ends at once
//! GRACE later      `overdue`: the step in progress is given up, what was done before it is saved,
//!                  however long that takes
//! second signal    the process ends at once; a checkpoint that was being written is given up
//! ```
//!
//! The exit code is the shell's, 128 + the signal's number: 130 for SIGINT, 143 for SIGTERM, 129
//! for SIGHUP, which a terminal sends that is closed; under `nohup` it stays ignored.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bt_pipeline::unpoisoned;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

/// Time that a step has to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// What comes this soon after the first signal is its echo: `timeout` signals its child, then the
/// child's group.
const ECHO: Duration = Duration::from_millis(250);
/// Time between the end of the last hold and the end of the process, for what is still printed.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// A signal ended a command; what was done is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by {}", low_level::signal_name(*.signal).unwrap_or("a signal"))]
pub struct Interrupted {
    signal: i32,
}

impl Interrupted {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        (128 + self.signal) as u8
    }
}

/// Whether the work is to end. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    raised: Arc<AtomicBool>,
    overdue: Arc<AtomicBool>,
    /// The last signal's number; 0 before the first.
    signal: Arc<AtomicUsize>,
    /// Work that has something to save.
    holds: Arc<AtomicUsize>,
    /// A folder that does not outlive the process.
    temporary: Arc<Mutex<Option<PathBuf>>>,
}

impl Stop {
    /// One that the signals raise; to be made once in a process.
    ///
    /// # Errors
    /// When the system refuses a handler or a thread.
    pub fn on_signals() -> Result<Stop> {
        let stop = Stop::default();
        let mut handled = vec![SIGINT, SIGTERM];
        if !is_ignored(SIGHUP) {
            handled.push(SIGHUP);
        }
        let handle = || -> std::io::Result<Signals> {
            for &signal in &handled {
                // Seen at once, not when the thread below comes to it.
                flag::register_usize(signal, Arc::clone(&stop.signal), signal as usize)?;
                flag::register(signal, Arc::clone(&stop.raised))?;
            }
            Signals::new(&handled)
        };
        let mut signals = handle().context("cannot handle signals")?;
        let (first, begun) = mpsc::channel();
        let watch = move || {
            let mut since: Option<Instant> = None;
            for signal in signals.forever() {
                match since {
                    None => {
                        since = Some(Instant::now());
                        let _ = first.send(());
                    }
                    Some(since) if since.elapsed() > ECHO => low_level::exit(128 + signal),
                    Some(_) => {}
                }
            }
        };
        let watched = stop.clone();
        let end = move || {
            if begun.recv().is_ok() {
                watched.end_in_time();
            }
        };
        std::thread::Builder::new().name("bt-signals".into()).spawn(watch)?;
        std::thread::Builder::new().name("bt-end".into()).spawn(end)?;
        Ok(stop)
    }

    /// Ends the process when nothing is held any more.
    fn end_in_time(&self) {
        let mut waited = Duration::ZERO;
        let held = || self.holds.load(Ordering::SeqCst) > 0;
        while held() {
            while held() {
                let tick = Duration::from_millis(10);
                std::thread::sleep(tick);
                waited += tick;
                if waited >= GRACE {
                    self.overdue.store(true, Ordering::SeqCst);
                }
            }
            // Who holds anew in this time has more to save.
            std::thread::sleep(LAST_WORDS);
        }
        if let Some(interrupted) = self.interrupted() {
            let mut temporary = unpoisoned(self.temporary.lock());
            if let Some(folder) = temporary.take() {
                // What cannot be removed is the system's to clean, as any temporary folder.
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(interrupted.exit_code().into());
        }
    }

    /// Removes `folder` when a signal ends the process: no destructor runs then.
    pub fn remove_at_exit(&self, folder: &Path) {
        *unpoisoned(self.temporary.lock()) = Some(folder.to_owned());
    }

    /// Raises it without a signal: after the step in progress.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
    }

    /// Whether to end after the step in progress.
    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Whether to give up the step in progress.
    pub fn overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    /// [`Stop::overdue`] for those who look at it from within a step.
    pub fn overdue_flag(&self) -> &Arc<AtomicBool> {
        &self.overdue
    }

    /// The signal that raised it.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(Interrupted { signal: signal as i32 }),
        }
    }

    /// Keeps a signal from ending the process before the hold is dropped: there is something to
    /// save. Whoever holds looks at [`Stop::raised`] and [`Stop::overdue`].
    pub fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Hold(Arc::clone(&self.holds))
    }
}

/// See [`Stop::hold`].
#[derive(Debug)]
pub struct Hold(Arc<AtomicUsize>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether the process was started with a signal ignored, as `nohup` does with SIGHUP.
fn is_ignored(signal: i32) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one into `now`, which it has
    // filled where it returns 0.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
