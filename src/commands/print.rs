//! Standard output, as commands write to it.
//!
//! The standard library's `print!` panics where it cannot write. The reader of a pipe who has seen
//! enough (`bt-stream knn RUN | head -1`) is no failure, and a full disk is an error like any other.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Writes to standard output. The process ends where that fails: what is printed comes last.
pub(crate) fn print(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("bt-stream: standard output: {error}");
        std::process::exit(1);
    }
}

/// [`std::print`] without its panic.
macro_rules! print {
    ($($text:tt)*) => { $crate::commands::print::print(format_args!($($text)*)) };
}

/// [`std::println`] without its panic.
macro_rules! println {
    () => { $crate::commands::print::print(format_args!("\n")) };
    ($($text:tt)*) => {
        $crate::commands::print::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
