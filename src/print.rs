//! Standard output and standard error, as this crate writes to them, and what it says there.
//!
//! The standard library's macros panic where they cannot write. The reader of a pipe who has seen
//! enough (`bt-stream knn RUN | head -1`) is no failure: the command goes on to its own end and
//! exit code, unheard. A full disk is an error like any other. Nothing that is said beside the
//! results (`2>&1 | head`, a log on a full disk) ends a run of days.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

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

/// The error and its causes; those that the text before ends with already are not said twice. The
/// stack that candle's errors have behind them with `RUST_BACKTRACE=1` is not for users.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("0: "));
        let text = lines.collect::<Vec<_>>().join(" ");
        if said.is_empty() {
            said = text;
        } else if !said.ends_with(&text) {
            said = format!("{said}: {text}");
        }
    }
    said
}

/// A message of TOML's or serde's, which may have several lines, as one.
pub(crate) fn unbroken(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(" ")
}

/// A progress line for `total` images; hidden when standard error is no terminal.
pub(crate) fn progress(total: u64, name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} images  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(name.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_on_one_line_without_a_stack() {
        let inner =
            candle_core::Error::Msg("it does not fit\n   0: <unknown>\n      at a.rs:3".into());
        let error =
            anyhow::Error::from(inner).context("two\n lines").context("weights.safetensors");
        assert_eq!(one_line(&error), "weights.safetensors: two lines: it does not fit");
    }
}
