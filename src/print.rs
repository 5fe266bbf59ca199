//! Standard output and standard error, as this crate writes to them.
//!
//! The standard library's macros panic where they cannot write. The reader of a pipe who has seen
//! enough (`bt-stream knn RUN | head -1`) is no failure: the command goes on to its own end and
//! exit code, unheard. A full disk is an error like any other. Nothing that is said beside the
//! results (`2>&1 | head`, a log on a full disk) ends a run of days.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the reader of standard output has left.
static UNHEARD: AtomicBool = AtomicBool::new(false);

/// Writes to standard output; nothing once its reader has left. The process ends where that fails
/// otherwise: what is printed comes last.
pub(crate) fn print(text: Arguments<'_>) {
    if UNHEARD.load(Ordering::Relaxed) {
        return;
    }
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            UNHEARD.store(true, Ordering::Relaxed);
            return;
        }
        say(format_args!("bt-stream: standard output: {error}\n"));
        std::process::exit(1);
    }
}

/// Writes to standard error, if there is one.
pub(crate) fn say(text: Arguments<'_>) {
    // Who could be told?
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// [`std::print`] without its panic.
macro_rules! print {
    ($($text:tt)*) => { $crate::print::print(format_args!($($text)*)) };
}

/// [`std::println`] without its panic.
macro_rules! println {
    () => { $crate::print::print(format_args!("\n")) };
    ($($text:tt)*) => {
        $crate::print::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// [`std::eprintln`] without its panic.
macro_rules! eprintln {
    ($($text:tt)*) => {
        $crate::print::say(format_args!("{}\n", format_args!($($text)*)))
    };
}
