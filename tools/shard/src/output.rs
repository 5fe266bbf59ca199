//! What commands print: results to standard output, progress to a terminal.

use std::io::Write;

use bt_pipeline::shard::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A line of standard output. Errors are returned: the reader may be gone.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Whether what was to be printed has lost its reader, as with `| head`.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A line of standard error, if there is one: nobody has to listen to it.
pub fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A progress bar on standard error, where that is a terminal.
pub struct Bar(ProgressBar);

impl Bar {
    /// An empty one.
    pub fn new() -> Self {
        const TEMPLATE: &str = "{bar:30} {human_pos}/{human_len} {prefix}  {per_sec}  {msg}  \
                                {elapsed} elapsed, {eta} left";
        let style =
            ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        Bar(ProgressBar::new(0).with_style(style))
    }

    /// Shows how far it has come.
    pub fn show(&self, progress: Progress) {
        self.0.set_prefix(progress.unit);
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
        if progress.bytes > 0 {
            self.0.set_message(bytes(progress.bytes));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Bytes for people: `1.51 MiB`.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// `1 shard`, `2 shards`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", indicatif::HumanCount(number), if number == 1 { "" } else { "s" })
}
